"""Cost of a longer maximum span at equal memories retained, and of uneven rows.

    python runners/benchmark.py spans
    python runners/benchmark.py spans --device cuda

Every maximum span is measured in a process of its own, with memories of the same short span: time of a
training block and of a step, and the process's peak memory. Then a batch whose rows retain very different
numbers of memories is compared with one whose rows all retain the mean.

On a GPU, time and peak memory of a training block in bfloat16 are measured instead, with plain and with fused
attention, when each row holds as many memories as each maximum span.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from memory_suite.agents.model.retention.expire_span import ExpireSpan
from memory_suite.agents.model.sequence_model import SequenceModel
from memory_suite.agents.model.settings import AttentionKind, TransformerSettings
from memory_suite.agents.model.store.rows import NEVER, RowStore
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.configs import command_line
from memory_suite.runners.benchmarks.worker_process import BenchmarkError, Turn, WorkerProcess, peak_mebibytes
from memory_suite.runners.run.folder import write_json_atomically
from memory_suite.runners.run.progress import ProgressDisplay
from memory_suite.runners.training.build import choose_device

VOCABULARY = 256
WARM_BLOCKS = 3
"""training blocks before the first measurement"""
RAMP = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanScalingCommand:
    """Cost of a longer maximum span at equal memories retained, and of uneven rows."""

    max_spans: tuple[int, ...] = (256, 1_024, 4_096, 16_384, 65_536, 131_072)
    """maximum spans L to measure"""
    span: int = 200
    """span e_i of every memory, for every L"""
    width: int = 128
    """width of the model"""
    num_layers: int = 2
    """number of layers"""
    num_heads: int = 4
    """number of attention heads"""
    num_rows: int = 8
    """rows in the batch"""
    block_size: int = 256
    """tokens of a row in a block"""
    rounds: int = 10
    """number of measured blocks"""
    longest: int = 8_192
    """memories of the fullest row where rows are uneven"""
    threads: int = 1
    """number of torch threads"""
    device: Literal["cpu", "cuda"] = "cpu"
    """"cuda": fused against plain attention, with `max_spans` memories held instead of `span`"""
    json: Path | None = None
    """also write the numbers to this file"""

    def __post_init__(self) -> None:
        """Validate."""
        sizes = ("span", "width", "num_layers", "num_heads", "num_rows", "block_size", "longest")
        command_line.check_at_least_1(self, *sizes, "rounds", "threads")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width})")
        command_line.check_output(self.json)
        choose_device(self.device)
        if min(self.max_spans) <= self.span:
            raise ValueError(f"max_spans must all exceed span ({self.span}), got {min(self.max_spans)}")


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    command = command_line.parse(SpanScalingCommand, argv)
    display = ProgressDisplay(0)
    compare = _compare_attention if command.device == "cuda" else _compare_spans
    try:
        results = compare(command, display)
    except BenchmarkError as error:
        display.note(f"error: {error}")
        return 1
    if command.json is not None:
        write_json_atomically(command.json, results)
    return 0


def _compare_spans(command: SpanScalingCommand, display: ProgressDisplay) -> dict[str, Any]:
    """Every maximum span, and uneven rows, on a CPU."""
    machine = f"{os.cpu_count()} cores, {command.threads} torch thread(s), cpu"
    display.announce({"machine": machine, "torch": torch.__version__, "load": f"{os.getloadavg()[0]:.1f}"})
    results: dict[str, Any] = {"machine": machine, "spans": {}}
    for max_span in command.max_spans:
        found = _in_fresh_process(_measure_span, command, max_span)
        results["spans"][str(max_span)] = found
        display.note(
            f"maximum span {max_span:>7,}: {found['block_ms']:.0f} ms a block, "
            f"{found['step_ms']:.2f} ms a step; {found['retained']:.0f} memories a row, "
            f"{found['held_kib']:.0f} KiB held, peak {found['peak_mib']:.0f} MiB"
        )
    uneven = _in_fresh_process(_measure_uneven, command, 0)
    results["uneven"] = uneven
    display.note(
        f"rows that hold {uneven['counts']} memories: {uneven['uneven_ms']:.0f} ms a block; "
        f"all rows their mean: {uneven['even_ms']:.0f} ms; "
        f"all rows as many as the fullest: {uneven['padded_ms']:.0f} ms"
    )
    return results


def _compare_attention(command: SpanScalingCommand, display: ProgressDisplay) -> dict[str, Any]:
    """Both kinds at every number of memories held, on a GPU."""
    machine = torch.cuda.get_device_name()
    display.announce({"machine": machine, "torch": torch.__version__})
    results: dict[str, Any] = {"machine": machine, "held": {}}
    kinds: tuple[AttentionKind, ...] = ("plain", "fused")
    for held in command.max_spans:
        found = {kind: measure_attention(command, held, kind) for kind in kinds}
        results["held"][str(held)] = found
        said = ", ".join(
            f"{kind} {found[kind]['block_ms']:.1f} ms and {found[kind]['peak_mib']:.0f} MiB"
            if found[kind]
            else f"{kind} out of memory"
            for kind in kinds
        )
        display.note(f"{held:>7,} memories a row: {said}")
    return results


def measure_attention(command: SpanScalingCommand, held: int, kind: AttentionKind) -> dict[str, float]:
    """Cost of a training block whose rows hold `held` memories each; empty if GPU memory runs out."""
    device = torch.device(command.device)
    model = _model(command, 8 * held, kind).to(device)
    _retain_all(model)
    tokens = torch.randint(VOCABULARY, (command.num_rows, command.block_size), device=device)

    def block() -> None:
        _train(model, tokens, state, mixed=True)
        torch.cuda.synchronize()

    try:
        state = _holding(model, [held] * command.num_rows).to(device)
        for _ in range(WARM_BLOCKS):
            block()
        torch.cuda.reset_peak_memory_stats()
        block_ms = _milliseconds(block, command.rounds)
    except torch.OutOfMemoryError:
        return {}
    return {"block_ms": block_ms, "peak_mib": torch.cuda.max_memory_allocated() / 2**20}


Measurement = Callable[[SpanScalingCommand, int], dict[str, Any]]


def _in_fresh_process(measure: Measurement, command: SpanScalingCommand, max_span: int) -> dict[str, Any]:
    """Measure in a fresh process, whose peak memory is its own."""
    with WorkerProcess(_answer, measure, command, max_span) as process:
        found: dict[str, Any] = process.answer()
    return found


def _answer(turn: Turn, measure: Measurement, command: SpanScalingCommand, max_span: int) -> None:
    torch.set_num_threads(command.threads)
    turn(measure(command, max_span))


def _model(command: SpanScalingCommand, max_span: int, attention: AttentionKind = "plain") -> SequenceModel:
    torch.manual_seed(0)
    model = SequenceModel(
        TransformerSettings(
            width=command.width,
            num_layers=command.num_layers,
            num_heads=command.num_heads,
            max_span=max_span,
            ramp=RAMP,
            initial_span_fraction=command.span / max_span,
            attention=attention,
        ),
        vocabulary_size=VOCABULARY,
        num_targets=VOCABULARY,
    )
    return model


def _train(
    model: SequenceModel, tokens: torch.Tensor, state: MemoryState, *, mixed: bool = False
) -> MemoryState:
    """A block forward and backward."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=mixed):
        output = model.block(tokens, state, torch.zeros_like(tokens, dtype=torch.bool))
        objective = model.predict(output.y_BWD).square().mean()
    objective.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    assert output.state is not None
    return output.state


def _milliseconds(action: Callable[[], object], rounds: int) -> float:
    """Time of the fastest round, since other load on the machine only adds time."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - began))
    return min(times)


def _measure_span(command: SpanScalingCommand, max_span: int) -> dict[str, Any]:
    model = _model(command, max_span)
    shape = (command.num_rows, command.block_size)
    state = model.initial_state(command.num_rows)
    for _ in range(WARM_BLOCKS):
        state = _train(model, torch.randint(VOCABULARY, shape), state)

    def block() -> None:
        nonlocal state
        state = _train(model, torch.randint(VOCABULARY, shape), state)

    def step() -> None:
        nonlocal state
        first = torch.zeros(command.num_rows, dtype=torch.bool)
        state = model.step(torch.randint(VOCABULARY, (command.num_rows,)), state, first).state

    block_ms = _milliseconds(block, command.rounds)
    retained = state.retained_B.double().mean().item() / command.num_layers
    step_ms = _milliseconds(step, 20 * command.rounds)
    return {
        "block_ms": block_ms,
        "step_ms": step_ms,
        "retained": retained,
        "held_kib": state.bytes_held / 1024,
        "peak_mib": peak_mebibytes(),
    }


def _measure_uneven(command: SpanScalingCommand, _: int) -> dict[str, Any]:
    """Rows that hold 1, 1/2, 1/4, ... of `longest`, against rows that all hold the mean, or all the most."""
    model = _model(command, 8 * command.longest)
    _retain_all(model)
    counts = [max(1, command.longest >> row) for row in range(command.num_rows)]
    mean = sum(counts) // len(counts)
    tokens = torch.randint(VOCABULARY, (command.num_rows, command.block_size))
    states = [_holding(model, choice) for choice in (counts, [mean] * len(counts), [counts[0]] * len(counts))]
    times: list[list[float]] = [[], [], []]
    for _ in range(command.rounds):
        for found, state in zip(times, states, strict=True):
            found.append(_milliseconds(lambda state=state: _train(model, tokens, state), 1))  # type: ignore[misc]
    uneven, even, padded = (min(found) for found in times)
    return {"counts": counts, "uneven_ms": uneven, "even_ms": even, "padded_ms": padded}


def _retain_all(model: SequenceModel) -> None:
    for layer in model.transformer.layers:
        assert isinstance(layer.retention, ExpireSpan)
        torch.nn.init.constant_(layer.retention.predictor.bias, 10.0)


def _holding(model: SequenceModel, counts: list[int]) -> MemoryState:
    """A state whose rows hold `counts` memories, in stores as wide as the fullest row needs."""
    state = model.initial_state(len(counts))
    width = max(counts)
    birth_BW = torch.arange(-1, -width - 1, -1).expand(len(counts), -1).clone()
    for row, count in enumerate(counts):
        birth_BW[row, count:] = NEVER
    for index, layer in enumerate(state.layers):
        wide = layer.to_rows().padded(width)
        hidden = torch.randn(wide.h_BTD.shape)
        state.layers[index] = RowStore(hidden, birth_BW, wide.cue_BT, wide.compressed_BT)
    return state
