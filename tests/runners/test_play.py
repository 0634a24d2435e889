"""Playing by hand, with scripted hands: keys in a window that is nowhere, words in the terminal."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pygame
import pytest
from gymnasium import spaces

from memory_suite.envs.registration import resolve
from memory_suite.envs.window import Window
from memory_suite.runners import play

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def screen() -> Iterator[None]:
    pygame.display.init()
    pygame.event.clear()
    yield
    pygame.display.quit()


def press(*keys: str) -> None:
    """What the player will have pressed by the time the window asks."""
    for key in keys:
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.key.key_code(key)))


def perfect_keys(name: str, seed: int, **arguments: Any) -> list[str]:
    """What a player presses who remembers everything."""
    env = gym.make(resolve(name), **arguments)
    key_of = {action: key for key, action in play.key_actions(env).items()}
    _, info = env.reset(seed=seed)
    keys, ended = [], False
    while not ended:
        keys.append(key_of[info["oracle_action"]])
        _, _, terminated, truncated, info = env.step(info["oracle_action"])
        ended = terminated or truncated
    return keys


@pytest.mark.parametrize(
    ("name", "arguments", "score"),
    [
        ("portal-short", {"rooms": 3}, "success, rooms passed 3, repeated mistakes 0"),
        ("corridor-short", {"length": 4}, "success, episode class 3-20"),
    ],
)
def test_arrow_keys_walk_to_the_end(
    name: str, arguments: dict[str, int], score: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = perfect_keys(name, 3, **arguments)
    press(*keys, "x", "up", "q")
    words = [f"--env-arg={key}={value}" for key, value in arguments.items()]
    assert play.main(["--env", name, "--seed", "3", *words]) == 0
    out = capsys.readouterr().out
    assert "Keys: right, down, left, up;" in out
    assert out.count("episode 1: return") == 1
    assert f"after {len(keys)} steps, {score}" in out
    assert "episode 2" not in out, "another episode has begun, and was left"


def test_the_window_can_be_closed_and_an_episode_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    keys = perfect_keys("portal-short", 5)
    press("up", "left", "r", "r")
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    press(*keys)
    play.main(["--seed", "4"])
    assert "success" not in capsys.readouterr().out


def test_the_picture_is_what_the_window_shows() -> None:
    env = gym.make(resolve("portal-short"), render_mode="rgb_array")
    env.reset(seed=0)
    picture: Any = env.render()
    window = Window("test")
    window.show(picture)
    shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    scale = shown.shape[0] // picture.shape[0]
    assert scale >= 1 and max(shown.shape) >= 400
    np.testing.assert_array_equal(shown[::scale, ::scale], picture)
    window.close()


def test_minigrid_and_other_environments_have_keys_too() -> None:
    assert play.key_actions(gym.make("MiniGrid-MemoryS7-v0"))["up"] == 2
    assert play.key_actions(gym.make("CartPole-v1")) == {"0": 0, "1": 1}


class Echo(gym.Env[Any, Any]):
    """Says what was done; ends after three steps, and pays for action 2."""

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"]}  # noqa: RUF012 (as gym.Env declares it)
    observation_space = spaces.Discrete(9)
    action_space = spaces.Discrete(3)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.last = 0, f"seed {seed}"
        return 0, {"cue": False}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.t, self.last = self.t + 1, f"did {action}"
        end = self.t == 3
        info: dict[str, Any] = {"cue": False}
        return self.t, 0.5 * (action == 2), end, False, info | ({"is_success": False} if end else {})

    def render(self) -> Any:
        if self.render_mode == "rgb_array":
            return np.zeros((4, 4, 3), np.uint8)
        return f"line {self.t}: {self.last}"


@pytest.fixture
def echo() -> Iterator[str]:
    gym.register("Test/Echo-v0", Echo)
    yield "Test/Echo-v0"
    del gym.registry["Test/Echo-v0"]


def test_text_is_played_in_the_terminal(
    echo: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n7\nhello\n2\n\n1\nr\n0\n"))
    assert play.main(["--env", echo, "--seed", "8"]) == 0
    out = capsys.readouterr().out.replace("> ", "")
    assert out.splitlines() == [
        "Type an action, 0 to 2 (enter alone: 0); r for another episode; q to leave.",
        "line 0: seed 8",
        "line 1: did 0",
        "'7' is no action; type a number from 0 to 2, r or q",
        "'hello' is no action; type a number from 0 to 2, r or q",
        "reward 0.5",
        "line 2: did 2",
        "line 3: did 0",
        "episode 1: return 0.500 after 3 steps, no success",
        "line 0: seed None",
        "line 1: did 1",
        "line 0: seed None",
        "line 1: did 0",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env", "portal-shirt"], "did you mean 'portal-short'"),
        (["--env-arg", "rooms=0"], "rooms must be at least 1"),
        (["--env-arg", "room=2"], "room"),
        (["--env", "Pendulum-v1"], "only Discrete can be played"),
        (["--screen", "terminal"], "has no render mode 'ansi'"),
        (["--seed", "-1"], "seed must lie in"),
    ],
)
def test_invalid_options_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        play.main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_an_invisible_window_is_refused(
    echo: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SDL chooses such a driver where there is no display."""
    monkeypatch.delenv("SDL_VIDEODRIVER")
    for name, hint in (("portal-short", ""), (echo, "; --screen terminal needs none")):
        press("q")
        with pytest.raises(SystemExit) as stopped:
            play.main(["--env", name, "--screen", "window"])
        assert stopped.value.code == 2
        said = f"error: screen: no window can be opened: there is no display{hint}\n"
        assert said in capsys.readouterr().err


def test_a_missing_screen_is_an_error() -> None:
    environment = {"PATH": "/usr/bin:/bin", "SDL_VIDEODRIVER": "nowhere"}
    command = [sys.executable, str(ROOT / "runners" / "play.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert "no window can be opened" in done.stderr
    assert "Traceback" not in done.stderr
