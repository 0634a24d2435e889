"""Members as runs of a Weights & Biases sweep: its server hands them out, agents anywhere train them.

An agent trains a member of the sweep's folder, so that runs resume and the tables are the same as with every
other backend. The folder must be on a file system that all agents share.
"""

from __future__ import annotations

import functools
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from memory_suite.runners.run.signals import GracefulStop
from memory_suite.runners.run.wandb_writer import PROJECT
from memory_suite.runners.sweeps.folder import Member, Sweep, SweepError
from memory_suite.runners.sweeps.trial import MEMBER_SCRIPT
from memory_suite.runners.sweeps.watch import Watch

DEFINITION = "wandb_sweep.yaml"


def definition(sweep: Sweep, members: Sequence[Member]) -> dict[str, Any]:
    """Definition of the W&B sweep: a grid over the names of the members."""
    return {
        "name": sweep.path.name,
        "project": PROJECT,
        "method": "grid",
        "program": str(MEMBER_SCRIPT),
        "command": [
            *("${env}", "${interpreter}", "${program}"),
            *("--sweep", str(sweep.path), "--track", "online", "${args}"),
        ],
        "parameters": {"member": {"values": [member.name for member in members]}},
    }


def make_backend(
    sweep: Sweep, left: Sequence[Member], *, agents: int, online: bool
) -> Callable[[Watch, GracefulStop], None]:
    """Write a definition of the unfinished members; online, also register it and run agents on this machine.

    Raises:
        SweepError: no account is configured, or the server cannot be reached.
    """
    text = yaml.safe_dump(definition(sweep, left), sort_keys=False, width=1000)
    path = sweep.write(DEFINITION, text.encode())
    if not online:
        return functools.partial(_tell, path)
    import wandb

    try:
        if not wandb.login(prompt=False):
            raise SweepError("track: online needs an account; `wandb login` stores its key")
        number = wandb.sweep(definition(sweep, left), project=PROJECT)
    except (wandb.Error, OSError) as error:
        raise SweepError(f"track: Weights & Biases cannot be reached: {error}") from error
    return functools.partial(_run_agents, sweep, number, agents)


def _tell(path: Path, watch: Watch, stop: GracefulStop) -> None:
    watch.note(f"written to {path}; with an account, once:")
    watch.note(f"  wandb sweep {shlex.quote(str(path))}")
    watch.note("then on every machine, as often as members are to run at a time:")
    watch.note("  wandb agent ENTITY/PROJECT/SWEEP")
    watch.note("and in the end, or meanwhile, this command with --redraw")


def _run_agents(sweep: Sweep, number: str, agents: int, watch: Watch, stop: GracefulStop) -> None:
    """Run agents until the server has no members left; agents handle signals themselves."""
    command = [sys.executable, "-m", "wandb", "agent", "--project", PROJECT, number]
    processes = [subprocess.Popen(command) for _ in range(agents)]
    for process in processes:
        process.wait()
    for member in watch.left():
        if sweep.is_finished(member):
            watch.finished(member.name)
