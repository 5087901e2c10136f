"""reversal: the string backwards, and None in the place of a letter that stays as it is. Attention is bidirectional."""

import jax.numpy as jnp

from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b", "c")
LETTERS = (2, 3, 4)
NONE = PAD


def opposite(tokens):
    """The token that stands at each position once the string is reversed; BOS before it and PADs after it stay."""
    here = jnp.arange(len(tokens))
    length = (tokens != PAD).sum()
    return tokens[jnp.where((here > 0) & (here < length), length - here, here)]


def moved(tokens, opposite):
    return jnp.where(tokens == opposite, NONE, opposite)


CASE = Case(
    name="reversal",
    vocabulary=VOCABULARY,
    variables=(
        Variable("opposite", ("tokens",), opposite, head(0, 0)),
        Variable("moved", ("tokens", "opposite"), moved, mlp(0)),
    ),
    strata=(Uniform(LETTERS),),
    n_layers=1,
    d_model=24,
    d_head=6,
    n_outputs=len(VOCABULARY),
    n_ctx=9,
    attention_dir="bidirectional",
)
