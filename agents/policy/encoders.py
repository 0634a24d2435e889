"""From observations of any Gymnasium space to the transformer's input.

Two parts, because only the second one learns. `preprocess` makes features (one-hot codes, flat
vectors, raw images, token numbers) and normalizes them; a rollout stores its result. `forward` embeds
them.

Rare features are made large on purpose: a one-hot feature seen in 2% of the steps has a standard
deviation of 0.14, so dividing by it multiplies the feature by 7, and a cue that is shown once
stands out from the hundred steps that follow (measured in docs/results.md).

Shape letters:
    N  observations, any leading shape
    F  features
    D  model width
    L  words of a line of text
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from jaxtyping import Float, Int
from stable_baselines3.common.torch_layers import NatureCNN
from torch import Tensor, nn

from memory_suite.agents.model.init import orthogonal

Features = dict[str, Tensor]
"""`FLAT` holds all that is neither image nor text, [N, F] normalized; images [N, C, Y, X] uint8 and lines of
text [N, L] int64 are kept under their own keys."""

FLAT = "flat"
CLIP = 10.0
"""normalized features are clipped to +-10, as stable-baselines3's VecNormalize does"""
MAX_CATEGORIES = 64
"""an integer box with an upper bound below this is read as categories, not as numbers"""
MIN_IMAGE_PIXELS = 36
"""the smallest side of an image that the convolutional network can take (its kernels and strides)"""
TOKEN_SIZE = 32
"""size of a word's embedding"""
PHRASE_LENGTH = 3
"""neighboring words that the text encoder reads together"""
PADDING = 0
"""token number that stands for no word"""
SILENT = -1e30
"""response of a phrase that is not there; finite, so that bits can be written into it"""


class ObservationEncoder(nn.Module):
    """Embed observations of one space; raises ValueError for a space it cannot read."""

    mean_F: Tensor
    std_F: Tensor
    seen_F: Tensor
    """[3, F] count, sum and sum of squares of all features seen while collecting"""

    def __init__(self, space: spaces.Space[object], width: int, *, normalize: bool = True) -> None:
        """Build the encoder.

        Args:
            space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these. A MultiDiscrete whose
                entries all have the same count, above `MAX_CATEGORIES`, is read as a line of text: token
                numbers, `PADDING` after the last word.
            width: D.
            normalize: divide features by their running standard deviation.
        """
        super().__init__()
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
        self._is_dict = isinstance(space, spaces.Dict)
        self._images = {name: part for name, part in parts.items() if _is_image(part)}
        self._lines = {name: count for name, part in parts.items() if (count := _line_vocabulary(part))}
        self._flat = {
            name: _FlatPart(name, part)
            for name, part in parts.items()
            if name not in self._images and name not in self._lines
        }
        num_features = sum(part.num_features for part in self._flat.values())
        self.normalize = normalize
        self.collecting = False
        """whether `preprocess` adds what it sees to the pending statistics"""
        self.register_buffer("mean_F", torch.zeros(num_features))
        self.register_buffer("std_F", torch.ones(num_features))
        self.register_buffer("seen_F", torch.zeros(3, num_features, dtype=torch.float64))
        self.embed_flat = orthogonal(nn.Linear(num_features, width)) if num_features else None
        self.embed_images = nn.ModuleDict(
            {name: NatureCNN(part, features_dim=width) for name, part in self._images.items()}
        )
        self.embed_lines = nn.ModuleDict(
            {name: LineEncoder(count, width) for name, count in self._lines.items()}
        )

    def preprocess(self, observation: object) -> Features:
        """Features of a batch of observations (arrays or tensors, one leading dimension)."""
        parts = observation if self._is_dict else {"observation": observation}
        assert isinstance(parts, dict)
        device = self.mean_F.device
        features: Features = {}
        flat = [
            part.features(torch.as_tensor(parts[name], device=device)) for name, part in self._flat.items()
        ]
        if flat:
            flat_NF = flat[0] if len(flat) == 1 else torch.cat(flat, -1)
            if self.normalize:
                if self.collecting:
                    wide_NF = flat_NF.double()
                    self.seen_F[0] += wide_NF.shape[0]
                    self.seen_F[1] += wide_NF.sum(0)
                    self.seen_F[2] += wide_NF.square().sum(0)
                flat_NF = ((flat_NF - self.mean_F) / self.std_F).clamp(-CLIP, CLIP)
            features[FLAT] = flat_NF
        for name in (*self._images, *self._lines):
            features[name] = torch.as_tensor(parts[name], device=device)
        return features

    def update_statistics(self) -> None:
        """Normalize by what has been collected so far; call it between an update and a rollout."""
        count_F, total_F, squares_F = self.seen_F
        if self.normalize and self.seen_F.numel() and bool(count_F[0] > 0):
            mean_F = total_F / count_F
            variance_F = (squares_F / count_F - mean_F.square()).clamp_min(0.0)
            self.mean_F.copy_(mean_F)
            # A feature not seen yet keeps its scale; once seen it can be larger by CLIP at most.
            self.std_F.copy_(torch.where(variance_F > 0.0, variance_F.sqrt(), 1.0).clamp_min(1.0 / CLIP**2))

    def forward(self, features: Features) -> Float[Tensor, "*N D"]:
        """The transformer's input."""
        total: Tensor | None = None
        if self.embed_flat is not None:
            total = self.embed_flat(features[FLAT])
        for name, network in self.embed_images.items():
            images = features[name].float() / 255.0
            leading = images.shape[:-3]
            embedded = network(images.reshape(-1, *images.shape[-3:])).view(*leading, -1)
            total = embedded if total is None else total + embedded
        for name, network in self.embed_lines.items():
            embedded = network(features[name])
            total = embedded if total is None else total + embedded
        assert total is not None
        return total


class LineEncoder(nn.Module):
    """A line of text by the phrases in it: a convolution over words, then the strongest response.

    The max-pooled convolution of Kim 2014, https://arxiv.org/abs/1408.5882. Where in the line a phrase
    stands does not matter, which words stand together does.

    A convolution over embedded words is a sum of one table per place in the phrase, looked up by word;
    and only the strongest response has a gradient, so only that one is computed with one.
    """

    def __init__(self, vocabulary_size: int, width: int) -> None:
        """Build the encoder for token numbers below `vocabulary_size`."""
        super().__init__()
        self.word_VE = nn.Parameter(torch.randn(vocabulary_size, TOKEN_SIZE))
        self.read_phrase = orthogonal(nn.Linear(PHRASE_LENGTH * TOKEN_SIZE, width))
        self.combine = orthogonal(nn.Linear(width, width), gain=2**0.5)

    def forward(self, line: Int[Tensor, "*N words"]) -> Float[Tensor, "*N D"]:
        """Embed lines."""
        vocabulary_size, width = self.word_VE.shape[0], self.combine.in_features
        line_NL = line.reshape(-1, line.shape[-1]).to(torch.int32)
        words = (line_NL != PADDING).any(0).nonzero()
        length = int(words[-1]) + 1 if len(words) else 1
        reach = PHRASE_LENGTH // 2
        padded_NL = F.pad(line_NL[:, :length], (reach, reach), value=PADDING)
        table_QD = torch.cat(  # Q: place in the phrase and word
            [F.linear(self.word_VE, part) for part in torch.split(self.read_phrase.weight, TOKEN_SIZE, 1)]
        )
        place_P = torch.arange(PHRASE_LENGTH, dtype=torch.int32, device=line.device)
        first_P = place_P * vocabulary_size  # rows of the table that belong to a place
        with torch.no_grad():
            word_NLP = padded_NL.unfold(1, PHRASE_LENGTH, 1) + first_P
            response = F.embedding_bag(word_NLP.reshape(-1, PHRASE_LENGTH), table_QD, mode="sum")
            response_NLD = response.view(-1, length, width)
            # Behind its last word a line says nothing, however long the others are; an empty one is one word.
            response_NLD[:, 1:].masked_fill_((line_NL[:, 1:length] == PADDING).unsqueeze(2), SILENT)
            strongest_ND = _argmax_dim1(response_NLD.float())
        index_NPD = (strongest_ND.unsqueeze(1) + place_P[:, None]).flatten(1)
        word_NPD = padded_NL.gather(1, index_NPD.long()).view(-1, PHRASE_LENGTH, width) + first_P[:, None]
        feature_D = torch.arange(width, dtype=torch.int32, device=line.device)
        phrase_NPD = table_QD.flatten()[word_NPD * width + feature_D]
        phrase_ND = F.relu(phrase_NPD.sum(1) + self.read_phrase.bias)
        return self.combine(phrase_ND).view(*line.shape[:-1], -1)


def _argmax_dim1(values_NLD: Float[Tensor, "N words D"]) -> Int[Tensor, "N D"]:
    """Where the largest value along dimension 1 is (nearly the largest; `values_NLD` is used up).

    torch's own argmax takes 50 times as long as its maximum. So the index is written into the lowest bits
    of the value and read from the maximum, at the price of telling values apart to 1 in 2**(23 - bits).
    """
    length = values_NLD.shape[1]
    lowest = (1 << (length - 1).bit_length()) - 1
    index_L1 = torch.arange(length, dtype=torch.int32, device=values_NLD.device).unsqueeze(1)
    bits_NLD = values_NLD.view(torch.int32)
    bits_NLD &= ~lowest
    bits_NLD |= index_L1
    return values_NLD.amax(1).view(torch.int32) & lowest


class _FlatPart:
    """How one subspace becomes a flat vector: one-hot if it is categorical, numbers otherwise."""

    def __init__(self, name: str, space: spaces.Space[object]) -> None:
        self._sizes: Tensor | None = None
        if isinstance(space, spaces.Discrete):
            sizes = np.array([space.n])
            self._low = torch.tensor([int(space.start)])
        elif isinstance(space, spaces.MultiDiscrete):
            sizes = space.nvec.reshape(-1)
            self._low = torch.as_tensor(np.asarray(space.start).reshape(-1).astype(np.int64))
        elif isinstance(space, spaces.Box) and _is_categorical(space):
            sizes = (space.high.astype(np.int64) - space.low.astype(np.int64) + 1).reshape(-1)
            self._low = torch.as_tensor(space.low.reshape(-1).astype(np.int64))
        elif isinstance(space, spaces.Box | spaces.MultiBinary):
            self.num_features = int(np.prod(space.shape))
            return
        else:
            raise ValueError(
                f"observation {name!r} has the space {space}; allowed are Box, Discrete, MultiDiscrete, "
                "MultiBinary and a Dict of these"
            )
        self._sizes = torch.as_tensor(sizes.astype(np.int64))
        self._offsets = self._sizes.cumsum(0) - self._sizes - self._low
        self.num_features = int(self._sizes.sum())

    def features(self, values: Tensor) -> Float[Tensor, "N F"]:
        """[N, ...] of the space to [N, F]."""
        values = values.reshape(values.shape[0], -1)
        if self._sizes is None:
            return values.float()
        index = values.long() + self._offsets.to(values.device)
        zeros = torch.zeros(values.shape[0], self.num_features, device=values.device)
        return zeros.scatter_(1, index, 1.0)


def _is_categorical(space: spaces.Box) -> bool:
    return bool(np.issubdtype(space.dtype, np.integer) and (space.high < MAX_CATEGORIES).all())


def _line_vocabulary(space: spaces.Space[object]) -> int:
    """How many different words a line of text may have; 0 if the space holds no lines."""
    if not isinstance(space, spaces.MultiDiscrete) or space.nvec.ndim != 1 or np.any(space.start):
        return 0
    counts = set(space.nvec.tolist())
    return counts.pop() if len(counts) == 1 and min(counts) > MAX_CATEGORIES else 0


def _is_image(space: spaces.Space[object]) -> bool:
    """Channels-first bytes large enough for a convolution (stable-baselines3 transposes images)."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        return False
    return min(space.shape[1:]) >= MIN_IMAGE_PIXELS and not _is_categorical(space)
