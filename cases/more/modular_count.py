"""modular_count: how many a's stand so far, modulo 3."""

import jax.numpy as jnp

from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b")
LETTERS = (2, 3)
A = 2
MODULUS = 3


def count(tokens):
    """How many a's there are up to each position."""
    return jnp.cumsum(tokens == A)


def residue(count):
    return count % MODULUS


CASE = Case(
    name="modular_count",
    vocabulary=VOCABULARY,
    variables=(
        Variable("count", ("tokens",), count, head(0, 0)),
        Variable("residue", ("count",), residue, mlp(0)),
    ),
    strata=(Uniform(LETTERS),),
    n_layers=1,
    d_model=16,
    d_head=4,
    n_outputs=MODULUS,
    n_ctx=10,
)
