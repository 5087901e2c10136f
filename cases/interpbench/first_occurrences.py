"""first_occurrences: each token where it appears first, and None from then on (case 21 of InterpBench, Gupta et al.
2024). It is the task of unique_extractor, computed otherwise: by counting and by looking up an index."""

import jax.numpy as jnp

from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b", "c")
LETTERS = (2, 3, 4)
NONE = PAD
NOWHERE = -1


def pair(tokens):
    """Each token with its index: (seq, 2)."""
    return jnp.stack([tokens, jnp.arange(len(tokens))], -1)


def width(pair):
    """How many tokens are the one here and stand no later."""
    token, index = pair[:, 0], pair[:, 1]
    return ((token[:, None] == token[None]) & (index[:, None] >= index[None])).sum(1)


def count(width):
    """What the head holds as a share of its attention, as a number: the value is the same."""
    return width


def index(count):
    """The index of the token that is kept: its own where it is the first of its kind, or else none."""
    return jnp.where(count == 1, jnp.arange(len(count)), NOWHERE)


def kept(tokens, index):
    """The token at the index; None where there is none."""
    return jnp.where(index == NOWHERE, NONE, tokens[index])


CASE = Case(
    name="first_occurrences",
    vocabulary=VOCABULARY,
    variables=(
        Variable("pair", ("tokens",), pair, mlp(0)),
        Variable("width", ("pair",), width, head(1, 0)),
        Variable("count", ("width",), count, mlp(1)),
        Variable("index", ("count",), index, mlp(2)),
        Variable("kept", ("tokens", "index"), kept, head(3, 0)),
    ),
    strata=(Uniform(LETTERS),),
    n_layers=4,
    d_model=50,
    d_head=12,
    n_heads=4,
    n_outputs=len(VOCABULARY),
    n_ctx=10,
    act_fn="gelu",
)
