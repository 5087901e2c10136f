"""induction: the letter that followed the last earlier occurrence of the letter here, or None. By attention alone in
two layers (Elhage et al. 2021; Olsson et al. 2022)."""

import jax.numpy as jnp

from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head

VOCABULARY = ("BOS", "PAD", "a", "b", "c", "d")
LETTERS = (2, 3, 4, 5)
NONE = PAD


def previous(tokens):
    """The token before each position; None before the first."""
    return jnp.concatenate([jnp.full(1, NONE, tokens.dtype), tokens[:-1]])


def follower(tokens, previous):
    """The token at the last position up to here whose previous token is the one here; None if there is none."""
    here = jnp.arange(len(tokens))
    follows = (previous[None] == tokens[:, None]) & (here[None] <= here[:, None])
    last = jnp.where(follows, here[None], -1).max(1)
    return jnp.where(last < 0, NONE, tokens[last])


CASE = Case(
    name="induction",
    vocabulary=VOCABULARY,
    variables=(
        Variable("previous", ("tokens",), previous, head(0, 0)),
        Variable("follower", ("tokens", "previous"), follower, head(1, 0)),
    ),
    strata=(Uniform(LETTERS),),
    n_layers=2,
    d_model=32,
    d_head=8,
    n_outputs=len(VOCABULARY),
    n_ctx=10,
    attn_only=True,
)
