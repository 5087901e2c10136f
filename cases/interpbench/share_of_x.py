"""share_of_x: the share of the tokens so far that are x, a number (case 3 of InterpBench, Gupta et al. 2024)."""

import jax.numpy as jnp

from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.causal.loss import SquaredError
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b", "c", "x")
LETTERS = (2, 3, 4, 5)
X = 5


def is_x(tokens):
    return tokens == X


def share(is_x):
    """The share of x among the tokens up to each position, BOS not counted, and 0 at BOS: (seq, 1)."""
    so_far = jnp.maximum(jnp.arange(len(is_x)), 1)
    return (jnp.cumsum(is_x) / so_far)[:, None]


CASE = Case(
    name="share_of_x",
    vocabulary=VOCABULARY,
    variables=(
        Variable("is_x", ("tokens",), is_x, mlp(0)),
        Variable("share", ("is_x",), share, head(1, 2)),
    ),
    strata=(Uniform(LETTERS),),
    n_layers=2,
    d_model=12,
    d_head=3,
    n_outputs=1,
    n_ctx=5,
    loss=SquaredError(tolerance=0.05),
    act_fn="gelu",
)
