"""What every stream promises, whatever its task."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_suite.agents.serialization.state_tree import flatten, unflatten
from memory_suite.envs.streams.oracle import window_errors
from memory_suite.envs.streams.stream import IGNORE, SPLITS, UNKNOWN, Block, Stream
from memory_suite.envs.streams.tasks import HELD_OUT_TOKENS, TASKS, make_stream

ARGUMENTS: dict[str, dict[str, Any]] = {
    "collision": {"warm_up_frames": 50},
    "copy": {"string_length": 3, "alphabet_size": 4, "min_distance": 5, "max_distance": 60},
    "instruction": {"num_lines": 300},
    "text": {},
}
Make = Callable[..., Stream]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.bin"
    path.write_bytes(np.random.default_rng(0).bytes(40_001))
    return path


@pytest.fixture(params=TASKS)
def make(request: pytest.FixtureRequest, text_file: Path) -> Make:
    """Builds small streams of one task."""
    task = request.param
    data = {"data": text_file} if task == "text" else {}
    return lambda **options: make_stream(task, **data, **(ARGUMENTS[task] | options))


def joined(blocks: list[Block]) -> Block:
    """The blocks as one."""
    return Block(*(np.concatenate(arrays, axis=1) for arrays in zip(*blocks, strict=True)))


def assert_same(first: Block, second: Block) -> None:
    for name, ours, theirs in zip(Block._fields, first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def saved(stream: Stream) -> dict[str, Any]:
    """Its state as a checkpoint gives it back."""
    tensors, rest = flatten(stream.state_dict())
    return unflatten(tensors, json.loads(json.dumps(rest, allow_nan=False)))  # type: ignore[no-any-return]


def test_blocks_have_their_shapes_types_and_ranges(make: Make) -> None:
    stream = make(num_rows=3)
    for num_tokens in (1, 7, 3_000):
        block = stream.read(num_tokens)
        assert all(array.shape == (3, num_tokens) for array in block)
        assert [array.dtype for array in block] == [np.int64, np.int64, np.bool_, np.int64]
        assert block.tokens.min() >= 0
        assert block.tokens.max() < stream.vocabulary_size
        assert block.targets.min() >= IGNORE
        assert block.targets.max() < stream.num_targets
        assert (block.distance[block.targets == IGNORE] == UNKNOWN).all()
        if stream.chance_accuracy is not None:
            assert (block.distance[block.targets != IGNORE] >= 0).all()


def test_a_row_begins_with_is_first(make: Make) -> None:
    assert make(num_rows=3).read(5).is_first[:, 0].all()


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 9_000), min_size=1, max_size=8))
def test_block_size_does_not_change_the_tokens(make: Make, sizes: list[int]) -> None:
    whole = make(num_rows=2).read(sum(sizes))
    stream = make(num_rows=2)
    assert_same(joined([stream.read(size) for size in sizes]), whole)
    assert stream.position == sum(sizes)


def test_rows_do_not_depend_on_the_shard(make: Make) -> None:
    whole = make(num_rows=6).read(2_500)
    shares = [make(num_rows=6, shard_index=index, num_shards=3).read(2_500) for index in range(3)]
    assert_same(Block(*(np.concatenate(arrays) for arrays in zip(*shares, strict=True))), whole)


@pytest.mark.parametrize("task", ["collision", "copy", "instruction"])
def test_a_generated_row_does_not_depend_on_the_batch(task: str) -> None:
    few, many = (make_stream(task, num_rows=rows, seed=3).read(9_000) for rows in (2, 5))
    assert_same(few, many.part(slice(2)))


@pytest.mark.parametrize("num_tokens", [64, 1_000])
def test_continuation_is_exact_at_every_block(make: Make, num_tokens: int) -> None:
    """Another stream goes on from each checkpoint, and neither taking nor loading it disturbs."""
    total = 40_000 // num_tokens if num_tokens > 64 else 150
    straight = make(num_rows=2, seed=5)
    expected = [straight.read(num_tokens) for _ in range(total)]
    stream = make(num_rows=2, seed=5)
    other = make(num_rows=2, seed=5)
    for number in range(total):
        other.load_state_dict(saved(stream))
        assert other.position == number * num_tokens
        assert_same(other.read(num_tokens), expected[number])
        assert_same(stream.read(num_tokens), expected[number])
    # A stream that was loaded goes on, beyond the piece that was being read.
    for _ in range(3):
        assert_same(other.read(9_999), stream.read(9_999))


def test_a_state_stays_as_it_was_taken(make: Make) -> None:
    stream = make(num_rows=2)
    stream.read(777)
    state = stream.state_dict()
    expected = stream.read(20_000)
    for _ in range(2):
        stream.load_state_dict(state)
        assert_same(stream.read(20_000), expected)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"num_rows": 4}, "num_rows"),
        ({"split": "test", "tokens_per_row": None}, "split"),
        ({"tokens_per_row": 100}, "tokens_per_row"),
        ({"shard_index": 1, "num_shards": 2}, "first_row"),
    ],
)
def test_a_state_of_another_stream_is_refused(make: Make, changed: dict[str, Any], name: str) -> None:
    stream, other = make(num_rows=2), make(**({"num_rows": 2} | changed))
    other.read(10)
    before = stream.read(10)
    with pytest.raises(ValueError, match=f"of a stream with {name} = "):
        stream.load_state_dict(other.state_dict())
    assert stream.position == 10
    assert_same(joined([before, stream.read(50)]), make(num_rows=2).read(60))


def test_a_state_of_other_arguments_is_refused() -> None:
    state = make_stream("collision").state_dict()
    for options, name in [({"easy_question": "current"}, "easy_question"), ({"seed": 1}, "seed")]:
        with pytest.raises(ValueError, match=name):
            make_stream("collision", **options).load_state_dict(state)
    with pytest.raises(ValueError, match="task = 'collision', but this one has task = 'copy'"):
        make_stream("copy").load_state_dict(state)


@pytest.mark.parametrize("task", ["collision", "copy", "instruction"])
def test_splits_seeds_and_rows_share_nothing(task: str) -> None:
    """No two rows of any split or seed begin alike."""
    rows = [
        row
        for part in SPLITS
        for seed in (0, 1)
        for row in make_stream(task, split=part, seed=seed, num_rows=2).read(2_000).tokens
    ]
    starts = {row[:200].tobytes() for row in rows}
    assert len(starts) == len(rows) == 12


def test_a_finite_stream_ends_filled_up_and_unscored(make: Make) -> None:
    stream = make(num_rows=2, tokens_per_row=250)
    blocks = list(stream.blocks(100))
    assert [block.tokens.shape[1] for block in blocks] == [100] * 3
    assert stream.exhausted
    assert stream.position == 250
    assert_same(joined(blocks).part(np.s_[:, :250]), make(num_rows=2).read(250))
    padding = joined(blocks).part(np.s_[:, 250:])
    assert (padding.tokens == 0).all()
    assert (padding.targets == IGNORE).all()
    assert (padding.distance == UNKNOWN).all()
    assert not padding.is_first.any()
    with pytest.raises(EOFError, match="all 250 tokens"):
        stream.read(1)
    again = make(num_rows=2, tokens_per_row=250)
    again.load_state_dict(stream.state_dict())
    assert again.exhausted


def test_training_never_ends_and_held_out_splits_do(make: Make) -> None:
    train = make(num_rows=2)
    assert train.tokens_per_row is None
    for part in ("valid", "test"):
        tokens = make(num_rows=2, split=part).tokens_per_row
        assert tokens is not None
        assert tokens in (1_000, HELD_OUT_TOKENS // 2)


def test_the_global_generators_are_left_alone(make: Make) -> None:
    before = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    make(num_rows=2).read(5_000)
    after = random.getstate(), np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002
    assert before[0] == after[0]
    np.testing.assert_array_equal(before[1], after[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split must be one of train, valid, test, got 'dev'"),
        ({"num_rows": 0}, "num_rows must be at least 1"),
        ({"num_rows": 2.0}, "num_rows must be a whole number"),
        ({"num_rows": True}, "num_rows must be a whole number"),
        ({"tokens_per_row": 0}, "tokens_per_row must be at least 1"),
        ({"num_rows": 3, "num_shards": 2}, r"num_rows \(3\) must be a multiple of num_shards \(2\)"),
        ({"shard_index": 1}, r"shard_index must be less than num_shards \(1\)"),
        ({"shard_index": -1}, "shard_index must be at least 0"),
        ({"alphabet": 3}, "has no argument 'alphabet'"),
    ],
)
def test_mistakes_are_refused(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_mistakes_of_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task must be one of .* did you mean 'collision'"):
        make_stream("colision")
    with pytest.raises(ValueError, match="data is for the task 'text'; 'copy' is generated"):
        make_stream("copy", data=tmp_path)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        make_stream("copy", seed=-1)


def test_blocks_of_no_tokens_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="num_tokens must be at least 1"):
        make().read(0)


def test_the_oracle_of_a_window_by_hand() -> None:
    """At distance 20 a window of 21 tokens is enough, one of 20 is not."""
    stream = make_stream("copy", string_length=3, alphabet_size=4, distance=20, num_rows=2)
    errors = window_errors(stream, [20, 21], 9_000)
    assert errors.error == {20: 0.75, 21: 0.0}
    assert errors.chance_error == 0.75
    assert errors.median_distance == 20
    # Episodes of 24 tokens with 3 targets; the oracle reads whole blocks of 8,192, rows begin with noise.
    assert errors.num_targets_scored == pytest.approx(2 * 2 * 8_192 / 24 * 3, abs=2 * 3 * 2)


def test_the_oracle_needs_known_distances(text_file: Path) -> None:
    with pytest.raises(ValueError, match="'text' has no oracle"):
        window_errors(make_stream("text", data=text_file), [10], 100)
    with pytest.raises(ValueError, match="nothing was scored"):
        window_errors(make_stream("copy", distance=100_000), [10], 1)
