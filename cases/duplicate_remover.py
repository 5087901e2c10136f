"""duplicate_remover: replace by PAD every letter that equals the one before it."""

import jax.numpy as jnp

from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b", "c")
LETTERS = (2, 3, 4)


def previous(tokens):
    """The token before each position; PAD before the first."""
    return jnp.concatenate([jnp.full(1, PAD, tokens.dtype), tokens[:-1]])


def is_duplicate(tokens, previous):
    return tokens == previous


def kept(tokens, is_duplicate):
    """The token, or PAD in the place of a duplicate."""
    return jnp.where(is_duplicate, PAD, tokens)


CASE = Case(
    name="duplicate_remover",
    vocabulary=VOCABULARY,
    variables=(
        Variable("previous", ("tokens",), previous, head(0, 0)),
        Variable("is_duplicate", ("tokens", "previous"), is_duplicate, mlp(0)),
        Variable("kept", ("tokens", "is_duplicate"), kept, mlp(1)),
    ),
    strata=(Uniform(LETTERS),),
    n_layers=2,
    d_model=20,
    d_head=5,
    n_outputs=len(VOCABULARY),
)
