"""token_frequency: whether each token is frequent in its string (more than half of it), common (more than a quarter) or
rare. Attention is bidirectional, and strings differ in length (case 18 of InterpBench, Gupta et al. 2024)."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Strings, Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b", "c", "d", "e")
LETTERS = (2, 3, 4, 5, 6)
SHORTEST = 4
RARE, COMMON, FREQUENT = range(3)


@dataclass(frozen=True)
class OfLength:
    """Every string of `count` letters, then PADs; of a shorter string, letters alone."""

    count: int

    def __call__(self, rng: np.random.Generator, n: int, length: int) -> Strings:
        return self._padded(Uniform(LETTERS)(rng, n, min(self.count, length)), length)

    def every(self, length: int, limit: int) -> Strings | None:
        strings = Uniform(LETTERS).every(min(self.count, length), limit)
        return None if strings is None else self._padded(strings, length)

    def _padded(self, strings: Int[np.ndarray, "_ own"], length: int) -> Int[np.ndarray, "_ length"]:
        return np.pad(strings, ((0, 0), (0, length - strings.shape[1])), constant_values=PAD)


def strata(length):
    """One for each length, from the shortest on."""
    return tuple(OfLength(count) for count in range(min(SHORTEST, length), length + 1))


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
