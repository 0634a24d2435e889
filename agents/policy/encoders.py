"""Encode observations of any Gymnasium space as inputs of the transformer.

There are two parts, since only the second one learns. `preprocess` computes features (one-hot codes, flat
vectors, raw images, token numbers) and normalizes them; rollouts store these. `forward` embeds them.

Normalization makes rare features large on purpose. A one-hot feature seen in 2% of the steps has a standard
deviation of 0.14, so dividing by it multiplies the feature by 7. A cue that is shown once then stands out
from the hundred steps that follow (measured in docs/results.md).

Names of tensors end in the letters of `agents.model`, where N is any leading shape. In this module F counts
features, and L words of a line.
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
"""Under `FLAT` all parts that are neither images nor text, normalized, [N, features]. Images [N, channels,
height, width] uint8 and lines of text [N, words] int64 are under their own keys."""

FLAT = "flat"
CLIP = 10.0
"""bound of normalized features, that of SB3's VecNormalize"""
MAX_CATEGORIES = 64
"""integer boxes with an upper bound below this are categories, others are numbers"""
MIN_IMAGE_PIXELS = 36
"""smallest side of an image for the kernels and strides of the convolutional network"""
TOKEN_SIZE = 32
"""size of a word's embedding"""
PHRASE_LENGTH = 3
"""kernel size of the text encoder's convolution, in words"""
PADDING = 0
"""token number after the end of a line"""
SILENT = -1e30
"""response after the end of a line; finite, so that `_argmax_dim1` can write bits into it"""


class ObservationEncoder(nn.Module):
    """Embeds observations of one space; raises ValueError for an unsupported space."""

    mean_F: Tensor
    std_F: Tensor
    seen_F: Tensor
    """count, sum and sum of squares of features while collecting, [3, features]"""

    def __init__(self, space: spaces.Space[object], width: int, *, normalize: bool = True) -> None:
        """Build the encoder.

        Args:
            space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these. A MultiDiscrete whose
                entries all have the same count, above `MAX_CATEGORIES`, is a line of text: token numbers,
                then `PADDING`.
            width: size of the transformer's input, D.
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
        """whether `preprocess` adds observations to `seen_F`"""
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
        """Update the normalization to the collected statistics; call between an update and a rollout."""
        count_F, total_F, squares_F = self.seen_F
        if self.normalize and self.seen_F.numel() and bool(count_F[0] > 0):
            mean_F = total_F / count_F
            variance_F = (squares_F / count_F - mean_F.square()).clamp_min(0.0)
            self.mean_F.copy_(mean_F)
            # A feature not seen yet keeps its scale; once seen it can be larger by CLIP at most.
            self.std_F.copy_(torch.where(variance_F > 0.0, variance_F.sqrt(), 1.0).clamp_min(1.0 / CLIP**2))

    def forward(self, features: Features) -> Float[Tensor, "*N D"]:
        """Embed features as the transformer's input."""
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
    """Encodes a line of text by a max-pooled convolution over its words (Kim 2014).

    https://arxiv.org/abs/1408.5882. The encoding depends on which words are adjacent, not on their position.

    For speed, the convolution of embedded words is computed as a sum of table entries, one table per position
    of the kernel. Only the maximum has a gradient, so only the maximum is computed with one.
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
            # Mask responses after the last word; an empty line counts as one word.
            response_NLD[:, 1:].masked_fill_((line_NL[:, 1:length] == PADDING).unsqueeze(2), SILENT)
            strongest_ND = _argmax_dim1(response_NLD.float())
        index_NPD = (strongest_ND.unsqueeze(1) + place_P[:, None]).flatten(1)
        word_NPD = padded_NL.gather(1, index_NPD.long()).view(-1, PHRASE_LENGTH, width) + first_P[:, None]
        feature_D = torch.arange(width, dtype=torch.int32, device=line.device)
        phrase_NPD = table_QD.flatten()[word_NPD * width + feature_D]
        phrase_ND = F.relu(phrase_NPD.sum(1) + self.read_phrase.bias)
        return self.combine(phrase_ND).view(*line.shape[:-1], -1)


def _argmax_dim1(values_NLD: Float[Tensor, "N words D"]) -> Int[Tensor, "N D"]:
    """Index of the maximum along dimension 1, up to rounding; overwrites `values_NLD`.

    torch's argmax takes 50 times as long as its maximum. The index is therefore written into the lowest bits
    of each value and read from the maximum, which rounds the mantissa to the bits above.
    """
    length = values_NLD.shape[1]
    lowest = (1 << (length - 1).bit_length()) - 1
    index_L1 = torch.arange(length, dtype=torch.int32, device=values_NLD.device).unsqueeze(1)
    bits_NLD = values_NLD.view(torch.int32)
    bits_NLD &= ~lowest
    bits_NLD |= index_L1
    return values_NLD.amax(1).view(torch.int32) & lowest


class _FlatPart:
    """Flattens one subspace: one-hot if it is categorical, numbers otherwise."""

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
        """Flatten values [N, ...] of the space to [N, features]."""
        values = values.reshape(values.shape[0], -1)
        if self._sizes is None:
            return values.float()
        index = values.long() + self._offsets.to(values.device)
        zeros = torch.zeros(values.shape[0], self.num_features, device=values.device)
        return zeros.scatter_(1, index, 1.0)


def _is_categorical(space: spaces.Box) -> bool:
    return bool(np.issubdtype(space.dtype, np.integer) and (space.high < MAX_CATEGORIES).all())


def _line_vocabulary(space: spaces.Space[object]) -> int:
    """Size of the vocabulary of a line of text; 0 if the space is not one of lines."""
    if not isinstance(space, spaces.MultiDiscrete) or space.nvec.ndim != 1 or np.any(space.start):
        return 0
    counts = set(space.nvec.tolist())
    return counts.pop() if len(counts) == 1 and min(counts) > MAX_CATEGORIES else 0


def _is_image(space: spaces.Space[object]) -> bool:
    """Whether a space is one of channels-first images (SB3 transposes them), large enough to convolve."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        return False
    return min(space.shape[1:]) >= MIN_IMAGE_PIXELS and not _is_categorical(space)
