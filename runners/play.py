"""Play an environment yourself, to see what it demands of memory.

    python runners/play.py --env portal-short --seed 3 --env-arg rooms=3

Pictures are played in a window with the arrow keys, text in the terminal by typing the number of an action.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import pygame
import tyro
from gymnasium import spaces
from minigrid.core.actions import Actions
from minigrid.minigrid_env import MiniGridEnv

from memory_suite.configs import command_line
from memory_suite.configs.command_line import Scalar, exit_on_error
from memory_suite.envs.registration import resolve
from memory_suite.envs.window import Window

LEAVE = ("escape", "q")
"""keys, or words in the terminal, that end the program"""
RESTART = "r"
"""key, or word in the terminal, that starts another episode"""
MINIGRID_KEYS = {
    "left": Actions.left,
    "right": Actions.right,
    "up": Actions.forward,
    "space": Actions.toggle,
    "page up": Actions.pickup,
    "page down": Actions.drop,
    "return": Actions.done,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayCommand:
    """Play an environment yourself, to see what it demands of memory."""

    env: str = "portal-short"
    """short name or Gymnasium id"""
    env_args: Annotated[Mapping[str, Scalar], command_line.REPEATABLE, tyro.conf.arg(name="env-arg")] = field(
        default_factory=dict
    )
    """argument of the environment, such as rooms=3; repeatable"""
    seed: int | None = None
    """seed of the first episode; none: a random one"""
    screen: Literal["auto", "window", "terminal"] = "auto"
    """where to play; auto: the terminal for text, a window for pictures"""

    def __post_init__(self) -> None:
        """Validate."""
        if self.seed is not None:
            command_line.check_seed(self.seed)


def main(argv: list[str] | None = None) -> int:
    """Play until the player leaves."""
    command = command_line.parse(PlayCommand, argv)
    try:
        exit_on_error(lambda: run(command))
    except KeyboardInterrupt:
        print()
    return 0


def run(command: PlayCommand) -> None:
    """Carry out the command.

    Raises:
        ValueError: the environment or its arguments are invalid, or there is no screen.
    """
    without_rendering = _make(command, None)
    modes = without_rendering.metadata.get("render_modes", [])
    without_rendering.close()
    in_terminal = command.screen == "terminal" or (command.screen == "auto" and "ansi" in modes)
    mode = "ansi" if in_terminal else "rgb_array"
    if mode not in modes:
        raise ValueError(f"env: {command.env} cannot be played here: it has no render mode {mode!r}")
    env = _make(command, mode)
    if not isinstance(env.action_space, spaces.Discrete):
        raise ValueError(
            f"env: {command.env} has the action space {env.action_space}; only Discrete can be played"
        )
    try:
        if in_terminal:
            play_in_terminal(env, command.seed)
        else:
            play_in_window(env, command.seed, Window(command.env))
    except pygame.error as error:
        hint = "; --screen terminal needs none" if "ansi" in modes else ""
        raise ValueError(f"screen: no window can be opened: {error}{hint}") from error
    finally:
        env.close()


def play_in_window(env: gym.Env[Any, Any], seed: int | None, window: Window) -> None:
    """Show the environment and take keys until the window is closed."""
    actions = key_actions(env)
    print(f"Keys: {', '.join(actions)}; {RESTART} for another episode; {' or '.join(LEAVE)} to leave.")
    game = Game(env, seed)
    while True:
        window.show(np.asarray(env.render()))
        window.caption(game.summary() + (" (any key: next episode)" if game.ended else ""))
        key = window.next_key()
        if key is None or key in LEAVE:
            break
        if key == RESTART or game.ended:
            game.start()
        elif key in actions:
            game.act(actions[key])
            if game.ended:
                print(game.summary())
    window.close()


def play_in_terminal(env: gym.Env[Any, Any], seed: int | None) -> None:
    """Print the environment and read the number of an action; enter alone is the first action."""
    space = env.action_space
    assert isinstance(space, spaces.Discrete)
    low, high = int(space.start), int(space.start + space.n - 1)
    print(f"Type an action, {low} to {high} (enter alone: {low}); {RESTART} for another episode; q to leave.")
    game = Game(env, seed)
    print(env.render())
    while True:
        try:
            word = input("> ").strip()
        except EOFError:
            return
        if word in LEAVE:
            return
        if word == RESTART:
            game.start()
        else:
            action = low if not word else int(word) if word.lstrip("-").isdecimal() else None
            if action is None or not low <= action <= high:
                print(f"{word!r} is no action; type a number from {low} to {high}, {RESTART} or q")
                continue
            reward = game.act(action)
            if reward:
                print(f"reward {reward:g}")
            if game.ended:
                print(env.render())
                print(game.summary())
                game.start()
        print(env.render())


class Game:
    """The episode being played, and its return."""

    def __init__(self, env: gym.Env[Any, Any], seed: int | None) -> None:
        """Start the first episode."""
        self.env = env
        self.episode = 0
        self._seed = seed
        self.start()

    def start(self) -> None:
        """Start the next episode."""
        _, info = self.env.reset(seed=self._seed)
        self._seed = None
        self._reset_names = set(info)
        self.episode += 1
        self.steps, self.total, self.ended = 0, 0.0, False
        self._final_info: dict[str, Any] = {}

    def act(self, action: int) -> float:
        """Take one step and return its reward."""
        _, reward, terminated, truncated, info = self.env.step(np.int64(action))
        self.steps += 1
        self.total += float(reward)
        self.ended = terminated or truncated
        if self.ended:
            # Entries that only the last info has describe the whole episode.
            self._final_info = {name: value for name, value in info.items() if name not in self._reset_names}
        return float(reward)

    def summary(self) -> str:
        """Return, steps and outcome in one line."""
        parts = [f"episode {self.episode}: return {self.total:.3f} after {self.steps} steps"]
        for name, value in self._final_info.items():
            if name == "is_success":
                parts.append("success" if value else "no success")
            elif isinstance(value, bool | int | float | str | np.generic):
                parts.append(f"{name.replace('_', ' ')} {value}")
        return ", ".join(parts)


def key_actions(env: gym.Env[Any, Any]) -> dict[str, int]:
    """Action of each key: from the environment's `keys_to_action`, MiniGrid's keys, or the digits."""
    if env.has_wrapper_attr("keys_to_action"):
        own: Mapping[str, int] = env.get_wrapper_attr("keys_to_action")
        return {key: int(action) for key, action in own.items()}
    if isinstance(env.unwrapped, MiniGridEnv):
        return {key: int(action) for key, action in MINIGRID_KEYS.items()}
    space = env.action_space
    assert isinstance(space, spaces.Discrete)
    return {str(key): int(space.start) + key for key in range(min(10, int(space.n)))}


def _make(command: PlayCommand, render_mode: str | None) -> gym.Env[Any, Any]:
    arguments: dict[str, Any] = {"render_mode": render_mode, **command.env_args}
    try:
        return gym.make(resolve(command.env), disable_env_checker=True, **arguments)
    except (ValueError, TypeError) as error:
        raise ValueError(str(error) if str(error).startswith("env:") else f"env_args: {error}") from error
    except (ImportError, gym.error.Error) as error:
        raise ValueError(f"env: could not create {command.env}: {error}") from error


if __name__ == "__main__":
    sys.exit(command_line.run(main))
