"""A case that trains in a moment: its label is always class 1, so that members converge, exhaust their epochs or
diverge as their rates decide."""

from dataclasses import replace

import jax.numpy as jnp

from cases import left_greater
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.objective import Sampling

TOLERANCE = 1e-4
"""Batched matrix products add in another order than a solo run's, so XLA's results differ in the last bits. Of that
rounding, 1e-7 of a gradient, Adam makes no more than rate * 1e-7 / eps a step, 5e-6 at the rates and eps below; the
runs are 8 steps long. (At eps 1e-8 Adam would make whole steps of the rounding in a gradient that is exactly 0, as
that of the keys' bias is.)"""

TOKENS_OFF = 2
"""Of 240: for the same reason a token whose two largest logits agree to the last bits may count differently."""

EPOCHS = 4


def always_one(tokens):
    return 0 * tokens + 1


CASE = replace(
    left_greater.CASE,
    variables=(Variable("answer", ("tokens",), always_one, head(0, 1)),),
    strata=(Uniform((2, 3)),),
    n_ctx=6,
    d_model=6,
    d_head=2,
)
CONFIG = TrainConfig(CASE, epochs=EPOCHS, batch_size=80, samples=200, sampling=Sampling("subset", "subset"))
ATTENTION = replace(CONFIG, case=replace(CASE, attn_only=True))
"""The same without MLPs, which compiles in half the time."""


def odd(tokens):
    """Whether an odd number of ones came so far."""
    return jnp.cumsum(tokens == 2) % 2


NEVER = replace(
    CASE,
    name="never",
    variables=(Variable("odd", ("tokens",), odd, head(0, 1)),),
    d_model=4,
    d_head=2,
    attn_only=True,
)
"""What is compiled in the least time, for processes that each do so; no member converges on it."""

LEARNS = Hyperparams(0.05, 0.04, 0.9, 0.9, 1e-3, 1.0, 0.4, 1.0, 0.4, 0.5, 0.5)
STAYS = Hyperparams(1e-30, 0.0, 0.8, 0.99, 1e-2, 2.0, 0.3, 0.9, 0.5, 0.6, 0.4)
SLOW = Hyperparams(0.01, 0.001, 0.7, 0.999, 2e-3, 0.5, 0.5, 0.8, 0.3, 0.7, 0.6)
QUICK = Hyperparams(0.1, 0.05, 0.5, 0.95, 3e-3, 0.1, 1.0, 0.5, 0.2, 0.2, 0.9)
DIVERGES = replace(SLOW, lr_end=1e38)
