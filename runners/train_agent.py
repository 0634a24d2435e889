"""Train an agent that learns what to remember and what to forget.

    python runners/train_agent.py --env corridor-long

Exit codes: 0 done; 2 a mistake in the options; 75 interrupted and saved (continue with --resume);
1 anything else.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from runners/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from agents.on_policy import MemoryOnPolicyAlgorithm
from configs.command_line import or_exit
from configs.schema import TrainConfig, load
from envs.vec_env import GymnasiumVecEnv
from runners.agent_factory import make_agent, make_evaluation_env, make_training_env, restore_agent, shown
from runners.evaluation import EvaluationResult, evaluate, num_eval_envs
from runners.interrupts import EXIT_SAVED, GracefulStop
from runners.progress import ProgressDisplay
from runners.run_folder import RunFolder
from runners.tracking import make_logger
from runners.training_callback import Outcome, TrainingCallback


def main(argv: list[str] | None = None) -> int:
    """Train, evaluate, say where everything is."""
    config = load(argv)
    torch.set_num_threads(config.threads)
    env = or_exit(lambda: make_training_env(config))
    or_exit(lambda: make_evaluation_env(config, 1, config.evaluation.seed).close())
    folder = or_exit(lambda: _open_folder(config))
    with GracefulStop() as stop:
        agent, outcome, display = or_exit(lambda: _train(config, env, folder, stop))
        env.close()
        if outcome.interrupted:
            display.note(
                f"Interrupted at {agent.num_timesteps:,} steps; everything is saved. Continue with\n"
                f"  python runners/train_agent.py --resume {shown(folder.path)}"
            )
            return EXIT_SAVED
        result = _evaluate_best(config, folder)
    display.summary_table(_summary(config, agent, outcome, folder, result))
    return 0


def _open_folder(config: TrainConfig) -> RunFolder:
    if config.resume is None:
        return RunFolder.create(config)
    return RunFolder.open(config.resume, keep_checkpoints=config.keep_checkpoints, to_resume=True)


def _train(
    config: TrainConfig, env: GymnasiumVecEnv, folder: RunFolder, stop: GracefulStop
) -> tuple[MemoryOnPolicyAlgorithm, Outcome, ProgressDisplay]:
    checkpoint = None if config.resume is None else folder.latest_checkpoint()
    if checkpoint is None:
        agent, runner_state = make_agent(config, env), None
    else:
        agent, runner_state = restore_agent(checkpoint, env, config.device)
    display = ProgressDisplay(config.total_steps, start_steps=agent.num_timesteps)
    display.announce(_facts(config, agent, folder))
    for note in checkpoint.notes if checkpoint else []:
        display.note(note)
    offset = None if runner_state is None else int(runner_state["metrics_offset"])
    logger = make_logger(folder, config, resume_offset=offset, notify=display.note)
    agent.set_logger(logger)
    callback = TrainingCallback(config, folder, logger, display, stop, runner_state)
    try:
        with display:
            remaining = config.total_steps - agent.num_timesteps
            agent.learn(max(0, remaining), callback=callback, reset_num_timesteps=checkpoint is None)
    finally:
        logger.close()
    return agent, callback.outcome, display


def _evaluate_best(config: TrainConfig, folder: RunFolder) -> EvaluationResult:
    chosen = config.evaluation
    env = make_evaluation_env(config, num_eval_envs(chosen.episodes), chosen.seed)
    agent, _ = restore_agent(folder.best_checkpoint(), None, config.device)
    result = evaluate(
        agent, env, episodes=chosen.episodes, seed=chosen.seed, deterministic=chosen.deterministic
    )
    env.close()
    folder.write_evaluation(result.to_json())
    return result


def _facts(config: TrainConfig, agent: MemoryOnPolicyAlgorithm, folder: RunFolder) -> dict[str, object]:
    parameters = sum(parameter.numel() for parameter in agent.policy.parameters())
    policy, memory = config.policy, config.memory
    kind = f"Expire-Span up to {memory.max_span:,} steps, ramp {memory.ramp}"
    return {
        "environment": f"{config.env} x {config.num_envs}",
        "algorithm": f"{config.algo.upper()}, up to {config.total_steps:,} steps",
        "policy": f"{policy.num_layers} layers of width {policy.width}, {parameters:,} parameters",
        "memory": kind if memory.kind == "expire-span" else "none",
        "device": f"{agent.device}, {config.threads} torch thread{'s' if config.threads > 1 else ''}",
        "tracking": "disabled" if config.track == "disabled" else f"Weights & Biases, {config.track}",
        "run folder": shown(folder.path),
    }


def _summary(
    config: TrainConfig,
    agent: MemoryOnPolicyAlgorithm,
    outcome: Outcome,
    folder: RunFolder,
    result: EvaluationResult,
) -> dict[str, object]:
    rows: dict[str, object] = {
        "training": f"{'solved' if outcome.solved else 'ended'} after {agent.num_timesteps:,} steps",
        "evaluation": f"{result.episodes} unseen episodes, {config.env}",
    }
    if result.success_rate is not None and result.success_ci95 is not None:
        low, high = result.success_ci95
        rows["success"] = f"{result.success_rate:.1%} (95% interval {low:.1%} to {high:.1%})"
        for name, rate in result.success_by_class.items():
            rows[f"  length {name}"] = f"{rate:.1%}"
    rows["return"] = f"{result.return_mean:.3f} +- {result.return_std:.3f}"
    rows["episode length"] = f"{result.length_mean:.1f} steps"
    for layer, (mean, most) in enumerate(
        zip(result.retained_mean, result.retained_max, strict=True), start=1
    ):
        rows[f"memories, layer {layer}"] = (
            f"{mean:.1f} of {result.possible_mean:.1f} possible, at most {most}"
        )
    rows["metrics"] = shown(folder.metrics_file)
    rows["evaluation file"] = shown(folder.evaluation_file)
    rows["checkpoints"] = shown(folder.checkpoints)
    if config.track != "disabled":
        rows["Weights & Biases"] = shown(folder.wandb)
    return rows


if __name__ == "__main__":
    sys.exit(main())
