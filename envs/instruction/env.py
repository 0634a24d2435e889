"""The instruction world as a plain Gymnasium environment: the readable reference."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from memory_suite.envs.instruction.grammar import LINE_LENGTH, VOCABULARY, encode
from memory_suite.envs.instruction.page import PAGE_LINES, Entry, as_picture, as_text
from memory_suite.envs.instruction.rules import CLASSES, Episodes, InstructionRules

Observation = NDArray[np.int64]

RENDER_MODES = ("ansi", "rgb_array")


def observation_space() -> spaces.MultiDiscrete:
    """Token ids of the current line, then padding."""
    return spaces.MultiDiscrete(np.full(LINE_LENGTH, len(VOCABULARY)))


class InstructionEnv(gym.Env[Observation, np.int64]):
    """Read a text line by line, remember who must be told what, and tell them when they are met.

    ## Action space
    `Discrete(num_messages + 1)`: listen (0) or say message k of `grammar.MESSAGES` (k, counted from 1).

    ## Observation space
    `MultiDiscrete(16 x 211, int64)`: the token ids of the current line (`grammar.VOCABULARY`), padded with
    0. After the last line all are 0.

    ## Reward
    At "You see the CHARACTER.": +1 / num_instructions for saying the message that an earlier line "Can you
    tell the CHARACTER that MESSAGE?" named, 0 for another message or for listening. At every other line:
    0 for listening, -speaking_penalty for saying anything. An agent that remembers scores 1
    (`max_return`); without memory no policy exceeds 1 / num_messages on average (`memory_free_return`; see
    `InstructionRules` for why).

    ## Episode end
    Terminates after the answer to the last line. Never truncates.

    ## Info
    `cue`: the line is an instruction (there is something to be remembered). `oracle_action`: what an agent
    that remembers does now. At the end also
    `is_success` (every message was said at its meeting; speaking out of turn costs reward, not success),
    `correct_messages` (the share that was), `out_of_turn` (how often the agent spoke at a line that is no
    meeting) and `episode_class` (a range of numbers of lines).

    ## Arguments
    See `InstructionRules`, and `render_mode` ("ansi", "rgb_array" or None).

    ## Version history
    - v0: first version. Re-created from the description in the Expire-Span paper, whose code for it was
      never released.
    """

    episode_metrics = ("correct_messages", "out_of_turn")
    """what the final info measures of the whole episode besides its success"""
    ARGUMENTS = tuple(field.name for field in dataclasses.fields(InstructionRules))
    metadata: dict[str, Any] = {"render_modes": [*RENDER_MODES], "render_fps": 2}  # noqa: RUF012 (as gym.Env declares it)

    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        """Build the world; arguments and ValueError as `InstructionRules`."""
        self.rules = InstructionRules(**arguments)
        if render_mode not in (None, *RENDER_MODES):
            raise ValueError(f"render_mode must be 'ansi', 'rgb_array' or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(self.rules.num_messages + 1)
        self.observation_space = observation_space()
        self.episode_classes = self.rules.episode_classes
        self.correlation_horizon = self.rules.correlation_horizon
        self.max_return = self.rules.max_return
        self.memory_free_return = self.rules.memory_free_return
        self._grammar = self.rules.grammar
        self._chunk: Episodes | None = None
        self._next_episode = 0
        self._lines: list[int] = []
        self._at = 0
        self._recent: deque[Entry] = deque(maxlen=PAGE_LINES - 1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._chunk is None or self._next_episode == len(self._chunk.num_lines_E):
            self._chunk, self._next_episode = self.rules.draw(self.np_random), 0
        first = int(self._chunk.num_lines_E[: self._next_episode].sum())
        num_lines = int(self._chunk.num_lines_E[self._next_episode])
        self._next_episode += 1
        self._lines = self._chunk.line_L[first : first + num_lines].tolist()
        self._at = 0
        self._read()
        self._num_right = 0
        self._num_out_of_turn = 0
        self._recent.clear()
        return self._observe(), self._info()

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self._at == len(self._lines):
            raise gym.error.ResetNeeded("reset must be called before the first step and after the last")
        if not self.action_space.contains(action):
            raise ValueError(f"the action is {action}, not in {self.action_space}")
        said, answer = int(action), self._answer
        right = answer > 0 and said == answer
        out_of_turn = answer == 0 and said > 0
        self._num_right += right
        self._num_out_of_turn += out_of_turn
        reward = right / self.rules.num_instructions - out_of_turn * self.rules.speaking_penalty
        self._recent.append(self._entry(said))
        self._at += 1
        self._read()
        terminated = self._at == len(self._lines)
        info = self._info()
        if terminated:
            info["is_success"] = self._num_right == self.rules.num_instructions
            info["correct_messages"] = self._num_right / self.rules.num_instructions
            info["out_of_turn"] = self._num_out_of_turn
            info["episode_class"] = CLASSES.name(len(self._lines))
        return self._observe(), reward, terminated, False, info

    def render(self) -> str | NDArray[np.uint8] | None:
        """The latest lines of the episode, with what was said to them and whether it was right."""
        if self.render_mode is None:
            return None
        entries = [*self._recent]
        if self._at < len(self._lines):
            entries.append(self._entry(None))
        return as_text(entries) if self.render_mode == "ansi" else as_picture(entries)

    @property
    def line(self) -> str:
        """The text of the current line; "" after the last."""
        return self._text

    def _read(self) -> None:
        """Look up the current line; after the last there is none."""
        at_end = self._at == len(self._lines)
        line = None if at_end else self._lines[self._at]
        self._text = "" if line is None else self._grammar.text(line)
        self._is_instruction = line is not None and self._grammar.is_instruction(line)
        self._answer = 0 if line is None else self._grammar.answer(line)

    def _entry(self, said: int | None) -> Entry:
        return Entry(self._at + 1, self._text, self._answer, said)

    def _observe(self) -> Observation:
        observation = np.zeros(LINE_LENGTH, dtype=np.int64)
        tokens = encode(self._text)
        observation[: len(tokens)] = tokens
        return observation

    def _info(self) -> dict[str, Any]:
        return {"cue": self._is_instruction, "oracle_action": self._answer}
