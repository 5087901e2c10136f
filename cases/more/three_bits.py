"""three_bits: the number that the last three bits write, 0 to 7. Two heads hold the two bits before together, as one
pattern of attention that sees both alike could not tell which came first."""

import jax.numpy as jnp

from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "0", "1")
BITS = (2, 3)
ONE = 3


def bit(tokens):
    return (tokens == ONE).astype(jnp.int32)


def two_before(tokens):
    """The bits two places and one place before each position: (seq, 2). BOS and what lies before it count as 0."""
    padded = jnp.concatenate([jnp.zeros(2, jnp.int32), bit(tokens)])
    return jnp.stack([padded[:-2], padded[1:-1]], 1)


def number(tokens, two_before):
    return 4 * two_before[:, 0] + 2 * two_before[:, 1] + bit(tokens)


CASE = Case(
    name="three_bits",
    vocabulary=VOCABULARY,
    variables=(
        Variable("two_before", ("tokens",), two_before, (head(0, 0), head(0, 1))),
        Variable("number", ("tokens", "two_before"), number, mlp(0)),
    ),
    strata=(Uniform(BITS),),
    n_layers=1,
    d_model=24,
    d_head=6,
    n_outputs=8,
    n_ctx=12,
)
