"""left_greater: are there more ( than ) so far?"""

import jax.numpy as jnp

from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Arrangements
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "(", ")")
LEFT, RIGHT = 2, 3


def counts(tokens):
    """How many ( and how many ) there are up to each position: (seq, 2)."""
    return jnp.cumsum(jnp.stack([tokens == LEFT, tokens == RIGHT], -1), 0)


def left_greater(counts):
    return counts[:, 0] > counts[:, 1]


def answer(left_greater):
    """1 or 0; class 2 at the first position, BOS's, where there is nothing to compare."""
    return jnp.where(jnp.arange(len(left_greater)) == 0, 2, left_greater.astype(jnp.int32))


CASE = Case(
    name="left_greater",
    vocabulary=VOCABULARY,
    variables=(
        Variable("counts", ("tokens",), counts, head(0, 1)),
        Variable("left_greater", ("counts",), left_greater, mlp(0)),
        Variable("answer", ("left_greater",), answer),
    ),
    strata=lambda length: tuple(Arrangements(LEFT, RIGHT, lefts) for lefts in range(length + 1)),
    n_layers=1,
    d_model=12,
    d_head=3,
    n_outputs=3,
)
