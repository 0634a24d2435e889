"""Analysis of sequence models: its numbers against direct computation, its files, its faults."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from memory_suite.agents.model.sequence_model import SequenceModel
from memory_suite.agents.model.settings import TransformerSettings
from memory_suite.configs.sequence_schema import from_yaml
from memory_suite.envs.streams.collision import FRAME_TOKENS
from memory_suite.envs.streams.generated import GeneratedStream
from memory_suite.envs.streams.tasks import make_stream
from memory_suite.runners import analyse_sequence, train_sequence
from memory_suite.runners.plotting.palette import black_or_white, difference_color
from memory_suite.runners.run.folder import RunFolder
from memory_suite.runners.sequences.analysis import figures as pictures
from memory_suite.runners.sequences.analysis.colored_text import NEWLINE, REST, TAB, Scale, cells_of
from memory_suite.runners.sequences.analysis.measure import (
    Edit,
    TextAnalysis,
    WholeText,
    analyse_stream,
    parse_replacement,
    read_text,
)
from memory_suite.runners.sequences.analysis.span_table import span_table_of_stream
from memory_suite.runners.sequences.evaluation import evaluate

pytest.importorskip("matplotlib")

HOSTILE = b'</script><script>alert(1)</script> & "<b>" @DATA@ $x$ \x00\x1b\xff\xc3\xa9\xe2\x80\xae\t'
SMALL = [
    *("--num-rows", "2", "--block-size", "16", "--total-updates", "2", "--optimizer.warmup-updates", "1"),
    *(
        "--model.width",
        "16",
        "--model.num-heads",
        "2",
        "--model.num-layers",
        "2",
        "--memory.max-span",
        "40",
        "--memory.ramp",
        "8",
    ),
    *("--memory.initial-span-fraction", "0.3", "--held-out.every", "2", "--held-out.tokens", "64"),
    *("--held-out.final-tokens", "64", "--track", "disabled"),
]
RAMP, MAX_SPAN = 4, 60


def lively_model(*, memory: str = "expire-span", num_layers: int = 2, seed: int = 0) -> SequenceModel:
    """Untrained, but with predictions and spans that differ from byte to byte."""
    torch.manual_seed(seed)
    settings = TransformerSettings(
        width=16, num_layers=num_layers, num_heads=2, memory=memory,  # type: ignore[arg-type]
        max_span=MAX_SPAN, ramp=RAMP, initial_span_fraction=0.2, position_window=4,
    )  # fmt: skip
    model = SequenceModel(settings, vocabulary_size=256, num_targets=256)
    with torch.no_grad():
        model.head.weight.normal_()
        for layer in model.transformer.layers:
            if memory == "expire-span":
                layer.retention.predictor.weight.normal_(std=0.4)  # type: ignore[union-attr]
    return model.eval()


@pytest.fixture(scope="module")
def text() -> bytes:
    words = np.random.default_rng(0).integers(97, 123, 300).astype(np.uint8).tobytes()
    return words.replace(b"q", b"\n").replace(b"z", b" ")


# -- numbers ------------------------------------------------------------------------------------------


def test_spans_are_the_predictors_and_losses_the_models(text: bytes) -> None:
    model = lively_model(num_layers=1)
    reading = read_text(model, text, block_size=32)
    tokens = torch.tensor(list(text))
    layer = model.transformer.layers[0]
    hidden = layer.memory_norm(model.embedding(tokens))
    weight, bias = layer.retention.predictor.weight[0], layer.retention.predictor.bias[0]  # type: ignore[union-attr]
    by_hand = MAX_SPAN * torch.sigmoid(hidden @ weight + bias)
    np.testing.assert_allclose(reading.span_LN[0], by_hand.detach().numpy(), rtol=1e-4)
    assert reading.span_LN.std() > 3
    with torch.no_grad():
        first = torch.zeros(1, len(text), dtype=torch.bool)
        first[0, 0] = True
        output = model.block(tokens[None], model.initial_state(1), first)
        losses = F.cross_entropy(model.predict(output.y_BWD[0, :-1]), tokens[1:], reduction="none")
    assert math.isnan(reading.bits_N[0])
    np.testing.assert_allclose(reading.bits_N[1:], losses.numpy() / math.log(2), rtol=1e-3, atol=1e-4)
    assert reading.score.bits == pytest.approx(reading.bits_N[1:].mean())


def test_the_longest_span_counts_where_heads_differ(text: bytes) -> None:
    model = lively_model(memory="adaptive-span")
    with torch.no_grad():
        for layer in model.transformer.layers:
            layer.retention.logit_G[1] = 1.0  # type: ignore[union-attr, index]
    reading = read_text(model, text, block_size=32)
    np.testing.assert_allclose(reading.span_LN, MAX_SPAN / (1 + math.exp(-1)), rtol=1e-5)


def test_gain_and_curve_are_two_evaluations(text: bytes) -> None:
    model = lively_model()
    analysis = TextAnalysis(model, text, block_size=32)
    bits: list[np.ndarray[Any, Any]] = []
    for span in (4, 40):
        losses: list[torch.Tensor] = []
        keep = losses.append
        score = evaluate(
            model,
            WholeText(text),
            block_size=32,
            max_span=span,
            on_block=lambda _, loss, keep=keep: keep(loss),
        )
        assert analysis.curve([span])[span].loss == score.loss
        assert analysis.curve([span])[span].retained_mean == score.retained_mean
        bits.append(torch.cat(losses).double().numpy() / math.log(2))
    short, long = bits
    np.testing.assert_array_equal(analysis.gain(4, 40)[1:], short - long)
    assert np.abs(short - long).max() > 0.01


def test_each_maximum_span_is_read_once_and_no_span_exceeds_the_longest(text: bytes) -> None:
    read: list[str] = []
    analysis = TextAnalysis(lively_model(), text, block_size=32, on_read=read.append)
    analysis.curve([4, MAX_SPAN])
    analysis.gain(4, MAX_SPAN)
    analysis.reading()
    assert read == ["maximum span 4", "maximum span 60"]
    uncut = read_text(analysis.model, text, block_size=32)
    cut = read_text(analysis.model, text, block_size=32, max_span=MAX_SPAN)
    np.testing.assert_allclose(cut.bits_N, uncut.bits_N, rtol=1e-6)


def test_less_memory_is_held_under_shorter_spans(text: bytes) -> None:
    curve = TextAnalysis(lively_model(), text, block_size=32).curve([1, 8, MAX_SPAN])
    held = [pictures.memories_held(score) for score in curve.values()]
    assert held == sorted(held)
    assert held[0] <= 2 * (1 + RAMP) < held[2]


@pytest.mark.parametrize("block_size", [7, 32, 512])
def test_an_edit_changes_nothing_before_it_and_nothing_out_of_reach(text: bytes, block_size: int) -> None:
    model = lively_model()
    edit = Edit(100, text[100:105], b"@@@@@")
    effect = TextAnalysis(model, text, block_size=block_size).edited(edit)
    difference = effect.difference_N
    assert (difference[1:100] == 0.0).all(), "what comes before cannot know"
    assert np.isnan(difference[100:105]).all()
    assert np.abs(difference[105:120]).max() > 0.05
    # A memory outlives its span by the ramp; another layer's memory may then have read it.
    reach = 2 * int(np.ceil(max(effect.before.span_LN.max(), effect.after.span_LN.max()) + RAMP))
    np.testing.assert_allclose(difference[105 + reach + 1 :], 0.0, atol=1e-4)
    distance, size = effect.by_distance()
    assert distance[0] == 1 and size[0] == abs(difference[105])
    assert effect.span_range(effect.before, 1) == (
        effect.before.span_LN[1, 100:105].min(),
        effect.before.span_LN[1, 100:105].max(),
    )
    assert effect.longest_kept(1) == max(
        reading.span_LN[1, 100:105].max() for reading in (effect.before, effect.after)
    )


def test_the_first_place_is_edited_and_the_others_are_counted() -> None:
    edit = Edit.first(b"a cat, a cat, a cat", b"cat", b"dog")
    assert (edit.changed, edit.others) == (range(2, 5), 2)
    assert edit.apply(b"a cat, a cat, a cat") == b"a dog, a cat, a cat"
    assert Edit.first(b"the winter is", b"winter", b"waiter").changed == range(5, 7)


@pytest.mark.parametrize(
    ("words", "old", "new"),
    [
        ("cat=dog", b"cat", b"dog"),
        ("a=b=c=d", b"a=b", b"c=d"),
        ("===x=", b"==", b"x="),
        ("\u00e9=ab", b"\xc3\xa9", b"ab"),
    ],
)
def test_replacements_are_read_as_bytes(words: str, old: bytes, new: bytes) -> None:
    assert parse_replacement(words) == (old, new)


def test_tables_of_frames_tell_collisions_apart() -> None:
    stream = make_stream("collision", split="test", num_rows=3, seed=1)
    assert isinstance(stream, GeneratedStream)
    tokens = stream.read(FRAME_TOKENS * 400 + 3).tokens
    spans = np.random.default_rng(0).random((2, *tokens.shape))
    table = span_table_of_stream(stream, tokens, spans)
    sums: dict[tuple[int, int], list[np.ndarray[Any, Any]]] = {}
    for row in range(3):
        for frame in range(400):
            first = frame * FRAME_TOKENS
            part = tokens[row, first : first + FRAME_TOKENS]
            apart = int(part[0] != part[3] or part[1] != part[4])
            for place in range(FRAME_TOKENS):
                sums.setdefault((place, apart), []).append(spans[:, row, first + place])
    assert table.groups == ("collision", "none")
    assert [row.name for row in table.rows][5:7] == ["color of particle 1", "color asked of particle 0"]
    for (place, apart), found in sums.items():
        assert table.rows[place].count_K[apart] == len(found)
        np.testing.assert_allclose(table.rows[place].span_LK[:, apart], np.mean(found, 0))


def test_tables_of_copy_name_their_tokens() -> None:
    stream = make_stream("copy", split="test", num_rows=2, alphabet_size=3, string_length=2, distance=20)
    assert isinstance(stream, GeneratedStream)
    tokens = stream.read(200).tokens
    table = span_table_of_stream(stream, tokens, tokens[None].astype(np.float64))
    assert {row.name: row.span_LK[0, 0] for row in table.rows} == {
        **{f"symbol {number}": number for number in range(3)},
        **{f"noise {number}": 3 + number for number in range(3)},
        "START": 6,
        "CUE": 7,
    }
    assert table.rows[0].name == "CUE", "the longest first"


def test_nothing_scored_is_an_error() -> None:
    torch.manual_seed(0)
    settings = TransformerSettings(width=8, num_heads=2, max_span=8, ramp=2)
    model = SequenceModel(settings, vocabulary_size=34, num_targets=16)
    with pytest.raises(ValueError, match="nothing is scored in the first 32 tokens"):
        analyse_stream(
            model, lambda: make_stream("copy", split="test", num_rows=2, distance=4096),
            tokens=32, block_size=16, max_spans=[4, 8],
        )  # fmt: skip


# -- how text is shown ----------------------------------------------------------------------------------


def test_every_byte_has_a_cell_that_can_be_seen() -> None:
    text = "a \n\t\u00e9\u20ac".encode() + b"\x00\x7f\xff\xc3(" + "e\u0301\u202e".encode()
    cells = cells_of(text)
    assert len(cells) == len(text)
    assert [cell.label for cell in cells] == [
        "a", " ", NEWLINE, TAB, "\u00e9", REST, "\u20ac", REST, REST,
        "00", "7f", "ff", "c3", "(", "e", "cc", "81", "e2", "80", "ae",
    ]  # fmt: skip
    assert all(cell.label.isprintable() for cell in cells)


def test_colors_are_logarithmic_in_the_span_and_letters_can_be_read() -> None:
    scale = Scale.of_spans(np.geomspace(1, 1024, 11))
    scale = dataclasses.replace(scale, low=1.0, high=1024.0)
    assert scale.index([1, 32, 1024, 5000, 0.2, np.nan]).tolist() == [0, 32, 63, 63, 0, -1]
    assert scale.ticks() == [1, 4, 16, 64, 256, 1024]
    narrow = Scale.of_spans(np.linspace(100, 120, 1000))
    assert (narrow.low, narrow.high) == (pytest.approx(100.2, abs=0.1), 4 * narrow.low)
    assert narrow.ticks() == [128, 256]
    changes = Scale.of_changes([0.5, 10.0, np.nan], "x")
    assert changes.ticks() == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1, 10])
    both = Scale.of_differences([-2.0, 1.0, np.nan], "x")
    assert both.index([0.0]).tolist() == [32]
    assert both.palette_P3[32].tolist() == [255, 255, 255]

    def luminance(color: Any) -> float:
        parts = [v / 255 / 12.92 if v / 255 <= 0.03928 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in color]
        return float(0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2])

    for palette in (scale.palette_P3, both.palette_P3, difference_color(np.linspace(0, 1, 9))):
        for color, black in zip(palette, black_or_white(palette), strict=True):
            lighter, darker = sorted((luminance(color), 0.0 if black else 1.0), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5


# -- the command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A barely trained model of text, whose training text is gone."""
    folder = tmp_path_factory.mktemp("analysed")
    data = folder / "training.txt"
    data.write_bytes(bytes(range(97, 123)) * 100)
    words = ["--task", "text", "--data", str(data), *SMALL, "--run", str(folder / "run")]
    assert train_sequence.main(words) == 0
    data.unlink()
    return folder / "run"


@pytest.fixture(scope="module")
def hostile_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("hostile") / "<b>hostile.txt"
    file.write_bytes(b"an ordinary line\n" * 5 + HOSTILE * 2 + b"\n" + b"and the end, with a cat\n" * 4)
    return file


@pytest.fixture(scope="module")
def written(run: Path, hostile_file: Path) -> Path:
    words = ["--run", str(run), "--text", str(hostile_file), "--replace", "ordinary=<script>"]
    assert analyse_sequence.main(words) == 0
    return run / "analysis"


def test_it_writes_pictures_and_a_page(written: Path) -> None:
    assert {file.name for file in written.iterdir()} == {
        "spans-layer1.png", "spans-layer2.png", "max-span.png", "difference.png", "edit.png",
        "edit-distance.png", "analysis.html",
    }  # fmt: skip
    for file in written.glob("*.png"):
        with Image.open(file) as image:
            assert image.width >= 1200
            colors = image.convert("RGB").resize((200, 200)).getcolors(200 * 200)
            assert colors is not None and len(colors) > 20, "not empty"


def test_the_file_stands_alone_and_text_cannot_break_it(written: Path, hostile_file: Path) -> None:
    page = (written / "analysis.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href|srcset)=["'](?!data:)""", page)
    assert "://" not in page and "@SECTIONS@" not in page and "@TITLE@" not in page
    assert "<script>alert" not in page and "<b>hostile" not in page
    assert page.count("</script>") == 2, "the page's own"
    views = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert set(views) == {"spans", "gain", "edit"}
    text = hostile_file.read_bytes()
    assert views["spans"]["labels"] == [cell.label for cell in cells_of(text)]
    assert views["edit"]["marked"] == [3, 11]


def test_the_page_says_the_exact_spans(written: Path, run: Path, hostile_file: Path) -> None:
    page = (written / "analysis.html").read_text(encoding="utf-8")
    views = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    command = analyse_sequence.AnalyseSequenceCommand(run=run, text=hostile_file)
    text = hostile_file.read_bytes()
    trained = command.open(WholeText(text))
    reading = read_text(trained.model, text, block_size=16)
    for layer, (name, values, unit) in enumerate(views["spans"]["tips"][:2]):
        assert (name, unit) == (f"layer {layer + 1}", "steps")
        assert [float(value) for value in values] == pytest.approx(reading.span_LN[layer], abs=0.006)


@pytest.mark.parametrize(
    "words", [["--tokens", "2"], ["--replace", "\u65e5=cat"], ["--replace", "aa=\u00e9"]]
)
def test_short_texts_and_strange_names(words: list[str], run: Path, tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"$x_\xff$ \xe6\x97\xa5.txt")
    file.write_bytes("aa \u65e5".encode())
    assert (
        analyse_sequence.main(["--run", str(run), "--text", str(file), "--out", str(tmp_path), *words]) == 0
    )
    assert "$x_?$ \u65e5.txt" in (tmp_path / "analysis.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("task", ["collision", "copy", "instruction"])
def test_other_tasks_get_the_curve_and_a_table(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", task, *SMALL, "--run", str(tmp_path / "run")]
    if task == "copy":
        words += ["--task-arg", "distance=20", "--eval-task-arg", "distance=20"]
    assert train_sequence.main(words) == 0
    words = ["--run", str(tmp_path / "run"), "--tokens", "6000", "--out", str(tmp_path / "out")]
    assert analyse_sequence.main([*words, "--max-spans", "40", "4"]) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"max-span.png", "analysis.html"}
    page = (tmp_path / "out" / "analysis.html").read_text(encoding="utf-8")
    kind = "token of a frame" if task == "collision" else "token"
    assert f"Mean span by {kind}" in page and ">error<" in page
    with pytest.raises(SystemExit):
        analyse_sequence.main(["--run", str(tmp_path / "run"), "--text", str(tmp_path / "x")])
    assert f"text is for runs on text, and this one is on {task}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("longest", "expected", "compared"),
    [(1024, [4, 16, 64, 256, 1024], (64, 1024)), (300, [4, 16, 64, 300], (18, 300)), (3, [3], (1, 3))],
)
def test_default_maximum_spans(longest: int, expected: list[int], compared: tuple[int, int]) -> None:
    command = analyse_sequence.AnalyseSequenceCommand(run=Path("run"))
    assert command.spans_to_try(longest) == expected
    assert command.spans_to_compare(expected) == compared


# -- faults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", "none"], "text: say which file"),
        (["--text", "nowhere.txt"], "text: nowhere.txt cannot be read (No such file or directory)"),
        (["--text", "."], "text: . cannot be read"),
        (["--text", "FILE", "--data", "FILE"], "data: the file to be read is called text"),
        (["--text", "FILE", "--task-arg", "distance=3"], "task_args: a text has none, got distance"),
        (["--text", "FILE", "--tokens", "1"], "text must have at least 2 bytes, got 1 of"),
        (["--text", "FILE", "--tokens", "0"], "tokens must be at least 1"),
        (["--text", "FILE", "--shown", "0"], "shown must lie in [1, 50000]"),
        (["--text", "FILE", "--max-spans", "4", "0"], "max_spans must be at least 1 each, got 0"),
        (["--text", "FILE", "--max-spans", "4", "4096"], "cutting at 4096 changes nothing"),
        (["--text", "FILE", "--compare", "4"], "compare must be two maximum spans, got 4"),
        (["--text", "FILE", "--compare", "4", "41"], "compare: no span of this run exceeds"),
        (["--text", "FILE", "--replace", "cat"], "replace must be OLD=NEW, got 'cat'"),
        (["--text", "FILE", "--replace", "cat=mouse"], "'cat' has 3 bytes, 'mouse' has 5"),
        (["--text", "FILE", "--replace", "cat=cat"], "replace must change something"),
        (["--text", "FILE", "--replace", "owl=cat"], "'owl' is not in the"),
        (["--text", "FILE", "--out", "FILE"], "is a file, not a folder"),
        (["--text", "FILE", "--out", "no/such/folder"], "out: there is no folder no/such"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message(
    words: list[str],
    said: str,
    run: Path,
    hostile_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        analyse_sequence.main(["--run", str(run), *[str(hostile_file) if w == "FILE" else w for w in words]])
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_memory_without_learned_spans_is_refused(
    run: Path, hostile_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "copy", "--memory", "transformer-xl", *SMALL, "--run", str(tmp_path / "run")]
    assert train_sequence.main(words) == 0
    with pytest.raises(SystemExit):
        analyse_sequence.main(["--run", str(tmp_path / "run")])
    assert "Transformer-XL, the last 64 steps) learns no spans" in capsys.readouterr().err
    assert from_yaml(RunFolder.open(run).config_file).memory.learns_spans


def test_a_missing_matplotlib_is_said_before_any_work(
    run: Path, hostile_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        analyse_sequence.main(["--run", str(run), "--text", str(hostile_file)])
    assert "this needs matplotlib: pip install" in capsys.readouterr().err


# -- the page in a browser --------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EXECUTABLE = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="module")
def open_page(written: Path) -> Iterator[Callable[..., Any]]:
    if EXECUTABLE is None:
        pytest.skip("no Chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=EXECUTABLE, args=["--no-sandbox", "--disable-gpu"])

        def opened(width: int, faults: list[str]) -> Any:
            page = browser.new_page(viewport={"width": width, "height": 900}, has_touch=width < 500)
            page.on("console", lambda message: faults.append(message.text))
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.goto((written / "analysis.html").as_uri())
            deadline = time.monotonic() + 30
            while not page.evaluate("Boolean(document.body.dataset.ready)"):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            return page

        yield opened
        browser.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_shows_the_text_and_its_spans(
    open_page: Callable[..., Any], written: Path, hostile_file: Path, width: int
) -> None:
    faults: list[str] = []
    page = open_page(width, faults)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing runs off the side"
    views = page.evaluate("VIEWS")
    text = page.evaluate("document.querySelector('[data-view=spans] .text').textContent")
    assert "</script><script>alert(1)</script>" in text, "hostile text is only text"
    place = hostile_file.read_bytes().index(b"alert")
    cell = page.locator(f"[data-view=spans] .text [data-i='{place}']")
    if width < 500:
        cell.tap()
    else:
        cell.hover()
    tip = page.locator("#tip").inner_text()
    assert f"a, byte {place}" in tip
    for name, values, unit in views["spans"]["tips"]:
        assert re.search(rf"{name}\s+{re.escape(values[place])} {unit}", tip)
    before = cell.evaluate("e => e.style.background")
    page.select_option("[data-view=spans] select", label="layer 2")
    shade = views["spans"]["shades"][1]
    expected = shade["palette"][shade["index"][place]].replace(",", ", ")
    assert cell.evaluate("e => e.style.background") == expected
    assert before
    ticks = page.locator("[data-view=spans] .legend .ticks span").all_inner_texts()
    assert ticks == [text for _, text in shade["ticks"]]
    page.locator("[data-view=gain] .text").press("ArrowRight")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert "byte 0" in page.locator("#tip").inner_text()
    small = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter(e => e.offsetParent &&
        e.tagName !== "OPTION" && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) &&
        parseFloat(getComputedStyle(e).fontSize) < 14).map(e => e.textContent)"""
    )
    assert small == [] and faults == []
    page.close()
