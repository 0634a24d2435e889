"""Default hyperparameters, the same in Python and on the command line. Importing them does not import torch.

One set serves every environment: rewards of any size (`algorithms.return_scale`), memories of any length
(`algorithms.forgetting`). A preset of an environment changes none of them.
"""

from __future__ import annotations

from memory_suite.agents.model.settings import PenaltyForm

LEARNING_RATE = 7e-4
"""initial step size of Adam, which falls linearly to 0"""
ADAM_BETAS = (0.9, 0.99)
"""A solved task has small gradients. The step that a rare failure then causes can be up to
0.1 / sqrt(1 - beta2) learning rates: 1 with 0.99, and 3.2 with 0.999."""
ADAM_EPS = 5e-5
"""Smaller gradients move weights in proportion to their size, so that noise of the critic on a solved task
changes little."""
GAMMA = 0.99
GAE_LAMBDA = 0.9
"""lambda of advantages"""
CRITIC_LAMBDA = 0.97
"""Lambda of the critic's targets, closer to 1 than that of advantages: a critic whose targets depend on its
own values can be consistent and wrong."""
ENT_COEF = 0.01
VF_COEF = 0.5
"""weight of the value loss, in units of the size of returns"""
MAX_GRAD_NORM = 0.5
ADVANTAGE_STD_FLOOR = 0.2
"""Smallest standard deviation by which advantages are divided, in units of the size of returns. Without
reward, advantages are noise of the critic, which must not dominate the entropy bonus."""

PPO_N_STEPS = 64
PPO_BATCH_SIZE = 512
PPO_N_EPOCHS = 3
PPO_CLIP_RANGE = 0.2
A2C_N_STEPS = 16

MAX_SPAN = 2**20
"""L, in steps"""
INITIAL_SPAN_FRACTION = 0.001
"""p: spans begin at 1,049 steps, so that the first updates lose nothing in most tasks"""
RAMP = 1
"""R, in steps: memories do not fade, since the method "counterfactual" needs no gradient through the ramp"""

PENALTY_WEIGHT = 1e-6
"""alpha of the method "paper", between the 3e-7 and the 2e-6 of the paper's tasks"""
PENALTY_FORM: PenaltyForm = "all"
"""that of equation 6"""
