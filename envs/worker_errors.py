"""Diagnosis of a failed vector environment: which environment or worker process failed, and where."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple, SupportsFloat

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from memory_suite.envs.errors import EnvFailedError, SpaceMismatchError

WORKER_EXIT_S = 5.0
"""longest wait for the exit code of a worker process whose pipe has closed"""
ADAPTERS = {f"memory_suite.envs.{name}" for name in ("vec_env", "space_checks", "worker_errors")}
"""modules that call the environments and are never the place of an error"""


class WorkerFailure(NamedTuple):
    """A worker process that hangs or has exited."""

    text: str
    env_index: int | None
    """number of its environment, if known"""


def find_worker_failure(
    env: AsyncVectorEnv, error: BaseException, timeout_seconds: float
) -> WorkerFailure | None:
    """The worker process behind an exception; None if all of them live and answer."""
    failure = None
    if isinstance(error, multiprocessing.TimeoutError):
        silent = (index for index, pipe in enumerate(env.parent_pipes) if pipe and not pipe.poll())
        text = f"a worker process did not answer within {timeout_seconds:g} s"
        failure = WorkerFailure(text, next(silent, None))
    if isinstance(error, EOFError | OSError):
        ended = multiprocessing.connection.wait([p.sentinel for p in env.processes], WORKER_EXIT_S)
        for process in env.processes:
            process.join(WORKER_EXIT_S if process.sentinel in ended else 0.0)
    for index, process in enumerate(env.processes):
        if process.exitcode not in (None, 0):
            return WorkerFailure(f"a worker process ended with exit code {process.exitcode}", index)
    return failure


def failed_env_index(env: VectorEnv[Any, Any, Any], error: BaseException) -> int | None:
    """Number of the environment that raised; None if it cannot be told."""
    if isinstance(env, AsyncVectorEnv):
        return next((index for index, pipe in enumerate(env.parent_pipes) if pipe is None), None)
    # Of a `SyncVectorEnv` only its loop knows, so read the loop's variable from the traceback.
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(frame.f_locals.get("self"), SyncVectorEnv):
            index = frame.f_locals.get("i")
            return index if isinstance(index, int) else None
    return None


def source_line(env: VectorEnv[Any, Any, Any], error: BaseException, index: int | None) -> str:
    """The innermost line of the environment's own package, as " (raised at FILE:LINE, in FUNCTION)".

    Empty for worker processes, whose message holds the whole traceback (`WorkerTraceback`).
    """
    if isinstance(env, AsyncVectorEnv):
        return ""
    single: Any = env.envs[index or 0] if hasattr(env, "envs") else env
    package = type(single.unwrapped).__module__.partition(".")[0]
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        if module not in ADAPTERS and module.partition(".")[0] == package:
            found = f" (raised at {frame.f_code.co_filename}:{line}, in {frame.f_code.co_qualname})"
    return found


def kill_workers(env: AsyncVectorEnv) -> None:
    """Close environments of which one has failed; the others may hang too, so they are not asked to exit."""
    for process in env.processes:
        process.kill()
    env._state = AsyncState.DEFAULT  # or `close` would wait for their answers
    env.close(terminate=True)


class WorkerTraceback(gym.Wrapper[Any, Any, Any, Any]):
    """Put an exception's traceback into its message, since a worker process sends only the message."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        with _traceback_in_message():
            return self.env.reset(**options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        with _traceback_in_message():
            return self.env.step(action)


@contextlib.contextmanager
def _traceback_in_message() -> Iterator[None]:
    try:
        yield
    except SpaceMismatchError:
        raise  # its message is complete
    except Exception as error:
        what = f"{type(error).__name__}: {error}\nin its worker process:\n{traceback.format_exc()}"
        raise EnvFailedError(what) from error
