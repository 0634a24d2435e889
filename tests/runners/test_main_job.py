"""The commands, end to end on a small corridor: files, metrics, faults, interruption and exact resume."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from memory_suite.agents.defaults import ADAM_BETAS, ADAM_EPS
from memory_suite.agents.serialization.archive import read_archive
from memory_suite.configs.agent_schema import load
from memory_suite.envs.errors import EnvFailedError
from memory_suite.envs.make import make_vec_env
from memory_suite.envs.vec_env import GymnasiumVecEnv
from memory_suite.runners import evaluate_agent, train_agent
from memory_suite.runners.run.folder import RunFolder
from memory_suite.runners.training import evaluation
from memory_suite.runners.training.build import curriculum_stage, make_agent
from memory_suite.runners.training.evaluation import evaluate, wilson_interval
from tests.agents.small_envs import AnySpace

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--env", "corridor-short", "--num-envs", "8", "--total-steps", "1280", "--policy.width", "16"),
    *(
        "--policy.num-layers",
        "2",
        "--policy.num-heads",
        "2",
        "--ppo.n-steps",
        "16",
        "--ppo.batch-size",
        "64",
        "--a2c.n-steps",
        "16",
    ),
    *(
        "--evaluation.episodes",
        "20",
        "--track",
        "disabled",
        "--checkpoint-every",
        "2",
        "--stop.success",
        "none",
    ),
]


EASY = ["--stop.success", "0.01", "--stop.min-episodes", "1", "--stop.retained", "none"]
UNCONFIRMED = [*EASY, "--stop.evaluation-success", "0"]
"""solved as soon as one training episode succeeds"""


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    assert train_agent.main([*SMALL, "--run", str(run), "--csv"]) == 0
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    tensors, _ = read_archive(RunFolder.open(run).latest_checkpoint().path)
    return {name: part for name, part in tensors.items() if "/policy/" in name}


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def test_a_run_leaves_what_it_promises(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "metrics.csv", "checkpoints", "evaluation.json"}
    assert len(rows(finished_run)) == 10
    evaluation = json.loads((finished_run / "evaluation.json").read_text())
    assert evaluation["episodes"] == 20
    checkpoint = RunFolder.open(finished_run).latest_checkpoint()
    assert checkpoint.step == 1280


def test_every_logged_name_is_described(finished_run: Path) -> None:
    described = (ROOT / "docs" / "metrics.md").read_text()
    logged = {
        name
        for line in (finished_run / "metrics.jsonl").read_text().splitlines()
        for name in json.loads(line)
    }
    assert {"memory/precision", "memory/layer2/span_histogram", "train/first_ratio_deviation"} <= logged
    for name in logged:
        generic = re.sub(r"layer\d+", "layer*", name)
        generic = re.sub(r"episode/.*", "episode/METRIC", generic)
        generic = re.sub(r"success/(?!worst).*", "success/CLASS", generic)
        assert f"`{generic}`" in described, f"{name} is not in docs/metrics.md"


def test_acting_equals_learning_in_every_update(finished_run: Path) -> None:
    assert max(row["train/first_ratio_deviation"] for row in rows(finished_run)) < 1e-5


def test_evaluation_writes_the_documented_keys(finished_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    words = ["--run", str(finished_run), "--episodes", "10", "--env-arg", "length=7", "--json", str(file)]
    assert evaluate_agent.main(words) == 0
    result = json.loads(file.read_text())
    assert result.keys() >= {
        "success_rate", "success_ci95", "return_mean", "length_mean", "retained_mean", "retained_max",
        "possible_mean", "bytes_held_mean", "steps_per_second",
    }  # fmt: skip
    assert result["success_by_class"].keys() == {"3-20"}
    again = tmp_path / "again.json"
    evaluate_agent.main([*words[:-1], str(again), "--seed", "12345"])
    assert json.loads(again.read_text())["return_mean"] == result["return_mean"], (
        "the same seed, the same episodes"
    )


def test_an_existing_run_is_never_overwritten(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_agent.main([*SMALL, "--run", str(finished_run)])
    assert stopped.value.code == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env", "corridor-lnog"], "did you mean 'corridor-long'"),
        ([*SMALL, "--env-arg", "lenght=9"], "no argument 'lenght'"),
        ([*SMALL, "--ppo.learning-rat", "1"], "learning_rat"),
        ([*SMALL, "--device", "cuda"], "device: 'cuda'"),
    ],
)
def test_mistakes_end_with_one_message_before_anything_starts(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as stopped:
        train_agent.main([*words, "--run", str(tmp_path / "run")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_an_environment_that_fails_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = GymnasiumVecEnv.step_wait, 0

    def failing(self: GymnasiumVecEnv) -> Any:
        nonlocal calls
        calls += 1
        if calls == 70:
            raise EnvFailedError("the reward is nan in environment 3")
        return original(self)

    monkeypatch.setattr(GymnasiumVecEnv, "step_wait", failing)
    run = tmp_path / "run"
    assert train_agent.main([*SMALL, "--run", str(run)]) == 1
    assert "the reward is nan in environment 3" in capsys.readouterr().out
    assert RunFolder.open(run).latest_checkpoint().step == 4 * 16 * 8


@pytest.mark.parametrize("memory", ["transformer-xl", "adaptive-span", "compressive", "none"])
def test_every_memory_trains_and_is_judged(memory: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*SMALL, "--memory", memory, "--memory.size", "4", "--stop.success", "0.5"]
    assert train_agent.main([*words, "--run", str(run)]) == 0
    assert max(row["train/first_ratio_deviation"] for row in rows(run)) < 1e-5
    file = tmp_path / "result.json"
    assert evaluate_agent.main(["--run", str(run), "--episodes", "10", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert len(result["retained_mean"]) == (0 if memory == "none" else 2)
    most = {"transformer-xl": 4, "compressive": 4 + 3 + 64}.get(memory, 1024)
    assert max(result["retained_max"], default=0) <= most
    window = {"transformer-xl": 4, "compressive": 4, "adaptive-span": 1, "none": 0}
    assert result["short_term_window"] == window[memory]


@pytest.mark.parametrize(("window", "covered"), [(19, "all"), (5, "some"), (1, "none")])
def test_an_evaluation_says_whether_any_memory_would_do(
    window: int, covered: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "--total-steps", "128", "--evaluation.episodes", "2", "--memory.ramp", str(window)]
    assert train_agent.main([*words, "--run", str(tmp_path / "run")]) == 0
    said = f"2 to 19 steps; the short-term window of {window} covers {covered}"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("memory", "solved"), [("transformer-xl", True), ("adaptive-span", False)])
def test_only_memories_that_can_become_fewer_must(memory: str, solved: bool, tmp_path: Path) -> None:
    """`stop.retained` is out of reach here; a memory of fixed size is not held to it."""
    words = [*SMALL, "--memory", memory, *UNCONFIRMED, "--stop.retained", "0", "--total-steps", "2560"]
    assert train_agent.main([*words, "--run", str(tmp_path / "run")]) == 0
    assert (len(rows(tmp_path / "run")) < 20) == solved


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], True),
        (["--method", "none"], False),
        (["--memory", "transformer-xl"], False),
        (["--stop.success", "none"], False),
    ],
)
def test_an_agent_that_was_done_before_it_forgot_is_told_how_to_go_on(
    words: list[str], told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    easy = [*UNCONFIRMED, "--total-steps", "2560"]
    run = str(tmp_path / "run")
    assert train_agent.main([*SMALL, *easy, *words, "--run", run]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("Solved before much was forgotten" in said) == told
    if told:
        assert train_agent.main(["--resume", run, "--stop.success", "none"]) == 0
        assert len(rows(tmp_path / "run")) == 2560 // (8 * 16)


@pytest.mark.parametrize(
    ("algo", "memory"), [("ppo", "expire-span"), ("a2c", "expire-span"), ("ppo", "compressive")]
)
def test_a_run_that_is_interrupted_and_resumed_equals_one_that_is_not(
    algo: str, memory: str, tmp_path: Path
) -> None:
    """A real SIGTERM to a real process, at a moment nobody chose; weights and metrics bit for bit."""
    total = 2560
    words = [*SMALL, "--algo", algo, "--memory", memory, "--memory.size", "6", "--total-steps", str(total)]
    assert train_agent.main([*words, "--run", str(tmp_path / "unbroken")]) == 0
    run = tmp_path / "broken"
    script = [sys.executable, str(ROOT / "runners" / "train_agent.py")]
    process = subprocess.Popen([*script, *words, "--run", str(run)], stdout=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "latest").exists():
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 75
    saved = RunFolder.open(run).latest_checkpoint().step
    assert 0 < saved < total
    assert train_agent.main(["--resume", str(run)]) == 0
    assert rows(run) == rows(tmp_path / "unbroken")
    mine, theirs = weights(run), weights(tmp_path / "unbroken")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(part, theirs[name]) for name, part in mine.items())


@pytest.mark.parametrize(
    ("words", "adam"),
    [
        ("", {"betas": ADAM_BETAS, "eps": ADAM_EPS}),
        ("--algo a2c", {"betas": ADAM_BETAS, "eps": ADAM_EPS}),
        ("--ppo.adam-beta2 0.9 --ppo.adam-eps 1e-3", {"betas": (0.9, 0.9), "eps": 1e-3}),
        ("--algo a2c --a2c.adam-beta2 0.9 --a2c.adam-eps 1e-3", {"betas": (0.9, 0.9), "eps": 1e-3}),
    ],
)
def test_the_optimizer_is_the_one_that_was_asked_for(words: str, adam: dict[str, Any]) -> None:
    agent = make_agent(load([*SMALL, *words.split()]), make_vec_env("corridor-short", 8, 0))
    optimizer = agent.policy.optimizer
    assert isinstance(optimizer, torch.optim.Adam)
    assert adam.items() <= optimizer.defaults.items()


@pytest.mark.parametrize("episodes", [30, 37])
def test_short_episodes_do_not_count_more_often(episodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each environment has its number of episodes, settled beforehand, however long they are."""
    config = load([*SMALL])
    agent = make_agent(config, make_vec_env("corridor-short", 8, 0))
    env = make_vec_env("corridor-short", 10, 5)
    ended = np.zeros(10, dtype=int)
    original = GymnasiumVecEnv.step_wait
    counted: list[int] = []

    def watched(self: GymnasiumVecEnv) -> Any:
        answer = original(self)
        ended[answer[2]] += 1
        counted.append(int(np.minimum(ended, episodes // 10 + (np.arange(10) < episodes % 10)).sum()))
        return answer

    monkeypatch.setattr(GymnasiumVecEnv, "step_wait", watched)
    seen: list[int] = []
    result = evaluate(agent, env, episodes=episodes, seed=5, on_step=lambda _, ended: seen.append(ended))
    assert result.episodes == episodes
    assert seen == counted
    assert ended.max() > ended.min()  # some went on while others were still at it
    assert len(result.retained_mean) == 2


def test_wilson_interval_by_hand() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    assert not np.isnan(wilson_interval(1, 1)).any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "1"], "seed was 0 when the run began and cannot become 1 when it is resumed"),
        (["--memory.ramp", "4"], "memory.ramp was 1 when the run began"),
        (["--algo", "a2c"], "algo was ppo"),
        (["--env-arg", "max_length=9"], "env_args.max_length was None"),
        (["--config", "other.yaml"], "config and resume exclude each other"),
    ],
)
def test_what_belongs_to_the_checkpoint_cannot_be_changed(
    words: list[str], message: str, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished_run / "config.yaml").read_text()
    with pytest.raises(SystemExit) as stopped:
        train_agent.main(["--resume", str(finished_run), *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert (finished_run / "config.yaml").read_text() == before


def test_a_resumed_run_writes_down_what_was_changed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_agent.main([*SMALL, "--run", str(run)]) == 0
    assert train_agent.main(["--resume", str(run), "--total-steps", "1536"]) == 0
    assert len(rows(run)) == 12
    assert load(["--resume", str(run)]).total_steps == 1536


def test_a_solved_run_is_not_trained_further(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train_agent.main([*SMALL, *EASY, "--run", str(run)]) == 0
    trained = rows(run)
    assert len(trained) < 10
    capsys.readouterr()
    assert train_agent.main(["--resume", str(run)]) == 0
    assert rows(run) == trained
    assert "solved after" in capsys.readouterr().out
    assert train_agent.main(["--resume", str(run), "--stop.success", "none"]) == 0
    assert len(rows(run)) == 10


LOOKING = [*SMALL, *EASY, "--stop.evaluation-every", "3", "--checkpoint-every", "100"]
LOOKING += ["--total-steps", "2560"]


def test_training_looks_whether_the_evaluation_is_solved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every third update, once all else holds, and what it does there leaves no trace in training."""
    reached, never, none = (tmp_path / name for name in ("reached", "never", "none"))
    assert train_agent.main([*LOOKING, "--stop.evaluation-success", "1.0", "--run", str(never)]) == 0
    looks = re.findall(r"([\d,]+) steps: success ([\d.]+)% in evaluation", capsys.readouterr().out)
    steps = [int(step.replace(",", "")) // 128 for step, _ in looks]
    assert len(steps) > 2
    assert steps == list(range(steps[0], 20, 3))
    success = {128 * step: float(found) for step, (_, found) in zip(steps, looks, strict=True)}
    best = RunFolder.open(never).best_checkpoint().step
    assert success[best] == max(success.values()) > min(success.values())
    assert train_agent.main([*LOOKING, "--stop.retained", "0", "--run", str(none)]) == 0
    assert rows(never) == rows(none)
    assert train_agent.main([*LOOKING, "--stop.evaluation-success", "0.01", "--run", str(reached)]) == 0
    assert rows(reached) == rows(none)[: steps[0]]


def test_unseen_episodes_confirm_that_a_task_is_solved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an option they must succeed as often as those of training."""
    words = [*SMALL, "--stop.min-episodes", "1", "--stop.retained", "none", "--total-steps", "2560"]
    assert train_agent.main([*words, "--stop.success", "0.05", "--run", str(tmp_path / "run")]) == 0
    looks = [float(rate) for rate in re.findall(r"success ([\d.]+)% in evaluation", capsys.readouterr().out)]
    assert looks and looks[-1] >= 5.0 and all(rate < 5.0 for rate in looks[:-1])


def test_a_look_that_a_signal_ends_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*LOOKING, "--stop.evaluation-success", "0.01"]
    unbroken, run = tmp_path / "unbroken", tmp_path / "run"
    assert train_agent.main([*words, "--run", str(unbroken)]) == 0
    original = evaluation.evaluate

    def interrupted(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", interrupted)
        assert train_agent.main([*words, "--run", str(run)]) == 75
    assert len(rows(run)) == len(rows(unbroken)) < 20
    assert train_agent.main(["--resume", str(run)]) == 0
    assert rows(run) == rows(unbroken)
    evaluations = [json.loads((one / "evaluation.json").read_text()) for one in (run, unbroken)]
    assert evaluations[0]["return_mean"] == evaluations[1]["return_mean"]


def test_a_signal_in_the_evaluation_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    original = evaluation.evaluate

    def interrupted(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", interrupted)
        assert train_agent.main([*SMALL, "--run", str(run)]) == 75
    assert "Interrupted in the evaluation; training is complete. Continue with" in capsys.readouterr().out
    assert not (run / "evaluation.json").exists()
    assert train_agent.main(["--resume", str(run)]) == 0
    assert (run / "evaluation.json").exists()


def test_a_fault_in_the_evaluation_is_one_message(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(self: GymnasiumVecEnv) -> Any:
        raise EnvFailedError("the reward is nan in environment 3")

    monkeypatch.setattr(GymnasiumVecEnv, "step_wait", failing)
    assert evaluate_agent.main(["--run", str(finished_run), "--episodes", "10"]) == 1
    assert "error: the evaluation stopped: the reward is nan" in capsys.readouterr().out
    assert train_agent.main(["--resume", str(finished_run)]) == 1
    assert "error: the evaluation stopped: the reward is nan" in capsys.readouterr().out


def test_an_evaluation_that_the_agent_does_not_fit_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        train_agent.main(
            [*SMALL, "--eval-env-arg", "view_size=5", "--eval-env-arg", "min_length=5", "--run", str(run)]
        )
    assert stopped.value.code == 2
    assert "the evaluation environment has the observation_space" in capsys.readouterr().err
    assert not run.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "-1"], "seed must lie in [0, 4294967295], got -1"),
        (["--episodes", "0"], "episodes must be at least 1, got 0"),
        (["--json", "missing/result.json"], "json: there is no folder missing"),
        (
            ["--env", "CartPole-v1"],
            "env: CartPole-v1 has the observation_space Box of shape (4,) and dtype float32, but",
        ),
    ],
)
def test_mistakes_in_an_evaluation(
    words: list[str], message: str, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate_agent.main(["--run", str(finished_run), *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


class Pictures(AnySpace):
    """Channels last, as most environments have them; SB3's algorithms want them first."""

    def __init__(self) -> None:
        super().__init__(spaces.Box(0, 255, (40, 36, 3), np.uint8), spaces.Discrete(3, start=2))


def test_an_agent_that_sees_pictures_is_trained_judged_and_resumed(tmp_path: Path) -> None:
    gym.register("MemorySuiteTest/Pictures-v0", Pictures)
    try:
        run = tmp_path / "run"
        words = [*SMALL, "--env", "MemorySuiteTest/Pictures-v0", "--memory.ramp", "4"]
        assert train_agent.main([*words, "--run", str(run), "--total-steps", "256"]) == 0
        assert train_agent.main(["--resume", str(run), "--total-steps", "384"]) == 0
        assert evaluate_agent.main(["--run", str(run), "--episodes", "7"]) == 0
    finally:
        del gym.registry["MemorySuiteTest/Pictures-v0"]


CURRICULUM = [
    *SMALL,
    *("--env-arg", "max_length=9", "--curriculum.argument", "max_length", "--curriculum.start", "3"),
    *("--curriculum.success", "0.01", "--stop.min-episodes", "20", "--total-steps", "2560"),
    *("--ppo.learning-rate-schedule", "constant", "--evaluation.episodes", "1", "--method", "paper"),
]
"""Nothing in it depends on `total_steps`, as the pace of the method "counterfactual" does."""


def test_a_curriculum_grows_and_is_resumed_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Corridors of 3, then up to 6, then up to 9 steps; interrupted in several stages."""
    assert train_agent.main([*CURRICULUM, "--run", str(tmp_path / "unbroken")]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"solved; max_length is (\d+) now", said) == ["6", "9"]
    run = tmp_path / "broken"
    assert train_agent.main([*CURRICULUM, "--run", str(run), "--total-steps", "512"]) == 0
    stages = [curriculum_stage(RunFolder.open(run).latest_checkpoint())]
    for total in (1024, 1536, 2560):
        assert train_agent.main(["--resume", str(run), "--total-steps", str(total)]) == 0
        stages.append(curriculum_stage(RunFolder.open(run).latest_checkpoint()))
    assert len(set(stages)) > 1
    assert stages == sorted(stages)
    assert rows(run) == rows(tmp_path / "unbroken")
    mine, theirs = weights(run), weights(tmp_path / "unbroken")
    assert all(torch.equal(part, theirs[name]) for name, part in mine.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [*SMALL, "--curriculum.argument", "max_length"],
            "curriculum.argument (max_length) must be among env_args",
        ),
        (
            [*CURRICULUM, "--curriculum.start", "9"],
            "curriculum.start (9) must be less than env_args.max_length (9)",
        ),
        ([*SMALL, "--curriculum.factor", "1"], "curriculum.factor must be greater than 1"),
    ],
)
def test_impossible_curricula(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_agent.main(words)
    assert message in capsys.readouterr().err
