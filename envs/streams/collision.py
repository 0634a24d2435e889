"""Object collision: two particles drift through a box; questions ask, much later, where two colors last met.

    frame    row0 col0 color0   row1 col1 color1   ask0 ask1
    token     3   16+9  32+4     7   16+2  32+0    37+4 37+1   -> the quadrant in which particle 0, having
                                                                  color 4, last met particle 1, having color 1

The rules, one frame after another:

- A particle starts anywhere in [0, 15)^2, uniformly, with a velocity drawn from N(0, 0.5^2) on each axis and
  one of 5 colors.
- It moves by its velocity. When that would take it to the border of the box or beyond, the velocity is first
  redrawn until it does not. Particles do not push each other.
- Then, with probability 0.05, it takes one of the 5 colors at random (perhaps the one it has).
- The particles collide if they are in the same cell: equal rounded rows and columns, 0 to 15. For each
  ordered pair of colors, particle 0's first, the cell and frame of the last collision count.
- Asked is with probability 0.4 an easy pair, otherwise any pair at random. Easy is the pair that collided
  last (`latest`), or the colors that the particles have now (`current`: what the paper authors' generator
  really asks, because it keeps a reference to the colors where a copy was meant; for comparison with
  published figures). As long as nothing has collided, any pair is asked.
- The target, at a frame's last token, is the quadrant of the cell of the pair's last collision, this frame
  included: 2 * (row >= 8) + (column >= 8). A pair that has never collided is not scored.

All four quadrants are equally likely, so the chance accuracy is 0.25.

The authors cut rows out of one long file, so that a row's first frames ask about collisions before it.
`warm_up_frames` does the same: this number of frames passes unseen before a row begins. Without a warm-up,
all questions are about frames that were shown.

Collisions are rare (one frame in 250), and from these rules alone a small model learns nothing. A lesson
(`lesson_frames`) begins with short episodes in small boxes, where there are many, and with colors that change
often, so that a pair of colors identifies a few frames. Questions are about the current colors or, as long as
the lesson lasts, about a pair that has collided in this episode (any, if none has). The easy question is not
asked at first. "Never" is an answer too: in every frame it teaches what a collision is, and whose. With every
episode the task moves towards the plain rules: lengths, boxes and colors geometrically, the share of each
question and of scored "never" linearly.

Shape letters:
    F  frames drawn at a time
    P  particles                  N  pairs of colors
    H  collisions in these frames
    E  events: collisions, in the order of pair and time
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from memory_suite.envs.streams.generated import Piece, RowState
from memory_suite.envs.streams.stream import IGNORE, UNKNOWN, require_numbers, require_whole_numbers

GRID_SIZE = 16
EXTENT = GRID_SIZE - 1.0
"""positions lie strictly between 0 and this"""
NUM_PARTICLES = 2
NUM_COLORS = 5
NUM_PAIRS = NUM_COLORS**2
"""pairs are numbered color0 * NUM_COLORS + color1"""
SPEED = 0.5
"""standard deviation of a velocity, in cells per frame"""
COLOR_CHANGE_PROBABILITY = 0.05
EASY_PROBABILITY = 0.4
FRAME_TOKENS = 3 * NUM_PARTICLES + 2
COLUMN_TOKEN = GRID_SIZE
COLOR_TOKEN = 2 * GRID_SIZE
ASK_TOKEN = COLOR_TOKEN + NUM_COLORS
CHUNK_FRAMES = 1_024
NEVER = np.iinfo(np.int64).min // 2
"""the frame of a collision that has not happened"""
NEVER_TARGET = 4
"""target in a lesson if the pair has not collided"""

LESSON_MIN_FRAMES = 1
LESSON_MAX_FRAMES = 32
"""range of a row's length at the beginning of a lesson"""
LESSON_BOX = 2.0
"""side of the smallest box at the beginning of a lesson, in cells"""
LESSON_COLOR_CHANGE_PROBABILITY = 1.0
"""highest probability of a new color at the beginning of a lesson"""
LESSON_CURRENT = 0.4
"""share of questions about the current colors at the beginning of a lesson"""
_VELOCITIES = 128
"""drawn at a time"""

EasyQuestion = Literal["latest", "current"]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class CollisionRules:
    """The arguments of object collision; raises ValueError if one is out of range."""

    easy_question: EasyQuestion = "latest"
    """the pair that collided last, or the particles' current colors (as published)"""
    easy_probability: float = EASY_PROBABILITY
    """probability of the easy question"""
    warm_up_frames: int = 0
    """frames before a row begins; what collides in them can be asked about, though never shown"""
    max_episode_frames: int = 0
    """most frames of an episode, after which the row starts another one; 0: no limit"""
    min_episode_frames: int = 32
    """fewest frames of an episode once a lesson is over; lengths are log-uniform between the two"""
    lesson_frames: int = 0
    """number of frames of each row of the batch, over all its episodes, in which the task gets harder, from
    easy to the plain rules; 0: no lesson"""
    lesson_begins: float = 0.0
    """share of these frames, at the beginning, in which the task stays at its easiest"""

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.easy_question not in ("latest", "current"):
            raise ValueError(f"easy_question must be 'latest' or 'current', got {self.easy_question!r}")
        require_numbers(easy_probability=self.easy_probability, lesson_begins=self.lesson_begins)
        if not 0.0 <= self.easy_probability <= 1.0:
            raise ValueError(f"easy_probability must lie in [0, 1], got {self.easy_probability}")
        require_whole_numbers(
            warm_up_frames=(self.warm_up_frames, 0),
            min_episode_frames=(self.min_episode_frames, 1),
            max_episode_frames=(self.max_episode_frames, 0),
            lesson_frames=(self.lesson_frames, 0),
        )
        if not 0.0 <= self.lesson_begins < 1.0:
            raise ValueError(f"lesson_begins must lie in [0, 1), got {self.lesson_begins}")
        if self.lesson_frames and not self.max_episode_frames:
            raise ValueError("lesson_frames needs episodes: give max_episode_frames too, or lesson_frames=0")
        if self.lesson_frames and self.warm_up_frames:
            raise ValueError(
                "lesson_frames and warm_up_frames exclude each other: a lesson asks about what was shown"
            )
        if 0 < self.max_episode_frames < self.min_episode_frames:
            raise ValueError(
                f"max_episode_frames ({self.max_episode_frames}) must be 0 or at least min_episode_frames "
                f"({self.min_episode_frames})"
            )

    @property
    def name(self) -> str:
        """Name of the task."""
        return "collision"

    @property
    def vocabulary_size(self) -> int:
        """16 rows, 16 columns, 5 colors, 5 colors asked about."""
        return ASK_TOKEN + NUM_COLORS

    @property
    def num_targets(self) -> int:
        """Quadrants, and "never", which is an answer in lessons only."""
        return NEVER_TARGET + 1

    @property
    def chance_accuracy(self) -> float | None:
        """The box is symmetric; unknown in a lesson, in which "never" becomes rarer."""
        return None if self.lesson_frames else 1 / NEVER_TARGET

    def start(self, rng: np.random.Generator) -> RowState:
        """Place the particles and let the warm-up pass."""
        return self._start(rng, 0)

    def draw(self, rng: np.random.Generator, state: RowState) -> tuple[Piece, RowState]:
        """The next `CHUNK_FRAMES` frames, or fewer if an episode ends with them."""
        left = state["last_of_row"] - state["frame"]
        if not 0 < left <= CHUNK_FRAMES:
            return self._simulate(rng, state, CHUNK_FRAMES)
        piece, _ = self._simulate(rng, state, left)
        return piece, self._start(rng, state["taught"] + state["last_of_row"])

    def _start(self, rng: np.random.Generator, taught: int) -> RowState:
        """Begin an episode after `taught` frames of the row."""
        ease = self.ease(taught)
        extent = EXTENT
        color_change_probability = COLOR_CHANGE_PROBABILITY
        if ease:
            extent = _log_uniform(rng, _between(LESSON_BOX, EXTENT, ease), EXTENT)
            most = _between(LESSON_COLOR_CHANGE_PROBABILITY, COLOR_CHANGE_PROBABILITY, ease)
            color_change_probability = _log_uniform(rng, COLOR_CHANGE_PROBABILITY, most)
        state: RowState = {
            "frame": -self.warm_up_frames,
            "taught": taught,
            "ease": ease,
            "extent": extent,
            "position": rng.uniform(0, extent, (NUM_PARTICLES, 2)),
            "velocity": rng.normal(0, SPEED, (NUM_PARTICLES, 2)),
            "color": rng.integers(NUM_COLORS, size=NUM_PARTICLES),
            "color_change_probability": color_change_probability,
            "last_frame": np.full(NUM_PAIRS, NEVER),
            "last_quadrant": np.zeros(NUM_PAIRS, dtype=np.int64),
            "latest_pair": -1,
            "last_of_row": self._draw_length(rng, ease),
        }
        while state["frame"] < 0:
            _, state = self._simulate(rng, state, min(CHUNK_FRAMES, -state["frame"]))
        return state

    def ease(self, taught: int) -> float:
        """Ease of an episode that begins after `taught` frames: 1 at first, 0 when the lesson is over."""
        if taught >= self.lesson_frames:
            return 0.0
        return min(1.0, (1.0 - taught / self.lesson_frames) / (1.0 - self.lesson_begins))

    def _draw_length(self, rng: np.random.Generator, ease: float) -> int:
        """Number of frames of an episode; 0: no limit."""
        if not self.max_episode_frames:
            return 0
        longest = self.max_episode_frames
        low = _between(LESSON_MIN_FRAMES, self.min_episode_frames, ease)
        high = _between(min(LESSON_MAX_FRAMES, longest), longest, ease)
        return min(longest, int(_log_uniform(rng, low, high + 1)))

    def _draw_pairs(
        self, rng: np.random.Generator, state: RowState, hit_H: Ints, pair_F: Ints
    ) -> tuple[Ints, NDArray[np.bool_]]:
        """A lesson's questions: pairs [F], and whether "never" counts as an answer [F]."""
        num_frames = len(pair_F)
        # The pairs in the order in which they first collided; those that never did come last.
        first_N = np.where(state["last_frame"] != NEVER, -1, num_frames)
        np.minimum.at(first_N, pair_F[hit_H], hit_H)
        order_N = first_N.argsort(kind="stable")
        collided_F = np.searchsorted(first_N[order_N], np.arange(num_frames), side="right")
        chosen_F = order_N[(rng.random(num_frames) * collided_F).astype(np.int64)]
        asked_F = np.where(collided_F > 0, chosen_F, rng.integers(NUM_PAIRS, size=num_frames))
        current_F = rng.random(num_frames) < LESSON_CURRENT * state["ease"]
        return np.where(current_F, pair_F, asked_F), rng.random(num_frames) < state["ease"]

    def _simulate(self, rng: np.random.Generator, state: RowState, num_frames: int) -> tuple[Piece, RowState]:
        velocities = _draw_velocities(rng)
        walks = [
            walk(
                state["position"][particle],
                state["velocity"][particle],
                num_frames,
                velocities,
                state["extent"],
            )
            for particle in range(NUM_PARTICLES)
        ]
        corner = (EXTENT - state["extent"]) / 2
        position_FP2 = corner + np.stack([positions for positions, _ in walks], axis=1)
        cell_FP2 = np.rint(position_FP2).astype(np.int64)
        color_FP = _draw_colors(rng, state["color"], num_frames, state["color_change_probability"])
        pair_F = color_FP[:, 0] * NUM_COLORS + color_FP[:, 1]

        # Collisions: those of this chunk, and before them each pair's last one from earlier chunks.
        hit_H = np.flatnonzero((cell_FP2[:, 0] == cell_FP2[:, 1]).all(axis=1))
        event_pair_E = np.concatenate([np.arange(NUM_PAIRS), pair_F[hit_H]])
        order_E = event_pair_E.argsort(kind="stable")
        event_slot_E = np.concatenate([np.zeros(NUM_PAIRS, dtype=np.int64), hit_H + 1])[order_E]
        event_frame_E = np.concatenate([state["last_frame"], state["frame"] + hit_H])[order_E]
        quadrant_H = cell_FP2[hit_H, 0] // (GRID_SIZE // 2) @ np.array([2, 1])
        event_quadrant_E = np.concatenate([state["last_quadrant"], quadrant_H])[order_E]
        # Slot 0 is before the chunk, slot 1 + f its frame f; the key orders events by pair, then slot.
        num_slots = num_frames + 1
        event_key_E = event_pair_E[order_E] * num_slots + event_slot_E

        def last_event(pair: Ints, slot: Ints | int) -> Ints:
            """The pair's last collision, this slot included: an index into the events."""
            return np.searchsorted(event_key_E, pair * num_slots + slot, side="right") - 1

        # Questions.
        frame_F = np.arange(num_frames)
        num_hits_F = np.searchsorted(hit_H, frame_F, side="right")
        latest_of_hits = np.concatenate([[state["latest_pair"]], pair_F[hit_H]])
        latest_F = latest_of_hits[num_hits_F]
        easy_F = (rng.random(num_frames) < self.easy_probability * (1.0 - state["ease"])) & (latest_F >= 0)
        easy_pair_F = latest_F if self.easy_question == "latest" else pair_F
        uncollided_F = np.full(num_frames, IGNORE)
        if state["ease"]:
            other_F, never_F = self._draw_pairs(rng, state, hit_H, pair_F)
            uncollided_F[never_F] = NEVER_TARGET
        else:
            other_F = rng.integers(NUM_PAIRS, size=num_frames)
        asked_F = np.where(easy_F, easy_pair_F, other_F)
        answer_F = last_event(asked_F, frame_F + 1)
        age_F = state["frame"] + frame_F - event_frame_E[answer_F]
        scored_F = event_frame_E[answer_F] != NEVER

        tokens = np.empty((num_frames, FRAME_TOKENS), dtype=np.int32)
        for particle in range(NUM_PARTICLES):
            first = 3 * particle
            tokens[:, first] = cell_FP2[:, particle, 0]
            tokens[:, first + 1] = COLUMN_TOKEN + cell_FP2[:, particle, 1]
            tokens[:, first + 2] = COLOR_TOKEN + color_FP[:, particle]
        tokens[:, -2] = ASK_TOKEN + asked_F // NUM_COLORS
        tokens[:, -1] = ASK_TOKEN + asked_F % NUM_COLORS
        targets = np.full_like(tokens, IGNORE)
        targets[:, -1] = np.where(scored_F, event_quadrant_E[answer_F], uncollided_F)
        distance = np.full_like(tokens, UNKNOWN)
        # The collision's frame must be in sight from its first token on.
        distance[:, -1] = np.where(scored_F, FRAME_TOKENS * (age_F + 1) - 1, UNKNOWN)
        is_first = np.zeros(tokens.shape, dtype=np.bool_)
        is_first[0, 0] = state["frame"] == 0

        last_E = last_event(np.arange(NUM_PAIRS), num_frames)
        after: RowState = {
            "frame": state["frame"] + num_frames,
            "taught": state["taught"],
            "ease": state["ease"],
            "extent": state["extent"],
            "position": np.stack([positions[-1] for positions, _ in walks]),
            "velocity": np.array([velocity for _, velocity in walks]),
            "color": color_FP[-1],
            "color_change_probability": state["color_change_probability"],
            "last_frame": event_frame_E[last_E],
            "last_quadrant": event_quadrant_E[last_E],
            "latest_pair": int(latest_F[-1]),
            "last_of_row": state["last_of_row"],
        }
        return Piece(tokens.ravel(), targets.ravel(), is_first.ravel(), distance.ravel()), after


def walk(
    position: NDArray[np.float64],
    velocity: NDArray[np.float64],
    num_frames: int,
    velocities: Iterator[list[float]],
    extent: float = EXTENT,
) -> tuple[NDArray[np.float64], list[float]]:
    """The path of a particle: straight until the next step would leave the open box, then another velocity.

    Args:
        position: row and column before the first frame.
        velocity: velocity in cells per frame.
        num_frames: number of steps F.
        velocities: source of new velocities.
        extent: side of the box.

    Returns:
        Positions [F, 2] after each step, and the velocity of the last one.
    """
    (row, column), (down, right) = position.tolist(), velocity.tolist()
    legs: list[tuple[float, float, float, float]] = []
    lengths: list[int] = []
    left = num_frames
    while left:
        length = min(_legal_steps(row, down, left, extent), _legal_steps(column, right, left, extent))
        if length < 1:
            down, right = next(velocities)
            continue
        legs.append((row, column, down, right))
        lengths.append(length)
        row += length * down
        column += length * right
        left -= length
    leg_F4 = np.repeat(np.array(legs), lengths, axis=0)
    ends = np.cumsum(lengths)
    step_F1 = 1 + np.arange(num_frames) - np.repeat(ends - lengths, lengths)
    return leg_F4[:, :2] + step_F1[:, None] * leg_F4[:, 2:], [down, right]


def _legal_steps(coordinate: float, velocity: float, most: int, extent: float) -> int:
    """Number of steps, up to `most`, that stay strictly between 0 and `extent`."""
    if velocity == 0.0:
        return most
    room = (extent - coordinate if velocity > 0.0 else -coordinate) / velocity
    return most if room > most else math.ceil(room) - 1


def _draw_velocities(rng: np.random.Generator) -> Iterator[list[float]]:
    while True:
        yield from rng.normal(0, SPEED, (_VELOCITIES, 2)).tolist()


def _draw_colors(rng: np.random.Generator, color_P: Ints, num_frames: int, probability: float) -> Ints:
    """Colors [F, P] after each frame's chance of a change."""
    shape = (num_frames, NUM_PARTICLES)
    changes_FP = rng.random(shape) < probability
    color_1FP = np.concatenate([color_P[None], rng.integers(NUM_COLORS, size=shape)])
    # Slot 0 is the color before; each frame shows the latest slot that counts.
    slot_FP = np.where(changes_FP, np.arange(1, num_frames + 1)[:, None], 0)
    slot_FP = np.maximum.accumulate(slot_FP, axis=0)
    return np.take_along_axis(color_1FP, slot_FP, axis=0)


def _between(easy: float, plain: float, ease: float) -> float:
    """From one at ease 1 to the other at 0, geometrically."""
    return float(plain ** (1.0 - ease) * easy**ease)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))
