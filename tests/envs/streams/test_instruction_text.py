"""The instruction world as text: read as text again, every target is the message that was asked for."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_suite.envs.instruction.grammar import MESSAGES, VOCABULARY, decode
from memory_suite.envs.instruction.rules import InstructionRules
from memory_suite.envs.streams.generated import GeneratedStream
from memory_suite.envs.streams.instruction import InstructionTextRules
from memory_suite.envs.streams.stream import IGNORE, UNKNOWN, Block

ENDS = {VOCABULARY.index("."), VOCABULARY.index("?")}


def episodes(block: Block, row: int) -> list[Block]:
    """The row cut where it starts anew; the last episode may be cut short."""
    starts = np.flatnonzero(block.is_first[row])
    assert starts[0] == 0
    ends = [*starts[1:], block.tokens.shape[1]]
    return [block.part((row, slice(start, end))) for start, end in zip(starts, ends, strict=True)]


def judge(episode: Block) -> int:
    """Go through an episode line by line as a person would; the number of meetings."""
    told: dict[str, tuple[int, int]] = {}
    num_meetings, line_start = 0, 0
    for place, token in enumerate(episode.tokens.tolist()):
        if token not in ENDS:
            assert episode.targets[place] == IGNORE
            assert episode.distance[place] == UNKNOWN
            continue
        text = decode(episode.tokens[line_start : place + 1])
        instruction = re.fullmatch(r"Can you tell the (\w+) that (.+)\?", text)
        meeting = re.fullmatch(r"You see the (\w+)\.", text)
        if instruction and instruction[2] in MESSAGES:
            assert instruction[1] not in told, "nobody is instructed about twice"
            told[instruction[1]] = (MESSAGES.index(instruction[2]), line_start)
        if meeting and meeting[1] in told:
            message, where = told[meeting[1]]
            assert episode.targets[place] == message
            assert episode.distance[place] == place - where
            num_meetings += 1
        else:
            assert episode.targets[place] == IGNORE
            assert episode.distance[place] == UNKNOWN
        line_start = place + 1
    return num_meetings


@given(
    num_instructions=st.integers(1, 6),
    extra=st.integers(0, 30),
    spread=st.integers(0, 30),
    num_characters=st.integers(6, 16),
    num_messages=st.integers(2, 16),
    lure_share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_every_meeting_asks_for_what_was_told(
    num_instructions: int,
    extra: int,
    spread: int,
    num_characters: int,
    num_messages: int,
    lure_share: float,
    seed: int,
) -> None:
    rules = InstructionTextRules(
        num_instructions=num_instructions,
        min_lines=2 * num_instructions + extra,
        num_lines=2 * num_instructions + extra + spread,
        num_characters=num_characters,
        num_messages=num_messages,
        lure_share=lure_share,
    )
    block = GeneratedStream(rules, num_rows=2, seed=seed).read(1_500)
    assert block.tokens.min() > 0, "no padding"
    for row in range(2):
        *whole, cut = episodes(block, row)
        assert whole
        assert {judge(episode) for episode in whole} == {num_instructions}
        assert judge(cut) <= num_instructions


def test_the_episodes_are_those_of_the_environment() -> None:
    """Line for line what the environment's rules draw with the same generator."""
    rules = InstructionTextRules(num_lines=60)
    stream = GeneratedStream(rules, seed=4)
    state = stream.state_dict()["inner"]["rows"][0]["generator"]
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    world = InstructionRules(num_instructions=6, min_lines=20, num_lines=60)
    num_lines, lines = world.draw(rng)
    shown = episodes(stream.read(5_000), 0)
    for number, start in enumerate((num_lines.cumsum() - num_lines)[: len(shown) - 1]):
        texts = [world.grammar.text(int(line)) for line in lines[start : start + num_lines[number]]]
        assert decode(shown[number].tokens).lower() == " ".join(texts).lower()


def test_messages_are_equally_likely_and_old() -> None:
    rules = InstructionTextRules()
    block = GeneratedStream(rules, num_rows=8, seed=1).read(300_000)
    targets = block.targets[block.targets != IGNORE]
    np.testing.assert_allclose(np.bincount(targets, minlength=8) / len(targets), 1 / 8, atol=0.03)
    distances = block.distance[block.targets != IGNORE]
    assert 1_500 < np.median(distances) < 4_000
    assert distances.max() > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_instructions": 0}, "num_instructions must lie between 1 and"),
        ({"num_lines": 5}, "num_lines"),
        ({"lure_share": 2}, "lure_share must lie between 0 and 1"),
        ({"num_messages": 1}, "num_messages must lie between 2 and"),
    ],
)
def test_mistakes_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InstructionTextRules(**arguments)
