"""Memories in pages: the same memories, the same numbers, only where that is less work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from memory_suite.agents.algorithms.ppo import MemoryPPO
from memory_suite.agents.diagnostics.cue_retention import CueRetention
from memory_suite.agents.diagnostics.memory_metrics import retained_ages
from memory_suite.agents.model import layer as layer_module
from memory_suite.agents.model.layer import MemoryDetail
from memory_suite.agents.model.settings import MemoryKind
from memory_suite.agents.model.store import pages as memory_pages
from memory_suite.agents.model.store.base import Store
from memory_suite.agents.model.store.pages import MIN_SLOTS, PAGE_SLOTS, PagedStore, to_pages
from memory_suite.agents.model.store.rows import NEVER, RowStore
from memory_suite.agents.model.store.state import MemoryState, SpanBounds
from memory_suite.agents.model.transformer import COMPACTION_INTERVAL_STEPS, MemoryTransformer, StepOutput
from memory_suite.envs.make import make_vec_env
from tests.agents.small_envs import RepeatFirst
from tests.agents.test_algorithms import TINY, StopAfter, ppo, vec
from tests.agents.test_transformer import SMALL, lively


@contextmanager
def pages_always(page_slots: int = 3) -> Iterator[None]:
    """However few memories there are, and in small pages, so that every row needs several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_pages, "MIN_SLOTS", 0)
        patch.setattr(memory_pages, "MIN_SAVING_RATIO", 0.0)
        patch.setattr(memory_pages, "PAGE_SLOTS", page_slots)
        yield


def store_of(counts: list[int], *, gaps: int = 0, seed: int = 0, width: int = 5) -> RowStore:
    """A store whose rows hold so many memories, in any slots, every one different."""
    generator = torch.Generator().manual_seed(seed)
    num_slots = max(counts, default=0) + gaps
    memory = RowStore(
        torch.randn(len(counts), num_slots, width, generator=generator),
        torch.full((len(counts), num_slots), NEVER),
        torch.randint(0, 9, (len(counts), num_slots), generator=generator),
        torch.rand(len(counts), num_slots, generator=generator) < 0.5,
    )
    for row, count in enumerate(counts):
        slots = torch.randperm(num_slots, generator=generator)[:count]
        memory.birth_BT[row, slots] = torch.randperm(1000, generator=generator)[:count]
    return memory


def contents(memory: RowStore) -> list[dict[int, tuple[Any, ...]]]:
    """What each row remembers, by time of birth."""
    rows = []
    for row in range(memory.num_rows):
        used = (memory.birth_BT[row] != NEVER).nonzero().flatten().tolist()
        parts = memory.h_BTD, memory.cue_BT, memory.compressed_BT
        births = memory.birth_BT[row].tolist()
        rows.append({births[w]: tuple(str(part[row, w].tolist()) for part in parts) for w in used})
        assert len(rows[-1]) == len(used)
    return rows


def held(store: Store) -> list[dict[int, tuple[Any, ...]]]:
    """The same of pages, page by page, without what is tested here."""
    rows: list[dict[int, tuple[Any, ...]]] = [{} for _ in range(store.num_rows)]
    pages = contents(store.slots)
    row_of_page = store.row_F.tolist() if isinstance(store, PagedStore) else range(store.num_rows)
    for row, page in zip(row_of_page, pages, strict=True):
        assert not rows[row].keys() & page.keys()
        rows[row] |= page
    return rows


many_counts = st.lists(st.integers(0, 100), min_size=1, max_size=12)


@settings(max_examples=60)
@given(counts=many_counts, gaps=st.integers(0, 20), page_slots=st.sampled_from([1, 3, 32]))
def test_pages_hold_what_the_store_held(counts: list[int], gaps: int, page_slots: int) -> None:
    memory = store_of(counts, gaps=gaps)
    before = contents(memory)
    with pages_always(page_slots):
        pages = to_pages(memory)
        assert isinstance(pages, PagedStore)
        assert held(pages) == before
        assert len(pages.row_F) == sum(count // page_slots + 1 for count in counts)
        back = pages.to_rows()
    assert contents(back) == before
    assert back.num_slots <= max(counts) + 4
    assert bool((back.birth_BT.diff(dim=1) <= 0).all())  # newest first
    memory.h_BTD.fill_(0.0)
    assert held(pages) == before  # a copy


@settings(max_examples=40)
@given(counts=many_counts, seed=st.integers(0, 99))
def test_only_what_is_alive_is_kept(counts: list[int], seed: int) -> None:
    """As a store does it, to the last slot that matters."""
    memory = store_of(counts, gaps=2)
    with pages_always():
        pages = to_pages(memory)
        assert pages is not None
        alive = torch.rand(1000, generator=torch.Generator().manual_seed(seed)) < 0.5
        was_written = pages.slots.birth_BT != NEVER
        found = pages.compacted(was_written & alive[pages.slots.birth_BT.clamp_min(0)])
    expected = memory.compacted((memory.birth_BT != NEVER) & alive[memory.birth_BT.clamp_min(0)])
    assert contents(found) == contents(expected)
    fullest = max((len(row) for row in contents(found)), default=0)
    assert found.num_slots - fullest == found.free_slots


@settings(max_examples=40)
@given(counts=many_counts, data=st.data())
def test_chosen_rows_of_pages_are_those_rows(counts: list[int], data: st.DataObject) -> None:
    memory = store_of(counts)
    rows = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=5))
    with pages_always():
        pages = to_pages(memory)
        assert pages is not None
        some = pages.select(torch.tensor(rows))
        assert held(some) == contents(memory.select(torch.tensor(rows)))
        some.slots.h_BTD.fill_(0.0)
    assert held(pages) == contents(memory)


def test_pages_are_made_where_they_save_work_and_only_there() -> None:
    """By what rows hold, not by how wide their store happens to be: a resumed training must do the same."""
    even = [100] * 100
    assert to_pages(store_of(even)) is None
    assert to_pages(store_of([100])) is None
    uneven = [*[10] * 99, 100]
    pages = to_pages(store_of(uneven))
    assert pages is not None
    assert pages.slots.birth_BT.numel() == (99 + 100 // PAGE_SLOTS + 1) * PAGE_SLOTS
    wide = to_pages(store_of(uneven, gaps=300))
    assert wide is not None
    assert torch.equal(wide.row_F, pages.row_F)
    assert to_pages(store_of([10] * 100, gaps=300)) is None
    too_few = [*[1] * 7, 1000]
    assert MIN_SLOTS > 8 * 1000
    assert to_pages(store_of(too_few)) is None
    assert to_pages(store_of(too_few, gaps=300)) is None


def outputs(
    model: MemoryTransformer, state: MemoryState, x: Tensor, first: Tensor, **inputs: Any
) -> list[StepOutput]:
    found = []
    for t in range(x.shape[1]):
        now = {name: None if value is None else value[:, t] for name, value in inputs.items()}
        limit = now.pop("span_limit_B1", None)
        found.append(
            model.step(x[:, t], state, first[:, t], None if limit is None else limit[:, None], **now)
        )
        state = found[-1].state
    return found


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["expire-span", "adaptive-span", "transformer-xl"]),
    null_memory=st.booleans(),
    limited=st.booleans(),
    window=st.sampled_from([0, 4]),
    rate=st.sampled_from([0.0, 0.1]),
    page_slots=st.sampled_from([1, 3, 32]),
    gain=st.sampled_from([1.0, 300.0]),
    seed=st.integers(0, 2**16),
)
def test_steps_in_pages_equal_steps_in_rows(
    kind: MemoryKind,
    null_memory: bool,
    limited: bool,
    window: int,
    rate: float,
    page_slots: int,
    gain: float,
    seed: int,
) -> None:
    """Outputs, reports and what is left, from rows that hold nothing or much, past a compaction.

    With the larger gain, scores differ by thousands, those of expired memories too.
    """
    chosen = replace(
        SMALL, memory=kind, null_memory=null_memory, position_window=window, max_span=60, memory_size=25
    )
    model = lively(chosen, seed, spread=4.0)
    for layer in model.layers:
        layer.query.weight.data *= gain
    batch, before, steps = 5, 30, COMPACTION_INTERVAL_STEPS + 20
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, before + steps, 8, dtype=torch.float64, generator=generator)
    first = torch.rand(batch, before + steps, generator=generator) < rate
    first[:, 0] = True
    first[2, before - 1] = first[1, before] = True
    cue_B = torch.randint(0, 3, (batch, steps), generator=generator)
    span_limit_B1 = None
    if limited and kind != "transformer-xl":
        span_limit_B1 = torch.randint(1, 40, (batch, 1), generator=generator).double().expand(batch, steps)
    state = model.block(x[:, :before], model.initial_state(batch), first[:, :before]).state
    assert state is not None
    x, first = x[:, before:], first[:, before:]
    rows = outputs(model, state.clone(), x, first, cue_B=cue_B, span_limit_B1=span_limit_B1)
    with pages_always(page_slots):
        start = model.for_acting(state)
        assert all(isinstance(memory, PagedStore) for memory in start.layers)
        was = [contents(memory.to_rows()) for memory in state.layers], state.clock_B.tolist()
        pages = outputs(model, start, x, first, cue_B=cue_B, span_limit_B1=span_limit_B1)
        assert all(isinstance(memory, PagedStore) for memory in pages[-1].state.layers)
        for mine, theirs in zip(pages, rows, strict=True):
            torch.testing.assert_close(mine.y_BD, theirs.y_BD)
            for report, expected in zip(mine.reports, theirs.reports, strict=True):
                torch.testing.assert_close(report, expected)
        assert was == ([contents(memory.to_rows()) for memory in state.layers], state.clock_B.tolist())
        assert pages[-1].state.steps_since_compaction == rows[-1].state.steps_since_compaction
        limit = None if span_limit_B1 is None else span_limit_B1[:, :1]
        mine, theirs = model.compact(pages[-1].state, limit), model.compact(rows[-1].state, limit)
    for memory, other in zip(mine.layers, theirs.layers, strict=True):
        tags, expected = (
            [{birth: tag for birth, (_, tag, _) in row.items()} for row in contents(store.to_rows())]
            for store in (memory, other)
        )
        assert tags == expected


@pytest.mark.parametrize("slots_per_allocation", [1, 16])
def test_free_slots_never_exceed_the_actual_number(
    slots_per_allocation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a memory that is still needed would be written over."""
    monkeypatch.setattr(layer_module, "SLOTS_PER_ALLOCATION", {"cpu": slots_per_allocation})
    model = lively(replace(SMALL, max_span=40), spread=4.0)
    x = torch.randn(4, 200, 8, dtype=torch.float64)
    first = torch.rand(4, 200) < 0.02
    known = []
    with pages_always(16):
        state = model.for_acting(model.initial_state(4))
        for t in range(200):
            state = model.step(x[:, t], state, first[:, t]).state
            for layer, memory in zip(model.layers, state.layers, strict=True):
                assert isinstance(memory, PagedStore)
                free_B = memory.sum_pages((~layer.seen(memory, state.clock_B, SpanBounds())).sum(1))
                assert 0 <= memory.free_slots <= int(free_B.min())
                known.append(memory.free_slots)
    assert max(known) >= min(4, slots_per_allocation)


def paged_state(model: MemoryTransformer, batch: int = 3, steps: int = 12) -> MemoryState:
    x = torch.randn(batch, steps, 8, dtype=torch.float64)
    state = model.block(x, model.initial_state(batch), torch.zeros(batch, steps, dtype=torch.bool)).state
    assert state is not None
    return model.for_acting(state)


def test_asking_copying_and_saving_leave_pages_as_they_are() -> None:
    model = lively(SMALL)
    x, no_reset = torch.randn(3, 8, dtype=torch.float64), torch.zeros(3, dtype=torch.bool)
    with pages_always():
        state = paged_state(model)
        before = [held(memory) for memory in state.layers]
        asked = model.step(x, state, torch.tensor([True, False, False]), write=False)
        flat = {name: value.clone() for name, value in state.state_dict().items()}
        copy = state.clone()
        told = model.step(x, copy, torch.tensor([True, False, False]))
        assert [held(memory) for memory in state.layers] == before
        assert torch.equal(asked.y_BD, told.y_BD)
        again = MemoryState.from_state_dict(flat)
        torch.testing.assert_close(
            model.step(x, again.clone(), no_reset).y_BD, model.step(x, state.clone(), no_reset).y_BD
        )
        moved = state.to("cpu")
        assert [contents(memory.to_rows()) for memory in moved.layers] == before
        assert torch.equal(state.retained_NB, again.retained_NB)
        both = MemoryState.cat([state, again])
        assert [contents(memory.to_rows()) for memory in both.layers] == [row + row for row in before]


@pytest.mark.parametrize("how", ["clone", "select"])
def test_copies_go_on_alone(how: str) -> None:
    """Past the step at which they need pages that the original has room for."""
    model = lively(replace(SMALL, max_span=200, initial_span_fraction=0.9), spread=0.1)
    with pages_always():
        state = paged_state(model)
        rows = torch.tensor([2, 0, 1]) if how == "select" else torch.arange(3)
        before = [held(memory) for memory in state.layers]
        copy = state.select(rows) if how == "select" else state.clone()
        expected = state.to_rows().select(rows)
        x, first = torch.randn(3, 15, 8, dtype=torch.float64), torch.zeros(3, 15, dtype=torch.bool)
        for mine, theirs in zip(
            outputs(model, copy, x, first), outputs(model, expected, x, first), strict=True
        ):
            torch.testing.assert_close(mine.y_BD, theirs.y_BD)
        assert [held(memory) for memory in state.layers] == before


def test_an_unknown_number_of_free_slots_never_takes_another_rows_page() -> None:
    """As where `free_slots` counts on memories that a change of the weights has brought back."""
    with pages_always():
        pages = to_pages(store_of([4, 5, 6]))
        assert pages is not None
        pages.free_slots = 1
        everything_is_needed = torch.zeros_like(pages.slots.birth_BT, dtype=torch.bool)
        memory, (page_B, _) = pages.reserve_slot(everything_is_needed, 1)
        assert memory.row_F[page_B].tolist() == [0, 1, 2]


def test_what_is_not_a_number_stays_in_its_row() -> None:
    memory = store_of([4, 5, 6])
    memory.h_BTD[0] = torch.nan
    with pages_always():
        pages = to_pages(memory)
        assert pages is not None
        assert pages.to_rows().h_BTD.isnan().flatten(1).any(1).tolist() == [True, False, False]


def test_bytes_held_counts_room_for_pages_to_come() -> None:
    """Per memory its content, the time of birth, a tag and a mark; per page its row."""
    model = lively(SMALL)
    with pages_always():
        state = paged_state(model)
        size = state.clock_B.numel() * 8
        for memory in state.layers:
            assert isinstance(memory, PagedStore)
            num_pages = len(memory.row_F)
            assert len(memory.buffer_FTD) > num_pages
            size += len(memory.buffer_FTD) * 3 * 8 * 8 + num_pages * 3 * (8 + 8 + 1) + num_pages * 8
        assert state.bytes_held == size


def test_details_of_pages_are_those_of_rows() -> None:
    model = lively(SMALL)
    x, no_reset = torch.randn(3, 8, dtype=torch.float64), torch.zeros(3, dtype=torch.bool)
    with pages_always():
        state = paged_state(model)
        found: list[MemoryDetail] = []
        expected: list[MemoryDetail] = []
        model.step(x, state, no_reset, write=False, details=found)
        model.step(x, state.to_rows(), no_reset, write=False, details=expected)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
        after = model.step(x, state, no_reset, details=[]).state
        assert all(isinstance(memory, RowStore) for memory in after.layers)


def test_cues_are_found_in_pages() -> None:
    """How long a cue will still be seen is asked of the store while it is in pages."""
    model = lively(replace(SMALL, max_span=200, initial_span_fraction=0.5), spread=0.5)
    x, no_reset = torch.randn(9, 3, 8, dtype=torch.float64), np.zeros(3, dtype=bool)
    found = []
    with pages_always():
        start = paged_state(model)
        for state in (start.clone(), start.to_rows().clone()):
            score = CueRetention(3)
            for t in range(9):  # several memories of each cue, in several pages
                cue_B = np.array([1 + t % 2, 0, 2])
                done_B = np.array([1, 0, 2]) if t == 8 else np.zeros(3, dtype=np.int64)
                score.before_step(model, state, no_reset)
                output = model.step(x[t], state, torch.as_tensor(no_reset), cue_B=torch.as_tensor(cue_B))
                state = output.state
                pending = score.after_step(model, state, output.reports, cue_B, done_B, no_reset)
            found.append((pending.held_BN.tolist(), pending.later_steps.tolist()))
            ages = retained_ages(model, state, None)
            found[-1] += (sorted(np.concatenate(list(ages.values())).tolist()),)
    assert found[0] == found[1]
    held_BN, later_steps, _ = found[0]
    assert held_BN == [[True, True], [False, False], [False, True]]
    assert max(map(max, later_steps)) > 10


def test_pooled_memories_stay_in_rows() -> None:
    """They go from slot to slot of their row."""
    model = lively(replace(SMALL, memory="compressive"))
    with pages_always():
        assert all(isinstance(memory, RowStore) for memory in paged_state(model).layers)


class Watch(BaseCallback):
    """Whether rollouts act in pages; stops after some steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.kinds: set[str] = set()
        self.stop_after = stop_after

    def _on_step(self) -> bool:
        assert isinstance(self.model, MemoryPPO)
        assert self.model._memory is not None
        self.kinds |= {type(memory).__name__ for memory in self.model._memory.layers}
        return self.stop_after is None or self.n_calls < self.stop_after


def corridor_agent(**changes: Any) -> MemoryPPO:
    env = make_vec_env("corridor-short", 6, seed=1, env_kwargs={"max_length": 8})
    return ppo(env, random_shortening=True, **{"policy_kwargs": {**TINY, "memory": "expire-span"}, **changes})


def test_training_in_pages_is_the_same_training() -> None:
    weights = []
    for pages in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if pages:
                patch.setattr(memory_pages, "MIN_SLOTS", 0)
                patch.setattr(memory_pages, "MIN_SAVING_RATIO", 0.0)
                patch.setattr(memory_pages, "PAGE_SLOTS", 4)
            model, watch = corridor_agent(), Watch()
            model.learn(16 * 6 * 3, callback=watch)
            assert watch.kinds == ({"PagedStore"} if pages else {"RowStore"})
            weights.append(model.policy.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_a_resumed_run_in_pages_equals_an_unbroken_one(tmp_path: Path) -> None:
    """Bit for bit: pages are made anew of what was saved."""
    with pages_always():
        unbroken = corridor_agent()
        unbroken.learn(16 * 6 * 6)
        broken = corridor_agent()  # it sets the seed
        broken.learn(16 * 6 * 6, callback=StopAfter(3))
        broken.save(tmp_path / "state", with_training_state=True)
        env = make_vec_env("corridor-short", 6, seed=777, env_kwargs={"max_length": 8})
        resumed = MemoryPPO.load(tmp_path / "state", env=env, device="cpu")
        watch = Watch()
        resumed.learn(16 * 6 * 3, reset_num_timesteps=False, callback=watch)
    assert watch.kinds == {"PagedStore"}
    for name, value in unbroken.policy.state_dict().items():
        assert torch.equal(resumed.policy.state_dict()[name], value), name


def test_a_rollout_that_was_stopped_in_the_middle_goes_on(tmp_path: Path) -> None:
    """Then the memory is in pages when it is saved, and when the next rollout begins with it."""
    with pages_always():
        model = ppo(vec(lambda: RepeatFirst(9)))
        model.learn(16 * 4 * 4, callback=Watch(stop_after=16 + 5))
        assert model._memory is not None
        assert isinstance(model._memory.layers[0], PagedStore)
        model.save(tmp_path / "state", with_training_state=True)
        model.learn(16 * 4, reset_num_timesteps=False)
        assert model.rollout_buffer.state is not None
        assert all(isinstance(memory, RowStore) for memory in model.rollout_buffer.state.layers)
    MemoryPPO.load(tmp_path / "state", env=vec(lambda: RepeatFirst(9)), device="cpu").learn(16 * 4)
