"""in_order: whether the last three letters are in alphabetical order. Two heads hold the two letters before together:
one pattern of attention that sees both alike could not tell which came first."""

import jax.numpy as jnp

from siitjax.causal.case import BOS, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b", "c", "d")
LETTERS = (2, 3, 4, 5)


def two_before(tokens):
    """The tokens two places and one place before each position: (seq, 2). Before the first stands BOS, as it were."""
    padded = jnp.concatenate([jnp.full(2, BOS, tokens.dtype), tokens])
    return jnp.stack([padded[:-2], padded[1:-1]], 1)


def in_order(tokens, two_before):
    """BOS comes before every letter."""
    return (two_before[:, 0] <= two_before[:, 1]) & (two_before[:, 1] <= tokens)


CASE = Case(
    name="in_order",
    vocabulary=VOCABULARY,
    variables=(
        Variable("two_before", ("tokens",), two_before, (head(0, 0), head(0, 1))),
        Variable("in_order", ("tokens", "two_before"), in_order, mlp(0)),
    ),
    strata=(Uniform(LETTERS),),
    n_layers=1,
    d_model=24,
    d_head=6,
    n_outputs=2,
    n_ctx=12,
)
