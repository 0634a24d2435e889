"""The pixels of an episode's pictures agree with its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

import memory_suite.envs  # noqa: F401  (registers)
from memory_suite.agents.episodes.record import EpisodeRecord, LayerRecord
from memory_suite.agents.episodes.recorder import record_episode
from memory_suite.runners import render_episode
from memory_suite.runners.plotting.palette import CURVE, EMPTY, FORECAST, PAPER, attention_color, span_color
from memory_suite.runners.rendering.panel import WIDTH
from memory_suite.runners.rendering.picture import EpisodePicture, draw_sheet
from memory_suite.runners.rendering.scene_panels import EXPIRED_STEPS, TEXT_LINES, FramePanel, TextPanel
from memory_suite.runners.rendering.time_panels import CountPanel, LifelinePanel, pack_rows
from memory_suite.runners.rendering.video import write_gif, write_mp4
from tests.agents.small_envs import RepeatFirst
from tests.agents.test_recorder import lively_model

Picture = np.ndarray[Any, Any]


def corridor_episode(seed: int, *, steps: int = 24, **arguments: Any) -> EpisodeRecord:
    env = gym.make("MemorySuite/CorridorLong-v0", render_mode="rgb_array", **arguments)
    return record_episode(lively_model(env, seed), env, seed=seed, max_steps=steps)


def mini_grid_episode(seed: int) -> EpisodeRecord:
    env = gym.make("MiniGrid-MemoryS9-v0", render_mode="rgb_array", max_steps=20)
    env = gym.wrappers.FilterObservation(env, ["image", "direction"])
    return record_episode(lively_model(env, seed), env, seed=seed)


EPISODES = [
    *[(f"corridor {length}, seed {seed}", corridor_episode, seed, {"length": length})
      for length in (5, 30, 190) for seed in range(4)],
    *[(f"MiniGrid, seed {seed}", mini_grid_episode, seed, {}) for seed in range(8)],
]  # fmt: skip


def held_cells(record: EpisodeRecord, step: int) -> dict[tuple[int, int], tuple[float, float]]:
    """Remaining span and mask of the longest-lasting memory of each cell, pair by pair."""
    held: dict[tuple[int, int], tuple[float, float]] = {}
    for layer in record.layers:
        for memory in range(len(layer.birth_M)):
            if layer.first_M[memory] <= step <= layer.last_M[memory]:
                pair = layer.offset_M[memory] + step - layer.first_M[memory]
                x, y = record.cell_T1[layer.birth_M[memory]].tolist()
                found = (float(layer.remaining_N[pair]), float(layer.mask_N[pair]))
                held[x, y] = max(held.get((x, y), (-np.inf, 0.0)), found)
    return held


def expired_cells(record: EpisodeRecord, step: int) -> set[tuple[int, int]]:
    cells = set()
    for layer in record.layers:
        for memory in range(len(layer.birth_M)):
            seen = layer.last_M[memory] >= layer.first_M[memory]
            if seen and 1 <= step - layer.last_M[memory] <= EXPIRED_STEPS:
                x, y = record.cell_T1[layer.birth_M[memory]].tolist()
                cells.add((x, y))
    return cells


def blend(ground: np.ndarray, remaining: float, opacity: float, max_span: float) -> np.ndarray:
    return ground * (1 - opacity) + span_color(remaining, max_span) * opacity


def check_cells(record: EpisodeRecord, drawn: EpisodePicture, step: int, picture: Picture) -> int:
    """Compare every visible cell; return the number of tinted ones."""
    panel = drawn.scene
    assert isinstance(panel, FramePanel)
    frame = record.frame(step)
    assert frame is not None
    scale = panel.width / frame.shape[1]
    size = record.tile * scale
    plain = np.asarray(Image.fromarray(frame).resize((panel.width, panel.height), Image.Resampling.NEAREST))
    if scale != int(scale):
        plain = np.asarray(
            Image.fromarray(frame).resize((panel.width, panel.height), Image.Resampling.BICUBIC)
        )
    held, expired = held_cells(record, step), expired_cells(record, step)
    tints = 0
    for column in range(frame.shape[1] // record.tile):
        for row in range(frame.shape[0] // record.tile):
            x, y = column + int(record.origin_T1[step][0]), row + int(record.origin_T1[step][1])
            left, top = round(column * size), round(row * size)
            right, bottom = round((column + 1) * size), round((row + 1) * size)
            rim, inside = (top + 1, right - 7), (top + round(size / 2), left + 4)

            def shown(at: tuple[int, int]) -> np.ndarray:
                return picture[panel.top + at[0], panel.left + at[1]].astype(float)

            if (x, y) in held:
                remaining, mask = held[x, y]
                limit = record.facts["max_span"]
                np.testing.assert_allclose(shown(rim), blend(plain[rim], remaining, mask, limit), atol=1)
                np.testing.assert_allclose(
                    shown(inside), blend(plain[inside], remaining, 0.45 * mask, limit), atol=1
                )
                tints += 1
            elif (x, y) in expired:
                assert (shown((top, left)) == PAPER).all(), f"no outline at {(x, y)}, step {step}"
            else:
                part = np.s_[panel.top + top : panel.top + bottom, panel.left + left : panel.left + right]
                np.testing.assert_array_equal(picture[part], plain[top:bottom, left:right])
    return tints


def check_lifelines(record: EpisodeRecord, panel: LifelinePanel, step: int, picture: Picture) -> int:
    """Compare the middle of every (row, step) of a layer's chart; return the number with a memory."""
    layer, num_steps = panel.layer, record.num_steps
    expected = np.tile(np.array(EMPTY, dtype=float), (panel.rows, num_steps, 1))
    for memory in range(len(layer.birth_M)):
        row = panel.row_M[memory]
        for seen in range(int(layer.first_M[memory]), int(layer.last_M[memory]) + 1):
            pair = layer.offset_M[memory] + seen - layer.first_M[memory]
            if seen <= step:
                attention = layer.attention_NH[pair].max().astype(np.float32)
                expected[row, seen] = attention_color(attention, layer.mask_N[pair])
            elif layer.first_M[memory] <= step:
                expected[row, seen] = FORECAST
    lit = 0
    for row in range(panel.rows):
        y = panel.chart_top + round((row + 0.4) * panel.row_height)
        for seen in range(num_steps):
            x = (panel.column_of(seen) + panel.column_of(seen + 1)) // 2
            assert abs(x - panel.now(step)) > 3, "the cursor stands between two steps"
            np.testing.assert_allclose(picture[y, x], expected[row, seen], atol=1.0)
            lit += bool((expected[row, seen] != EMPTY).any())
    return lit


@pytest.mark.parametrize(
    ("make", "seed", "arguments"), [e[1:] for e in EPISODES], ids=[e[0] for e in EPISODES]
)
def test_pixels_agree_with_the_record(make: Any, seed: int, arguments: dict[str, Any]) -> None:
    record = make(seed, **arguments)
    drawn = EpisodePicture(record)
    tints = lit = 0
    for step in range(record.num_steps):
        picture = drawn.draw(step)
        assert picture.shape == (drawn.size[1], drawn.size[0], 3)
        tints += check_cells(record, drawn, step, picture)
        lit += sum(check_lifelines(record, panel, step, picture) for panel in drawn.lifelines)
    assert tints >= record.num_steps - 2 and (lit > 20 or record.num_steps < 10)


def test_a_single_layer_is_shown() -> None:
    record = corridor_episode(2, length=30)
    alone = EpisodePicture(record, layer=2)
    assert [panel.number for panel in alone.lifelines] == [2]
    panel = alone.scene
    assert panel is not None
    part = np.s_[panel.top : panel.top + panel.height]
    shown = alone.draw(20)[part]
    record.layers = [record.layers[1]]
    np.testing.assert_array_equal(shown, EpisodePicture(record).draw(20)[part])
    with pytest.raises(ValueError, match="between 1 and 1, got 2"):
        EpisodePicture(record, layer=2)


def test_lifelines_in_a_row_do_not_overlap() -> None:
    record = corridor_episode(1, length=100, steps=150)
    for layer in record.layers:
        rows = pack_rows(layer, record.num_steps)
        taken = np.zeros((rows.max() + 1, record.num_steps), dtype=int)
        for memory in range(len(rows)):
            taken[rows[memory], layer.first_M[memory] : layer.last_M[memory] + 1] += 1
        assert taken.max() == 1
        assert taken.sum() == len(layer.mask_N)
        lengths = layer.last_M - layer.first_M + 1
        assert lengths[rows == 0].max() == lengths.max(), "the longest life is on top"


def test_more_steps_than_pixels_show_the_brightest_of_each_pixel() -> None:
    env = RepeatFirst(length=1500)
    record = record_episode(lively_model(env, max_span=300), env, seed=0)
    panel = EpisodePicture(record).lifelines[0]
    layer = panel.layer
    picture = EpisodePicture(record).draw(record.num_steps)
    brightest: dict[tuple[int, int], float] = {}
    pairs = zip(layer.memory_of_pairs(), layer.steps_of_pairs(), layer.attention_NH.max(1), strict=True)
    for memory, step, attention in pairs:
        x = min(panel.column_of(int(step)), panel.axis_left + panel.axis_width - 1)
        place = panel.row_box(int(memory))[0], x
        brightest[place] = max(brightest.get(place, 0.0), float(attention))
    rng = np.random.default_rng(0)
    places = sorted(brightest)
    for index in rng.choice(len(places), 300):
        y, x = places[index]
        shade = picture[y, x].astype(float)
        full, faded = attention_color(brightest[y, x], 1.0), attention_color(brightest[y, x], 0.0)
        assert (shade <= full + 1).all() and (shade >= faded - 1).all()


def test_the_count_curve_is_the_number_retained() -> None:
    record = corridor_episode(3, length=60, steps=60)
    record.layers = record.layers[:1]
    drawn = EpisodePicture(record)
    picture = drawn.draw(record.num_steps)
    panel = next(panel for panel in drawn.panels if isinstance(panel, CountPanel))
    counts = record.layers[0].retained_counts(record.num_steps)
    for step in range(record.num_steps):
        x = (drawn.lifelines[0].column_of(step) + drawn.lifelines[0].column_of(step + 1)) // 2
        blue = np.flatnonzero((picture[panel.top : panel.top + 70, x] == CURVE).all(1))
        height = panel.chart_height - 2
        expected = panel.chart_height - counts[step] / (record.num_steps - 1) * height
        assert abs(blue.mean() + 0.5 - expected) < 2


def text_episode() -> EpisodeRecord:
    record = corridor_episode(2, length=60, steps=40)
    record.frame_T1[:] = -1
    record.lines = [f"line number {step} of a long story" for step in range(record.num_steps + 1)]
    return record


def test_lines_of_text_are_tinted() -> None:
    record = text_episode()
    drawn = EpisodePicture(record)
    panel = drawn.scene
    assert isinstance(panel, TextPanel)
    for step in range(record.num_steps):
        picture = drawn.draw(step)
        held: dict[int, tuple[float, float]] = {}
        for layer in record.layers:
            seen = layer.at(step)
            for birth, remaining, mask in zip(seen.birth, seen.remaining, seen.mask, strict=True):
                held[int(birth)] = max(held.get(int(birth), (-np.inf, 0.0)), (float(remaining), float(mask)))
        recent = list(range(max(0, step - TEXT_LINES + 1), step + 1))
        assert panel.recent(step) == recent
        older = panel.older(step)
        assert set(older) <= held.keys() - set(recent)
        assert len(older) == min(TEXT_LINES, len(held.keys() - set(recent)))
        for column, lines in ((False, recent), (True, older)):
            for row, line in enumerate(lines):
                left, top, _, _ = panel.line_box(row, older=column)
                if line in held:
                    remaining, mask = held[line]
                    color = span_color(remaining, record.facts["max_span"]) * mask + 255 * (1 - mask)
                    np.testing.assert_allclose(picture[top + 1, left + 1], color, atol=1)


def test_frames_without_cells_are_not_tinted() -> None:
    env = gym.make("CartPole-v1", render_mode="rgb_array")
    record = record_episode(lively_model(env), env, seed=0, max_steps=8)
    drawn = EpisodePicture(record)
    panel = drawn.scene
    assert isinstance(panel, FramePanel) and not panel.shows_cells and drawn.world is None
    assert check_lifelines(record, drawn.lifelines[0], 6, drawn.draw(6)) > 5


@pytest.mark.parametrize("remember", [True, False])
def test_an_episode_without_memories_is_drawn(remember: bool) -> None:
    env = RepeatFirst(length=1)
    record = record_episode(lively_model(env), env, seed=0)
    assert record.num_steps == 1
    if not remember:
        record.layers = []
    assert EpisodePicture(record).draw(0).shape == EpisodePicture(record).draw(1).shape
    assert draw_sheet(record).ndim == 3


def test_a_video_is_h264_and_shows_the_pictures(tmp_path: Path) -> None:
    record = corridor_episode(0, length=20, steps=12)
    drawn = EpisodePicture(record)
    assert write_mp4(drawn.steps(), tmp_path / "a.mp4", 10.0) == 13
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 10
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 13
    for step, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - drawn.draw(step)).mean() < 3.0
    with pytest.raises(ValueError, match="at least one picture"):
        write_mp4([], tmp_path / "none.mp4", 10.0)
    with pytest.raises(ValueError, match="even"):
        write_mp4([np.zeros((3, 4, 3), np.uint8)], tmp_path / "odd.mp4", 10.0)


def test_a_gif_has_every_step(tmp_path: Path) -> None:
    record = corridor_episode(0, length=20, steps=5)
    assert write_gif(EpisodePicture(record).steps(), tmp_path / "a.gif", 10.0) == 6
    with Image.open(tmp_path / "a.gif") as image:
        assert getattr(image, "n_frames", 1) == 6
        assert image.size[0] == WIDTH // 2


@pytest.mark.parametrize("ending", ["mp4", "gif", "png"])
def test_the_command_writes_every_format(ending: str, short_run: Path, tmp_path: Path) -> None:
    out = tmp_path / f"episode.{ending}"
    words = ["--run", str(short_run), "--out", str(out), "--seed", "3", "--env-arg", "length=6"]
    assert render_episode.main([*words, "--layer", "2"]) == 0
    assert out.stat().st_size > 3000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.mp4"], "either run"),
        (["--run", "{run}", "--out", "x.avi"], ".mp4, .gif or .png"),
        (["--run", "{run}", "--layer", "7"], "between 1 and 2"),
        (["--run", "{run}", "--env", "CartPole-v1"], "action space"),
        (["--run", "{run}", "--env-arg", "colour=3"], "colour"),
        (["--record", "nothing.npz"], "no file nothing.npz"),
    ],
)
def test_invalid_options_are_refused(
    words: list[str], message: str, short_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        render_episode.main([word.format(run=short_run) for word in words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_more_memories_than_pixels_fit_the_chart() -> None:
    count = 400
    birth = np.arange(count, dtype=np.int32)
    last = np.full(count, 2 * count, dtype=np.int32)
    lengths = last - birth
    layer = LayerRecord(
        birth, np.full(count, 5000, np.float32), birth + 1, last, np.r_[0, np.cumsum(lengths)[:-1]],
        np.ones(lengths.sum(), np.float32), np.ones(lengths.sum(), np.float32),
        np.full((lengths.sum(), 1), 0.5, np.float16),
    )  # fmt: skip
    env = RepeatFirst(length=2 * count + 1)
    record = record_episode(lively_model(env), env, seed=0, contents=False)
    record.layers = [layer]
    panel = EpisodePicture(record).lifelines[0]
    assert panel.chart_height <= 300
    picture = EpisodePicture(record).draw(2 * count)
    column = picture[panel.chart_top : panel.chart_top + panel.chart_height, panel.column_of(600)]
    assert (column != EMPTY).any(1).all()
