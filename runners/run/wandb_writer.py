"""Weights & Biases as a log writer."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stable_baselines3.common.logger import (
    KVWriter,
    filter_excluded_keys,
)

if TYPE_CHECKING:
    from wandb import Run
from memory_suite.runners.run.background_writer import Notify, write_to_stderr
from memory_suite.runners.run.metrics_file import STEP_KEY, Excluded, Row, histogram, is_histogram

PROJECT = "memory-suite"
"""Weights & Biases project of all runs."""


WANDB_START_S = 15.0
"""how long W&B may take to begin a run before it is one that stays on this disk"""


WANDB_FINISH_S = 30.0
"""how long it may take to send what is left"""


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A finished video, for writers that show media; others leave it out."""

    path: Path
    caption: str


NOT_MEDIA = ("stdout", "log", "json", "csv", "tensorboard")
"""writers that show no media: what to exclude when a `VideoFile` is recorded"""


class WandbProcess:
    """The process that Weights & Biases starts; at exit the interpreter waits for it without limit."""

    def __init__(self) -> None:
        """None is known yet."""
        self._process: subprocess.Popen[bytes] | None = None

    def find(self, session: Any) -> None:
        """Remember the one that a session of Weights & Biases started, if it did not join another's."""
        with contextlib.suppress(AttributeError):  # there is no public way to it
            self._process = session.ensure_service()._proc._process

    def kill(self) -> None:
        """End it, whatever it does."""
        if self._process is not None:
            self._process.kill()


class WandbWriter(KVWriter):
    """Weights & Biases, offline unless asked otherwise; meant to run inside a `BackgroundWriter`."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        mode: Literal["offline", "online"],
        process: WandbProcess,
        notify: Notify | None = None,
    ) -> None:
        """Start a W&B run.

        Args:
            folder: run folder; W&B makes its own folder in it.
            config: shown with the run.
            mode: "online" falls back to "offline" without an account or a connection.
            process: told which process W&B starts.
            notify: told about the fallback, and about what could not be sent; None: stderr.
        """
        # Nothing is sent anywhere unless the user asks for it; read when W&B is first imported.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        self._notify = write_to_stderr if notify is None else notify
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=WANDB_START_S,
            finish_timeout=WANDB_FINISH_S,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1.0,  # the default loses the last 15 s when it is killed
        )
        start = functools.partial(
            wandb.init,
            project=PROJECT,
            name=folder.resolve().name,
            group=folder.resolve().name,  # a resumed run is a second W&B run of the same group
            dir=str(folder),
            config=dict(config),
            settings=settings,
        )
        try:
            process.find(wandb.setup(settings=settings))  # silent from here on, before a run exists
            online = mode == "online" and self._start_online(start)
            self._run = online or start(mode="offline")
            self._run.define_metric("*", step_metric=STEP_KEY)
        except BaseException:
            wandb.teardown()
            raise

    def _start_online(self, start: Callable[..., Run]) -> Run | None:
        """An online run; None if there can be none."""
        try:
            if not self._wandb.login(prompt=False):
                raise ConnectionError("there is no API key; `wandb login` stores one")
            run = start(mode="online")
        except Exception as error:
            reason = " ".join(str(error).split())
            self._notify(f"Weights & Biases goes on offline: {reason}; upload later with `wandb sync`")
            return None
        self._notify(f"Weights & Biases shows this run at {run.url}")
        return run

    def write(self, key_values: Row, key_excluded: Excluded, step: int = 0) -> None:
        row = {
            key: self._shown(value)
            for key, value in filter_excluded_keys(key_values, key_excluded, "wandb").items()
        }
        self._run.log({**row, STEP_KEY: row.get(STEP_KEY, step)})

    def _shown(self, value: Any) -> Any:
        """A value as Weights & Biases has it."""
        if isinstance(value, VideoFile):
            return self._wandb.Video(str(value.path), caption=value.caption, format="mp4")
        if is_histogram(value):
            return self._wandb.Histogram(np_histogram=histogram(value))
        return value

    def close(self) -> None:
        try:
            self._run.finish()
        except TimeoutError:
            self._notify(
                f"Weights & Biases was not done within {WANDB_FINISH_S:g} s; what did not arrive is in "
                f"{Path(self._run.dir).parent}: upload it with `wandb sync --include-online` and that folder"
            )
        finally:
            self._wandb.teardown()  # otherwise done when the process exits, where it may hang or print
