"""Training and evaluation on sequence tasks, end to end and small: files, exact resume, ranks, faults."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memory_suite.agents.distributed import DistributedContext
from memory_suite.agents.serialization.archive import read_archive
from memory_suite.configs import sequence_schema
from memory_suite.configs.sequence_schema import SequenceConfig, load
from memory_suite.envs.streams.oracle import WINDOWS, window_errors
from memory_suite.envs.streams.stream import IGNORE
from memory_suite.envs.streams.tasks import make_stream
from memory_suite.runners import benchmark, evaluate_sequence, train_sequence
from memory_suite.runners.benchmarks import sequence_efficiency, span_scaling, streams
from memory_suite.runners.run.folder import RunFolder
from memory_suite.runners.sequences import session
from memory_suite.runners.sequences.build import make_model, open_stream
from memory_suite.runners.sequences.error_by_distance import ErrorByDistance
from memory_suite.runners.sequences.evaluation import SequenceScore, accuracy_interval, evaluate
from memory_suite.runners.sequences.trainer import SequenceTrainer, TrainingFailedError
from memory_suite.runners.training.evaluation import wilson_interval
from tests.runners.launch import finished, launch, wait_for

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--num-rows", "4", "--block-size", "16", "--total-updates", "12", "--optimizer.warmup-updates", "3"),
    *("--model.width", "16", "--model.num-heads", "2", "--memory.max-span", "64", "--memory.ramp", "8"),
    *("--memory.initial-span-fraction", "0.3", "--held-out.every", "5", "--held-out.tokens", "256"),
    *("--held-out.final-tokens", "1024", "--track", "disabled", "--checkpoint-every", "4"),
]
COPY = [
    *("--task", "copy", "--task-arg", "distance=20", "--task-arg", "string_length=4"),
    *("--eval-task-arg", "distance=20"),
]


def weights(run: Path) -> dict[str, torch.Tensor]:
    tensors, _ = read_archive(RunFolder.open(run).latest_checkpoint().path)
    return {name: part for name, part in tensors.items() if "/model/" in name}


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "alphabet.txt"
    path.write_bytes(bytes(range(97, 123)) * 400)
    return path


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    words = [*SMALL, "--task", "text", "--data", str(text_file), "--run", str(run), "--csv"]
    assert train_sequence.main(words) == 0
    return run


def test_a_run_leaves_what_it_promises(text_run: Path) -> None:
    names = {path.name for path in text_run.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "metrics.csv", "checkpoints", "evaluation.json"}
    logged = rows(text_run)
    assert len(logged) == 12
    assert [number for number, row in enumerate(logged, 1) if "held_out/bits_per_byte" in row] == [5, 10, 12]
    assert logged[0]["train/loss"] == pytest.approx(math.log(256), abs=1e-4)
    assert logged[-1]["train/loss"] < logged[0]["train/loss"]
    result = json.loads((text_run / "evaluation.json").read_text())
    assert result["split"] == "valid"
    assert result["targets"] == 26 * 400 // 20 - 1, "each byte of the split but its first, once"


def test_every_logged_name_is_described(text_run: Path) -> None:
    described = (ROOT / "docs" / "metrics.md").read_text()
    for name in {
        name for row in (text_run / "metrics.jsonl").read_text().splitlines() for name in json.loads(row)
    }:
        assert f"`{re.sub(r'layer[0-9]+', 'layer*', name)}`" in described, f"{name} is not in docs/metrics.md"


@pytest.mark.parametrize("task", ["collision", "copy", "instruction"])
@pytest.mark.parametrize("memory", ["expire-span", "transformer-xl", "adaptive-span", "compressive", "none"])
def test_every_task_runs_with_every_memory(task: str, memory: str) -> None:
    config = load([*SMALL, "--task", task, "--memory", memory])
    stream = open_stream(config, "train")
    trainer = SequenceTrainer(
        config, make_model(config, stream, torch.device("cpu")), stream, DistributedContext()
    )
    for _ in range(3):
        report = trainer.update()
    assert math.isfinite(report.loss) == (report.targets > 0)
    score = evaluate(trainer.model, open_stream(config, "test"), block_size=16, max_tokens=128)
    assert score.tokens == 128


@pytest.mark.parametrize("name", ["text", "collision", "copy", "instruction"])
def test_every_preset_loads(name: str) -> None:
    assert load(["--task", name]).task == name
    assert (SequenceConfig.PRESETS / f"{name}.yaml").is_file()


# -- without a scored target -----------------------------------------------------------------------------

FAR = ["--task", "copy", "--task-arg", "distance=2000", "--eval-task-arg", "distance=2000", *SMALL]
"""more tokens between cue and target than are ever read"""


@pytest.fixture(scope="module")
def unscored_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unscored") / "run"
    assert train_sequence.main([*FAR, "--run", str(run)]) == 0
    return run


def test_nothing_scored_is_no_loss_of_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train_sequence.main([*FAR, "--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert said.count("held_out.tokens: nothing is scored in the first 256 tokens of the valid split") == 1
    assert "held_out.final_tokens: nothing is scored in the first 1,024 tokens" in said
    assert "training nothing scored | held out nothing scored" in said
    assert re.search(r"\nloss +nothing scored\nerror +nothing scored\n", said)
    found = json.loads((run / "evaluation.json").read_text())
    assert found["targets"] == 0
    assert [found[name] for name in ("loss", "bits_per_target", "accuracy", "error")] == [None] * 4
    for row in rows(run):
        assert row["train/scored_targets"] == 0
        assert not row.keys() & {"train/loss", "train/accuracy", "held_out/loss", "held_out/accuracy"}


@pytest.mark.parametrize(
    ("scored", "best"),
    [
        ((False, False, False), 12),
        ((False, True, False), 10),
        ((True, False, False), 5),
        ((False, False, True), 12),
    ],
)
def test_an_evaluation_that_scores_nothing_is_never_the_best(
    scored: tuple[bool, ...], best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations = iter([*scored, True])

    def evaluate_some(*arguments: Any, **options: Any) -> SequenceScore:
        score = evaluate(*arguments, **options)
        return score if next(evaluations) else replace(score, targets=0, loss=math.nan, accuracy=math.nan)

    monkeypatch.setattr(session, "evaluate", evaluate_some)
    assert train_sequence.main([*COPY, *SMALL, "--run", str(tmp_path)]) == 0
    checkpoint = RunFolder.open(tmp_path).best_checkpoint()
    assert checkpoint.step == best * TOKENS
    assert (checkpoint.data["runner"]["best_loss"] is not None) == any(scored)
    assert [row for row, there in zip((4, 9, 11), scored, strict=True) if there] == [
        number for number, row in enumerate(rows(tmp_path)) if "held_out/loss" in row
    ]


def test_an_evaluation_that_scores_nothing_says_what_to_change(
    unscored_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    words = ["--run", str(unscored_run), "--tokens", "64", "--json", str(file)]
    assert evaluate_sequence.main(words) == 0
    assert "tokens: nothing is scored in the first 64 tokens of the test split" in capsys.readouterr().out
    assert json.loads(file.read_text())["error"] is None


# -- exact continuation ----------------------------------------------------------------------------------

DISTURBED = [
    *COPY, *SMALL, "--memory.random-shortening", "true", "--model.layer-drop", "0.3",
    "--model.dropout", "0.1", "--accumulation", "2", "--penalty.begin-updates", "4", "--penalty.form", "all",
]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train_sequence.main([*DISTURBED, "--run", str(run)]) == 0
    return run


@pytest.mark.parametrize("stop_after", [1, 4, 5, 9, 11])
def test_an_interrupted_run_goes_on_bit_for_bit(
    stop_after: int, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, done = tmp_path / "run", 0
    update = SequenceTrainer.update

    def update_and_interrupt(trainer: SequenceTrainer) -> Any:
        nonlocal done
        report = update(trainer)
        done += 1
        if done == stop_after:
            os.kill(os.getpid(), 15)
        return report

    with monkeypatch.context() as patch:
        patch.setattr(SequenceTrainer, "update", update_and_interrupt)
        assert train_sequence.main([*DISTURBED, "--run", str(run)]) == 75
    assert len(rows(run)) == stop_after
    assert train_sequence.main(["--resume", str(run)]) == 0
    assert rows(run) == rows(uninterrupted)
    ours, theirs = weights(run), weights(uninterrupted)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


EASY = [*COPY, *SMALL, "--held-out.tokens", "1024", "--held-out.stop-accuracy", "0.01"]
"""reached at the first evaluation, after 5 updates"""


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("stopped") / "run"
    assert train_sequence.main([*EASY, "--run", str(run)]) == 0
    assert len(rows(run)) == 5
    return run


@pytest.mark.parametrize(
    ("words", "updates"),
    [
        ([], 5),
        (["--held-out.stop-accuracy", "0.005"], 5),
        (["--held-out.stop-accuracy", "1"], 12),
        (["--held-out.stop-accuracy", "none"], 12),
    ],
)
def test_a_run_that_has_reached_its_goal_trains_no_further(
    words: list[str], updates: int, stopped_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    for _ in range(2):
        (run / "evaluation.json").unlink()
        assert train_sequence.main(["--resume", str(run), *words]) == 0
        assert len(rows(run)) == updates
        assert (run / "evaluation.json").exists()


def test_a_run_interrupted_when_it_reaches_its_goal_is_only_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = session.Session._evaluate_held_out

    def evaluate_and_interrupt(session: session.Session) -> bool:
        os.kill(os.getpid(), 15)
        return inner(session)

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "_evaluate_held_out", evaluate_and_interrupt)
        assert train_sequence.main([*EASY, "--run", str(tmp_path)]) == 75
    assert train_sequence.main(["--resume", str(tmp_path)]) == 0
    assert len(rows(tmp_path)) == 5
    assert (tmp_path / "evaluation.json").exists()


def test_a_checkpoint_that_knows_nothing_of_goals_goes_on(stopped_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    folder = RunFolder.open(run)
    found = folder.latest_checkpoint()
    del found.data["runner"]["reached_accuracy"]
    folder.save_checkpoint(found.step, found.tensors, found.data)
    assert train_sequence.main(["--resume", str(run)]) == 0
    assert len(rows(run)) == 10, "until the next evaluation"


def _torchrun(ranks: int, *words: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    script = str(ROOT / "runners" / "train_sequence.py")
    done = subprocess.run([*command, "--", script, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_ranks_make_the_same_updates_as_one_and_either_goes_on(tmp_path: Path) -> None:
    words = [*COPY, *SMALL, "--memory.random-shortening", "true", "--memory.max-span", "24"]
    assert train_sequence.main([*words, "--run", str(tmp_path / "one")]) == 0
    _torchrun(2, *words, "--run", str(tmp_path / "two"))
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(two) == len(one)
    for ours, theirs in zip(one, two, strict=True):
        assert ours["train/scored_targets"] == theirs["train/scored_targets"]
        if ours["train/scored_targets"]:
            assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-5)
        assert ours["train/gradient_norm"] == pytest.approx(theirs["train/gradient_norm"], rel=1e-3)
        for name in ("memory/layer1/retained_mean", "memory/layer1/retained_max", "memory/layer1/span_max"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name  # of the rows of both
    torch.testing.assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-3, atol=1e-4)
    # A checkpoint of two ranks goes on with one: undo the last updates, and make them again.
    for name in ("one", "two"):
        folder = tmp_path / name / "checkpoints"
        (folder / "step_000000768.zip").unlink()
        (folder / "latest").unlink()
        assert train_sequence.main(["--resume", str(tmp_path / name)]) == 0
    torch.testing.assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-3, atol=1e-4)
    losses, again = (
        [row["train/loss"] for row in those if row["train/scored_targets"]]
        for those in (two, rows(tmp_path / "two"))
    )
    assert again == pytest.approx(losses, rel=1e-5)


LONG = [*COPY, *SMALL, "--total-updates", "100000", "--checkpoint-every", "4"]
SCRIPT = ROOT / "runners" / "train_sequence.py"
TOKENS = 4 * 16
"""of an update"""


def start_two(run: Path, *words: str) -> list[subprocess.Popen[str]]:
    """Two ranks that have saved something of their own."""
    latest = run / "checkpoints" / "latest"
    before = latest.read_text() if latest.exists() else None
    processes = launch(2, *words, script=SCRIPT)
    wait_for(latest, processes)
    while latest.read_text() == before:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    return processes


def goes_on(run: Path) -> bool:
    """Whether two ranks can resume the run, whose rows are then in order, with none lost or doubled."""
    processes = start_two(run, "--resume", str(run))
    processes[0].terminate()
    assert [code for code, _ in finished(processes)] == [75, 75]
    return [row["train/n_updates"] for row in rows(run)] == list(range(1, len(rows(run)) + 1))


@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_any_rank_saves_once_and_ends_all(asked: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = start_two(run, *LONG, "--run", str(run))
    processes[asked].terminate()
    first, second = finished(processes)
    assert (first[0], second[0]) == (75, 75), first[1] + second[1]
    tokens = RunFolder.open(run).latest_checkpoint().step
    assert f"Interrupted at {tokens:,} tokens, and saved" in first[1]
    assert len(rows(run)) == tokens // TOKENS
    assert goes_on(run)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_dies_ends_the_run_with_a_message(killed: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = start_two(run, *LONG, "--run", str(run))
    processes[killed].kill()
    code, said = finished(processes)[1 - killed]
    assert code == 1
    assert "error: training stopped: another process of this run has ended or does not answer" in said
    assert ("rank 1: error" in said) == (killed == 0)
    assert f"--resume {run}" in said
    assert "Traceback" not in said
    assert goes_on(run)


@pytest.mark.parametrize("words", [["--run"], ["--resume"]])
def test_a_mistake_that_only_the_first_rank_sees_ends_all(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").touch()
    for code, said in finished(launch(2, *COPY, *SMALL, *words, str(tmp_path / "run"), script=SCRIPT)):
        assert code == 2
        assert "error: " in said
        assert "Traceback" not in said


def test_accumulated_blocks_are_one_update_of_their_mean() -> None:
    config = load([*COPY, *SMALL, "--accumulation", "3", "--penalty.weight", "0"])
    stream = open_stream(config, "train")
    trainer = SequenceTrainer(
        config, make_model(config, stream, torch.device("cpu")), stream, DistributedContext()
    )
    by_hand = make_model(config, stream, torch.device("cpu"))
    other = open_stream(config, "train")
    state, loss, count = by_hand.initial_state(4), torch.zeros(()), 0
    for _ in range(3):
        block = other.read(16)
        targets = torch.from_numpy(block.targets)
        output = by_hand.block(torch.from_numpy(block.tokens), state, torch.from_numpy(block.is_first))
        assert output.state is not None
        state, scored = output.state, targets != IGNORE
        loss = loss + torch.nn.functional.cross_entropy(
            by_hand.predict(output.y_BWD[scored]), targets[scored], reduction="sum"
        )
        count += int(scored.sum())
    (loss / count).backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(by_hand.parameters(), config.optimizer.max_grad_norm)
    report = trainer.update()
    assert report.targets == count
    assert report.gradient_norm == pytest.approx(float(norm), rel=1e-5)
    for ours, theirs in zip(trainer.model.parameters(), by_hand.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_warm_up_and_schedule() -> None:
    config = load([*COPY, *SMALL, "--total-updates", "10", "--optimizer.warmup-updates", "4"])
    stream = open_stream(config, "train")
    trainer = SequenceTrainer(
        config, make_model(config, stream, torch.device("cpu")), stream, DistributedContext()
    )
    rates = []
    for updates in range(10):
        trainer.updates = updates
        rates.append(trainer.learning_rate() / config.optimizer.learning_rate)
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[7] == pytest.approx(0.5)
    assert 0.0 < rates[9] < rates[8] < rates[7]


def test_the_penalty_waits_and_then_shortens_spans() -> None:
    words = [*COPY, *SMALL, "--penalty.form", "all", "--penalty.weight", "1", "--penalty.begin-updates", "3"]
    config = load([*words, "--optimizer.learning-rate", "0.05", "--optimizer.warmup-updates", "0"])
    stream = open_stream(config, "train")
    trainer = SequenceTrainer(
        config, make_model(config, stream, torch.device("cpu")), stream, DistributedContext()
    )
    reports = [trainer.update() for _ in range(10)]
    assert [report.penalty_weight for report in reports[:4]] == [0, 0, 0, 1]
    spans = [float(np.stack(report.spans).mean()) for report in reports]
    assert spans[9] < 0.7 * spans[2]


def test_training_may_begin_with_the_weights_of_another_run(
    text_run: Path, text_file: Path, tmp_path: Path
) -> None:
    words = [*SMALL, "--task", "text", "--data", str(text_file), "--init", str(text_run)]
    assert train_sequence.main([*words, "--run", str(tmp_path / "second")]) == 0
    assert rows(tmp_path / "second")[0]["train/loss"] < rows(text_run)[0]["train/loss"] - 0.1
    with pytest.raises(SystemExit):
        train_sequence.main([*words, "--model.width", "32", "--run", str(tmp_path / "third")])
    assert not (tmp_path / "third").exists()


# -- evaluation ---------------------------------------------------------------------------------------


def test_an_evaluation_does_not_depend_on_the_block_size(text_run: Path, tmp_path: Path) -> None:
    found = []
    for size in (16, 7, 64):
        file = tmp_path / f"{size}.json"
        words = ["--run", str(text_run), "--split", "test", "--block-size", str(size), "--json", str(file)]
        assert evaluate_sequence.main(words) == 0
        found.append(json.loads(file.read_text()))
    assert found[0]["targets"] == 26 * 400 // 20 - 1
    assert {result["tokens"] for result in found} == {26 * 400 // 20}, "and none that fills up the last block"
    for other in found[1:]:
        assert other["targets"] == found[0]["targets"]
        assert other["loss"] == pytest.approx(found[0]["loss"], rel=1e-5)


def test_what_fills_up_the_last_block_is_neither_read_nor_remembered(text_file: Path) -> None:
    words = ["--task", "text", "--data", str(text_file), *SMALL, "--memory", "transformer-xl"]
    config = load([*words, "--memory.size", "1000"])
    model = make_model(config, open_stream(config, "test"), torch.device("cpu")).eval()
    losses: list[torch.Tensor] = []
    score = evaluate(
        model,
        open_stream(config, "test"),
        block_size=100,
        on_block=lambda _, found: losses.append(found),
    )
    assert score.tokens == 4 * 130
    assert score.retained_max == [130] * 2
    assert score.retained_mean == [115.0] * 2, "after 100 and after 130 tokens of a row"
    assert score.possible_mean == 115.0
    state, filled_up = model.initial_state(4), []
    for block in open_stream(config, "test").blocks(100):
        tokens, targets, first = (torch.from_numpy(part) for part in block[:3])
        with torch.no_grad():
            output = model.block(tokens, state, first)
        assert output.state is not None
        state, scored = output.state, targets != IGNORE
        logits = model.predict(output.y_BWD[scored])
        filled_up.append(torch.nn.functional.cross_entropy(logits, targets[scored], reduction="none"))
    torch.testing.assert_close(torch.cat(losses), torch.cat(filled_up))


def test_tokens_are_rounded_up_to_whole_blocks_of_all_rows(text_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    evaluate_sequence.main(["--run", str(text_run), "--tokens", "65", "--json", str(file)])
    assert json.loads(file.read_text())["tokens"] == 2 * TOKENS


def test_cutting_spans_makes_memory_smaller(text_run: Path, tmp_path: Path) -> None:
    held = []
    for words in ([], ["--max-span", "2"]):
        file = tmp_path / "out.json"
        evaluate_sequence.main(["--run", str(text_run), *words, "--json", str(file)])
        held.append(max(json.loads(file.read_text())["retained_max"]))
    assert held[1] <= 2 + 8 < held[0]


def test_copy_has_losses_by_distance(tmp_path: Path) -> None:
    assert train_sequence.main([*COPY, *SMALL, "--run", str(tmp_path / "run")]) == 0
    file = tmp_path / "out.json"
    words = ["--run", str(tmp_path / "run"), "--task-arg", "distance=60", "--tokens", "4096"]
    assert evaluate_sequence.main([*words, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["error"] == pytest.approx(15 / 16, abs=0.1)
    assert any("64_tokens" in name for name in result)


def test_oracles_are_evaluated_on_the_same_tokens() -> None:
    """What `evaluate_sequence.py` says of them is what `window_errors` finds in the stream."""
    arguments: dict[str, Any] = {"split": "test", "num_rows": 3, "seed": 4}
    stream = make_stream("collision", **arguments)
    by_distance = ErrorByDistance(stream.chance_accuracy)
    for _ in range(4):
        block = stream.read(16_384)
        by_distance.add(block, torch.zeros(int((block.targets != IGNORE).sum())))
    errors = window_errors(make_stream("collision", **arguments), WINDOWS, 65_536).error
    oracles = {name: value for name, value in by_distance.results().items() if "oracle" in name}
    assert oracles == {
        f"error_of_an_oracle_that_sees_{window:,}_tokens": f"{error:.2%}"
        for window, error in errors.items()
        if error
    }
    assert len(oracles) == 4, "all of them but the longest, which sees everything"


def test_the_efficiency_table(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--width 16 --num-layers 2 --num-heads 2 --block-size 16 --updates 10 --rounds 2 --reach 64"
    where = ["--data", str(text_file), "--run", str(tmp_path / "runs"), "--json", str(tmp_path / "out.json")]
    memories = ["--memories", "transformer-xl", "expire-span"]
    assert benchmark.main(["sequence", *words.split(), *where, *memories]) == 0
    result = json.loads((tmp_path / "out.json").read_text())["rows"]
    held = [float(count) for count in result["transformer-xl"]["memories held, by layer"].split(",")]
    assert all(32 < count <= 64 for count in held)  # 64 once the rows are as long
    assert "time against transformer-xl" in result["expire-span"]
    assert "transformer-xl: 10 updates" in capsys.readouterr().out
    assert benchmark.main(["sequence", *words.split(), *where, *memories]) == 0
    assert "expire-span: trained before" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["text", "collision"])
def test_the_efficiency_table_trains_on_the_stream_of_its_evaluation(task: Any, tmp_path: Path) -> None:
    """The preset begins with short rows, in which no memory would fill."""
    config = load(
        sequence_efficiency.SequenceBenchmarkCommand(task=task, run=tmp_path).training_argv("transformer-xl")
    )
    assert config.eval_task_args.items() <= config.task_args.items()


def test_what_a_longer_span_costs(tmp_path: Path) -> None:
    words = (
        "spans --max-spans 64 4096 --span 20 --width 16 --num-rows 4 --block-size 16 --rounds 2 --longest 64"
    )
    assert benchmark.main([*words.split(), "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    short, long = result["spans"]["64"], result["spans"]["4096"]
    assert long["retained"] == pytest.approx(short["retained"], abs=1), "no more is retained"
    assert long["held_kib"] == pytest.approx(short["held_kib"], rel=0.05)
    assert result["uneven"]["counts"] == [64, 32, 16, 8]


def test_the_efficiency_table_refuses_what_it_cannot_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "sequence --width 16 --num-layers 1 --num-heads 2 --block-size 16 --updates 2 --rounds 1 --reach 64"
    )
    words += f" --held-out-tokens 64 --task collision --memories transformer-xl --run {tmp_path / 'runs'}"
    assert benchmark.main(words.split()) == 0
    (tmp_path / "runs" / "collision-transformer-xl" / "peak_mebibytes").unlink()
    (tmp_path / "file").touch()
    for more, said in (
        ("", "is trained, but its peak memory was not noted"),
        ("--task text --data nowhere.txt", "nowhere.txt"),
        (f"--run {tmp_path / 'file'}", "is a file, not a folder"),
    ):
        with pytest.raises(SystemExit) as leaving:
            benchmark.main([*words.split(), *more.split()])
        assert leaving.value.code == 2
        assert said in capsys.readouterr().err


def _die(command: span_scaling.SpanScalingCommand, max_span: int) -> dict[str, Any]:
    os._exit(3)


def test_a_measuring_process_that_dies_ends_the_benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(span_scaling, "_measure_span", _die)
    assert benchmark.main(["spans", "--max-spans", "1024"]) == 1
    assert "error: a measured process ended with exit code 3" in capsys.readouterr().out


def test_heads_that_do_not_divide_the_width_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        benchmark.main(["spans", "--width", "16", "--num-heads", "3"])
    assert leaving.value.code == 2
    assert "num_heads (3) must divide width (16)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--width", "32"], "model.width = 16, and this command asks for 32"),
        (["--updates", "20"], "total_updates = 10, and this command asks for 20"),
        (["--reach", "128"], "memory.max_span = 64, and this command asks for 128"),
        (["--held-out-tokens", "128"], "held_out.final_tokens = 65536, and this command asks for 128"),
        (["--threads", "2"], "threads = 1, and this command asks for 2"),
        (["--data", "other.txt"], "data = None, and this command asks for other.txt"),
        ([], None),
    ],
)
def test_runs_of_another_configuration_are_not_measured(
    words: list[str],
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class StartedError(Exception):
        pass

    def start(words: list[str]) -> float:
        raise StartedError

    monkeypatch.setattr(sequence_efficiency, "_peak_mebibytes", start)
    sizes = {"width": 16, "num_layers": 2, "num_heads": 2, "block_size": 16, "updates": 10, "reach": 64}
    command = sequence_efficiency.SequenceBenchmarkCommand(run=tmp_path, **sizes)  # type: ignore[arg-type]
    RunFolder.create(load(command.training_argv("expire-span")))
    as_words = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    with pytest.raises(StartedError if said is None else SystemExit):
        benchmark.main(["sequence", *as_words, "--run", str(tmp_path), *words])
    error = capsys.readouterr().err
    if said is not None:
        assert f"run: {tmp_path / 'text-expire-span'} was trained with {said}; choose another --run" in error


# -- faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "tekst"], "one of text, collision, copy, instruction, got 'tekst'"),
        (["--data", "nowhere.txt"], "nowhere.txt"),
        (["--task", "copy", "--data", "x"], "data is for the task text"),
        (["--task", "copy", "--task-arg", "distanz=5"], "no argument 'distanz'"),
        (["--task", "copy", "--task-arg", "distance=3"], "distance"),
        (["--task", "copy", "--task-arg", "seed=3"], "the task 'copy' has no argument 'seed'"),
        (["--task", "copy", "--eval-task-arg", "tokens_per_row=3"], "has no argument 'tokens_per_row'"),
        (["--task", "copy", "--memory.ramp", "2_000_000"], "memory.ramp"),
        (["--task", "copy", "--model.num-heads", "5"], "model.num_heads"),
        (["--task", "copy", "--block-size", "0"], "block_size must be at least 1"),
        (["--task", "copy", "--memory", "xl"], "memory.kind must be one of"),
        (["--task", "copy", "--learning-rate", "1"], "did you mean optimizer.learning_rate"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_before_any_work(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        train_sequence.main(words)
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--warm-up-frames -1", "warm_up_frames must be at least 0, got -1"),
        ("--seed -1", "seed must lie in"),
        ("--json nowhere/out.json", "json: there is no folder nowhere"),
        ("--part oracle --frames 1 --rows 1", "frames: "),
        ("--part speed --seconds 0.01 --data nowhere.txt", "nowhere.txt"),
    ],
)
def test_a_mistake_in_measuring_streams_is_one_sentence(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        streams.main(words.split())
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 2  # the other one points to --help


def test_an_argument_of_the_task_counts_on_the_train_split_too(tmp_path: Path) -> None:
    assert train_sequence.main([*COPY, *SMALL, "--run", str(tmp_path / "run")]) == 0
    losses = []
    for distance in ("9", "60"):
        file = tmp_path / f"{distance}.json"
        words = ["--run", str(tmp_path / "run"), "--split", "train", "--tokens", "1024"]
        words += ["--task-arg", f"distance={distance}", "--json", str(file)]
        assert evaluate_sequence.main(words) == 0
        losses.append(json.loads(file.read_text())["loss"])
    assert losses[0] != losses[1]


def test_a_held_out_loss_that_is_no_number_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not taken for data in which nothing was scored; and resumed, it would be the same again."""
    inner = session.evaluate
    monkeypatch.setattr(session, "evaluate", lambda *a, **k: replace(inner(*a, **k), loss=float("nan")))
    words = [*COPY, *SMALL, "--held-out.every", "2", "--run", str(tmp_path / "run")]
    assert train_sequence.main(words) == 1
    output = capsys.readouterr().out
    assert "the held-out loss is nan; a smaller optimizer.learning_rate" in output
    assert "--resume" not in output


def test_another_vocabulary_is_refused(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_sequence.main([*COPY, *SMALL, "--run", str(tmp_path / "run")]) == 0
    with pytest.raises(SystemExit) as leaving:
        evaluate_sequence.main(["--run", str(tmp_path / "run"), "--task-arg", "alphabet_size=5"])
    assert leaving.value.code == 2
    assert "task: the model of" in capsys.readouterr().err


def test_a_file_that_changed_is_refused_at_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = tmp_path / "text", tmp_path / "run"
    file.write_bytes(b"abcdefgh" * 1000)
    words = ["--task", "text", "--data", str(file), *SMALL, "--run", str(run)]
    assert train_sequence.main(words) == 0
    file.write_bytes(b"abcdefgi" * 1000)
    with pytest.raises(SystemExit):
        train_sequence.main(["--resume", str(run)])
    assert "sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "Lower num_rows or block_size"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), "Lower num_rows"),
        (MemoryError(), "Lower num_rows"),
    ],
)
def test_out_of_memory_says_what_to_lower_and_keeps_the_checkpoint(
    error: Exception,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    count = 0
    inner = SequenceTrainer._update

    def failing(trainer: SequenceTrainer) -> Any:
        nonlocal count
        count += 1
        if count == 6:
            raise error
        return inner(trainer)

    monkeypatch.setattr(SequenceTrainer, "_update", failing)
    assert train_sequence.main([*COPY, *SMALL, "--run", str(tmp_path / "run")]) == 1
    output = capsys.readouterr().out
    assert "update 6: out of memory" in output
    assert said in output
    assert RunFolder.open(tmp_path / "run").latest_checkpoint().step == 5 * 64


def test_a_loss_that_is_no_number_stops_and_changes_nothing() -> None:
    config = load([*COPY, *SMALL])
    stream = open_stream(config, "train")
    trainer = SequenceTrainer(
        config, make_model(config, stream, torch.device("cpu")), stream, DistributedContext()
    )
    trainer.update()
    with torch.no_grad():
        trainer.model.embedding.weight[:] = torch.inf
    before = {name: part.clone() for name, part in trainer.model.state_dict().items()}
    while int((torch.from_numpy(stream.read(16).targets) != IGNORE).sum()) == 0:
        pass
    with pytest.raises(TrainingFailedError, match=r"update 2: the loss is .*learning_rate"):
        trainer.update()
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_agents_run_is_refused(short_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        evaluate_sequence.main(["--run", str(short_run)])
    assert leaving.value.code == 2
    assert "is a run of train_agent.py (env corridor-short); use evaluate_agent.py" in capsys.readouterr().err


def test_a_configuration_survives_yaml(tmp_path: Path) -> None:
    config = load(DISTURBED)
    file = tmp_path / "config.yaml"
    file.write_text(sequence_schema.run_config.to_yaml(config))
    assert sequence_schema.from_yaml(file) == config


@pytest.mark.learning
def test_it_learns_to_copy(tmp_path: Path) -> None:
    words = [
        *("--task", "copy", "--task-arg", "max_distance=64", "--task-arg", "min_distance=20"),
        *("--task-arg", "distance_distribution=uniform", "--task-arg", "string_length=4"),
        *("--eval-task-arg", "distance=256"),  # four times as far as in training
        *("--task-arg", "alphabet_size=4", "--num-rows", "16", "--block-size", "64"),
        *("--total-updates", "1500", "--model.width", "32", "--memory.max-span", "512"),
        *("--memory.initial-span-fraction", "0.5", "--held-out.every", "50", "--held-out.tokens", "32768"),
        *("--held-out.stop-accuracy", "0.99", "--optimizer.learning-rate", "2e-3", "--track", "disabled"),
    ]
    assert train_sequence.main([*words, "--run", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["accuracy"] > 0.98


def test_a_trial_may_be_shorter_than_the_warm_up() -> None:
    config = load([*COPY, *SMALL, "--total-updates", "2", "--optimizer.warmup-updates", "4"])
    stream = open_stream(config, "train")
    trainer = SequenceTrainer(
        config, make_model(config, stream, torch.device("cpu")), stream, DistributedContext()
    )
    rate = config.optimizer.learning_rate
    assert [trainer.update().learning_rate for _ in range(2)] == pytest.approx([rate / 4, rate / 2])


def test_an_interval_is_as_wide_as_rows_differ() -> None:
    """Rows of which each repeats one answer: as good as one answer each, however often it is asked for."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(400):
        targets_B = rng.integers(50, 150, size=16)
        correct_B = targets_B * (rng.random(16) < 0.4)
        low, high = accuracy_interval(correct_B, targets_B)
        missed += not low <= 0.4 <= high
    assert missed < 0.09 * 400, "Wilson's interval of the targets misses in nine of ten"
    independent = accuracy_interval(np.array([40, 40]), np.array([100, 100]))
    assert independent == wilson_interval(80, 200)
    assert accuracy_interval(np.array([40]), np.array([100])) == wilson_interval(40, 100)
    assert accuracy_interval(np.array([0, 3, 0]), np.array([0, 5, 0])) == wilson_interval(3, 5)
    assert accuracy_interval(np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64)) == (0.0, 1.0)
