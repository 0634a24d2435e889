"""Archives: what goes in comes out, damage is always found, nothing in them runs."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import signal
import struct
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_suite.agents.serialization import archive
from memory_suite.agents.serialization.archive import (
    ArchiveError,
    read_archive,
    write_archive,
    write_file_atomically,
)

DATA: dict[str, Any] = {"text": "a", "list": [1, 2.5, None, True], "nested": {"generator": 2**127 + 1}}
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint64,
    torch.bool,
]


def tensors(size: int = 5) -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(size, dtype=torch.float32), "flags": torch.tensor([True, False])}


def assert_same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert torch.equal(tensor, right[name])


def packed() -> bytes:
    buffer = io.BytesIO()
    write_archive(buffer, tensors(), DATA)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3)], ids=str)
def test_every_type_and_shape_comes_back(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    write_archive(tmp_path / "a.zip", {"x": tensor}, DATA)
    result, data = read_archive(tmp_path / "a.zip")
    assert_same({"x": tensor}, result)
    assert data == DATA


@given(
    data=st.dictionaries(
        st.text(),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
    )
)
def test_any_plain_data_comes_back(data: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    write_archive(buffer, {}, data)
    buffer.seek(0)
    assert read_archive(buffer) == ({}, data)


def test_views_and_numpy_arrays_can_be_saved_and_results_written_to() -> None:
    base = torch.arange(12.0).view(3, 4)
    given_tensors = {
        "base": base,
        "transposed": base.t(),
        "row": base[1],
        "expanded": torch.ones(1).expand(3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    buffer = io.BytesIO()
    write_archive(buffer, {**given_tensors, "array": np.arange(3)[::-1]}, {})
    buffer.seek(0)
    result, _ = read_archive(buffer)
    assert result.pop("array").tolist() == [2, 1, 0]
    assert_same(given_tensors, result)
    result["base"].add_(1.0)


def test_equal_content_gives_an_equal_file() -> None:
    assert packed() == packed()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.float8_e5m2], ids=str
)
def test_what_is_not_finite_is_refused_and_the_old_file_stays(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = tmp_path / "a.zip"
    write_archive(path, tensors(), DATA)
    bad = torch.tensor([1.0, value]).to(dtype)
    with pytest.raises(ValueError, match="'bad' holds NaN or infinity"):
        write_archive(path, {"bad": bad}, {})
    assert_same(tensors(), read_archive(path)[0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": (1, 2)}, "data.a is of type tuple"),
        ({"a": [{"b": np.float32(1)}]}, r"data.a\[0\].b is of type float32"),
        ({"a": {1: 2}}, "data.a has the key 1"),
        ({"a": float("nan")}, "data.a is nan"),
        ({"a": b""}, "data.a is of type bytes"),
        ({"a": Path("x")}, "data.a is of type"),
    ],
)
def test_what_json_would_change_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_archive(io.BytesIO(), {}, data)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"a": np.array([object()])}, "array 'a' cannot be saved"),
        ({"__metadata__": torch.ones(1)}, "reserves that name"),
        ({"a": torch.ones(1, dtype=torch.complex128)}, "safetensors cannot hold"),
    ],
)
def test_what_safetensors_cannot_hold_is_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_archive(io.BytesIO(), bad, {})


def test_every_flipped_bit_and_every_truncation_is_found() -> None:
    whole = packed()
    generator = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        with pytest.raises(ArchiveError):
            read_archive(io.BytesIO(damaged))
    for _ in range(100):
        with pytest.raises(ArchiveError):
            read_archive(io.BytesIO(whole[: generator.randrange(len(whole))]))
    for longer in (whole + b"\0", b"\0" + whole, whole + whole):
        with pytest.raises(ArchiveError):
            read_archive(io.BytesIO(longer))


def sealed(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    """A zip with any members and a seal that fits: what someone could craft on purpose."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content, compression)
        file.comment = b"?" * 71
    body = buffer.getvalue()[:-71]
    return io.BytesIO(body + b"sha256:" + hashlib.sha256(body).hexdigest().encode())


def crafted(
    tensor_bytes: bytes = safetensors.torch.save({"a": torch.ones(1)}),
    data: bytes = b"{}",
    **manifest: object,
) -> dict[str, bytes]:
    """Members with a manifest that fits them, some of its entries replaced."""
    members = {"tensors.safetensors": tensor_bytes, "data.json": data}
    fingerprints = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in members.items()
    }
    whole = {"format": archive.FORMAT, "version": archive.VERSION, "members": fingerprints, **manifest}
    return {**members, "manifest.json": json.dumps(whole).encode()}


def test_the_crafted_archives_below_are_wrong_in_one_way_only() -> None:
    assert read_archive(sealed(crafted()))[1] == {}


def giant(shape: list[int], offsets: list[int]) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 4


class Exploit:
    """Pickles to a call that would end the tests."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (sealed({**crafted(), "../evil": b""}), "it holds"),
        (sealed({"data": pickle.dumps(Exploit())}), "it holds"),
        (sealed({"policy.pth": b"", **crafted()}), "it holds"),
        (sealed(dict(reversed(crafted().items()))), "it holds"),
        (sealed(crafted(), zipfile.ZIP_DEFLATED), "is compressed"),
        (sealed({**crafted(), "manifest.json": b" " * 5000}), "larger than"),
        (sealed({**crafted(), "manifest.json": b"[]"}), "not an object"),
        (sealed({**crafted(), "data.json": b'{"a": 1}'}), "not those that its manifest.json lists"),
        (sealed(crafted(format="other")), "its format is 'other'"),
        (sealed(crafted(version=1)), "another revision of memory-suite wrote it, in version 1 of the format"),
        (sealed(crafted(members={})), "not those that its manifest.json lists"),
        (sealed(crafted(data=b"{")), "malformed"),
        (sealed(crafted(data=b"\xff")), "malformed"),
        (sealed(crafted(data=b'{"a": NaN}')), "holds NaN"),
        (sealed(crafted(data=b"[" * 100_000)), "recursion"),
        (sealed(crafted(tensor_bytes=pickle.dumps(Exploit()))), "cannot be loaded"),
        (sealed(crafted(tensor_bytes=giant([1 << 40], [0, 4]))), "cannot be loaded"),
        (sealed(crafted(tensor_bytes=giant([1 << 40], [0, 1 << 42]))), "cannot be loaded"),
        (sealed(crafted(tensor_bytes=struct.pack("<Q", 1 << 60))), "cannot be loaded"),
        (io.BytesIO(b""), "not an archive of this program"),
        (io.BytesIO(pickle.dumps(Exploit())), "not an archive of this program"),
    ],
)
def test_crafted_files_are_refused(file: io.BytesIO, message: str, tmp_path: Path) -> None:
    path = tmp_path / "crafted.zip"
    path.write_bytes(file.getvalue())
    with pytest.raises(ArchiveError, match=message) as refusal:
        read_archive(path)
    assert str(path) in str(refusal.value)


def test_an_sb3_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sb3.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", json.dumps({"policy_class": {":serialized:": pickle.dumps(Exploit()).hex()}}))
    with pytest.raises(ArchiveError, match="not an archive of this program"):
        read_archive(path)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_archive(tmp_path / "missing.zip")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rubbish(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.zip"
    write_archive(path, tensors(), DATA)
    if function == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_archive(path, tensors(50), {})
    monkeypatch.undo()
    assert_same(tensors(), read_archive(path)[0])
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_created_says_where(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        write_file_atomically(tmp_path / "missing" / "a", b"")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_any_moment_an_archive_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    write_archive(path, {"x": torch.zeros(200_000)}, {"round": -1})
    generator = random.Random(0)
    kills_inside_a_write = 0
    for _ in range(20):
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)  # the parent's pool of threads is not in this process
                for number in itertools.count():
                    write_archive(path, {"x": torch.full((200_000,), float(number))}, {"round": number})
            finally:
                os._exit(1)
        time.sleep(generator.uniform(0.01, 0.1))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        found, data = read_archive(path)
        assert bool((found["x"] == max(0, data["round"])).all())
        for rubbish in tmp_path.glob("*.tmp-*"):
            kills_inside_a_write += 1
            rubbish.unlink()
    assert kills_inside_a_write > 0
