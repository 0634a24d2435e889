"""The vectorized version of the instruction world: the same rules on NumPy arrays.

Nothing the agent says changes the text, so whole episodes are drawn ahead as line numbers. A step moves every
environment on by one line and looks up its tokens and its right answer in the grammar's tables.

Shape letters:
    N  environments
    E  episodes of a chunk
    L  lines of a chunk, one episode after another
    P  latest actions, oldest first, kept for pages
    W  token positions of a line
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_suite.envs.batched import BatchedEnv, Values
from memory_suite.envs.instruction.env import RENDER_MODES, InstructionEnv, observation_space
from memory_suite.envs.instruction.page import PAGE_LINES, Entry, as_picture, as_text
from memory_suite.envs.instruction.rules import CLASSES, InstructionRules


class InstructionVectorEnv(BatchedEnv):
    """A batch of `InstructionEnv`.

    The text of the current lines is not in the infos, since it would cost time in every step: see `lines()`.
    """

    episode_metrics = InstructionEnv.episode_metrics
    metadata: dict[str, Any] = {  # noqa: RUF012 (as VectorEnv declares it)
        **BatchedEnv.metadata,
        "render_modes": [*RENDER_MODES],
        "render_fps": 2,
    }
    STATE_ARRAYS = (
        "_chunk_line_NL",
        "_chunk_end_NE",
        "_next_episode",
        "_first",
        "_at",
        "_end",
        "_num_right",
        "_num_out_of_turn",
        "_said_NP",
    )

    def __init__(self, num_envs: int = 1, *, render_mode: str | None = None, **arguments: Any) -> None:
        """Build the batch; `arguments` and ValueError as `InstructionRules`."""
        self.rules = InstructionRules(**arguments)
        super().__init__(num_envs, render_mode, observation_space(), self.rules.num_messages + 1)
        self.episode_classes = self.rules.episode_classes
        self.correlation_horizon = self.rules.correlation_horizon
        self.max_return = self.rules.max_return
        self.memory_free_return = self.rules.memory_free_return
        self._grammar = self.rules.grammar
        num_episodes, num_lines = self.rules.chunk_episodes, self.rules.chunk_lines
        self._chunk_line_NL = np.zeros((num_envs, num_lines), dtype=np.uint16)
        self._chunk_end_NE = np.zeros((num_envs, num_episodes), dtype=np.int64)
        self._next_episode = np.full(num_envs, num_episodes)
        # Places in the chunk: the episode's first line, the current line, one beyond the episode's last line.
        self._first = np.zeros(num_envs, dtype=np.int64)
        self._at = np.zeros(num_envs, dtype=np.int64)
        self._end = np.zeros(num_envs, dtype=np.int64)
        self._num_right = np.zeros(num_envs, dtype=np.int64)
        self._num_out_of_turn = np.zeros(num_envs, dtype=np.int64)
        self._said_NP = np.zeros((num_envs, PAGE_LINES - 1), dtype=np.uint8)
        self._chunk_start = np.arange(num_envs) * num_lines
        self._line = np.zeros(num_envs, dtype=np.uint16)
        self._at_end = np.zeros(num_envs, dtype=bool)
        self._any_at_end = False

    def lines(self) -> tuple[str, ...]:
        """The text of each environment's current line."""
        return tuple(self._grammar.text(line) for line in self._line.tolist())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._look_up_lines()

    # -- the rules -----------------------------------------------------------------------------------

    def _discard_draws(self, index: int) -> None:
        self._next_episode[index] = self.rules.chunk_episodes

    def _begin(self, indices: NDArray[np.intp]) -> None:
        used_up = indices[self._next_episode[indices] == self.rules.chunk_episodes]
        for index in used_up.tolist():
            self._draw(index)
        first_episode = self._next_episode[indices] == 0
        episode = self._next_episode[indices]
        first = np.where(first_episode, 0, self._chunk_end_NE[indices, episode - 1])
        self._first[indices] = self._at[indices] = first
        self._end[indices] = self._chunk_end_NE[indices, episode]
        self._next_episode[indices] += 1
        self._num_right[indices] = 0
        self._num_out_of_turn[indices] = 0
        self._look_up_lines()

    def _advance(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        if self.render_mode is not None:
            self._said_NP[:, :-1] = self._said_NP[:, 1:]
            self._said_NP[:, -1] = actions
        answers = self._grammar.answers_L.take(self._line)
        met, spoke = answers > 0, actions > 0
        right = met & (actions == answers)
        out_of_turn = spoke & ~met
        self._num_right += right
        self._num_out_of_turn += out_of_turn
        rewards = right * (1 / self.rules.num_instructions) - out_of_turn * self.rules.speaking_penalty
        self._at += 1
        self._look_up_lines()
        return rewards, self._at_end.copy(), np.zeros_like(self._at_end)

    def _observe(self) -> NDArray[np.int64]:
        observation = self._grammar.tokens_LW.take(self._line, axis=0).astype(np.int64)
        if self._any_at_end:
            observation[self._at_end] = 0
        return observation

    def _step_info(self) -> Values:
        cue = self._line < self._grammar.num_pairs
        answers = self._grammar.answers_L.take(self._line)
        if self._any_at_end:
            cue[self._at_end] = False
            answers[self._at_end] = 0
        return {"cue": cue, "oracle_action": answers}

    def _episode_info(self) -> Values:
        correct_messages = self._num_right / self.rules.num_instructions
        return {
            "is_success": correct_messages == 1.0,
            "correct_messages": correct_messages,
            "out_of_turn": self._num_out_of_turn,
            "episode_class": CLASSES.names(self._end - self._first),
        }

    def _render_env(self, index: int) -> str | NDArray[np.uint8]:
        first, at = int(self._first[index]), int(self._at[index])
        entries = []
        for place in range(max(first, at - PAGE_LINES + 1), at + 1):
            line = int(self._chunk_line_NL[index, place])
            said = int(self._said_NP[index, place - at]) if place < at else None
            entry = Entry(place - first + 1, self._grammar.text(line), self._grammar.answer(line), said)
            entries.append(entry)
        return as_text(entries) if self.render_mode == "ansi" else as_picture(entries)

    # -- inside ------------------------------------------------------------------------------------

    def _draw(self, index: int) -> None:
        drawn = self.rules.draw(self._rngs[index])
        self._chunk_line_NL[index, : len(drawn.line_L)] = drawn.line_L
        self._chunk_end_NE[index] = drawn.num_lines_E.cumsum()
        self._next_episode[index] = 0

    def _look_up_lines(self) -> None:
        """Set the current line of every environment; an episode that is over stays on its last line."""
        self._at_end = self._at == self._end
        self._any_at_end = bool(self._at_end.any())
        place = self._chunk_start + self._at
        if self._any_at_end:
            place -= self._at_end
        self._line = self._chunk_line_NL.reshape(-1).take(place)
