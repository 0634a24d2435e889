"""Observations to features: lines of text against a plain convolution, and what each space becomes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from memory_suite.agents.policy.encoders import (
    FLAT,
    PADDING,
    PHRASE_LENGTH,
    LineEncoder,
    ObservationEncoder,
    _argmax_dim1,
)


def plain_line(encoder: LineEncoder, words: list[int]) -> torch.Tensor:
    """One line, one phrase at a time."""
    reach = PHRASE_LENGTH // 2
    padded = [PADDING] * reach + words + [PADDING] * reach
    responses = [
        encoder.read_phrase(torch.cat([encoder.word_VE[word] for word in padded[at : at + PHRASE_LENGTH]]))
        for at in range(len(words))
    ]
    return encoder.combine(torch.stack(responses).amax(0).relu())


@given(seed=st.integers(0, 2**16), lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_lines_equal_a_plain_convolution_gradients_included(seed: int, lengths: list[int]) -> None:
    torch.manual_seed(seed)
    encoder = LineEncoder(100, 16)
    lines = torch.full((len(lengths), 12), PADDING)
    for line, length in zip(lines, lengths, strict=True):
        line[:length] = torch.randint(1, 100, (length,))
    mine = encoder(lines)
    plain = torch.stack(
        [
            plain_line(encoder, line[: max(length, 1)].tolist())
            for line, length in zip(lines, lengths, strict=True)
        ]
    )
    torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-4)  # near ties may go either way
    direction = torch.randn(mine.shape)
    gradients = []
    for output in (mine, plain):
        encoder.zero_grad()
        (output * direction).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])  # type: ignore[union-attr]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_a_line_means_the_same_beside_longer_ones() -> None:
    """Acting and learning see it in different company."""
    encoder = LineEncoder(100, 16)
    short = torch.tensor([[5, 6, 7, 0, 0, 0, 0, 0]])
    long = torch.randint(1, 100, (4, 8))
    beside = encoder(torch.cat([short, long]))[0]
    torch.testing.assert_close(encoder(short)[0], beside, rtol=1e-6, atol=1e-6)


def test_the_empty_line_is_a_line() -> None:
    encoder = LineEncoder(100, 16)
    empty = torch.zeros(2, 3, 8, dtype=torch.long)
    assert encoder(empty).shape == (2, 3, 16)
    assert bool(encoder(empty).isfinite().all())


@given(seed=st.integers(0, 2**16), length=st.integers(1, 72))
def test_argmax_by_bits(seed: int, length: int) -> None:
    values = torch.randn(5, length, 7, generator=torch.Generator().manual_seed(seed))
    found = _argmax_dim1(values.clone()).long().unsqueeze(1)
    picked = values.gather(1, found).squeeze(1)
    torch.testing.assert_close(picked, values.amax(1), rtol=1e-4, atol=0.0)


def test_which_space_is_what() -> None:
    """A long uniform MultiDiscrete is text, a mixed one is categories; images are images."""
    space = spaces.Dict(
        {
            "line": spaces.MultiDiscrete(np.full(6, 300)),
            "cards": spaces.MultiDiscrete([3, 4]),
            "speed": spaces.Box(-1.0, 1.0, (2,)),
            "picture": spaces.Box(0, 255, (3, 40, 40), np.uint8),
        }
    )
    encoder = ObservationEncoder(space, 16)
    observation = {name: np.stack([part.sample() for _ in range(3)]) for name, part in space.spaces.items()}
    features = encoder.preprocess(observation)
    assert set(features) == {FLAT, "line", "picture"}
    assert features[FLAT].shape == (3, 3 + 4 + 2)
    assert encoder(features).shape == (3, 16)


def test_a_space_that_nobody_can_read_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'names'"):
        ObservationEncoder(spaces.Dict({"names": spaces.Text(5)}), 8)
