"""The vectorized version of the corridor: the same rules on NumPy arrays.

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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_suite.envs.batched import BatchedEnv, Values
from memory_suite.envs.corridor.env import CorridorEnv, ball
from memory_suite.envs.corridor.rules import CHUNK, CLASSES, CorridorRules, Episodes
from memory_suite.envs.grid_world import Move, symbolic_space


class CorridorVectorEnv(BatchedEnv):
    """A batch of `CorridorEnv`."""

    STATE_ARRAYS = (
        "_chunk_length",
        "_chunk_combination",
        "_next_episode",
        "_length",
        "_combination",
        "_x",
        "_steps",
        "_limit",
    )

    def __init__(self, num_envs: int = 1, *, render_mode: str | None = None, **arguments: Any) -> None:
        """Build the batch; `arguments` and ValueError as `CorridorRules`."""
        self.rules = CorridorRules(**arguments)
        view_size = self.rules.view_size
        super().__init__(num_envs, render_mode, symbolic_space(view_size, view_size), len(Move))
        self.episode_classes = self.rules.episode_classes
        self.correlation_horizon = self.rules.correlation_horizon
        self.max_return = self.rules.max_return
        self.memory_free_return = self.rules.memory_free_return
        self._tables()
        self._chunk_length = np.zeros((num_envs, CHUNK), dtype=np.int64)
        self._chunk_combination = np.zeros((num_envs, CHUNK), dtype=np.int64)
        self._next_episode = np.full(num_envs, CHUNK)
        self._length = np.zeros(num_envs, dtype=np.int64)
        self._combination = np.zeros(num_envs, dtype=np.int64)
        self._x = np.zeros(num_envs, dtype=np.int64)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._limit = np.zeros(num_envs, dtype=np.int64)
        self._success = np.zeros(num_envs, dtype=bool)

    # -- the rules -----------------------------------------------------------------------------------

    def _discard_draws(self, index: int) -> None:
        self._next_episode[index] = CHUNK

    def _begin(self, indices: NDArray[np.intp]) -> None:
        for index in indices[self._next_episode[indices] == CHUNK]:
            self._draw(int(index))
        episode = self._next_episode[indices]
        self._length[indices] = self._chunk_length[indices, episode]
        self._combination[indices] = self._chunk_combination[indices, episode]
        self._next_episode[indices] += 1
        self._x[indices] = 0
        self._steps[indices] = 0
        self._limit[indices] = self.rules.time_limit(self._length[indices])

    def _advance(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        self._steps += 1
        beyond = self._x - self._length  # doors line the cells from 0 on
        door = 2 * beyond + (actions == Move.DOWN)
        terminated = ((actions & 1) == 1) & (beyond >= 0) & (door < self.rules.num_colors)
        self._success = terminated & (door == self._door_of_cue[self._combination])
        self._x += self._shift[actions]
        np.clip(self._x, 0, self._length + self.rules.num_door_cells - 1, out=self._x)
        truncated = (self._steps >= self._limit) & ~terminated
        return self._success.astype(np.float64), terminated, truncated

    def _observe(self) -> NDArray[np.uint8]:
        near_start = np.minimum(self._x, self._first_end_place - 1)
        place = np.maximum(near_start, self._x - self._length + (self._first_end_place + self.rules.radius))
        # Short corridors: what is near the start also lies left of the end's places, never both in view.
        place = np.where(self._x <= self.rules.radius, self._x, place)
        view = self._combination * self._num_places + place
        observation: NDArray[np.uint8] = self._views.take(view, axis=0)
        return observation

    def _step_info(self) -> Values:
        door = self._door_of_cue[self._combination]
        goal = self._length + door // 2
        oracle = np.where(
            self._x == goal,
            np.where(door % 2 == 0, Move.UP, Move.DOWN),
            np.where(self._x < goal, Move.RIGHT, Move.LEFT),
        )
        cue = self._all_envs.copy() if self.rules.observable else self._x <= self.rules.radius
        return {"cue": cue, "oracle_action": oracle}

    def _episode_info(self) -> Values:
        return {"is_success": self._success, "episode_class": CLASSES.names(self._length)}

    def _render_env(self, index: int) -> NDArray[np.uint8] | None:
        combination = int(self._combination[index])
        cue, order = divmod(combination, self._num_orders)
        env = CorridorEnv(render_mode="rgb_array", **dataclasses.asdict(self.rules))
        env.place(int(self._length[index]), cue, list(self._orders[order]), int(self._x[index]))
        return env.render()

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

    def _draw(self, index: int) -> None:
        drawn: Episodes = self.rules.draw(self._rngs[index])
        orders = np.array([self._order_number[tuple(doors)] for doors in drawn.doors_EN.tolist()])
        self._chunk_length[index] = drawn.length_E
        self._chunk_combination[index] = drawn.cue_E * self._num_orders + orders
        self._next_episode[index] = 0
