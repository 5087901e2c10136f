"""sorting: the letters of the string in their order. Attention is bidirectional."""

import jax.numpy as jnp

from siitjax.causal.case import BOS, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b", "c")
LETTERS = (2, 3, 4)


def counts(tokens):
    """How many a, b and c the whole string has, at every position: (seq, 3)."""
    found = jnp.stack([(tokens == letter).sum() for letter in LETTERS])
    return jnp.broadcast_to(found, (len(tokens), len(LETTERS)))


def ordered(counts):
    """The letter that stands at each position once the string is sorted; BOS stays the first token."""
    place = jnp.arange(len(counts))
    smaller = (jnp.cumsum(counts, 1) < place[:, None]).sum(1)  # letters all of which come before
    letter = jnp.asarray(LETTERS)[jnp.minimum(smaller, len(LETTERS) - 1)]
    return jnp.where(place == 0, BOS, letter)


CASE = Case(
    name="sorting",
    vocabulary=VOCABULARY,
    variables=(
        Variable("counts", ("tokens",), counts, head(0, 0)),
        Variable("ordered", ("counts",), ordered, mlp(0)),
    ),
    strata=(Uniform(LETTERS),),
    n_layers=1,
    d_model=24,
    d_head=6,
    n_outputs=len(VOCABULARY),
    n_ctx=9,
    attention_dir="bidirectional",
)
