"""Many corridors at once: the same rules on NumPy arrays.

The view depends on little: where the agent stands relative to the two ends (anywhere between them it
looks the same) and which colors the ball and the doors have. So every possible view is computed once,
and a step looks one up per environment.

Shape letters:
    N  environments
    K  places that look different
    C  combinations of ball color and door order
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.corridor.env import CorridorEnv, ball, observation_space
from envs.corridor.rules import CHUNK, CLASS_BOUNDS, CorridorRules, Episodes, Move, class_name


class CorridorVectorEnv(VectorEnv[NDArray[np.uint8], NDArray[np.int64], NDArray[Any]]):
    """A batch of `CorridorEnv`; environment i with seed s equals the reference with seed s + i.

    Resets finished episodes in the same step (`AutoresetMode.SAME_STEP`): the observation is the new
    episode's first, the old one's last is in `info["final_obs"]`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (as VectorEnv declares it)
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, num_envs: int = 1, *, render_mode: str | None = None, **arguments: Any) -> None:
        """Build the batch; `arguments` and ValueError as `CorridorRules`."""
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        self.rules = CorridorRules(**arguments)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_action_space = spaces.Discrete(len(Move))
        self.single_observation_space = observation_space(self.rules.view_size)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.episode_classes = self.rules.episode_classes
        self.correlation_horizon = self.rules.correlation_horizon
        class_names = [class_name(index) for index in range(len(CLASS_BOUNDS) + 1)]
        self._class_names = np.array(class_names, dtype=object)
        self._tables()
        # A single environment's generator (np_random) is the batch's list of generators here.
        self._rngs: list[np.random.Generator] = []
        self._chunk_length = np.zeros((num_envs, CHUNK), dtype=np.int64)
        self._chunk_combination = np.zeros((num_envs, CHUNK), dtype=np.int64)
        self._next_episode = np.full(num_envs, CHUNK)
        self._length = np.zeros(num_envs, dtype=np.int64)
        self._combination = np.zeros(num_envs, dtype=np.int64)
        self._x = np.zeros(num_envs, dtype=np.int64)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._limit = np.zeros(num_envs, dtype=np.int64)
        self._everybody = np.ones(num_envs, dtype=bool)

    # -- Gymnasium's interface -------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
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
                    self._next_episode[index] = CHUNK
        self._begin(np.flatnonzero(mask))
        return self._observe(), self._info() if mask.all() else _only(mask, self._info())

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Take one action in every environment.

        Raises:
            ValueError: an action is not in `action_space`.
        """
        if not self._rngs:
            raise gym.error.ResetNeeded("reset must be called before the first step")
        actions = self._checked(actions)
        self._steps += 1
        beyond = self._x - self._length  # doors line the cells from 0 on
        door = 2 * beyond + (actions == Move.DOWN)
        terminated = ((actions & 1) == 1) & (beyond >= 0) & (door < self.rules.num_colors)
        success = terminated & (door == self._door_of_cue[self._combination])
        self._x += self._shift[actions]
        np.clip(self._x, 0, self._length + self.rules.num_door_cells - 1, out=self._x)
        truncated = (self._steps >= self._limit) & ~terminated
        done = terminated | truncated
        info: dict[str, Any] = {}
        if done.any():
            final_obs, final_info = self._final(done, success)
            self._begin(np.flatnonzero(done))
            info = {"final_obs": final_obs, "_final_obs": done, "final_info": final_info, "_final_info": done}
        info |= self._info()
        return self._observe(), success.astype(np.float64), terminated, truncated, info

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """One picture for each environment, as the reference draws it."""
        if self.render_mode is None:
            return None
        return tuple(self._as_reference(index).render() for index in range(self.num_envs))  # type: ignore[misc]

    # -- exact continuation ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a later `load_state_dict` needs to go on exactly: arrays and plain types."""
        arrays = {name: getattr(self, name).copy() for name in _STATE_ARRAYS}
        return {**arrays, "generators": [rng.bit_generator.state for rng in self._rngs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called.

        Raises:
            ValueError: it was called on another number of environments.
        """
        if len(state["generators"]) != self.num_envs:
            raise ValueError(
                f"the state is of {len(state['generators'])} environments, but there are {self.num_envs}"
            )
        for name in _STATE_ARRAYS:
            getattr(self, name)[:] = state[name]
        self._rngs = [gym.utils.seeding.np_random(0)[0] for _ in range(self.num_envs)]
        for rng, generator in zip(self._rngs, state["generators"], strict=True):
            rng.bit_generator.state = generator

    # -- inside ------------------------------------------------------------------------------------

    def _tables(self) -> None:
        """Every view, by combination and place; what each action and combination means."""
        rules = self.rules
        orders = list(itertools.permutations(range(rules.num_colors)))
        cues = range(rules.num_colors)
        self._orders = orders
        self._order_number = {order: number for number, order in enumerate(orders)}
        self._num_orders = len(orders)
        # Places: x = 0 .. radius near the start, one in the middle, then from length - radius on.
        self._first_end_place = rules.radius + 2
        self._num_places = self._first_end_place + rules.radius + rules.num_door_cells
        reference = CorridorEnv(
            num_colors=rules.num_colors, view_size=rules.view_size, min_length=rules.view_size
        )
        length = 2 * rules.view_size  # long enough to have a middle
        near_ball = [*range(rules.radius + 1)]
        others = [rules.radius + 1, *range(length - rules.radius, length + rules.num_door_cells)]
        # The ball and the doors are never in sight together: a view tells of one or the other.
        balls = [[reference.view_of(length, cue, [*orders[0]], x) for x in near_ball] for cue in cues]
        doors = [[reference.view_of(length, 0, [*order], x) for x in others] for order in orders]
        views = np.empty((len(cues), len(orders), self._num_places, *reference.view_shape), dtype=np.uint8)
        views[:, :, : len(near_ball)] = np.array(balls)[:, None]
        views[:, :, len(near_ball) :] = np.array(doors)[None]
        if rules.observable:
            for cue in cues:
                views[cue, :, :, rules.radius, rules.radius] = ball(cue).encode()
        self._views = views.reshape(-1, *reference.view_shape)
        self._door_of_cue = np.array([order.index(cue) for cue, order in itertools.product(cues, orders)])
        self._shift = np.zeros(len(Move), dtype=np.int64)
        self._shift[Move.RIGHT], self._shift[Move.LEFT] = 1, -1

    def _checked(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be {self.num_envs} whole numbers, got {actions.dtype} of shape {actions.shape}"
            )
        # All bits any action has: with four actions, more than the lowest two means one is out of range.
        if int(np.bitwise_or.reduce(actions)) & ~(len(Move) - 1):
            index = int(np.flatnonzero((actions < 0) | (actions >= len(Move)))[0])
            raise ValueError(
                f"the action of environment {index} is {actions[index]}, not in {self.single_action_space}"
            )
        return actions

    def _begin(self, indices: NDArray[np.intp]) -> None:
        """Start the next episode of each environment named."""
        for index in indices[self._next_episode[indices] == CHUNK]:
            self._draw(int(index))
        episode = self._next_episode[indices]
        self._length[indices] = self._chunk_length[indices, episode]
        self._combination[indices] = self._chunk_combination[indices, episode]
        self._next_episode[indices] += 1
        self._x[indices] = 0
        self._steps[indices] = 0
        self._limit[indices] = self.rules.time_limit(self._length[indices])

    def _draw(self, index: int) -> None:
        drawn: Episodes = self.rules.draw(self._rngs[index])
        orders = np.array([self._order_number[tuple(doors)] for doors in drawn.doors_EN.tolist()])
        self._chunk_length[index] = drawn.length_E
        self._chunk_combination[index] = drawn.cue_E * self._num_orders + orders
        self._next_episode[index] = 0

    def _observe(self) -> NDArray[np.uint8]:
        near_start = np.minimum(self._x, self._first_end_place - 1)
        place = np.maximum(near_start, self._x - self._length + (self._first_end_place + self.rules.radius))
        # Short corridors: what is near the start also lies left of the end's places, never both in view.
        place = np.where(self._x <= self.rules.radius, self._x, place)
        view = self._combination * self._num_places + place
        observation: NDArray[np.uint8] = self._views.take(view, axis=0)
        return observation

    def _info(self) -> dict[str, Any]:
        door = self._door_of_cue[self._combination]
        goal = self._length + door // 2
        oracle = np.where(
            self._x == goal,
            np.where(door % 2 == 0, Move.UP, Move.DOWN),
            np.where(self._x < goal, Move.RIGHT, Move.LEFT),
        )
        cue = self._everybody.copy() if self.rules.observable else self._x <= self.rules.radius
        return {
            "cue": cue,
            "_cue": self._everybody.copy(),
            "oracle_action": oracle,
            "_oracle_action": self._everybody.copy(),
        }

    def _final(
        self, done: NDArray[np.bool_], success: NDArray[np.bool_]
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Last observation and info of the episodes that end, laid out as Gymnasium does."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        observation = self._observe()
        for index in np.flatnonzero(done):
            final_obs[index] = observation[index]
        classes = self._class_names[np.searchsorted(CLASS_BOUNDS, self._length)]
        classes[~done] = None
        info = _only(done, self._info())
        info |= {"is_success": success, "_is_success": done.copy()}
        return final_obs, info | {"episode_class": classes, "_episode_class": done.copy()}

    def _as_reference(self, index: int) -> CorridorEnv:
        """The reference environment in the same situation."""
        combination = int(self._combination[index])
        cue, order = divmod(combination, self._num_orders)
        env = CorridorEnv(render_mode="rgb_array", **dataclasses.asdict(self.rules))
        env.place(int(self._length[index]), cue, list(self._orders[order]), int(self._x[index]))
        return env


def _only(mask: NDArray[np.bool_], info: dict[str, Any]) -> dict[str, Any]:
    """The infos of the environments in `mask`, zeros elsewhere, laid out as Gymnasium does."""
    values = {
        name: np.where(mask, value, value.dtype.type(0)) for name, value in info.items() if name[0] != "_"
    }
    return values | {f"_{name}": mask.copy() for name in values}


_STATE_ARRAYS = (
    "_chunk_length",
    "_chunk_combination",
    "_next_episode",
    "_length",
    "_combination",
    "_x",
    "_steps",
    "_limit",
)
