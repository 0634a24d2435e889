"""Episode classes and memory statistics: by hand."""

from __future__ import annotations

import pytest
import torch

from memory_suite.agents.diagnostics.memory_metrics import MemoryStatistics
from memory_suite.agents.diagnostics.success_window import SuccessWindow
from memory_suite.agents.model.layer import StepReport
from memory_suite.agents.model.settings import TransformerSettings


def test_worst_class_is_known_once_every_class_has_enough_episodes() -> None:
    window = SuccessWindow(episodes_per_class=4, min_episodes_per_class=2)
    window.expect(("short", "long"))
    for success in (True, True, False):
        window.record(success, "short")
    assert window.worst() is None, "nothing is known of the long ones"
    window.record(False, "long")
    assert window.worst() is None
    window.record(True, "long")
    assert window.rates() == {"long": 0.5, "short": pytest.approx(2 / 3)}
    assert window.worst() == 0.5
    for _ in range(4):
        window.record(True, "long")
    assert window.worst() == pytest.approx(2 / 3), "only the last four count"


def report(retained: int, tagged: int) -> StepReport:
    return StepReport(
        torch.tensor([[5.0]]), torch.tensor([retained]), torch.tensor([retained // 2]), torch.tensor([tagged])
    )


def test_memory_statistics_by_hand() -> None:
    """One environment, one layer: a cue at step 0, forgotten after step 2; the episode ends after step 3."""
    statistics = MemoryStatistics(1, TransformerSettings(num_layers=1))
    statistics.begin_rollout()
    steps = [(0, 0, True, 1), (1, 1, False, 0), (2, 1, False, 0), (2, 0, False, 0), (0, 0, True, 0)]
    for retained, tagged, first, tag in steps:
        statistics.add([report(retained, tagged)], torch.tensor([first]), torch.tensor([tag]))
    metrics = statistics.metrics()
    assert metrics["memory/possible_mean"] == pytest.approx((0 + 1 + 2 + 3 + 0) / 5)
    assert metrics["memory/layer1/retained_mean"] == pytest.approx(1.0)
    assert metrics["memory/layer1/retained_max"] == 2
    assert metrics["memory/layer1/retained_share"] == pytest.approx(5 / 6)
    assert metrics["memory/layer1/on_ramp_share"] == pytest.approx(2 / 5)
    assert metrics["memory/layer1/deletions_per_step"] == pytest.approx((0 + 0 + 1) / 3)
    assert metrics["memory/precision"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert metrics["memory/recall"] == pytest.approx(2 / 3)
    assert statistics.retained_means() == [pytest.approx(1.0)]
    other = MemoryStatistics(1, TransformerSettings(num_layers=1))
    other.load_state_dict(statistics.state_dict())
    assert other.state_dict()["precision"].tolist() == statistics.state_dict()["precision"].tolist()
