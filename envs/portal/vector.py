"""The vectorized version of the portal: the same rules on NumPy arrays.

What the agent sees, and what its moves do, depends on the room's *kind* (its look and which of its doors
is right) and on the agent's *spot* (a free cell or one of the two doorways). So all of it is computed
once, for every kind and spot, and a step looks it up.

Shape letters:
    N  environments
    K  kinds of rooms: look * 2 + right door
    S  spots: the free cells, then the doorway of the look's first and of its second door
    X, Y  cells of the view
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from minigrid.core.constants import OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.core.world_object import Wall
from numpy.typing import NDArray

from memory_suite.envs.batched import BatchedEnv, Values
from memory_suite.envs.grid_world import EMPTY, STEPS, Move, symbolic_space
from memory_suite.envs.portal.env import AGENT, PortalEnv
from memory_suite.envs.portal.rules import (
    CELL_CHUNK,
    CELLS,
    CHUNK,
    NUM_CELLS,
    PLACE_PAIRS,
    ROOM_SIDE,
    Look,
    PortalRules,
    door_direction,
    oracle_action,
)

NUM_SPOTS = NUM_CELLS + 2
LEAVES = NUM_SPOTS
"""where a move leads from a doorway, whichever move it is"""
WALL = Wall().encode()


class PortalVectorEnv(BatchedEnv):
    """A batch of `PortalEnv`."""

    episode_metrics = PortalEnv.episode_metrics
    STATE_ARRAYS = (
        "_chunk_kind",
        "_next_episode",
        "_chunk_cell",
        "_next_cell",
        "_kind",
        "_spot",
        "_room",
        "_passed",
        "_known",
        "_repeated_mistakes",
        "_steps",
    )

    def __init__(self, num_envs: int = 1, *, render_mode: str | None = None, **arguments: Any) -> None:
        """Build the batch; `arguments` and ValueError as `PortalRules`."""
        self.rules = PortalRules(**arguments)
        side = self.rules.view_side
        super().__init__(num_envs, render_mode, symbolic_space(side, side), len(Move))
        self.correlation_horizon = self.rules.correlation_horizon
        self.max_return = self.rules.max_return
        self._time_limit = self.rules.time_limit
        self._new_room_reward = self.rules.reward(new_room=True, success=False)
        looks = [self.rules.look(number) for number in range(self.rules.num_looks)]
        self._views = _views(self.rules, looks)
        self._next_spot, self._oracle = _moves(looks)
        self._chunk_kind = np.zeros((num_envs, CHUNK, self.rules.rooms), dtype=np.int16)
        self._next_episode = np.full(num_envs, CHUNK)
        self._chunk_cell = np.zeros((num_envs, CELL_CHUNK), dtype=np.int8)
        self._next_cell = np.full(num_envs, CELL_CHUNK)
        self._kind, self._spot, self._room = np.zeros((3, num_envs), dtype=np.int64)
        self._passed, self._known, self._repeated_mistakes = np.zeros((3, num_envs), dtype=np.int64)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._success = np.zeros(num_envs, dtype=bool)

    @property
    def memory_free_return(self) -> float:
        """The most that a policy without memory gets on average."""
        return self.rules.memory_free_return

    # -- the rules -----------------------------------------------------------------------------------

    def _discard_draws(self, index: int) -> None:
        self._next_episode[index] = CHUNK
        self._next_cell[index] = CELL_CHUNK

    def _begin(self, indices: NDArray[np.intp]) -> None:
        for index in indices[self._next_episode[indices] == CHUNK].tolist():
            drawn = self.rules.draw(self._rngs[index])
            self._chunk_kind[index] = 2 * drawn.look_ER + drawn.right_ER
            self._next_episode[index] = 0
        self._next_episode[indices] += 1
        for counter in (self._passed, self._known, self._repeated_mistakes, self._steps):
            counter[indices] = 0
        self._enter(indices, np.zeros(len(indices), dtype=np.int64))

    def _advance(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        self._steps += 1
        spot = self._next_spot.take(len(Move) * self._at() + actions)
        passing = np.flatnonzero(spot == LEAVES)
        opening = np.flatnonzero((spot >= NUM_CELLS) & (spot < LEAVES))
        rewards = np.zeros(self.num_envs)
        success = np.zeros(self.num_envs, dtype=bool)
        if len(opening):
            right = spot[opening] - NUM_CELLS == self._kind[opening] & 1
            room, known, passed = self._room[opening], self._known[opening], self._passed[opening]
            self._repeated_mistakes[opening] += ~right & (room < known)
            self._known[opening] = np.maximum(known, room + 1)
            new = right & (room == passed)
            self._passed[opening] += new
            success[opening] = right & (room == self.rules.rooms - 1)
            rewards[opening] = self._new_room_reward * new + success[opening]
        if len(passing):
            right = self._spot[passing] - NUM_CELLS == self._kind[passing] & 1
            self._spot[:] = spot
            self._enter(passing, np.where(right, self._room[passing] + 1, 0))
        else:
            self._spot[:] = spot
        self._success = success
        return rewards, success.copy(), (self._steps >= self._time_limit) & ~success

    def _enter(self, indices: NDArray[np.intp], rooms: NDArray[np.int64]) -> None:
        """Appear in a room."""
        next_cell = self._next_cell[indices]
        for index in indices[next_cell == CELL_CHUNK].tolist():
            self._chunk_cell[index] = self.rules.draw_cells(self._rngs[index])
        next_cell[next_cell == CELL_CHUNK] = 0
        self._next_cell[indices] = next_cell + 1
        self._spot[indices] = self._chunk_cell[indices, next_cell]
        self._room[indices] = rooms
        self._kind[indices] = self._chunk_kind[indices, self._next_episode[indices] - 1, rooms]

    def _observe(self) -> NDArray[np.uint8]:
        observation: NDArray[np.uint8] = self._views.take(self._at(), axis=0)
        return observation

    def _step_info(self) -> Values:
        knows = self._room < self._known
        oracle = self._oracle.take(2 * self._at() + knows).astype(np.int64)
        cue = self._all_envs.copy() if self.rules.observable else self._spot >= NUM_CELLS
        return {"cue": cue, "oracle_action": oracle}

    def _episode_info(self) -> Values:
        return {
            "is_success": self._success,
            "rooms_passed": self._passed,
            "repeated_mistakes": self._repeated_mistakes,
        }

    def _render_env(self, index: int) -> NDArray[np.uint8] | None:
        env = PortalEnv(render_mode=self.render_mode, **dataclasses.asdict(self.rules))
        kinds = self._chunk_kind[index, self._next_episode[index] - 1].tolist()
        looks = [self.rules.look(kind // 2) for kind in kinds]
        room, spot = int(self._room[index]), int(self._spot[index])
        doorway = spot - NUM_CELLS if spot >= NUM_CELLS else None
        position = CELLS[spot] if doorway is None else looks[room].places[doorway]
        env.place(looks, [kind % 2 for kind in kinds], room, position, doorway, int(self._passed[index]))
        return env.render()

    def _at(self) -> NDArray[np.int64]:
        """Row of each environment in the tables of kinds and spots."""
        row: NDArray[np.int64] = NUM_SPOTS * self._kind + self._spot
        return row


def _views(rules: PortalRules, looks: list[Look]) -> NDArray[np.uint8]:
    """[K * S, X, Y, 3] what is seen."""
    closed, leads_on, leads_back = STATE_TO_IDX["closed"], STATE_TO_IDX["open"], STATE_TO_IDX["locked"]
    rooms_KSXY3 = np.full((2 * len(looks), NUM_SPOTS, ROOM_SIDE, ROOM_SIDE, 3), WALL, dtype=np.uint8)
    rooms_KSXY3[:, :, 1:-1, 1:-1] = EMPTY
    kinds = np.arange(2 * len(looks))
    for door in (0, 1):
        x_K, y_K = np.array([look.places[door] for look in looks]).repeat(2, axis=0).T
        color_K = np.array([look.colors[door] for look in looks]).repeat(2)
        outcome_K = np.where(kinds % 2 == door, leads_on, leads_back)
        for spot in range(NUM_SPOTS):
            shown = rules.observable or spot == NUM_CELLS + door
            rooms_KSXY3[kinds, spot, x_K, y_K, 0] = OBJECT_TO_IDX["door"]
            rooms_KSXY3[kinds, spot, x_K, y_K, 1] = color_K
            rooms_KSXY3[kinds, spot, x_K, y_K, 2] = outcome_K if shown else closed
    side = rules.view_side
    if rules.view_size is None:
        for spot, (x, y) in enumerate(CELLS):
            rooms_KSXY3[:, spot, x, y] = AGENT
        return rooms_KSXY3.reshape(-1, side, side, 3)
    # Cut the agent's surroundings out of the room with a margin of walls around it.
    margin = side // 2
    padded_side = ROOM_SIDE + 2 * margin
    views_KSXY3 = np.empty((len(kinds), NUM_SPOTS, side, side, 3), dtype=np.uint8)
    for spot in range(NUM_SPOTS):
        padded_KXY3 = np.full((len(kinds), padded_side, padded_side, 3), WALL, dtype=np.uint8)
        padded_KXY3[:, margin:-margin, margin:-margin] = rooms_KSXY3[:, spot]
        where_K2 = np.array(
            [CELLS[spot] if spot < NUM_CELLS else look.places[spot - NUM_CELLS] for look in looks]
        ).repeat(2, axis=0)
        for x, y in {*map(tuple, where_K2.tolist())}:
            here_K = (where_K2 == (x, y)).all(axis=1)
            views_KSXY3[here_K, spot] = padded_KXY3[here_K, x : x + side, y : y + side]
    return views_KSXY3.reshape(-1, side, side, 3)


def _moves(looks: list[Look]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """[K * S * 4] where each move leads; [K * S * 2] what the oracle does without and with knowledge."""
    next_spot = np.full((len(PLACE_PAIRS), 2, NUM_SPOTS, len(Move)), LEAVES, dtype=np.int8)
    oracle = np.empty((len(PLACE_PAIRS), 2, NUM_SPOTS, 2), dtype=np.int8)
    for pair, places in enumerate(PLACE_PAIRS):
        look = Look(places, (0, 1))
        for spot, cell in enumerate(CELLS):
            for move, (dx, dy) in STEPS.items():
                ahead = (cell[0] + dx, cell[1] + dy)
                if ahead in places:
                    next_spot[pair, :, spot, move] = NUM_CELLS + places.index(ahead)
                else:
                    next_spot[pair, :, spot, move] = CELLS.index(ahead) if ahead in CELLS else spot
            for right in (0, 1):
                for knows in (False, True):
                    action = oracle_action(cell, look, right, knows=knows)
                    oracle[pair, right, spot, int(knows)] = action
        for door in (0, 1):
            oracle[pair, :, NUM_CELLS + door] = door_direction(places[door])
    pair_K = np.array([PLACE_PAIRS.index(look.places) for look in looks]).repeat(2)
    right_K = np.arange(len(pair_K)) % 2
    return next_spot[pair_K, right_K].reshape(-1), oracle[pair_K, right_K].reshape(-1)
