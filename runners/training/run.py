"""A training run of an agent: from its configuration to its final evaluation."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm, NonFiniteLossError
from memory_suite.agents.distributed import DistributedContext, RankLostError
from memory_suite.configs import command_line
from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.configs.command_line import display_path, exit_on_error
from memory_suite.envs.errors import EnvFailedError
from memory_suite.runners.run.folder import RunFolder, RunFolderError
from memory_suite.runners.run.loading import load_checkpoint, open_run_folder
from memory_suite.runners.run.messages import how_to_continue, result_paths, run_facts, thread_notes
from memory_suite.runners.run.progress import ProgressDisplay
from memory_suite.runners.run.signals import EXIT_SAVED, GracefulStop
from memory_suite.runners.run.tracking import make_logger
from memory_suite.runners.training.build import (
    check_spaces,
    choose_device,
    curriculum_stage,
    make_agent,
    make_evaluation_env,
    make_training_env,
    restore_agent,
)
from memory_suite.runners.training.callback import Outcome, TrainingCallback
from memory_suite.runners.training.evaluation import (
    EvaluationInterrupted,
    EvaluationResult,
    evaluate_as_configured,
)
from memory_suite.runners.training.facts import agent_facts, task_facts

REMEMBERS_ALL = 0.9
"""share of the possible memories above which an agent counts as not forgetting yet"""


def train(config: TrainConfig) -> int:
    """Train an agent, evaluate it and print where its files are.

    Args:
        config: the run's configuration. Options that cannot work end the program with exit code 2.

    Returns:
        The exit code: 0 done, 75 interrupted and saved, 1 anything else.
    """
    torch.set_num_threads(config.threads)
    ranks = DistributedContext.from_env()
    env = exit_on_error(lambda: make_training_env(config, ranks=ranks))
    exit_on_error(lambda: _check_evaluation(config, env))
    device = exit_on_error(lambda: ranks.device(choose_device(config.device)))
    try:
        ranks.init_process_group(device)
        return _run(config, env, ranks)
    except RankLostError as lost:  # before the first checkpoint, or at the very end
        sys.stderr.write(f"rank {ranks.rank}: error: {lost}\n")
        return 1


def _run(config: TrainConfig, env: VecEnv, ranks: DistributedContext) -> int:
    folder = exit_on_error(lambda: ranks.run_on_main(lambda: open_run_folder(config)))
    display = ProgressDisplay(config.total_steps, rank=ranks.rank)
    # Before the agent is built: creating its optimizer imports torch's compiler, which takes a second.
    display.announce(task_facts(config))
    agent, runner_state, notes = exit_on_error(lambda: _fresh_or_restored(config, env, folder, ranks))
    display.start_at(agent.num_timesteps)
    facts = agent_facts(config, agent)
    display.announce({**facts, **run_facts(config, agent.device, ranks, folder)})
    for note in notes:
        display.note(note)
    to_continue = partial(how_to_continue, "train_agent.py", folder, ranks)
    with GracefulStop(ranks) as stop:
        try:
            outcome = _train(config, agent, runner_state, folder, display, stop)
        except (EnvFailedError, NonFiniteLossError, RankLostError, OSError) as fault:
            display.fault(f"error: training stopped: {fault}\n{to_continue()}")
            return 1
        finally:
            if agent.env is not None:
                agent.env.close()
        if outcome.interrupted:
            display.note(f"Interrupted at {agent.num_timesteps:,} steps, and saved. {to_continue()}")
            stop.leave_together()
            return EXIT_SAVED
        if not ranks.is_main:
            return 0
        try:
            result = _evaluate_best(config, folder, display, stop)
        except (EnvFailedError, RunFolderError, OSError) as fault:
            display.note(f"error: the evaluation stopped: {fault}\n{to_continue()}")
            return 1
        except EvaluationInterrupted:
            display.note(f"Interrupted in the evaluation; training is complete. {to_continue()}")
            return EXIT_SAVED
    display.summary_table(
        {
            "training": f"{'solved' if outcome.solved else 'ended'} after {agent.num_timesteps:,} steps",
            **result.rows(config.env),
            **result_paths(folder),
        }
    )
    if outcome.solved and _still_remembers_all(config, result):
        display.note(
            f"Solved before much was forgotten. With --resume {display_path(folder.path)} training goes on: "
            "with --stop.success none to the last step, with --stop.retained N until N memories are left at "
            "most."
        )
    return 0


def _still_remembers_all(config: TrainConfig, result: EvaluationResult) -> bool:
    """Whether an agent with learned spans still retains nearly all memories."""
    if not config.memory.learns_spans or config.method == "none":
        return False
    return max(result.retained_mean) > REMEMBERS_ALL * result.possible_mean


def _check_evaluation(config: TrainConfig, env: VecEnv) -> None:
    """Check before training that the evaluation environment fits the agent."""
    eval_env = make_evaluation_env(config, 1, config.evaluation.seed)
    try:
        check_spaces(
            eval_env, env, "eval_env_args: the evaluation environment", "the training environment has"
        )
    finally:
        eval_env.close()


def _fresh_or_restored(
    config: TrainConfig, env: VecEnv, folder: RunFolder, ranks: DistributedContext
) -> tuple[MemoryOnPolicyAlgorithm, dict[str, Any] | None, list[str]]:
    """The agent, the callback's saved state (None for a fresh run), and notes for the user."""
    if config.resume is None:
        return make_agent(config, env, ranks), None, []
    checkpoint = ranks.run_on_main(lambda: load_checkpoint(folder, config, "latest"))
    stage = curriculum_stage(checkpoint)
    if stage is not None and stage != config.curriculum.start:
        env.close()
        env = make_training_env(config, stage, ranks=ranks)
    agent, runner_state = restore_agent(checkpoint, env, config.device, ranks)
    notes = [*checkpoint.notes, f"resuming from {display_path(checkpoint.path)}"]
    if not agent.resumes_exactly:
        seed = (config.seed + agent.num_timesteps) % command_line.LARGEST_SEED  # new episodes
        env.seed(seed + ranks.rows(env.num_envs).start)
        notes.append(
            f"{config.env} cannot save its state: its episodes begin anew, so this is no exact continuation"
        )
    notes += thread_notes(runner_state["threads"], config)
    return agent, runner_state, notes


def _train(
    config: TrainConfig,
    agent: MemoryOnPolicyAlgorithm,
    runner_state: dict[str, Any] | None,
    folder: RunFolder,
    display: ProgressDisplay,
    stop: GracefulStop,
) -> Outcome:
    offset = None if runner_state is None else int(runner_state["metrics_offset"])
    logger = None
    if agent.ranks.is_main:
        logger = make_logger(folder, config, resume_offset=offset, notify=display.note)
    agent.set_logger(logger or Logger(None, []))
    callback = TrainingCallback(config, folder, logger, display, stop, runner_state)
    remaining = 0 if callback.was_solved else max(0, config.total_steps - agent.num_timesteps)
    try:
        with display:
            agent.learn(remaining, callback=callback, reset_num_timesteps=runner_state is None)
    finally:
        if logger is not None:
            logger.close()
    return callback.outcome


def _evaluate_best(
    config: TrainConfig, folder: RunFolder, display: ProgressDisplay, stop: GracefulStop
) -> EvaluationResult:
    checkpoint = load_checkpoint(folder, config, "best")
    for note in checkpoint.notes:
        display.note(note)
    agent, _ = restore_agent(checkpoint, None, config.device)
    result = evaluate_as_configured(agent, config, config.evaluation.seed, stop)
    folder.write_evaluation(result.to_json())
    return result
