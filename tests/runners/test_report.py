"""The report of a run, and its videos in Weights & Biases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from memory_suite.agents.serialization.archive import read_archive
from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.runners import report, train_agent
from memory_suite.runners.rendering.run_data import RunData, rebin_histogram
from memory_suite.runners.run.folder import RunFolder
from memory_suite.runners.run.metrics_file import histogram, read_metrics
from memory_suite.runners.training import callback as training_callback

pytest.importorskip("matplotlib")

WORDS = [
    *("--env", "corridor-short", "--num-envs", "8", "--total-steps", "512", "--policy.width", "16"),
    *("--policy.num-layers", "2", "--policy.num-heads", "2", "--ppo.n-steps", "16", "--ppo.batch-size", "64"),
    *("--evaluation.episodes", "8", "--stop.success", "none"),
]


def weights(run: Path) -> dict[str, torch.Tensor]:
    tensors, _ = read_archive(RunFolder.open(run).latest_checkpoint().path)
    return {name: part for name, part in tensors.items() if "/policy/" in name}


@pytest.fixture(scope="module")
def run_with_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("videos") / "run"
    words = [*WORDS, "--video-every", "2", "--track", "offline", "--csv", "--tensorboard"]
    assert train_agent.main([*words, "--run", str(run)]) == 0
    return run


def test_videos_are_in_the_offline_run(run_with_videos: Path) -> None:
    made = sorted((run_with_videos / "videos").iterdir())
    assert made[0].name == "step_000000256.mp4"
    arrived = sorted(run_with_videos.glob("wandb/offline-run-*/files/media/videos/media/episode_*.mp4"))
    assert [path.read_bytes() for path in arrived] == [path.read_bytes() for path in made]
    with av.open(str(arrived[0])) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert sum(1 for _ in container.decode(stream)) > 3
    (log,) = run_with_videos.glob("wandb/offline-run-*/run-*.wandb")
    content = log.read_bytes()
    for name in (b"media/episode", b"memory/layer2/age_histogram", b"memory/attention_saved"):
        assert name in content, "it is in the run's own file, not only beside it"


def test_videos_do_not_change_training(run_with_videos: Path, tmp_path: Path) -> None:
    assert train_agent.main([*WORDS, "--track", "disabled", "--run", str(tmp_path / "run")]) == 0
    ours, theirs = weights(run_with_videos), weights(tmp_path / "run")
    assert all(torch.equal(part, theirs[name]) for name, part in ours.items())


def test_a_video_that_fails_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(training_callback, "render", broken)
    words = [*WORDS, "--video-every", "1", "--track", "disabled", "--run", str(tmp_path / "run")]
    assert train_agent.main(words) == 0
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("videos are switched off (OSError: no space left)") == 1


def test_the_page_has_every_chart_and_no_external_link(short_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert report.main(["--run", str(short_run), "--out", str(out)]) == 0
    page = out.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page) and "<script" not in page
    for title in (
        "Success", "Memories retained", "Ages of what is retained, layer 2", "Spans of what is written",
        "What becomes of the cues", "Dependence on memory", "What memory costs", "Training speed",
        "An episode",
    ):  # fmt: skip
        assert title in page, title
    assert page.count("<figure>") >= 12
    assert "Final evaluation" in page and "slack mean" in page


def test_a_minigrid_run_has_an_episode_and_a_video(tmp_path: Path) -> None:
    """MiniGrid's mission text is not part of the agent's observation."""
    run, out = tmp_path / "run", tmp_path / "report.html"
    words = ["--env", "MiniGrid-MemoryS7-v0", *WORDS[2:], "--video-every", "2", "--track", "disabled"]
    assert train_agent.main([*words, "--evaluation.episodes", "2", "--run", str(run)]) == 0
    assert [path.name for path in (run / "videos").iterdir()] == ["step_000000256.mp4"]
    assert report.main(["--run", str(run), "--out", str(out)]) == 0
    assert 'class="sheet"' in out.read_text()


@pytest.mark.parametrize("ending", ["pdf", "png"])
def test_the_charts_alone(ending: str, short_run: Path, tmp_path: Path) -> None:
    out = tmp_path / f"charts.{ending}"
    assert report.main(["--run", str(short_run), "--out", str(out)]) == 0
    assert out.stat().st_size > 10_000


def test_heat_maps_show_the_logged_distributions(short_run: Path) -> None:
    rows = read_metrics(short_run / "metrics.jsonl")
    heat = RunData(rows, TrainConfig()).heat("memory/layer1/span_histogram")
    assert heat is not None
    steps, bins, shares = heat
    assert len(steps) == len(rows) == shares.shape[1]
    np.testing.assert_allclose(shares.sum(0), 1.0, atol=1e-6)
    middle = np.sqrt(bins[1:] * bins[:-1]) @ shares
    means = [row["memory/layer1/span_mean"] for row in rows]
    np.testing.assert_allclose(middle, means, rtol=0.2)


def test_long_tails_get_geometric_bins() -> None:
    values = np.r_[np.full(50, 1.5), np.full(50, 900.0)]
    counts, edges = histogram(values)
    assert counts.sum() == 100 and counts[0] == counts[-1] == 50
    assert edges[1] < 2.0, "small numbers are told apart"
    counts, edges = histogram(np.linspace(-1, 1, 100))
    np.testing.assert_allclose(np.diff(edges), 2 / 32)


def test_counts_are_spread_over_new_bins() -> None:
    shares = rebin_histogram(np.array([2.0, 6.0]), np.array([0.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0, 8.0]))
    np.testing.assert_allclose(shares, [0.25, 0.375, 0.375])


def test_a_run_without_rows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder.create(TrainConfig(run=tmp_path / "run"))
    with pytest.raises(SystemExit):
        report.main(["--run", str(folder.path)])
    assert "has no row yet" in capsys.readouterr().err
