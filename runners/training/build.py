"""From a configuration to environments and agents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from memory_suite.agents.algorithms.a2c import MemoryA2C
from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm
from memory_suite.agents.algorithms.ppo import MemoryPPO
from memory_suite.agents.defaults import ADAM_BETAS
from memory_suite.agents.distributed import SINGLE_PROCESS, DistributedContext
from memory_suite.agents.model.settings import PenaltySettings
from memory_suite.agents.serialization.spaces import describe_difference
from memory_suite.agents.serialization.state_tree import unflatten
from memory_suite.configs.agent_schema import A2CConfig, PPOConfig, TrainConfig
from memory_suite.configs.model import transformer_settings
from memory_suite.configs.run_config import to_dict
from memory_suite.envs.make import make_vec_env
from memory_suite.runners.run.folder import Checkpoint

ALGORITHMS: dict[str, type[MemoryOnPolicyAlgorithm]] = {"ppo": MemoryPPO, "a2c": MemoryA2C}


def choose_device(name: str) -> torch.device:
    """The device an option names.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' was asked for, but torch finds no GPU; use 'cpu' or 'auto'")
    return torch.device(name)


def make_training_env(
    config: TrainConfig,
    stage: int | None = None,
    seed: int | None = None,
    ranks: DistributedContext = SINGLE_PROCESS,
) -> VecEnv:
    """The environments to learn on, or this rank's share of them.

    Args:
        config: says which.
        stage: value of the argument that the curriculum lets grow; None: the first.
        seed: of the first episodes; None: `config.seed`.
        ranks: share the environments among them.

    Raises:
        ValueError: names what is wrong with `env` or `env_args`, or that the environments cannot be shared.
    """
    if config.num_envs % ranks.world_size:
        raise ValueError(
            f"num_envs ({config.num_envs}) must be a multiple of the number of processes "
            f"({ranks.world_size}): each steps as many environments"
        )
    rollouts = config.minibatch_steps // config.ppo.n_steps
    if config.algo == "ppo" and rollouts < ranks.world_size:
        raise ValueError(
            f"ppo.batch_size ({config.minibatch_steps}) holds the rollouts of {rollouts} environments, which "
            f"{ranks.world_size} processes cannot share"
        )
    num_own = config.num_envs // ranks.world_size
    arguments: dict[str, Any] = dict(config.env_args)
    if config.curriculum.argument is not None:
        arguments[config.curriculum.argument] = config.curriculum.start if stage is None else stage
    return wrap_for_sb3(
        make_vec_env(
            config.env,
            num_own,
            (config.seed if seed is None else seed) + ranks.rows(num_own).start,
            arguments,
            vectorization=config.vectorization,
        )
    )


def make_evaluation_env(config: TrainConfig, num_envs: int, seed: int) -> VecEnv:
    """The evaluation environments."""
    return wrap_for_sb3(make_vec_env(config.env, num_envs, seed, config.evaluation_env_args))


def wrap_for_sb3(env: VecEnv) -> VecEnv:
    """The environments as an SB3 algorithm wraps them (images channels first), so that spaces compare."""
    return MemoryOnPolicyAlgorithm._wrap_env(env)


def check_spaces(env: VecEnv, other: VecEnv | MemoryOnPolicyAlgorithm, what: str, other_what: str) -> None:
    """Refuse an environment whose spaces are not those that are needed.

    Raises:
        ValueError: says which space differs; `what` and `other_what` name the two.
    """
    for name in ("observation_space", "action_space"):
        if getattr(env, name) != getattr(other, name):
            space, other_space = describe_difference(getattr(env, name), getattr(other, name))
            raise ValueError(f"{what} has the {name} {space}, but {other_what} {other_space}")


def make_agent(
    config: TrainConfig, env: VecEnv, ranks: DistributedContext = SINGLE_PROCESS
) -> MemoryOnPolicyAlgorithm:
    """A fresh agent; of several `ranks`, each with its share of the environments."""
    policy = config.policy
    learning: PPOConfig | A2CConfig = config.ppo if config.algo == "ppo" else config.a2c
    arguments: dict[str, Any] = to_dict(learning)
    if config.algo == "ppo":
        arguments["batch_size"] = config.minibatch_steps
    adam = {"betas": (ADAM_BETAS[0], arguments.pop("adam_beta2")), "eps": arguments.pop("adam_eps")}
    if arguments.pop("learning_rate_schedule") == "linear":
        arguments["learning_rate"] = LinearSchedule(learning.learning_rate, 0.0, 1.0)
    return ALGORITHMS[config.algo](
        "MemoryPolicy",
        env,
        **arguments,
        seed=config.seed,
        device=ranks.device(choose_device(config.device)),
        ranks=ranks,
        policy_kwargs={
            **asdict(transformer_settings(config.memory, policy)),
            "normalize_observations": policy.normalize_observations,
            "optimizer_kwargs": adam,
        },
        success_window_episodes=config.stop.window_episodes,
        success_min_episodes=config.stop.min_episodes,
        method=config.method,
        penalty=PenaltySettings(weight=config.penalty.weight, form=config.penalty.form),
        random_shortening=config.memory.random_shortening,
    )


def restore_agent(
    checkpoint: Checkpoint, env: VecEnv | None, device: str, ranks: DistributedContext = SINGLE_PROCESS
) -> tuple[MemoryOnPolicyAlgorithm, dict[str, Any]]:
    """The agent of a checkpoint, and what the runner itself had put there.

    The checkpoint may have been written by another number of `ranks`.
    """
    tree: Mapping[str, Any] = unflatten(checkpoint.tensors, checkpoint.data)
    agent_tree = tree["agent"]
    classes = {cls.__name__: cls for cls in ALGORITHMS.values()}
    name = agent_tree["algorithm"]
    if name not in classes:
        raise ValueError(f"{checkpoint.path} holds a {name}; known are {', '.join(classes)}")
    own_device = ranks.device(choose_device(device))
    agent = classes[name].from_state_tree(agent_tree, env, own_device, ranks=ranks)
    return agent, tree["runner"]


def curriculum_stage(checkpoint: Checkpoint) -> int | None:
    """Where the curriculum stood when the checkpoint was written; None: there is none."""
    stage: int | None = unflatten(checkpoint.tensors, checkpoint.data)["runner"]["stage"]
    return stage
