"""Training and judging on sequence tasks, end to end and small: files, exact resume, ranks, faults."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.archive import read_archive
from agents.ranks import Ranks
from configs import sequence_schema
from configs.sequence_schema import SequenceConfig, load
from envs.sequences.stream import IGNORE
from runners import benchmark, evaluate_sequence, train_sequence
from runners.run_folder import RunFolder
from runners.sequences.evaluation import evaluate
from runners.sequences.factory import make_model, open_stream
from runners.sequences.trainer import SequenceTrainer, TrainingFaultError
from tests.runners.launch import finished, launch, wait_for

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--num-rows", "4", "--block-size", "16", "--total-updates", "12", "--optimizer.warmup-updates", "3"),
    *("--model.width", "16", "--model.num-heads", "2", "--memory.max-span", "64", "--memory.ramp", "8"),
    *("--memory.initial-span-fraction", "0.3", "--held-out.every", "5", "--held-out.tokens", "256"),
    *("--held-out.final-tokens", "1024", "--track", "disabled", "--checkpoint-every", "4"),
]
COPY = ["--task", "copy", "--task-arg", "distance=20", "--task-arg", "string_length=4"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    tensors, _ = read_archive(RunFolder.open(run).latest_checkpoint().path)
    return {name: part for name, part in tensors.items() if "/model/" in name}


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "alphabet.txt"
    path.write_bytes(bytes(range(97, 123)) * 400)
    return path


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    words = [*SMALL, "--task", "text", "--data", str(text_file), "--run", str(run), "--csv"]
    assert train_sequence.main(words) == 0
    return run


def test_a_run_leaves_what_it_promises(text_run: Path) -> None:
    names = {path.name for path in text_run.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "metrics.csv", "checkpoints", "evaluation.json"}
    logged = rows(text_run)
    assert len(logged) == 12
    assert [number for number, row in enumerate(logged, 1) if "held_out/bits_per_byte" in row] == [5, 10, 12]
    assert logged[0]["train/loss"] == pytest.approx(math.log(256), abs=1e-4)
    assert logged[-1]["train/loss"] < logged[0]["train/loss"]
    result = json.loads((text_run / "evaluation.json").read_text())
    assert result["split"] == "valid"
    assert result["targets"] == 26 * 400 // 20 - 1, "each byte of the split but its first, once"


def test_every_logged_name_is_described(text_run: Path) -> None:
    described = (ROOT / "docs" / "metrics.md").read_text()
    for name in {
        name for row in (text_run / "metrics.jsonl").read_text().splitlines() for name in json.loads(row)
    }:
        assert f"`{re.sub(r'layer[0-9]+', 'layer*', name)}`" in described, f"{name} is not in docs/metrics.md"


@pytest.mark.parametrize("task", ["collision", "copy", "instruction"])
@pytest.mark.parametrize("memory", ["expire-span", "transformer-xl", "adaptive-span", "compressive", "none"])
def test_every_task_runs_with_every_memory(task: str, memory: str) -> None:
    config = load([*SMALL, "--task", task, "--memory", memory])
    stream = open_stream(config, "train")
    trainer = SequenceTrainer(config, make_model(config, stream, torch.device("cpu")), stream, Ranks())
    for _ in range(3):
        report = trainer.update()
    assert math.isfinite(report.loss)
    score = evaluate(trainer.model, open_stream(config, "test"), block_size=16, max_tokens=128)
    assert score.tokens == 128


@pytest.mark.parametrize("name", ["text", "collision", "copy", "instruction"])
def test_every_preset_loads(name: str) -> None:
    assert load(["--task", name]).task == name
    assert (SequenceConfig.PRESETS / f"{name}.yaml").is_file()


DISTURBED = [
    *COPY, *SMALL, "--memory.random-shortening", "true", "--model.layer-drop", "0.3",
    "--model.dropout", "0.1", "--accumulation", "2", "--penalty.begin-updates", "4", "--penalty.form", "all",
]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train_sequence.main([*DISTURBED, "--run", str(run)]) == 0
    return run


@pytest.mark.parametrize("stop_after", [1, 4, 5, 9, 11])
def test_an_interrupted_run_goes_on_bit_for_bit(
    stop_after: int, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, done = tmp_path / "run", 0
    update = SequenceTrainer.update

    def update_and_interrupt(trainer: SequenceTrainer) -> Any:
        nonlocal done
        report = update(trainer)
        done += 1
        if done == stop_after:
            os.kill(os.getpid(), 15)
        return report

    with monkeypatch.context() as patch:
        patch.setattr(SequenceTrainer, "update", update_and_interrupt)
        assert train_sequence.main([*DISTURBED, "--run", str(run)]) == 75
    assert len(rows(run)) == stop_after
    assert train_sequence.main(["--resume", str(run)]) == 0
    assert rows(run) == rows(uninterrupted)
    ours, theirs = weights(run), weights(uninterrupted)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _torchrun(ranks: int, *words: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    script = str(ROOT / "runners" / "train_sequence.py")
    done = subprocess.run([*command, "--", script, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_ranks_make_the_same_updates_as_one_and_either_goes_on(tmp_path: Path) -> None:
    words = [*COPY, *SMALL, "--memory.random-shortening", "true", "--memory.max-span", "24"]
    assert train_sequence.main([*words, "--run", str(tmp_path / "one")]) == 0
    _torchrun(2, *words, "--run", str(tmp_path / "two"))
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(two) == len(one)
    for ours, theirs in zip(one, two, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-5)
        assert ours["train/gradient_norm"] == pytest.approx(theirs["train/gradient_norm"], rel=1e-3)
    torch.testing.assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-3, atol=1e-4)
    # A checkpoint of two ranks goes on with one: undo the last updates, and make them again.
    for name in ("one", "two"):
        folder = tmp_path / name / "checkpoints"
        (folder / "step_000000768.zip").unlink()
        (folder / "latest").unlink()
        assert train_sequence.main(["--resume", str(tmp_path / name)]) == 0
    torch.testing.assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-3, atol=1e-4)
    again = rows(tmp_path / "two")
    assert [row["train/loss"] for row in again] == pytest.approx([row["train/loss"] for row in two], rel=1e-5)


LONG = [*COPY, *SMALL, "--total-updates", "100000", "--checkpoint-every", "4"]
SCRIPT = ROOT / "runners" / "train_sequence.py"
TOKENS = 4 * 16
"""of an update"""


def start_two(run: Path, *words: str) -> list[subprocess.Popen[str]]:
    """Two ranks that have saved something of their own."""
    latest = run / "checkpoints" / "latest"
    before = latest.read_text() if latest.exists() else None
    processes = launch(2, *words, script=SCRIPT)
    wait_for(latest, processes)
    while latest.read_text() == before:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    return processes


def goes_on(run: Path) -> bool:
    """Whether two ranks can resume the run, whose rows are then in order, with none lost or doubled."""
    processes = start_two(run, "--resume", str(run))
    processes[0].terminate()
    assert [code for code, _ in finished(processes)] == [75, 75]
    return [row["train/n_updates"] for row in rows(run)] == list(range(1, len(rows(run)) + 1))


@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_any_rank_saves_once_and_ends_all(asked: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = start_two(run, *LONG, "--run", str(run))
    processes[asked].terminate()
    first, second = finished(processes)
    assert (first[0], second[0]) == (75, 75), first[1] + second[1]
    tokens = RunFolder.open(run).latest_checkpoint().step
    assert f"Interrupted at {tokens:,} tokens, and saved" in first[1]
    assert len(rows(run)) == tokens // TOKENS
    assert goes_on(run)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_dies_ends_the_run_with_a_message(killed: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = start_two(run, *LONG, "--run", str(run))
    processes[killed].kill()
    code, said = finished(processes)[1 - killed]
    assert code == 1
    assert "error: training stopped: another process of this run has ended or does not answer" in said
    assert ("rank 1: error" in said) == (killed == 0)
    assert f"--resume {run}" in said
    assert "Traceback" not in said
    assert goes_on(run)


@pytest.mark.parametrize("words", [["--run"], ["--resume"]])
def test_a_mistake_that_only_the_first_rank_sees_ends_all(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").touch()
    for code, said in finished(launch(2, *COPY, *SMALL, *words, str(tmp_path / "run"), script=SCRIPT)):
        assert code == 2
        assert "error: " in said
        assert "Traceback" not in said


def test_accumulated_blocks_are_one_update_of_their_mean() -> None:
    config = load([*COPY, *SMALL, "--accumulation", "3", "--penalty.weight", "0"])
    stream = open_stream(config, "train")
    trainer = SequenceTrainer(config, make_model(config, stream, torch.device("cpu")), stream, Ranks())
    by_hand = make_model(config, stream, torch.device("cpu"))
    other = open_stream(config, "train")
    state, loss, count = by_hand.initial_state(4), torch.zeros(()), 0
    for _ in range(3):
        block = other.read(16)
        targets = torch.from_numpy(block.targets)
        output = by_hand.block(torch.from_numpy(block.tokens), state, torch.from_numpy(block.is_first))
        assert output.state is not None
        state, scored = output.state, targets != IGNORE
        loss = loss + torch.nn.functional.cross_entropy(
            by_hand.predict(output.y_BTD[scored]), targets[scored], reduction="sum"
        )
        count += int(scored.sum())
    (loss / count).backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(by_hand.parameters(), config.optimizer.max_grad_norm)
    report = trainer.update()
    assert report.targets == count
    assert report.gradient_norm == pytest.approx(float(norm), rel=1e-5)
    for ours, theirs in zip(trainer.model.parameters(), by_hand.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_warm_up_and_schedule() -> None:
    config = load([*COPY, *SMALL, "--total-updates", "10", "--optimizer.warmup-updates", "4"])
    stream = open_stream(config, "train")
    trainer = SequenceTrainer(config, make_model(config, stream, torch.device("cpu")), stream, Ranks())
    rates = []
    for updates in range(10):
        trainer.updates = updates
        rates.append(trainer.learning_rate() / config.optimizer.learning_rate)
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[7] == pytest.approx(0.5)
    assert 0.0 < rates[9] < rates[8] < rates[7]


def test_the_penalty_waits_and_then_shortens_spans() -> None:
    words = [*COPY, *SMALL, "--penalty.form", "all", "--penalty.weight", "1", "--penalty.begin-updates", "3"]
    config = load([*words, "--optimizer.learning-rate", "0.05", "--optimizer.warmup-updates", "0"])
    stream = open_stream(config, "train")
    trainer = SequenceTrainer(config, make_model(config, stream, torch.device("cpu")), stream, Ranks())
    reports = [trainer.update() for _ in range(10)]
    assert [report.penalty_weight for report in reports[:4]] == [0, 0, 0, 1]
    spans = [float(torch.stack(report.spans).mean()) for report in reports]
    assert spans[9] < 0.7 * spans[2]


def test_training_may_begin_with_the_weights_of_another_run(
    text_run: Path, text_file: Path, tmp_path: Path
) -> None:
    words = [*SMALL, "--task", "text", "--data", str(text_file), "--init", str(text_run)]
    assert train_sequence.main([*words, "--run", str(tmp_path / "second")]) == 0
    assert rows(tmp_path / "second")[0]["train/loss"] < rows(text_run)[0]["train/loss"] - 0.1
    with pytest.raises(SystemExit):
        train_sequence.main([*words, "--model.width", "32", "--run", str(tmp_path / "third")])
    assert not (tmp_path / "third").exists()


# -- evaluation ---------------------------------------------------------------------------------------


def test_an_evaluation_does_not_depend_on_the_block_size(text_run: Path, tmp_path: Path) -> None:
    found = []
    for size in (16, 7, 64):
        file = tmp_path / f"{size}.json"
        words = ["--run", str(text_run), "--split", "test", "--block-size", str(size), "--json", str(file)]
        assert evaluate_sequence.main(words) == 0
        found.append(json.loads(file.read_text()))
    assert found[0]["targets"] == 26 * 400 // 20 - 1
    for other in found[1:]:
        assert other["targets"] == found[0]["targets"]
        assert other["loss"] == pytest.approx(found[0]["loss"], rel=1e-5)


def test_cutting_spans_makes_memory_smaller(text_run: Path, tmp_path: Path) -> None:
    held = []
    for words in ([], ["--max-span", "2"]):
        file = tmp_path / "out.json"
        evaluate_sequence.main(["--run", str(text_run), *words, "--json", str(file)])
        held.append(max(json.loads(file.read_text())["retained_max"]))
    assert held[1] <= 2 + 8 < held[0]


def test_copy_is_judged_by_distance(tmp_path: Path) -> None:
    assert train_sequence.main([*COPY, *SMALL, "--run", str(tmp_path / "run")]) == 0
    file = tmp_path / "out.json"
    words = ["--run", str(tmp_path / "run"), "--task-arg", "distance=60", "--tokens", "4096"]
    assert evaluate_sequence.main([*words, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["error"] == pytest.approx(15 / 16, abs=0.1)
    assert any("64_tokens" in name for name in result)


def test_the_efficiency_table(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--width 16 --num-layers 2 --num-heads 2 --block-size 16 --updates 10 --rounds 2 --reach 64"
    where = ["--data", str(text_file), "--run", str(tmp_path / "runs"), "--json", str(tmp_path / "out.json")]
    memories = ["--memories", "transformer-xl", "expire-span"]
    assert benchmark.main(["sequence", *words.split(), *where, *memories]) == 0
    result = json.loads((tmp_path / "out.json").read_text())["rows"]
    held = [float(count) for count in result["transformer-xl"]["memories held, by layer"].split(",")]
    assert all(32 < count <= 64 for count in held)  # 64 once the rows are as long
    assert "time against transformer-xl" in result["expire-span"]
    assert "transformer-xl: 10 updates" in capsys.readouterr().out
    assert benchmark.main(["sequence", *words.split(), *where, *memories]) == 0
    assert "expire-span: trained before" in capsys.readouterr().out


def test_what_a_longer_span_costs(tmp_path: Path) -> None:
    words = (
        "spans --max-spans 64 4096 --span 20 --width 16 --num-rows 4 --block-size 16 --rounds 2 --longest 64"
    )
    assert benchmark.main([*words.split(), "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    short, long = result["spans"]["64"], result["spans"]["4096"]
    assert long["retained"] == pytest.approx(short["retained"], abs=1), "no more is retained"
    assert long["held_kib"] == pytest.approx(short["held_kib"], rel=0.05)
    assert result["uneven"]["counts"] == [64, 32, 16, 8]


# -- faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "tekst"], "one of text, collision, copy, instruction, got 'tekst'"),
        (["--data", "nowhere.txt"], "nowhere.txt"),
        (["--task", "copy", "--data", "x"], "data is for the task text"),
        (["--task", "copy", "--task-arg", "distanz=5"], "no argument 'distanz'"),
        (["--task", "copy", "--task-arg", "distance=3"], "distance"),
        (["--task", "copy", "--memory.ramp", "2_000_000"], "memory.ramp"),
        (["--task", "copy", "--model.num-heads", "5"], "model.num_heads"),
        (["--task", "copy", "--block-size", "0"], "block_size must be at least 1"),
        (["--task", "copy", "--total-updates", "5"], "optimizer.warmup_updates"),
        (["--task", "copy", "--memory", "xl"], "memory.kind must be one of"),
        (["--task", "copy", "--learning-rate", "1"], "did you mean optimizer.learning_rate"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_before_any_work(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        train_sequence.main(words)
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_another_vocabulary_is_refused(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_sequence.main([*COPY, *SMALL, "--run", str(tmp_path / "run")]) == 0
    with pytest.raises(SystemExit) as leaving:
        evaluate_sequence.main(["--run", str(tmp_path / "run"), "--task-arg", "alphabet_size=5"])
    assert leaving.value.code == 2
    assert "task: the model of" in capsys.readouterr().err


def test_a_file_that_changed_is_refused_at_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = tmp_path / "text", tmp_path / "run"
    file.write_bytes(b"abcdefgh" * 1000)
    words = ["--task", "text", "--data", str(file), *SMALL, "--run", str(run)]
    assert train_sequence.main(words) == 0
    file.write_bytes(b"abcdefgi" * 1000)
    with pytest.raises(SystemExit):
        train_sequence.main(["--resume", str(run)])
    assert "sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "Lower num_rows or block_size"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), "Lower num_rows"),
        (MemoryError(), "Lower num_rows"),
    ],
)
def test_out_of_memory_says_what_to_lower_and_keeps_the_checkpoint(
    error: Exception,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    count = 0
    inner = SequenceTrainer._update

    def failing(trainer: SequenceTrainer) -> Any:
        nonlocal count
        count += 1
        if count == 6:
            raise error
        return inner(trainer)

    monkeypatch.setattr(SequenceTrainer, "_update", failing)
    assert train_sequence.main([*COPY, *SMALL, "--run", str(tmp_path / "run")]) == 1
    output = capsys.readouterr().out
    assert "update 6: out of memory" in output
    assert said in output
    assert RunFolder.open(tmp_path / "run").latest_checkpoint().step == 5 * 64


def test_a_loss_that_is_no_number_stops_and_changes_nothing() -> None:
    config = load([*COPY, *SMALL])
    stream = open_stream(config, "train")
    trainer = SequenceTrainer(config, make_model(config, stream, torch.device("cpu")), stream, Ranks())
    trainer.update()
    with torch.no_grad():
        trainer.model.embedding.weight[:] = torch.inf
    before = {name: part.clone() for name, part in trainer.model.state_dict().items()}
    while int((torch.from_numpy(stream.read(16).targets) != IGNORE).sum()) == 0:
        pass
    with pytest.raises(TrainingFaultError, match=r"update 2: the loss is .*learning_rate"):
        trainer.update()
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_agents_run_is_refused(short_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        evaluate_sequence.main(["--run", str(short_run)])
    assert leaving.value.code == 2
    assert "config.yaml" in capsys.readouterr().err


def test_a_configuration_survives_yaml(tmp_path: Path) -> None:
    config = load(DISTURBED)
    file = tmp_path / "config.yaml"
    file.write_text(sequence_schema.run_config.to_yaml(config))
    assert sequence_schema.from_yaml(file) == config


@pytest.mark.learning
def test_it_learns_to_copy(tmp_path: Path) -> None:
    words = [
        *("--task", "copy", "--task-arg", "max_distance=64", "--task-arg", "min_distance=20"),
        *("--task-arg", "distance_distribution=uniform", "--task-arg", "string_length=4"),
        *("--eval-task-arg", "distance=256"),  # four times as far as in training
        *("--task-arg", "alphabet_size=4", "--num-rows", "16", "--block-size", "64"),
        *("--total-updates", "1500", "--model.width", "32", "--memory.max-span", "512"),
        *("--memory.initial-span-fraction", "0.5", "--held-out.every", "50", "--held-out.tokens", "32768"),
        *("--held-out.stop-accuracy", "0.99", "--optimizer.learning-rate", "2e-3", "--track", "disabled"),
    ]
    assert train_sequence.main([*words, "--run", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["accuracy"] > 0.98
