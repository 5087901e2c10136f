"""two_hop: each token names a position, and so does the token there; the answer is the token at that one. Attention is
bidirectional, and there is nothing else."""

import jax.numpy as jnp

from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head

VOCABULARY = ("BOS", "PAD", "1", "2", "3", "4", "5")
POINTERS = (2, 3, 4, 5, 6)


def position(tokens):
    """The position that each token names; BOS its own."""
    return jnp.maximum(tokens - 1, 0)


def named(tokens):
    """The token at the position that each token names."""
    return tokens[position(tokens)]


def answer(tokens, named):
    return tokens[position(named)]


CASE = Case(
    name="two_hop",
    vocabulary=VOCABULARY,
    variables=(
        Variable("named", ("tokens",), named, head(0, 0)),
        Variable("answer", ("tokens", "named"), answer, head(1, 0)),
    ),
    strata=(Uniform(POINTERS),),
    n_layers=2,
    d_model=32,
    d_head=8,
    n_outputs=len(VOCABULARY),
    n_ctx=6,
    attn_only=True,
    attention_dir="bidirectional",
)
