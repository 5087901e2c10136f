"""below_maximum: by how much each digit is less than the largest so far."""

import jax.numpy as jnp
from jax.lax import cummax

from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", *"012345")
DIGITS = (2, 3, 4, 5, 6, 7)
ZERO = 2


def maximum(tokens):
    """The largest digit up to each position; 0 at BOS."""
    return cummax(jnp.maximum(tokens, ZERO)) - ZERO


def below(tokens, maximum):
    """0 at BOS; and no less than 0, as a swapped maximum may be smaller than the digit."""
    return jnp.maximum(maximum - (jnp.maximum(tokens, ZERO) - ZERO), 0)


CASE = Case(
    name="below_maximum",
    vocabulary=VOCABULARY,
    variables=(
        Variable("maximum", ("tokens",), maximum, head(0, 0)),
        Variable("below", ("tokens", "maximum"), below, mlp(0)),
    ),
    strata=(Uniform(DIGITS),),
    n_layers=1,
    d_model=24,
    d_head=6,
    n_outputs=len(DIGITS),
    n_ctx=10,
)
