"""palindrome: how many pairs of letters differ that stand opposite each other, at every token; none in a palindrome.
Attention is bidirectional."""

import jax.numpy as jnp

from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b", "c")
LETTERS = (2, 3, 4)
MOST = 3


def opposite(tokens):
    """The token that stands at each position once the string is reversed; BOS before it and PADs after it stay."""
    here = jnp.arange(len(tokens))
    length = (tokens != PAD).sum()
    return tokens[jnp.where((here > 0) & (here < length), length - here, here)]


def differs(tokens, opposite):
    return tokens != opposite


def pairs(differs):
    """How many pairs differ, half as many as tokens do, at every position; MOST stands for as many or more."""
    return jnp.full(len(differs), jnp.minimum(differs.sum() // 2, MOST))


CASE = Case(
    name="palindrome",
    vocabulary=VOCABULARY,
    variables=(
        Variable("opposite", ("tokens",), opposite, head(0, 0)),
        Variable("differs", ("tokens", "opposite"), differs, mlp(0)),
        Variable("pairs", ("differs",), pairs, head(1, 0)),
    ),
    strata=(Uniform(LETTERS),),
    n_layers=2,
    d_model=24,
    d_head=6,
    n_outputs=1 + MOST,
    n_ctx=7,
    attention_dir="bidirectional",
)
