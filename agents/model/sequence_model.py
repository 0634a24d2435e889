"""Tokens in, predictions out: the memory transformer as a model of a stream.

Shape letters:
    B  rows of the batch     T  tokens of a block     D  model width
    V  tokens there are      C  targets there are     N  predictions asked for
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memory_suite.agents.model.retention.penalty import PenaltyKind
from memory_suite.agents.model.settings import TransformerSettings
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
            settings: of the transformer.
            vocabulary_size: V; tokens are below it.
            num_targets: C; targets are below it.
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
        # All targets equally likely at first: the loss begins at ln C, whatever the width.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def initial_state(self, batch: int) -> MemoryState:
        """Empty memories for `batch` rows."""
        return self.transformer.initial_state(batch)

    def block(
        self,
        tokens_BT: Int[Tensor, "B T"],
        state: MemoryState,
        is_first_BT: Bool[Tensor, "B T"],
        limit_BT: Float[Tensor, "B T"] | None = None,
        *,
        penalty: PenaltyKind | None = None,
        asked_BT: Bool[Tensor, "B T"] | None = None,
        limit_forgets: bool = False,
    ) -> BlockOutput:
        """Read a block, with gradients cut at its beginning.

        Args:
            tokens_BT: the tokens.
            state: memories before the block; left as it is.
            is_first_BT: True where a row begins anew.
            limit_BT: spans, where they are learned, count for at most so many steps in this block.
            penalty: also give the span penalty, of this kind; `penalty` adds up its parts.
            asked_BT: where something is predicted: only there can memories be of use; None: everywhere.
            limit_forgets: whether what the limit hides at the block's end is forgotten for good.

        Returns:
            Hidden states, for `predict`; the memories after the block; a report of each layer.
        """
        x_BTD = self.dropout(self.embedding(tokens_BT))
        return self.transformer.block(
            x_BTD,
            state,
            is_first_BT,
            limit_BT,
            penalty=penalty,
            asked_BT=asked_BT,
            limit_forgets=limit_forgets,
        )

    def penalty(
        self, output: BlockOutput, kind: PenaltyKind, asked_BT: Bool[Tensor, "B T"]
    ) -> Float[Tensor, ""]:
        """The span penalty of a block (`BlockOutput.penalty`); what is done is what is predicted."""
        with torch.no_grad():
            log_prob_NC = self.head(output.y_BTD[asked_BT]).log_softmax(-1) if kind.asks_for_use else None

        def divergence(y_ND: Tensor) -> Tensor:
            assert log_prob_NC is not None
            other_NC = self.head(y_ND).log_softmax(-1)
            return F.kl_div(other_NC, log_prob_NC, reduction="none", log_target=True).sum(-1)

        return output.penalty(kind, divergence, num_heads=self.transformer.settings.num_heads)

    def step(
        self, tokens_B: Int[Tensor, " B"], state: MemoryState, is_first_B: Bool[Tensor, " B"]
    ) -> StepOutput:
        """Read one token, without gradients; `state` is updated in place."""
        return self.transformer.step(self.embedding(tokens_B), state, is_first_B)

    def predict(self, y: Float[Tensor, "*N D"]) -> Float[Tensor, "*N C"]:
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
        """The model that `save` wrote; reading it runs no code. Raises ArchiveError for a damaged file."""
        tensors, data = read_archive(Path(path))
        model = cls(TransformerSettings(**data["settings"]), **data["arguments"])
        model.load_state_dict(tensors)
        return model.to(device)
