"""most_frequent: the letter that stands most often so far; of several, the first in the alphabet."""

import jax.numpy as jnp

from siitjax.causal.case import BOS, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b", "c")
LETTERS = (2, 3, 4)


def counts(tokens):
    """How many a, b and c there are up to each position: (seq, 3)."""
    return jnp.cumsum(jnp.stack([tokens == letter for letter in LETTERS], -1), 0)


def most_frequent(counts):
    """BOS where no letter has come yet."""
    return jnp.where(counts.sum(1) == 0, BOS, jnp.asarray(LETTERS)[jnp.argmax(counts, 1)])


CASE = Case(
    name="most_frequent",
    vocabulary=VOCABULARY,
    variables=(
        Variable("counts", ("tokens",), counts, head(0, 0)),
        Variable("most_frequent", ("counts",), most_frequent, mlp(0)),
    ),
    strata=(Uniform(LETTERS),),
    n_layers=1,
    d_model=24,
    d_head=6,
    n_outputs=len(VOCABULARY),
    n_ctx=10,
)
