"""The memory transformer as a model of a stream of tokens."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memory_suite.agents.model.settings import PenaltySpec, TransformerSettings
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.model.transformer import BlockOutput, MemoryTransformer, StepOutput
from memory_suite.agents.serialization.archive import read_archive, write_archive


class SequenceModel(nn.Module):
    """Embedding, memory transformer, and a linear layer to the targets."""

    def __init__(
        self,
        settings: TransformerSettings,
        *,
        vocabulary_size: int,
        num_targets: int,
        dropout: float = 0.0,
    ) -> None:
        """Build the model.

        Args:
            settings: settings of the transformer.
            vocabulary_size: number of tokens.
            num_targets: number of targets.
            dropout: in training, the probability of dropping an entry of the embedding and of the output.

        Raises:
            ValueError: a size or a setting that is not allowed.
        """
        super().__init__()
        for name, value in (("vocabulary_size", vocabulary_size), ("num_targets", num_targets)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.vocabulary_size, self.num_targets = vocabulary_size, num_targets
        self.embedding = nn.Embedding(vocabulary_size, settings.width)
        self.transformer = MemoryTransformer(settings)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(settings.width, num_targets)
        # All targets are equally likely at first: the loss begins at log(num_targets), whatever the width.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def initial_state(self, batch: int) -> MemoryState:
        """Empty memories for `batch` rows."""
        return self.transformer.initial_state(batch)

    def block(
        self,
        tokens_BW: Int[Tensor, "B W"],
        state: MemoryState,
        episode_start_BW: Bool[Tensor, "B W"],
        span_limit_BW: Float[Tensor, "B W"] | None = None,
        *,
        penalty: PenaltySpec | None = None,
        ablation_mask_BW: Bool[Tensor, "B W"] | None = None,
        limit_forgets: bool = False,
    ) -> BlockOutput:
        """Read a block, with gradients cut at its beginning.

        Args:
            tokens_BW: the tokens.
            state: memories before the block; left as it is.
            episode_start_BW: True where a stream begins.
            span_limit_BW: upper bound of learned spans in this block, in steps.
            penalty: span penalty to compute; the method `penalty` sums its parts.
            ablation_mask_BW: steps at which something is predicted, so that memories can matter; None: all.
            limit_forgets: whether memories that the limit hides at the block's end are deleted.

        Returns:
            Hidden states, for `predict`; the memories after the block; a report of each layer.
        """
        x_BWD = self.dropout(self.embedding(tokens_BW))
        return self.transformer.block(
            x_BWD,
            state,
            episode_start_BW,
            span_limit_BW,
            penalty=penalty,
            ablation_mask_BW=ablation_mask_BW,
            limit_forgets=limit_forgets,
        )

    def penalty(
        self, output: BlockOutput, spec: PenaltySpec, ablation_mask_BW: Bool[Tensor, "B W"]
    ) -> Float[Tensor, ""]:
        """The span penalty of a block, from `BlockOutput.penalty` and the effect of ablations."""
        with torch.no_grad():
            log_probs = (
                self.head(output.y_BWD[ablation_mask_BW]).log_softmax(-1) if spec.needs_ablation else None
            )

        def divergence(y_ND: Tensor) -> Tensor:
            assert log_probs is not None
            other_log_probs = self.head(y_ND).log_softmax(-1)
            return F.kl_div(other_log_probs, log_probs, reduction="none", log_target=True).sum(-1)

        return output.penalty(spec, divergence, num_heads=self.transformer.settings.num_heads)

    def step(
        self, tokens_B: Int[Tensor, " B"], state: MemoryState, episode_start_B: Bool[Tensor, " B"]
    ) -> StepOutput:
        """Read one token, without gradients; `state` is updated in place."""
        return self.transformer.step(self.embedding(tokens_B), state, episode_start_B)

    def predict(self, y: Float[Tensor, "*N D"]) -> Float[Tensor, "*N targets"]:
        """Logits of the targets."""
        return self.head(self.dropout(y))

    def save(self, path: str | Path) -> None:
        """Write the model to a safe archive."""
        arguments = {
            "vocabulary_size": self.vocabulary_size,
            "num_targets": self.num_targets,
            "dropout": self.dropout.p,
        }
        data = {"settings": asdict(self.transformer.settings), "arguments": arguments}
        write_archive(Path(path), self.state_dict(), data)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> SequenceModel:
        """Read a model that `save` wrote; this runs no code. Raises ArchiveError for a damaged file."""
        tensors, data = read_archive(Path(path))
        model = cls(TransformerSettings(**data["settings"]), **data["arguments"])
        model.load_state_dict(tensors)
        return model.to(device)
