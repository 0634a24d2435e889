"""The viewer in a real browser (skipped where there is none): what it shows is what the record says."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

import memory_suite.envs  # noqa: F401  (registers)
from memory_suite.agents.episodes.record import EpisodeRecord, LayerRecord
from memory_suite.agents.episodes.recorder import record_episode
from memory_suite.runners import view_episode
from memory_suite.runners.plotting.palette import span_color
from memory_suite.runners.rendering.time_panels import pack_rows
from memory_suite.runners.rendering.viewer import viewer_html
from tests.agents.small_envs import RepeatFirst
from tests.agents.test_recorder import lively_model

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EXECUTABLE = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
in_browser = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def record() -> EpisodeRecord:
    env = gym.make("MemorySuite/CorridorLong-v0", render_mode="rgb_array", length=40)
    return record_episode(lively_model(env, seed=5), env, seed=5, max_steps=60)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(
            executable_path=EXECUTABLE, args=["--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"]
        )
        yield launched
        launched.close()


class Page:
    """The viewer in a window of some size; any console message or request is a fault."""

    def __init__(self, browser: Any, record: EpisodeRecord, folder: Path, width: int = 1280) -> None:
        file = folder / "episode.html"
        file.write_text(viewer_html(record))
        self.faults: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self._requested(request.url))
        self.page.goto(file.as_uri())
        self.wait("Boolean(document.body.dataset.ready)")

    def _requested(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.faults.append(f"asked the network for {url}")

    def wait(self, condition: str) -> None:
        """Wait until something is true (the page forbids what playwright's own waiting does)."""
        deadline = time.monotonic() + 30
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, condition
            time.sleep(0.02)

    def settle(self) -> None:
        """Wait until what was asked for has been drawn."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    @property
    def step(self) -> int:
        self.settle()
        return int(self.page.evaluate("document.body.dataset.step"))

    def go(self, step: int) -> None:
        self.page.evaluate(
            "step => { const s = document.getElementById('slider'); s.value = step;"
            " s.dispatchEvent(new Event('input')); }",
            step,
        )
        self.settle()
        self.wait("frameAt(state.step) !== null || !D.frames.length")
        self.settle()

    def pixels(self, canvas: str) -> np.ndarray[Any, Any]:
        url = self.page.evaluate(f"document.getElementById('{canvas}').toDataURL()")
        with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as image:
            return np.asarray(image.convert("RGB"))


@pytest.fixture
def page(browser: Any, record: EpisodeRecord, tmp_path: Path) -> Iterator[Page]:
    opened = Page(browser, record, tmp_path)
    yield opened
    assert opened.faults == []
    opened.page.close()


def test_the_page_has_no_external_link(record: EpisodeRecord) -> None:
    page = viewer_html(record)
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "://" not in page and "@DATA@" not in page
    assert "default-src 'none'" in page, "the browser itself forbids the network"


def test_titles_and_lines_cannot_break_the_page(record: EpisodeRecord) -> None:
    record.facts["env_name"] = "<script>alert(1)</script>"
    record.lines = ["</script><b>bold</b>"] * (record.num_steps + 1)
    page = viewer_html(record)
    record.lines = None
    del record.facts["env_name"]
    assert "<script>alert" not in page and "</script><b>" not in page


@in_browser
def test_the_slider_moves_the_frame(page: Page, record: EpisodeRecord) -> None:
    for step in (0, 7, 31, record.num_steps - 1, record.num_steps):
        page.go(step)
        assert page.step == step
        shown = page.pixels("frame")
        frame = record.frame(step)
        assert frame is not None
        scale = shown.shape[1] / frame.shape[1]
        last = min(step, record.num_steps - 1)
        layer = record.layers[0]
        touched = {tuple(record.cell_T1[birth]) for birth in layer.birth_M[: last + 1]}
        compared = 0
        for row in range(3):
            for column in range(frame.shape[1] // record.tile):
                cell = (column + record.origin_T1[step][0], row + record.origin_T1[step][1])
                if cell in touched:
                    continue
                y, x = (int((n + 0.4) * record.tile) for n in (row, column))
                expected = frame[y, x].astype(int)
                if (frame[y - 2 : y + 3, x - 2 : x + 3] != frame[y, x]).any():
                    continue  # an edge: browsers smooth it
                at = int((y + 0.5) * scale), int((x + 0.5) * scale)
                np.testing.assert_allclose(shown[at], expected, atol=3)
                compared += 1
        assert compared > 40


@in_browser
def test_cells_are_tinted_by_remaining_span(page: Page, record: EpisodeRecord) -> None:
    for step in (12, 40):
        page.go(step)
        shown, frame = page.pixels("frame"), record.frame(step)
        assert frame is not None
        size = record.tile * shown.shape[1] / frame.shape[1]
        held: dict[tuple[int, int], tuple[float, float]] = {}
        seen = record.layers[0].at(step)
        for birth, remaining, mask in zip(seen.birth, seen.remaining, seen.mask, strict=True):
            x, y = record.cell_T1[birth].tolist()
            held[x, y] = max(held.get((x, y), (-np.inf, 0.0)), (float(remaining), float(mask)))
        assert held
        for cell, (remaining, mask) in held.items():
            column, row = (np.array(cell) - record.origin_T1[step]).tolist()
            at = int(row * size + 1.5), int((column + 0.7) * size)
            rim = shown[at].astype(float)
            ground = frame[tuple(int((n + 0.5) * record.tile / size) for n in at)].astype(float)
            color = span_color(remaining, record.facts["max_span"])
            below = ground * (1 - 0.45 * mask) + color * 0.45 * mask
            np.testing.assert_allclose(rim, below * (1 - mask) + color * mask, atol=14)


@in_browser
@pytest.mark.parametrize("number", [1, 2])
def test_hovering_shows_the_right_memory(page: Page, record: EpisodeRecord, number: int) -> None:
    page.page.select_option("#layer", label=str(number))
    layer = record.layers[number - 1]
    rows = pack_rows(layer, record.num_steps)
    now = record.num_steps - 1
    page.go(now)
    page.page.evaluate("document.getElementById('chart').scrollIntoView({ block: 'center' })")
    box = page.page.locator("#chart").bounding_box()
    top, height, count = (
        float(page.page.evaluate(f"document.getElementById('chart').dataset.{name}"))
        for name in ("top", "height", "rows")
    )
    assert count == rows.max() + 1
    rng = np.random.default_rng(number)
    pairs = rng.choice(len(layer.mask_N), 25, replace=False)
    for memory, step in zip(layer.memory_of_pairs()[pairs], layer.steps_of_pairs()[pairs], strict=True):
        x = box["x"] + (step + 0.5) * box["width"] / record.num_steps
        y = box["y"] + top + (rows[memory] + 0.5) * height / count
        page.page.mouse.move(x, y)
        page.settle()
        card = page.page.locator("#card")
        assert card.get_attribute("data-birth") == str(layer.birth_M[memory])
        text = card.inner_text()
        assert f"memory of step {layer.birth_M[memory]}, layer {number}" in text
        assert f"{layer.span_M[memory]:.1f} steps" in text
        seen = layer.at(now)
        if memory in seen.memory:
            index = list(seen.memory).index(memory)
            assert f"{seen.remaining[index]:.1f} steps remain" in text
            for head, attention in enumerate(seen.attention[index], start=1):
                found = re.search(rf"head {head}: (\d\.\d\d)", text)
                assert found and float(found[1]) == pytest.approx(attention, abs=0.006)
        else:
            assert f"expired after step {layer.last_M[memory]}" in text
        assert ("yes" in text) == bool(record.cue_T[layer.birth_M[memory]])
    page.page.mouse.click(x, y)
    assert page.step == layer.birth_M[memory], "a click goes to the step that wrote it"


@in_browser
def test_the_keyboard_works(page: Page, record: EpisodeRecord) -> None:
    keyboard = page.page.keyboard
    for key, step in [
        ("ArrowRight", 1), ("Shift+ArrowRight", 11), ("ArrowLeft", 10), ("End", record.num_steps),
        ("ArrowRight", record.num_steps), ("Home", 0), ("ArrowLeft", 0),
    ]:  # fmt: skip
        keyboard.press(key)
        assert page.step == step, key
    keyboard.press("l")
    page.settle()
    assert page.page.locator("#chart-title").inner_text().startswith("layer 2")
    keyboard.press(" ")
    page.wait("+document.body.dataset.step >= 3")
    assert page.page.locator("#play").inner_text() == "Pause"
    keyboard.press(" ")
    assert page.page.locator("#play").inner_text() == "Play"


@in_browser
def test_the_decision_and_the_table_agree_with_the_record(page: Page, record: EpisodeRecord) -> None:
    for step in (5, 33):
        page.go(step)
        rows = page.page.locator("#choice tr").all_inner_texts()
        for index, row in enumerate(rows):
            share = float(re.search(r"([\d.]+)%", row)[1])  # type: ignore[index]
            assert share == pytest.approx(100 * record.choice_TA[step, index], abs=0.06)
            assert ("taken" in row) == (record.action_T[step] == index), "said in words, not by color"
        seen = record.layers[0].at(step)
        title = page.page.locator("#chart-title").inner_text()
        assert f"{len(seen.birth)} memories retained of {step} possible" in title
        listed = page.page.locator("#list tr").all_inner_texts()
        assert len(listed) == min(10, len(seen.birth))
        for line in listed:
            birth = int(re.search(r"step (\d+)", line)[1])  # type: ignore[index]
            index = list(seen.birth).index(birth)
            assert f"{seen.remaining[index]:.1f}" in line
            assert ("cue" in line) == bool(record.cue_T[birth])


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_readable_at_any_width(browser: Any, record: EpisodeRecord, width: int, tmp_path: Path) -> None:
    opened = Page(browser, record, tmp_path, width)
    opened.go(30)
    page = opened.page
    page.evaluate("state.selected = 3; schedule()")
    opened.settle()
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing runs off the side"
    small, pale = page.evaluate(
        """() => {
        const linear = (v) => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
        const light = (color) => {
            const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(linear);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const small = [], pale = [];
        for (const e of document.querySelectorAll("body *")) {
            const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
            if (!own || !e.offsetParent || ["SCRIPT", "OPTION"].includes(e.tagName)) continue;
            const style = getComputedStyle(e);
            if (parseFloat(style.fontSize) < 14) small.push(e.textContent);
            if (1.05 / (light(style.color) + 0.05) < 4.5) pale.push(e.textContent);
        }
        return [small, pale]; }"""
    )
    assert small == [] and pale == []
    assert page.locator("#controls").bounding_box()["width"] <= width
    for name in ("#play", "#back", "#forward", "#layer"):
        box = page.locator(name).bounding_box()
        assert box["height"] >= 32 and box["width"] >= 32, "large enough for a finger"
    assert opened.faults == []
    page.close()


def long_episode(steps: int, retained: int) -> EpisodeRecord:
    """An episode made up of memories that all live equally long."""
    env = RepeatFirst(length=3)
    record = record_episode(lively_model(env, num_layers=1), env, seed=0, contents=False)
    for name in ("action_T", "reward_T", "value_T", "log_prob_T", "choice_TA", "cue_T"):
        setattr(record, name, np.repeat(getattr(record, name)[:1], steps, 0))
    for name in ("cell_T1", "origin_T1", "frame_T1"):
        setattr(record, name, np.repeat(getattr(record, name)[:1], steps + 1, 0))
    birth = np.arange(steps, dtype=np.int32)
    last = np.minimum(birth + retained, steps - 1).astype(np.int32)
    lengths = last - birth
    ages = np.concatenate([np.arange(1, length + 1) for length in lengths])
    span = np.full(steps, retained, dtype=np.float32)
    attention = np.full((lengths.sum(), 2), 1 / retained, dtype=np.float16)
    record.layers = [
        LayerRecord(
            birth, span, birth + 1, last, np.r_[0, np.cumsum(lengths)[:-1]],
            (retained - ages).astype(np.float32), np.ones(len(ages), np.float32), attention,
        )
    ]  # fmt: skip
    return record


@in_browser
def test_ten_thousand_steps_open_and_move(browser: Any, tmp_path: Path) -> None:
    record = long_episode(10_000, retained=40)
    opened = Page(browser, record, tmp_path)
    for key in ("End", "ArrowLeft", "Shift+ArrowLeft"):
        opened.page.keyboard.press(key)
    assert opened.step == 9_989
    opened.page.select_option("#window", value="200")
    opened.settle()
    seen = record.layers[0].at(9_989)
    assert f"{len(seen.birth)} memories" in opened.page.locator("#chart-title").inner_text()
    assert opened.faults == []
    opened.page.close()


@in_browser
@pytest.mark.parametrize("kind", ["text", "cart pole", "no memory"])
def test_other_kinds_of_episodes_are_shown(kind: str, browser: Any, tmp_path: Path) -> None:
    if kind == "cart pole":
        env = gym.make("CartPole-v1", render_mode="rgb_array")
        record = record_episode(lively_model(env), env, seed=0)
    else:
        small = RepeatFirst(length=30)
        record = record_episode(lively_model(small), small, seed=0)
        record.lines = [f"line {step} of <b>the</b> story" for step in range(31)]
    if kind == "no memory":
        record.layers = []
    opened = Page(browser, record, tmp_path)
    opened.go(record.num_steps - 1)
    if kind == "text":
        assert "line 29 of <b>the</b> story" in opened.page.locator("#recent").inner_text()
    assert opened.step == record.num_steps - 1
    assert opened.faults == []
    opened.page.close()


def test_the_command_writes_the_page(
    short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    words = ["--run", str(short_run), "--out", str(tmp_path / "a.html"), "--env-arg", "length=5"]
    assert view_episode.main([*words, "--no-open"]) == 0
    assert (tmp_path / "a.html").stat().st_size > 10_000 and opened == []
    assert view_episode.main(words) == 0
    assert opened == [(tmp_path / "a.html").as_uri()]
