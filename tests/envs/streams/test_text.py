"""Text: every byte is predicted once, bad files are refused, and nothing is called enwik8 but enwik8."""

from __future__ import annotations

import bz2
import hashlib
import math
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_suite.envs.streams import default_text, text
from memory_suite.envs.streams.stream import IGNORE, SPLITS
from memory_suite.envs.streams.tasks import make_stream
from memory_suite.envs.streams.text import Corpus, TextStream, bits_per_byte


def write(folder: Path, content: bytes, name: str = "some.txt") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(100, 900), num_rows=st.integers(1, 4), num_tokens=st.integers(1, 300))
def test_one_pass_predicts_every_byte_once(tmp_path: Path, size: int, num_rows: int, num_tokens: int) -> None:
    """All of a split but its first byte, in order, each after the byte before it."""
    content = np.random.default_rng(size).bytes(size)
    corpus = Corpus(write(tmp_path, content))
    parts = [corpus.part(split) for split in SPLITS]
    assert [*parts[0], *parts[1], *parts[2]] == list(range(size))
    assert len(parts[0]) == size * 90 // 100
    for split, part in zip(SPLITS, parts, strict=True):
        tokens_per_pass = TextStream(corpus, split=split, num_rows=num_rows).tokens_per_pass
        stream = TextStream(corpus, split=split, num_rows=num_rows, tokens_per_row=tokens_per_pass)
        blocks = list(stream.blocks(num_tokens))
        tokens = np.concatenate([block.tokens for block in blocks], axis=1)
        targets = np.concatenate([block.targets for block in blocks], axis=1)
        scored = targets != IGNORE
        expected = content[part.start : part.stop]
        assert bytes(targets[scored].astype(np.uint8)) == expected[1:]
        assert bytes(tokens[scored].astype(np.uint8)) == expected[:-1]
        assert sum(block.is_first.sum() for block in blocks) == num_rows


def test_rows_by_hand(tmp_path: Path) -> None:
    """200 bytes: 180 for training, 179 to be predicted, by 2 rows of 89 and 90; then both begin again."""
    corpus = Corpus(write(tmp_path, bytes(range(200))))
    stream = TextStream(corpus, num_rows=2)
    assert stream.tokens_per_pass == 90
    block = stream.read(92)
    assert block.tokens[0].tolist() == [*range(90), 0, 1]
    assert block.targets[0].tolist() == [*range(1, 90), IGNORE, 1, 2]
    assert block.tokens[1].tolist() == [*range(89, 179), 89, 90]
    assert block.targets[1].tolist() == [*range(90, 180), 90, 91]
    assert np.flatnonzero(block.is_first[0]).tolist() == np.flatnonzero(block.is_first[1]).tolist() == [0, 90]


def test_a_block_may_be_longer_than_a_pass(tmp_path: Path) -> None:
    corpus = Corpus(write(tmp_path, bytes(range(100))))
    block = TextStream(corpus, split="test").read(11)
    assert block.tokens[0].tolist() == [95, 96, 97, 98] * 2 + [95, 96, 97]
    assert np.flatnonzero(block.is_first[0]).tolist() == [0, 4, 8]


def test_held_out_splits_are_read_once_and_training_without_end(tmp_path: Path) -> None:
    path = write(tmp_path, b"x" * 1_000)
    assert make_stream("text", data=path, split="valid").tokens_per_row == 49
    assert make_stream("text", data=path, split="test", tokens_per_row=7).tokens_per_row == 7
    assert make_stream("text", data=path).tokens_per_row is None


def test_bits() -> None:
    assert bits_per_byte(math.log(256)) == pytest.approx(8)
    assert bits_per_byte(0.0) == 0


# -- files ------------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data: there is no file .*mattmahoney\.net/dc/textdata"):
        Corpus(tmp_path / "enwik8")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "data: the file .* is empty"),
        ("enwik8", b"<mediawiki", r"called enwik8 and is not: it has 10 bytes of 100,000,000"),
        ("enwik8.txt", b"<mediawiki", "called enwik8 and is not"),
        ("enwik8.zip", b"PK", "is compressed, unpack it first"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Corpus(write(tmp_path, content, name))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data must be a file"):
        Corpus(tmp_path)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, b"x" * 100)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(text.mmap, "mmap", refuse)
    with pytest.raises(ValueError, match=r"data: .* cannot be read .not yours."):
        Corpus(path)


def test_a_file_too_short_for_its_rows(tmp_path: Path) -> None:
    corpus = Corpus(write(tmp_path, b"x" * 100))
    with pytest.raises(ValueError, match=r"the valid split of .* has 5 bytes, too few for num_rows = 5"):
        TextStream(corpus, split="valid", num_rows=5)
    TextStream(corpus, split="valid", num_rows=4).read(1)
    with pytest.raises(ValueError, match="too few"):
        make_stream("text", data=write(tmp_path, b"x"))


def test_a_file_that_is_cut_while_in_use(tmp_path: Path) -> None:
    """Reading beyond its end would be a bus error."""
    path = write(tmp_path, b"x" * 100_000)
    stream = TextStream(Corpus(path), num_rows=2)
    stream.read(10)
    os.truncate(path, 5_000)
    with pytest.raises(ValueError, match="has been cut to 5,000 bytes while it was in use; it had 100,000"):
        stream.read(10)


def test_a_state_of_another_text_is_refused(tmp_path: Path) -> None:
    one, other = (Corpus(write(tmp_path, b"x" * 99 + last, last.hex())) for last in (b"x", b"y"))
    stream = TextStream(one)
    stream.read(10)
    with pytest.raises(ValueError, match="sha256"):
        TextStream(other).load_state_dict(stream.state_dict())


def test_only_enwik8_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By size and checksum, here those of a stand-in, whatever the file is called."""
    content = b"abcdefghij" * 100
    path, liar = write(tmp_path, content, "wiki"), write(tmp_path, b"bacdefghij" * 100, "enwik8")
    assert Corpus(path).name == "wiki"
    monkeypatch.setattr(text, "ENWIK8_BYTES", len(content))
    assert Corpus(path).name == "wiki"
    monkeypatch.setattr(text, "ENWIK8_SHA256", hashlib.sha256(content).hexdigest())
    assert Corpus(path).name == "enwik8"
    assert Corpus(path).is_enwik8
    assert Corpus(write(tmp_path, content, "enwik8")).is_enwik8
    liar.write_bytes(b"bacdefghij" * 100)
    with pytest.raises(ValueError, match="and another checksum"):
        Corpus(liar)


def test_enwik8_is_split_as_usual(tmp_path: Path) -> None:
    """On a file of its size, which takes no room: nothing is written to it."""
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(text.ENWIK8_BYTES)
    corpus = Corpus(path)
    assert corpus.name == "sparse"
    ends = [corpus.part(split).stop for split in SPLITS]
    assert ends == [90_000_000, 95_000_000, 100_000_000]


# -- the default text -------------------------------------------------------------------------------

CONTENT = b"<mediawiki>" * 40


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for pip: leaves a wheel with what the test says; counts its calls."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(default_text, "TEXT_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(default_text, "TEXT_BYTES", len(CONTENT))
    plan: dict[str, Any] = {"calls": 0, "code": 0, "members": {default_text.MEMBER: bz2.compress(CONTENT)}}

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        plan["calls"] += 1
        assert command[1:4] == ["-m", "pip", "download"]
        assert command[-1] == "gensim==4.4.0"
        assert "--no-deps" in command
        folder = Path(command[command.index("--dest") + 1])
        if plan["members"] is not None:
            with zipfile.ZipFile(folder / "gensim.whl", "w") as wheel:
                for name, member in plan["members"].items():
                    wheel.writestr(name, member)
        return subprocess.CompletedProcess(command, plan["code"], "", "first line\nno such host\n")

    monkeypatch.setattr(subprocess, "run", run)
    return plan


def test_the_default_text_is_fetched_once(pip: dict[str, Any], tmp_path: Path) -> None:
    path = default_text.default_text()
    assert path == tmp_path / "cache" / "memory-suite" / "enwiki-sample.xml"
    assert path.read_bytes() == CONTENT
    assert default_text.default_text() == path
    assert pip["calls"] == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    stream = make_stream("text")
    assert isinstance(stream, TextStream)
    assert stream.corpus.name == "enwiki-sample.xml"


@pytest.mark.parametrize("damaged", [b"", CONTENT[:-1], CONTENT[:-1] + b"<"])
def test_a_damaged_cache_is_fetched_again(pip: dict[str, Any], damaged: bytes) -> None:
    path = default_text.default_text()
    path.write_bytes(damaged)
    assert default_text.default_text().read_bytes() == CONTENT
    assert pip["calls"] == 2


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ({"code": 1}, "pip ended with 1: no such host"),
        ({"members": None}, "pip left no wheel"),
        ({"members": {}}, "There is no item named"),
        ({"members": {default_text.MEMBER: b"not bz2 at all"}}, "Invalid data stream"),
        ({"members": {default_text.MEMBER: bz2.compress(CONTENT)[:-9]}}, "ended before"),
        ({"members": {default_text.MEMBER: bz2.compress(CONTENT[:-1])}}, "is not the text it was"),
        ({"members": {default_text.MEMBER: bz2.compress(CONTENT * 9)}}, "is not the text it was"),
    ],
)
def test_a_default_text_that_cannot_be_had(
    pip: dict[str, Any], plan: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    pip |= plan
    with pytest.raises(FileNotFoundError, match=f"data: no file was named.*{reason}.*such as enwik8 from"):
        make_stream("text")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_written(
    pip: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = write(tmp_path, b"", "blocked")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(FileNotFoundError, match="could not be fetched"):
        default_text.default_text()
    assert pip["calls"] == 1


def test_the_real_default_text() -> None:
    """Where it has been fetched before; no test needs the network."""
    path = default_text.cache_folder() / default_text.FILE_NAME
    if not path.is_file():
        pytest.skip("the default text is not in the cache")
    corpus = Corpus(default_text.default_text())
    assert len(corpus.bytes) == default_text.TEXT_BYTES
    assert corpus.sha256 == default_text.TEXT_SHA256
    assert bytes(corpus.bytes[:10].tolist()) == b"<mediawiki"
    assert not corpus.is_enwik8
