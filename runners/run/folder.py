"""The folder of a run: its files, and checkpoints that survive crashes, full disks and bit rot.

config.yaml               the resolved configuration
metrics.jsonl             one line per update
checkpoints/step_N.zip    archives; the last few and the best one
checkpoints/latest, best  the name of one of them
evaluation.json           result of the final evaluation
videos/step_N.mp4         episodes with what the memory held, if `video_every` asks for them
wandb/, tensorboard/, metrics.csv   mirrors of metrics.jsonl
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from memory_suite.agents.serialization.archive import (
    ArchiveError,
    read_archive,
    write_archive,
    write_file_atomically,
)
from memory_suite.configs.run_config import RunConfig, to_yaml

RUNS = Path("runs")
"""Where run folders go unless `--run` says otherwise."""

_CHECKPOINT_NAME = re.compile(r"step_(\d{9,})\.zip")
_TEMPORARY_NAME = re.compile(r".*\.tmp-(\d+)")


class RunFolderError(ValueError):
    """A run folder that cannot be used; the message gives the reason and the remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Verified contents of a checkpoint."""

    path: Path
    step: int
    """environment steps trained when it was written"""
    data: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)
    """messages for the user: newer checkpoints that were damaged and skipped"""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run; make one with `create` or `open`."""

    path: Path
    keep_checkpoints: int = 3
    """number of latest checkpoints to keep, besides the best one"""

    @classmethod
    def create(cls, config: RunConfig) -> RunFolder:
        """Make a fresh run folder and write the configuration into it.

        Raises:
            RunFolderError: the folder exists and is not empty.
        """
        path = config.run
        if path is None:
            label = re.sub(r"[^A-Za-z0-9._-]+", "-", config.label).strip("-.")
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            path = _free_name(RUNS / f"{label}-{stamp}")
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"run: {path} is a file, not a folder")
        if path.is_dir() and any(path.iterdir()):
            raise RunFolderError(
                f"run: {path} is not empty, and nothing is ever overwritten; "
                f"choose another folder, or continue it with --resume {path}"
            )
        folder = cls(path, config.keep_checkpoints)
        try:
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
            folder.write_config(config)
        except OSError as error:
            raise RunFolderError(f"run: {path} cannot be made: {error.strerror}") from None
        return folder

    @classmethod
    def open(cls, path: Path, *, keep_checkpoints: int = 3, to_resume: bool = False) -> RunFolder:
        """Use an existing run folder.

        Args:
            path: the folder.
            keep_checkpoints: as in the configuration.
            to_resume: the run will be resumed here, so clean up after a crash: remove temporary files and
                repair the pointer to the best checkpoint. Do not set it while the run may be active.

        Raises:
            RunFolderError: it is not a run folder.
        """
        folder = cls(path, keep_checkpoints)
        if not folder.config_file.is_file():
            reason = "it has no config.yaml" if path.is_dir() else "there is no such folder"
            raise RunFolderError(f"{path} is not a run folder: {reason}")
        if to_resume:
            folder._remove_temporary_files()
            folder._repair_best_pointer()
        return folder

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def csv_file(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def evaluation_file(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run has a checkpoint."""
        return bool(self._steps())

    def save_checkpoint(
        self,
        step: int,
        tensors: Mapping[str, Tensor | NDArray[Any]],
        data: Mapping[str, Any],
        *,
        is_best: bool = False,
    ) -> Path:
        """Write a checkpoint, point to it, and only then remove old ones.

        Args:
            step: environment steps trained.
            tensors: see `agents.serialization.archive.write_archive`.
            data: see `agents.serialization.archive.write_archive`.
            is_best: point `best` to it as well.

        Returns:
            The checkpoint's path.

        Raises:
            ValueError: see `agents.serialization.archive.write_archive`; earlier checkpoints are untouched.
        """
        path = self.checkpoints / _checkpoint_name(step)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_archive(path, tensors, {"step": step, "content": data})
        if is_best:
            self._point("best", path)
        self._point("latest", path)
        self._prune(step)
        return path

    def latest_checkpoint(self) -> Checkpoint:
        """The latest undamaged checkpoint; `notes` names newer ones that are damaged.

        Raises:
            RunFolderError: there is none, or all are damaged; a run never restarts silently.
        """
        return self._first_good(self._newest_first(), self._missing("latest"))

    def best_checkpoint(self) -> Checkpoint:
        """The best checkpoint; if that is missing or damaged the last one, with a note.

        Raises:
            RunFolderError: there is none, or all are damaged.
        """
        best = self._pointed_to("best")
        others = [path for path in self._newest_first() if path != best]
        return self._first_good(others if best is None else [best, *others], self._missing("best"))

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml: at the start, and when a resumed run gets other options."""
        write_file_atomically(self.config_file, to_yaml(config).encode())

    def write_evaluation(self, result: Mapping[str, Any]) -> None:
        """Write evaluation.json."""
        write_json_atomically(self.evaluation_file, result)

    def _first_good(self, paths: list[Path], problems: list[str]) -> Checkpoint:
        """The first checkpoint that can be loaded; `problems` are messages about earlier candidates."""
        if not (paths or problems):
            raise RunFolderError(
                f"{self.path} has no checkpoint yet: the run ended before the first was written"
            )
        for path in paths:
            try:
                tensors, stored = read_archive(path)
                step, data = stored["step"], stored["content"]
                if path.name != _checkpoint_name(step):
                    raise ArchiveError(
                        f"{path} cannot be loaded: it holds step {step}, so it was renamed or exchanged"
                    )
            except (ArchiveError, OSError) as error:
                problems.append(str(error))
            except KeyError as error:
                problems.append(f"{path} cannot be loaded: it is no checkpoint, it lacks {error}")
            else:
                notes = [f"{problem}; using {path} instead" for problem in problems]
                return Checkpoint(path=path, step=step, tensors=tensors, data=data, notes=notes)
        raise RunFolderError(f"no checkpoint in {self.path} can be loaded: {'; '.join(problems)}")

    def _steps(self) -> dict[Path, int]:
        """Every checkpoint file and its step."""
        found = (
            (path, _CHECKPOINT_NAME.fullmatch(path.name)) for path in self.checkpoints.glob("step_*.zip")
        )
        return {path: int(match.group(1)) for path, match in found if match}

    def _newest_first(self) -> list[Path]:
        """Checkpoints in the order to try them: what `latest` names, then the others, newest first."""
        steps = self._steps()
        latest = self._pointed_to("latest")
        return sorted(steps, key=lambda path: (path == latest, steps[path]), reverse=True)

    def _point(self, pointer: str, path: Path) -> None:
        write_file_atomically(self.checkpoints / pointer, f"{path.name}\n".encode())

    def _pointed_to(self, pointer: str) -> Path | None:
        """The checkpoint a pointer names; None if it names none that exists."""
        path = self._named_by(pointer)
        return path if path is not None and path.is_file() else None

    def _missing(self, pointer: str) -> list[str]:
        """A message if a pointer names a missing checkpoint."""
        path = self._named_by(pointer)
        if path is None or path.is_file():
            return []
        return [f"{path} cannot be loaded: it is missing, although {self.checkpoints / pointer} names it"]

    def _named_by(self, pointer: str) -> Path | None:
        """The path a pointer names; None if it is no checkpoint's name."""
        try:
            name = (self.checkpoints / pointer).read_bytes().decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None
        return self.checkpoints / name if _CHECKPOINT_NAME.fullmatch(name) else None

    def _prune(self, step: int) -> None:
        """Remove old checkpoints, and later ones that a resume from an earlier step abandoned."""
        steps = self._steps()
        best = self._pointed_to("best")
        past = sorted((path for path in steps if steps[path] <= step), key=lambda path: steps[path])
        kept = {*past[-self.keep_checkpoints :], best}
        for path in steps.keys() - kept:
            path.unlink(missing_ok=True)

    def _repair_best_pointer(self) -> None:
        """Point `best` to the only checkpoint if a crash came before that."""
        steps = self._steps()
        if len(steps) == 1 and not (self.checkpoints / "best").exists():
            self._point("best", *steps)

    def _remove_temporary_files(self) -> None:
        """Remove partly written files of processes that have ended."""
        for folder in (self.path, self.checkpoints):
            for path in folder.glob("*.tmp-*"):
                match = _TEMPORARY_NAME.fullmatch(path.name)
                if match and not _is_running(int(match.group(1))):
                    path.unlink(missing_ok=True)


def _checkpoint_name(step: int) -> str:
    return f"step_{step:09d}.zip"


def write_json_atomically(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; raises ValueError for NaN and infinity."""
    write_file_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def _free_name(path: Path) -> Path:
    """The path, with a number appended if another run took it in the same second."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def _is_running(process_id: int) -> bool:
    if process_id == os.getpid():
        return False  # this process is only about to write
    try:
        os.kill(process_id, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
