"""Files made on purpose to run code, to escape their folder or to fill the memory, and who reads them."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memory_suite.agents.algorithms.a2c import MemoryA2C
from memory_suite.agents.algorithms.ppo import MemoryPPO
from memory_suite.agents.episodes.record import EpisodeFileError, EpisodeRecord
from memory_suite.agents.serialization.archive import FORMAT, VERSION, ArchiveError
from memory_suite.configs.agent_schema import TrainConfig, load
from memory_suite.configs.command_line import EXIT_USAGE
from memory_suite.runners.run.folder import RunFolder, RunFolderError
from tests.faults.harness import Figure

MEMBERS = ("tensors.safetensors", "data.json", "manifest.json")


class Exploit:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def sealed(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip with a seal that fits, so that what is wrong inside is really looked at."""
    buffer = io.BytesIO(zipped(members, compression))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"?" * 71
    body = buffer.getvalue()[:-71]
    return body + b"sha256:" + hashlib.sha256(body).hexdigest().encode()


def listed(tensors: bytes, data: bytes = b"{}") -> dict[str, bytes]:
    """The three members with a manifest that fits."""
    members = {MEMBERS[0]: tensors, MEMBERS[1]: data}
    prints = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in members.items()
    }
    manifest = {"format": FORMAT, "version": VERSION, "members": prints}
    return {**members, MEMBERS[2]: json.dumps(manifest).encode()}


def safetensors_of(shape: list[int], offsets: list[int], dtype: str = "F32", name: str = "a") -> bytes:
    """A safetensors file of four bytes that claims whatever is asked."""
    header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 4


def checkpoints(mark: Path) -> Iterator[tuple[str, bytes]]:
    """Files that someone might be asked to resume from or to load."""
    exploit = Exploit(mark)
    for protocol in (0, 2, 5):
        yield f"pickle {protocol}", pickle.dumps(exploit, protocol)
    for is_zip in (False, True):
        buffer = io.BytesIO()
        torch.save({"policy": exploit}, buffer, _use_new_zipfile_serialization=is_zip)
        yield f"torch.save, zip {is_zip}", buffer.getvalue()
        yield f"torch.save, zip {is_zip}, sealed", sealed({"archive/data.pkl": buffer.getvalue()})
    serialized = {"policy_class": {":serialized:": pickle.dumps(exploit).hex()}}
    sb3 = {"data": json.dumps(serialized).encode(), "policy.pth": pickle.dumps(exploit)}
    yield "stable-baselines3", zipped(sb3)
    yield "stable-baselines3, sealed", sealed(sb3)
    buffer = io.BytesIO()
    np.save(buffer, np.array([exploit], dtype=object), allow_pickle=True)
    yield "npy of objects as tensors", sealed(listed(buffer.getvalue()))
    yield "pickle as tensors", sealed(listed(pickle.dumps(exploit)))
    yield "pickle as data", sealed(listed(safetensors_of([1], [0, 4]), pickle.dumps(exploit)))
    good = listed(safetensors_of([1], [0, 4]))
    for name in ("../../escaped", "/tmp/escaped", "..\\escaped", "checkpoints/../../escaped"):
        yield f"member {name}", sealed({name: b"escaped", **good})
    yield "a member twice its size", sealed(good, zipfile.ZIP_DEFLATED)
    yield "a deflated bomb", sealed(listed(bytes(1 << 26)), zipfile.ZIP_DEFLATED)
    yield "a giant shape", sealed(listed(safetensors_of([1 << 40], [0, 4])))
    yield "a giant shape with its offsets", sealed(listed(safetensors_of([1 << 40], [0, 1 << 42])))
    yield "a shape that overflows", sealed(listed(safetensors_of([1 << 33, 1 << 33], [0, 4])))
    yield "offsets backwards", sealed(listed(safetensors_of([1], [4, 0])))
    yield "a giant header", sealed(listed(struct.pack("<Q", 1 << 62) + b"{}"))
    yield "lists in lists", sealed(listed(safetensors_of([1], [0, 4]), b"[" * 200_000))
    yield (
        "a marker of a tensor that is not there",
        sealed(listed(safetensors_of([1], [0, 4]), b'{"step": 1}')),
    )


def records(mark: Path) -> Iterator[tuple[str, bytes]]:
    """Files that someone might be asked to view."""
    exploit = Exploit(mark)
    buffer = io.BytesIO()
    np.save(buffer, np.array([exploit], dtype=object), allow_pickle=True)
    facts = b'{"format": "memory-suite episode", "version": 1, "num_layers": 1}'
    yield "npz of objects", zipped({"episode.json": facts, "action.npy": buffer.getvalue()})
    yield "pickle as npy", zipped({"episode.json": facts, "action.npy": pickle.dumps(exploit)})
    header = io.BytesIO()
    description = {"descr": "<f8", "fortran_order": False, "shape": (1 << 33,)}
    np.lib.format.write_array_header_1_0(header, description)
    yield "npy of a giant shape", zipped({"episode.json": facts, "action.npy": header.getvalue()})
    description["shape"] = (1 << 50,)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, description)
    yield "npy of a shape beyond all memory", zipped({"episode.json": facts, "action.npy": header.getvalue()})
    yield "facts that are a list", zipped({"episode.json": b"[]"})
    yield "facts of a wrong type", zipped({"episode.json": facts.replace(b"1, ", b'"1", ')})
    yield "lists in lists, as facts", zipped({"episode.json": b"[" * 200_000})
    yield "pickle", pickle.dumps(exploit)


def configurations(mark: Path) -> Iterator[tuple[str, bytes]]:
    """Files that someone might be asked to train with."""
    command = f"touch {mark}"
    yield "apply", f"seed: !!python/object/apply:os.system ['{command}']".encode()
    yield "new", f"seed: !!python/object/new:os.system ['{command}']".encode()
    yield "name", b"seed: !!python/name:os.system"
    yield "module", b"seed: !!python/module:antigravity"
    yield "object", b"seed: !!python/object:tests.faults.malicious.Exploit {mark: x}"
    yield "key", f"? !!python/object/apply:os.system ['{command}']\n: 1".encode()
    yield "target", f"memory: {{_target_: os.system, command: {command}}}".encode()
    lines = [f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)]
    yield "aliases of aliases", ("seed:\n  - &a0 [x]\n" + "".join(lines)).encode()
    yield "lists in lists", b"seed: " + b"[" * 20_000


def read_checkpoint(path: Path) -> None:
    """As the checkpoint that `latest` names."""
    RunFolder.create(TrainConfig(run=path.parent / "run"))
    folder = RunFolder.open(path.parent / "run")
    target = folder.checkpoints / "step_000000001.zip"
    target.write_bytes(path.read_bytes())
    (folder.checkpoints / "latest").write_text(target.name)
    folder.latest_checkpoint()


def load_model(path: Path) -> None:
    """As a saved model."""
    for algorithm in (MemoryPPO, MemoryA2C):
        try:
            algorithm.load(path)
        except ArchiveError:
            continue
        return
    raise ArchiveError(f"{path} cannot be loaded")


def read_record(path: Path) -> None:
    """As the record of an episode."""
    EpisodeRecord.load(path)


def read_configuration(path: Path) -> None:
    """As the file of --config."""
    load(["--config", str(path)])


def resume(path: Path) -> None:
    """As the configuration of a run."""
    (path.parent / "config.yaml").write_bytes(path.read_bytes())
    load(["--resume", str(path.parent)])


KINDS: list[tuple[Callable[[Path], Iterator[tuple[str, bytes]]], list[Callable[[Path], None]]]] = [
    (checkpoints, [read_checkpoint, load_model]),
    (records, [read_record]),
    (configurations, [read_configuration, resume]),
]


def try_all(folder: Path) -> Figure:
    """Let each file be read by all who might.

    Returns:
        Good: files that every reader refused in the way it refuses any wrong file, without running code or
        writing elsewhere.
    """
    good = tried = 0
    problems: list[str] = []
    for make, readers in KINDS:
        for number, (name, content) in enumerate(make(folder / "mark")):
            tried += 1
            found: list[str] = []
            for reader in readers:
                place = folder / f"{make.__name__}-{number}-{reader.__name__}"
                place.mkdir()
                path = place / "file.zip"
                path.write_bytes(content)
                try:
                    reader(path)
                    found.append(f"{reader.__name__} took it")
                except (ArchiveError, RunFolderError, EpisodeFileError) as error:
                    found += (
                        [] if str(place) in str(error) else [f"{reader.__name__} does not name it: {error}"]
                    )
                except SystemExit as leaving:
                    found += [] if leaving.code == EXIT_USAGE else [f"exit code {leaving.code}"]
                except (Exception, RecursionError) as error:
                    found.append(f"{reader.__name__} raised {type(error).__name__}: {error}")
            if (folder / "mark").exists():
                found.append("code ran")
                (folder / "mark").unlink()
            if list(folder.rglob("*escaped*")) or Path("/tmp/escaped").exists():
                found.append("it wrote elsewhere")
            good += not found
            problems += [f"{make.__name__}, {name}: {'; '.join(found)[:300]}"] if found else []
    return Figure(
        what="malicious files: refused, no code run", good=good, of=tried, remarks="\n".join(problems)
    )
