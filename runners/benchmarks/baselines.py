"""The agents that are compared: ours with each memory, stable-baselines3's PPO, sb3-contrib's RecurrentPPO.

All have the same environments, threads, rollout, epochs, minibatches and width.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule

from memory_suite.agents.model.settings import MemoryKind
from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.runners.benchmarks.options import AgentSpec
from memory_suite.runners.training.build import choose_device, make_agent, make_training_env

FORGETTING = "ours, expire-span"
UNTRAINED = "ours, expire-span, nothing forgotten yet"
RECURRENT = "sb3-contrib's RecurrentPPO"
RECURRENT_LEAN = "sb3-contrib's RecurrentPPO, one LSTM"
PLAIN = "stable-baselines3's PPO, no memory"
OTHERS: dict[str, MemoryKind] = {
    "ours, transformer-xl": "transformer-xl",
    "ours, adaptive-span": "adaptive-span",
    "ours, compressive": "compressive",
    "ours, no memory": "none",
}
NAMES = (FORGETTING, UNTRAINED, *OTHERS, RECURRENT, RECURRENT_LEAN, PLAIN)
COMPRESSION_RATE = 4
"""memories that a compressive memory merges into one"""
RAW_SHARE = 4
"""divisor of a compressive memory's reach that gives the number of its uncompressed memories"""


def check(spec: AgentSpec) -> None:
    """Raise ValueError, before any work is done, if the agent cannot be compared with the baselines."""
    if spec.config.algo != "ppo":
        raise ValueError(f"algo must be ppo in the parts training and solving, got {spec.config.algo}")
    if importlib.util.find_spec("sb3_contrib") is None:
        raise ValueError('this part needs sb3-contrib: pip install -c constraints.txt -e ".[bench]"')


def make_baseline(spec: AgentSpec, name: str, reach: int) -> OnPolicyAlgorithm:
    """One of `NAMES`, on environments of its own; the other memories look `reach` steps back."""
    if name == FORGETTING:
        return spec.build()
    config = spec.config
    if name in OTHERS:
        config = _with_memory(config, OTHERS[name], reach)
    env = make_training_env(config)
    if name == UNTRAINED or name in OTHERS:
        return make_agent(config, env)
    ppo, policy = config.ppo, config.policy
    linear = ppo.learning_rate_schedule == "linear"
    arguments: dict[str, Any] = {
        "learning_rate": LinearSchedule(ppo.learning_rate, 0.0, 1.0) if linear else ppo.learning_rate,
        "batch_size": config.minibatch_steps,
        **{option: getattr(ppo, option) for option in ("n_steps", "n_epochs", "gamma", "gae_lambda")},
        **{option: getattr(ppo, option) for option in ("clip_range", "ent_coef", "vf_coef", "max_grad_norm")},
        "seed": config.seed,
        "device": choose_device(config.device),
    }
    prefix = "MultiInput" if isinstance(env.observation_space, spaces.Dict) else "Mlp"
    if name == PLAIN:
        kwargs: dict[str, Any] = {"net_arch": [policy.width] * 2}
        return PPO(f"{prefix}Policy", env, policy_kwargs=kwargs, **arguments)
    from sb3_contrib import RecurrentPPO

    kwargs = {"lstm_hidden_size": policy.width, "n_lstm_layers": policy.num_layers, "net_arch": []}
    if name == RECURRENT_LEAN:
        kwargs |= {"shared_lstm": True, "enable_critic_lstm": False}
    baseline: OnPolicyAlgorithm = RecurrentPPO(f"{prefix}LstmPolicy", env, policy_kwargs=kwargs, **arguments)
    return baseline


def _with_memory(config: TrainConfig, kind: MemoryKind, reach: int) -> TrainConfig:
    """The same configuration with a memory that looks `reach` steps back."""
    raw = max(1, reach // RAW_SHARE) if kind == "compressive" else reach
    memory = replace(
        config.memory,
        kind=kind,
        size=raw,
        compression_rate=COMPRESSION_RATE,
        compressed_size=max(1, (reach - raw) // COMPRESSION_RATE),
        max_span=2 * reach,
        initial_span_fraction=0.5,
        ramp=min(config.memory.ramp, 2 * reach),
    )
    return replace(config, memory=memory)
