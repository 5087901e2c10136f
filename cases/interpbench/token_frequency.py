"""token_frequency: whether each token is frequent in its string (more than half of it), common (more than a quarter) or
rare. Attention is bidirectional, and strings differ in length (case 18 of InterpBench, Gupta et al. 2024)."""

import jax.numpy as jnp

from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import OfLength, Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b", "c", "d", "e")
LETTERS = (2, 3, 4, 5, 6)
SHORTEST = 4
RARE, COMMON, FREQUENT = range(3)


def strata(length):
    """One for each length, from the shortest on."""
    return tuple(OfLength(Uniform(LETTERS), count) for count in range(min(SHORTEST, length), length + 1))


def is_letter(tokens):
    return tokens > PAD


def same(tokens):
    """How many tokens of the string are the one here."""
    return (tokens[:, None] == tokens[None]).sum(1)


def letters(tokens):
    """How many letters the string has, at every position."""
    return jnp.full(len(tokens), is_letter(tokens).sum())


def decoded(width):
    """What a head holds as a share of its attention, as a number: the value is the same."""
    return width


def frequency(count, length):
    """The class of each token."""
    return jnp.where(2 * count > length, FREQUENT, jnp.where(4 * count > length, COMMON, RARE))


CASE = Case(
    name="token_frequency",
    vocabulary=VOCABULARY,
    variables=(
        Variable("same", ("tokens",), same, head(0, 0)),
        Variable("letters", ("tokens",), letters, head(0, 1)),
        Variable("count", ("same",), decoded, mlp(0)),
        Variable("length", ("letters",), decoded, mlp(0)),
        Variable("frequency", ("count", "length"), frequency, mlp(1)),
    ),
    strata=strata,
    counted=is_letter,
    n_layers=2,
    d_model=26,
    d_head=6,
    n_heads=4,
    n_outputs=3,
    n_ctx=10,
    act_fn="gelu",
    attention_dir="bidirectional",
)
