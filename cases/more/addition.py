"""addition: two numbers of two digits are summed modulo 100, which gives the ones at the first "=" and the tens at the
second: "1 7 2 5 = =" gives 2, then 4 (after Quirke & Barez 2024)."""

import jax.numpy as jnp
import numpy as np

from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "=", *"0123456789")
EQUALS, ZERO = 2, 3
BASE = 10
ONES, TENS = 5, 6
FIRST, SECOND = {ONES: 2, TENS: 1}, {ONES: 4, TENS: 3}
"""Where the digits of the two numbers stand that each "=" adds."""


def strings(rng, n, length):
    """Four digits, then "=" to the end."""
    digits = rng.integers(0, BASE, (n, 4)) + ZERO
    return np.concatenate([digits, np.full((n, length - 4), EQUALS)], 1).astype(np.int32)


def digits(tokens, places):
    """The digits at those places, where they are added; 0 elsewhere."""
    found = jnp.zeros_like(tokens)
    for here, there in places.items():
        found = found.at[here].set(tokens[there] - ZERO)
    return found


def first(tokens):
    return digits(tokens, FIRST)


def second(tokens):
    return digits(tokens, SECOND)


def total(first, second):
    """The sum of the digits, 0 to 18."""
    return first + second


def carry(total):
    """Whether the ones come to ten or more, where the tens are added."""
    return jnp.zeros(len(total), bool).at[TENS].set(total[ONES] >= BASE)


def digit(total, carry):
    return (total + carry.astype(total.dtype)) % BASE


def is_equals(tokens):
    return tokens == EQUALS


CASE = Case(
    name="addition",
    vocabulary=VOCABULARY,
    variables=(
        Variable("first", ("tokens",), first, head(0, 0)),
        Variable("second", ("tokens",), second, head(0, 1)),
        Variable("total", ("first", "second"), total, mlp(0)),
        Variable("carry", ("total",), carry, head(1, 0)),
        Variable("digit", ("total", "carry"), digit, mlp(1)),
    ),
    strata=(strings,),
    counted=is_equals,
    n_layers=2,
    d_model=32,
    d_head=8,
    n_outputs=BASE,
    n_ctx=7,
)
