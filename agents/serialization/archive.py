"""Safe single-file archives for models and checkpoints: they contain no code, and damage is always detected.

An archive is an uncompressed zip of three members:

    tensors.safetensors   named tensors
    data.json             everything else, as plain JSON types
    manifest.json         format, version, and the size and SHA-256 of the other two

The zip's comment is the SHA-256 of all bytes before it, so damage anywhere in the file is detected, also in
the zip's own tables. An archive is written to a temporary file, which replaces the target once it is complete
and on disk. A process killed before that leaves the previous archive unchanged.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

FORMAT = "memory-suite-archive"
VERSION = 2

_TENSORS, _DATA, _MANIFEST = "tensors.safetensors", "data.json", "manifest.json"
_SEAL = b"sha256:"
_SEAL_BYTES = len(_SEAL) + 2 * hashlib.sha256().digest_size
_MAX_MANIFEST_BYTES = 4096
_COPY_BYTES = 1 << 20


class ArchiveError(ValueError):
    """The file is not an archive of this revision, or is damaged."""


def write_archive(
    target: str | os.PathLike[str] | io.BufferedIOBase,
    tensors: Mapping[str, Tensor | NDArray[Any]],
    data: Mapping[str, Any],
) -> None:
    """Write an archive; given a path, atomically.

    Args:
        target: path, or a binary file to write to.
        tensors: tensors and NumPy arrays by name.
        data: plain JSON types: dicts with string keys, lists, strings, finite numbers, booleans, None.

    Raises:
        ValueError: a tensor is not finite, or an archive cannot hold a value. As after any other failure, the
            previous file at that path is unchanged.
    """
    _require_plain(data, "data")
    members = {
        _TENSORS: _pack_tensors(tensors),
        _DATA: json.dumps(data, allow_nan=False).encode(),
    }
    manifest = {"format": FORMAT, "version": VERSION, "members": _fingerprints(members)}
    members[_MANIFEST] = json.dumps(manifest).encode()
    if isinstance(target, str | os.PathLike):
        _replace(Path(target), lambda file: _write_sealed_zip(file, members))
    else:
        buffer = io.BytesIO()
        _write_sealed_zip(buffer, members)
        target.write(buffer.getbuffer())


def read_archive(
    source: str | os.PathLike[str] | io.BufferedIOBase,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an archive that `write_archive` wrote, without running code.

    Args:
        source: path, or a binary file to read from.

    Returns:
        The tensors, on the CPU, and the data.

    Raises:
        ArchiveError: the file is damaged, is not an archive, or another revision wrote it.
        OSError: the file cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        name, content = str(source), Path(source).read_bytes()
    else:
        name, content = str(getattr(source, "name", "archive")), source.read()
    try:
        members = _open_sealed_zip(content)
        _check_manifest(members)
        return safetensors.torch.load(members[_TENSORS]), _unpack_data(members[_DATA])
    except (ArchiveError, zipfile.BadZipFile, SafetensorError, RecursionError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{name} cannot be loaded: {error}") from None


def write_file_atomically(path: Path, content: bytes) -> None:
    """Replace a file atomically: after a crash it has the old content or the new, never a part of it."""
    _replace(path, lambda file: file.write(content))


def _replace(path: Path, write: Callable[[io.BufferedIOBase], object]) -> None:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # errors of writes lack the path
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if os.name == "posix":  # elsewhere folders cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the new name itself durable
        finally:
            os.close(folder)


def _pack_tensors(tensors: Mapping[str, Tensor | NDArray[Any]]) -> bytes:
    packed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name == "__metadata__":
            raise ValueError("a tensor cannot be named __metadata__: safetensors reserves that name")
        try:
            tensor = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        except TypeError as error:
            raise ValueError(f"array {name!r} cannot be saved: {error}") from None
        # safetensors refuses tensors that share memory or are not contiguous
        tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        if not _is_finite(tensor):
            raise ValueError(f"tensor {name!r} holds NaN or infinity and was not saved")
        packed[name] = tensor
    try:
        return safetensors.torch.save(packed)
    except (KeyError, SafetensorError) as error:
        raise ValueError(f"safetensors cannot hold these tensors: {error}") from error


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.float()  # isfinite does not support 8-bit types
    return bool(torch.isfinite(tensor).all())


def _require_plain(value: object, path: str) -> None:
    """Refuse what JSON would change (tuples, integer keys) or cannot hold; raises ValueError."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{path} has the key {key!r}; keys must be strings")
            _require_plain(entry, f"{path}.{key}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _require_plain(entry, f"{path}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value}; numbers must be finite")
    elif value is not None and not isinstance(value, bool | int | str):
        raise ValueError(f"{path} is of type {type(value).__name__}, which is no plain JSON type")


def _fingerprints(members: Mapping[str, bytes]) -> dict[str, dict[str, str | int]]:
    return {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in members.items()
    }


def _write_sealed_zip(file: io.BufferedIOBase, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # a fixed date: equal content, equal file
        archive.comment = b"?" * _SEAL_BYTES
    size = file.seek(-_SEAL_BYTES, io.SEEK_END)
    file.seek(0)
    digest = hashlib.sha256()
    for start in range(0, size, _COPY_BYTES):
        digest.update(file.read(min(_COPY_BYTES, size - start)))
    file.seek(size)
    file.write(_SEAL + digest.hexdigest().encode())


def _open_sealed_zip(content: bytes) -> dict[str, bytes]:
    """Check the seal, then the zip's tables against the file, then read the members."""
    body, seal = memoryview(content)[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    if not seal.startswith(_SEAL):
        raise ArchiveError("it is not an archive of this program, or its end is missing")
    if seal != _SEAL + hashlib.sha256(body).hexdigest().encode():
        raise ArchiveError("it is damaged, its SHA-256 is not the one it was written with")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if names != [_TENSORS, _DATA, _MANIFEST]:
            raise ArchiveError(f"it holds {names} instead of {[_TENSORS, _DATA, _MANIFEST]}")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise ArchiveError(f"its member {entry.filename} is compressed")
            if entry.flag_bits & 1:
                raise ArchiveError(f"its member {entry.filename} is encrypted")
        if sum(entry.file_size for entry in entries) > len(content):
            raise ArchiveError("its members claim to be larger than the file")
        if entries[2].file_size > _MAX_MANIFEST_BYTES:
            raise ArchiveError(f"its {_MANIFEST} is larger than {_MAX_MANIFEST_BYTES} bytes")
        return {entry.filename: archive.read(entry) for entry in entries}


def _check_manifest(members: Mapping[str, bytes]) -> None:
    manifest = _unpack_data(members[_MANIFEST])
    if manifest.get("format") != FORMAT:
        raise ArchiveError(f"its format is {manifest.get('format')!r}, not {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise ArchiveError(
            "another revision of memory-suite wrote it, in version "
            f"{manifest.get('version')!r} of the format (this one reads {VERSION}): use that revision, "
            "or train again"
        )
    if manifest.get("members") != _fingerprints({name: members[name] for name in (_TENSORS, _DATA)}):
        raise ArchiveError(f"its members are not those that its {_MANIFEST} lists")


def _unpack_data(content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content.decode(), parse_constant=_refuse_constant)
    except ValueError as error:
        raise ArchiveError(f"its JSON is malformed: {error}") from None
    if not isinstance(data, dict):
        raise ArchiveError("its JSON is not an object")
    return data


def _refuse_constant(name: str) -> None:
    raise ArchiveError(f"its JSON holds {name}")
