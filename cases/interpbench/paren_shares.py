"""paren_shares: the share of "(" so far minus that of ")", a number (case 4 of InterpBench, Gupta et al. 2024)."""

import jax.numpy as jnp

from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.causal.loss import SquaredError
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b", "c", "(", ")")
TOKENS = (2, 3, 4, 5, 6)
OPEN, CLOSE = 5, 6


def is_open(tokens):
    return tokens == OPEN


def is_close(tokens):
    return tokens == CLOSE


def share(of):
    """The share of the tokens up to each position for which `of` is true, BOS not counted, and 0 at BOS."""
    return jnp.cumsum(of) / jnp.maximum(jnp.arange(len(of)), 1)


def difference(opens, closes):
    """(seq, 1), from -1 to 1."""
    return (opens - closes)[:, None]


CASE = Case(
    name="paren_shares",
    vocabulary=VOCABULARY,
    variables=(
        Variable("is_open", ("tokens",), is_open, mlp(0)),
        Variable("is_close", ("tokens",), is_close, mlp(0)),
        Variable("opens", ("is_open",), share, head(1, 0)),
        Variable("closes", ("is_close",), share, head(1, 1)),
        Variable("difference", ("opens", "closes"), difference, mlp(1)),
    ),
    strata=(Uniform(TOKENS),),
    n_layers=2,
    d_model=20,
    d_head=5,
    n_outputs=1,
    n_ctx=10,
    loss=SquaredError(tolerance=0.05),
    act_fn="gelu",
)
