"""Many instruction worlds at once: the same rules on NumPy arrays.

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

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from memory_suite.envs.instruction.env import (
    RENDER_MODES,
    InstructionEnv,
    check_render_mode,
    observation_space,
)
from memory_suite.envs.instruction.grammar import LINE_LENGTH
from memory_suite.envs.instruction.page import PAGE_LINES, Entry, as_picture, as_text
from memory_suite.envs.instruction.rules import CLASS_BOUNDS, InstructionRules, class_name


class InstructionVectorEnv(VectorEnv[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]):
    """A batch of `InstructionEnv`; environment i with seed s equals the reference with seed s + i.

    Resets finished episodes in the same step (`AutoresetMode.SAME_STEP`): the observation is the new
    episode's first, the old one's last is in `info["final_obs"]`. Infos are the reference's but for `line`,
    the text, which would cost time in every step: ask `lines()` for it.
    """

    episode_metrics = InstructionEnv.episode_metrics
    metadata: dict[str, Any] = {  # noqa: RUF012 (as VectorEnv declares it)
        "render_modes": [*RENDER_MODES],
        "render_fps": 2,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, num_envs: int = 1, *, render_mode: str | None = None, **arguments: Any) -> None:
        """Build the batch; `arguments` and ValueError as `InstructionRules`."""
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        check_render_mode(render_mode)
        self.rules = InstructionRules(**arguments)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_action_space = spaces.Discrete(self.rules.num_messages + 1)
        self.single_observation_space = observation_space()
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.episode_classes = self.rules.episode_classes
        self.correlation_horizon = self.rules.correlation_horizon
        self.max_return = self.rules.max_return
        self.memory_free_return = self.rules.memory_free_return
        class_names = [class_name(index) for index in range(len(CLASS_BOUNDS) + 1)]
        self._class_names = np.array(class_names, dtype=object)
        self._grammar = self.rules.grammar
        # A single environment's generator (np_random) is the batch's list of generators here.
        self._rngs: list[np.random.Generator] = []
        num_episodes, num_lines = self.rules.chunk_episodes, self.rules.chunk_lines
        self._chunk_line_NL = np.zeros((num_envs, num_lines), dtype=np.uint16)
        self._chunk_end_NE = np.zeros((num_envs, num_episodes), dtype=np.int64)
        self._next_episode = np.full(num_envs, num_episodes)
        # Places in the chunk: of the episode's first line, the present line, and beyond the last one.
        self._first = np.zeros(num_envs, dtype=np.int64)
        self._at = np.zeros(num_envs, dtype=np.int64)
        self._end = np.zeros(num_envs, dtype=np.int64)
        self._num_right = np.zeros(num_envs, dtype=np.int64)
        self._num_out_of_turn = np.zeros(num_envs, dtype=np.int64)
        self._said_NP = np.zeros((num_envs, PAGE_LINES - 1), dtype=np.uint8)
        self._row = np.arange(num_envs) * num_lines
        self._line = np.zeros(num_envs, dtype=np.uint16)
        self._everybody = np.ones(num_envs, dtype=bool)

    # -- Gymnasium's interface -------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """Begin an episode everywhere, or where `options["reset_mask"]` is True."""
        mask = self._everybody if not options or "reset_mask" not in options else options["reset_mask"]
        mask = np.asarray(mask, dtype=bool)
        if mask.shape != (self.num_envs,):
            raise ValueError(
                f"options['reset_mask'] must have the shape ({self.num_envs},), got {mask.shape}"
            )
        seeds: Sequence[int | None]
        if seed is None:
            seeds = [None] * self.num_envs
        elif isinstance(seed, int | np.integer):
            seeds = [int(seed) + index for index in range(self.num_envs)]
        else:
            seeds = seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be a number or {self.num_envs} of them, got {len(seeds)}")
        if not self._rngs:
            self._rngs = [gym.utils.seeding.np_random(given)[0] for given in seeds]
        else:
            for index in np.flatnonzero(mask).tolist():
                if seeds[index] is not None:
                    self._rngs[index] = gym.utils.seeding.np_random(seeds[index])[0]
                    self._next_episode[index] = self.rules.chunk_episodes
        self._begin(np.flatnonzero(mask))
        self._read()
        return self._observe(), self._info() if mask.all() else _only(mask, self._info())

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Take one action in every environment.

        Raises:
            ValueError: an action is not in `action_space`.
        """
        if not self._rngs:
            raise gym.error.ResetNeeded("reset must be called before the first step")
        actions = self._checked(actions)
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
        terminated = self._at == self._end
        info: dict[str, Any] = {}
        if terminated.any():
            ended = np.flatnonzero(terminated)
            final_obs, final_info = self._final(terminated, ended)
            info = {"final_obs": final_obs, "final_info": final_info}
            info |= {f"_{name}": terminated.copy() for name in info}
            self._begin(ended)
        self._read()
        info |= self._info()
        return self._observe(), rewards, terminated, np.zeros_like(terminated), info

    def lines(self) -> tuple[str, ...]:
        """The text of each environment's present line."""
        return tuple(self._grammar.text(line) for line in self._line.tolist())

    def render(self) -> tuple[str, ...] | tuple[NDArray[np.uint8], ...] | None:
        """One page for each environment, as the reference renders it."""
        if self.render_mode is None:
            return None
        pages = [self._entries(index) for index in range(self.num_envs)]
        if self.render_mode == "ansi":
            return tuple(as_text(page) for page in pages)
        return tuple(as_picture(page) for page in pages)

    # -- exact continuation ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a later `load_state_dict` needs to go on exactly: arrays and plain types."""
        arrays = {name: getattr(self, name).copy() for name in _STATE_ARRAYS}
        return {**arrays, "generators": [rng.bit_generator.state for rng in self._rngs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called.

        Raises:
            ValueError: it was called on another number of environments, or on longer or shorter ones.
        """
        if len(state["generators"]) != self.num_envs:
            raise ValueError(
                f"the state is of {len(state['generators'])} environments, but there are {self.num_envs}"
            )
        for name in _STATE_ARRAYS:
            if state[name].shape != getattr(self, name).shape:
                raise ValueError(
                    f"the state's {name} has the shape {state[name].shape}, not {getattr(self, name).shape}: "
                    "it is of environments with another num_lines"
                )
        for name in _STATE_ARRAYS:
            getattr(self, name)[:] = state[name]
        self._rngs = [gym.utils.seeding.np_random(0)[0] for _ in range(self.num_envs)]
        for rng, generator in zip(self._rngs, state["generators"], strict=True):
            rng.bit_generator.state = generator
        self._read()

    # -- inside ------------------------------------------------------------------------------------

    def _checked(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be {self.num_envs} whole numbers, got {actions.dtype} of shape {actions.shape}"
            )
        if actions.min() < 0 or actions.max() > self.rules.num_messages:
            index = int(np.flatnonzero((actions < 0) | (actions > self.rules.num_messages))[0])
            raise ValueError(
                f"the action of environment {index} is {actions[index]}, not in {self.single_action_space}"
            )
        return actions

    def _begin(self, indices: NDArray[np.intp]) -> None:
        """Start the next episode of each environment named."""
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

    def _draw(self, index: int) -> None:
        drawn = self.rules.draw(self._rngs[index])
        self._chunk_line_NL[index, : len(drawn.line_L)] = drawn.line_L
        self._chunk_end_NE[index] = drawn.num_lines_E.cumsum()
        self._next_episode[index] = 0

    def _read(self) -> None:
        """Look up the present line of every environment."""
        self._line = self._chunk_line_NL.reshape(-1).take(self._row + self._at)

    def _observe(self) -> NDArray[np.int64]:
        return self._grammar.tokens_LW.take(self._line, axis=0).astype(np.int64)

    def _info(self) -> dict[str, Any]:
        return {
            "cue": self._line < self._grammar.num_pairs,
            "_cue": self._everybody.copy(),
            "oracle_action": self._grammar.answers_L.take(self._line),
            "_oracle_action": self._everybody.copy(),
        }

    def _final(
        self, done: NDArray[np.bool_], indices: NDArray[np.intp]
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Last observation and info of the episodes that end, laid out as Gymnasium does."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        classes = final_obs.copy()
        for index in indices.tolist():
            final_obs[index] = np.zeros(LINE_LENGTH, dtype=np.int64)
        num_lines = self._end[indices] - self._first[indices]
        classes[indices] = self._class_names[np.searchsorted(CLASS_BOUNDS, num_lines)]
        correct_messages = np.zeros(self.num_envs)
        correct_messages[indices] = self._num_right[indices] / self.rules.num_instructions
        out_of_turn = np.zeros(self.num_envs, dtype=np.int64)
        out_of_turn[indices] = self._num_out_of_turn[indices]
        values = {
            "cue": np.zeros(self.num_envs, dtype=bool),
            "oracle_action": np.zeros(self.num_envs, dtype=np.int64),
            "is_success": correct_messages == 1.0,
            "correct_messages": correct_messages,
            "out_of_turn": out_of_turn,
            "episode_class": classes,
        }
        return final_obs, values | {f"_{name}": done.copy() for name in values}

    def _entries(self, index: int) -> list[Entry]:
        """The latest lines of an environment's episode, the present one last."""
        first, at = int(self._first[index]), int(self._at[index])
        entries = []
        for place in range(max(first, at - PAGE_LINES + 1), at + 1):
            line = int(self._chunk_line_NL[index, place])
            said = int(self._said_NP[index, place - at]) if place < at else None
            entry = Entry(place - first + 1, self._grammar.text(line), self._grammar.answer(line), said)
            entries.append(entry)
        return entries


def _only(mask: NDArray[np.bool_], info: dict[str, Any]) -> dict[str, Any]:
    """The infos of the environments in `mask`, zeros elsewhere, laid out as Gymnasium does."""
    values = {
        name: np.where(mask, value, value.dtype.type(0)) for name, value in info.items() if name[0] != "_"
    }
    return values | {f"_{name}": mask.copy() for name in values}


_STATE_ARRAYS = (
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
