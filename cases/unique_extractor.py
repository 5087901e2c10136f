"""unique_extractor: keep each letter where it appears first, and replace it by PAD from then on."""

import jax.numpy as jnp

from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b", "c")
LETTERS = (2, 3, 4)


def is_letter(tokens):
    """Which of a, b, c each token is: (seq, 3)."""
    return jnp.stack([tokens == letter for letter in LETTERS], -1)


def counts(tokens):
    """How many a, b and c there are up to each position: (seq, 3)."""
    return jnp.cumsum(is_letter(tokens), 0)


def appeared(tokens, counts):
    """For each letter, whether the token here is that letter, and it stood before: (seq, 3)."""
    return is_letter(tokens) & (counts > 1)


def any_appeared(appeared):
    return appeared.any(-1)


def kept(tokens, any_appeared):
    """The token, or PAD in the place of a letter that appeared before."""
    return jnp.where(any_appeared, PAD, tokens)


CASE = Case(
    name="unique_extractor",
    vocabulary=VOCABULARY,
    variables=(
        Variable("counts", ("tokens",), counts, head(0, 2)),
        Variable("appeared", ("tokens", "counts"), appeared, mlp(0)),
        Variable("any_appeared", ("appeared",), any_appeared, mlp(1)),
        Variable("kept", ("tokens", "any_appeared"), kept, mlp(2)),
    ),
    strata=(Uniform(LETTERS),),
    n_layers=3,
    d_model=32,
    d_head=8,
    n_outputs=len(VOCABULARY),
)
