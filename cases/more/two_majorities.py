"""two_majorities: whether there were more a than b so far, and whether more c than d: one of four classes. Each answer
lives on its own half of one MLP, and reads a head of its own."""

import jax.numpy as jnp

from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", *"abcd")
A, B, C, D = LETTERS = (2, 3, 4, 5)


def lead(one, other):
    """By how much one letter is ahead of the other, up to each position."""
    return lambda tokens: jnp.cumsum((tokens == one).astype(jnp.int32) - (tokens == other).astype(jnp.int32))


def is_ahead(lead):
    return lead > 0


def answer(a_ahead, c_ahead):
    return a_ahead.astype(jnp.int32) + 2 * c_ahead.astype(jnp.int32)


CASE = Case(
    name="two_majorities",
    vocabulary=VOCABULARY,
    variables=(
        Variable("a_lead", ("tokens",), lead(A, B), head(0, 0)),
        Variable("c_lead", ("tokens",), lead(C, D), head(0, 1)),
        Variable("a_ahead", ("a_lead",), is_ahead, mlp(0, part=0)),
        Variable("c_ahead", ("c_lead",), is_ahead, mlp(0, part=1)),
        Variable("answer", ("a_ahead", "c_ahead"), answer),
    ),
    strata=(Uniform(LETTERS),),
    n_layers=1,
    d_model=24,
    d_head=6,
    n_outputs=4,
    n_ctx=12,
    mlp_parts=2,
)
