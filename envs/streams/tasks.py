"""The supervised tasks by name."""

from __future__ import annotations

import dataclasses
import difflib
import os
from typing import Any

from memory_suite.envs.streams.collision import CollisionRules
from memory_suite.envs.streams.copying import CopyRules
from memory_suite.envs.streams.default_text import default_text
from memory_suite.envs.streams.generated import GeneratedStream
from memory_suite.envs.streams.instruction import InstructionTextRules
from memory_suite.envs.streams.stream import Stream, require_whole_numbers
from memory_suite.envs.streams.text import Corpus, TextStream

TEXT = "text"
GENERATED: dict[str, type[CollisionRules] | type[CopyRules] | type[InstructionTextRules]] = {
    "collision": CollisionRules,
    "copy": CopyRules,
    "instruction": InstructionTextRules,
}
TASKS = (*GENERATED, TEXT)
HELD_OUT_TOKENS = 1 << 22
"""default number of tokens in the valid or test split of a generated task, over all rows"""


def make_stream(
    task: str,
    *,
    split: str = "train",
    num_rows: int = 1,
    tokens_per_row: int | None = None,
    seed: int = 0,
    shard_index: int = 0,
    num_shards: int = 1,
    data: str | os.PathLike[str] | None = None,
    **arguments: Any,
) -> Stream:
    """The stream of a task.

    Args:
        task: one of `TASKS`.
        split: `train` never ends; `valid` and `test` do, a text's after one pass, a generated task's after
            `HELD_OUT_TOKENS` in all.
        num_rows: number of rows in the whole batch, over all processes.
        tokens_per_row: tokens of each row until the stream ends; None: as described for `split`.
        seed: seed of a generated task.
        shard_index: number of the share of rows that is read here.
        num_shards: number of equal shares.
        data: file of the text; None: a default text, fetched when first used.
        arguments: arguments of the task's rules.

    Raises:
        FileNotFoundError: there is no such file, or the default text cannot be fetched.
        ValueError: an invalid argument; the message names it.
    """
    common: dict[str, Any] = {
        "split": split,
        "num_rows": num_rows,
        "shard_index": shard_index,
        "num_shards": num_shards,
    }
    if task not in TASKS:
        nearest = difflib.get_close_matches(str(task), TASKS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}{hint}")
    fields = [] if task == TEXT else [field.name for field in dataclasses.fields(GENERATED[task])]
    for name in arguments:
        if name not in fields:
            known = f"its arguments are {', '.join(fields)}" if fields else "it has no arguments"
            raise ValueError(f"the task {task!r} has no argument {name!r}; {known}")
    if task == TEXT:
        stream = TextStream(Corpus(default_text() if data is None else data), **common)
        if tokens_per_row is None and split != "train":
            tokens_per_row = stream.tokens_per_pass
        return TextStream(stream.corpus, tokens_per_row=tokens_per_row, **common)
    if data is not None:
        raise ValueError(f"data is for the task {TEXT!r}; {task!r} is generated")
    require_whole_numbers(num_rows=(num_rows, 1))
    if tokens_per_row is None and split != "train":
        tokens_per_row = -(-HELD_OUT_TOKENS // num_rows)
    return GeneratedStream(GENERATED[task](**arguments), seed=seed, tokens_per_row=tokens_per_row, **common)
