"""From observations of any Gymnasium space to the transformer's input.

Two parts, because only the second one learns. `preprocess` makes features (one-hot codes, flat
vectors, raw images) and normalizes them; a rollout stores its result. `forward` embeds them.

Rare features are made large on purpose: a one-hot feature seen in 2% of the steps has a standard
deviation of 0.14, so dividing by it multiplies the feature by 7, and a cue that is shown once
stands out from the hundred steps that follow (measured in docs/results.md).

Shape letters:
    N  observations, any leading shape
    F  features
    D  model width
"""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.torch_layers import NatureCNN
from torch import Tensor, nn

from agents.transformer import orthogonal

Features = dict[str, Tensor]
"""`FLAT` holds everything but images, [N, F] normalized; images are kept under their own key, uint8."""

FLAT = "flat"
CLIP = 10.0
"""normalized features are clipped to +-10, as stable-baselines3's VecNormalize does"""
MAX_CATEGORIES = 64
"""an integer box with an upper bound below this is read as categories, not as numbers"""
MIN_IMAGE_PIXELS = 36
"""the smallest side of an image that the convolutional network can take (its kernels and strides)"""


class ObservationEncoder(nn.Module):
    """Embed observations of one space; raises ValueError for a space it cannot read."""

    mean_F: Tensor
    std_F: Tensor
    seen_F: Tensor
    """[3, F] count, sum and sum of squares of all features seen while collecting"""

    def __init__(self, space: spaces.Space[object], width: int, *, normalize: bool = True) -> None:
        """Build the encoder.

        Args:
            space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.
            width: D.
            normalize: divide features by their running standard deviation.
        """
        super().__init__()
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
        self._is_dict = isinstance(space, spaces.Dict)
        self._images = {name: part for name, part in parts.items() if _is_image(part)}
        self._flat = {name: _FlatPart(name, part) for name, part in parts.items() if name not in self._images}
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
        for name in self._images:
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
        assert total is not None
        return total


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


def _is_image(space: spaces.Space[object]) -> bool:
    """Channels-first bytes large enough for a convolution (stable-baselines3 transposes images)."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        return False
    return min(space.shape[1:]) >= MIN_IMAGE_PIXELS and not _is_categorical(space)
