"""The disk is full while a training writes: it stops with a message, and goes on once there is space."""

from __future__ import annotations

import shutil
from pathlib import Path

from memory_suite.runners.run.folder import RunFolder
from tests.faults import children
from tests.faults.harness import Child, Figure, Reference, leftovers


def fill_the_disk(reference: Reference, where: str, times: int, folder: Path) -> Figure:
    """Fill it while a checkpoint or a row of metrics is written, each time for a later one.

    Returns:
        Good: it ended with exit code 1 and a message that names the file and the reason, left the checkpoint
        before, and, resumed, ended as the reference did.
    """
    good = 0
    problems: list[str] = []
    for number in range(times):
        run = folder / f"{where}-{number}"
        log = run.with_suffix(".log")
        words = [*reference.words, "--run", str(run)]
        child = Child(children.train_on_full_disk, words, where, 2 + number % 5, log=log)
        code = child.wait()
        said = " ".join(child.said().split())
        found = [] if code == 1 else [f"exit code {code}"]
        file = "metrics.jsonl" if where == "metrics" else "step_"
        if f"No space left on device: '{run}" not in said or file not in said or "Traceback" in said:
            found.append(f"it said: {said[-500:]}")
        found += leftovers(run)
        if RunFolder(run).has_checkpoint:
            found += RunFolder.open(run).latest_checkpoint().notes
            again = Child(children.train, ["--resume", str(run)], log=log)
            code = again.wait()
            found += [f"resumed: exit code {code}\n{again.said()}"] if code else reference.compare(run)
        good += not found
        problems += [f"{run.name}: {found[:5]}"] if found else []
        shutil.rmtree(run)
    return Figure(
        what=f"disk full, {where}: stopped with a message, resumed bit for bit",
        good=good,
        of=times,
        remarks="; ".join(problems),
    )


def fill_the_disk_with_a_video(reference: Reference, folder: Path) -> Figure:
    """Good: training went on and ended as the reference did, without videos; no torn one is left."""
    run = folder / "video"
    words = [*reference.words, "--video-every", "3", "--run", str(run)]
    child = Child(children.train_on_full_disk, words, "video", 2, log=folder / "video.log")
    code = child.wait()
    found = [f"exit code {code}:\n{child.said()}"] if code else reference.compare(run)
    if "videos are switched off" not in child.said():
        found.append(f"it said: {child.said()[-500:]}")
    videos = sorted(path.name for path in (run / "videos").iterdir())
    if videos != ["step_000000192.mp4"]:
        found.append(f"videos: {videos}")
    return Figure(
        what="disk full, video: training went on",
        good=int(not found),
        of=1,
        remarks="; ".join(map(str, found[:5])),
    )
