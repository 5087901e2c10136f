"""palindrome: whether the string is the same read backwards, at every token. Attention is bidirectional."""

import jax.numpy as jnp
import numpy as np

from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.causal.sources import OneChanged
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b", "c")
LETTERS = (2, 3, 4)


def mirrored(rng, n, length):
    """Palindromes."""
    half = Uniform(LETTERS)(rng, n, (length + 1) // 2)
    return np.concatenate([half, half[:, : length // 2][:, ::-1]], 1)


def opposite(tokens):
    """The token that stands at each position once the string is reversed; BOS before it and PADs after it stay."""
    here = jnp.arange(len(tokens))
    length = (tokens != PAD).sum()
    return tokens[jnp.where((here > 0) & (here < length), length - here, here)]


def differs(tokens, opposite):
    return tokens != opposite


def mismatches(differs):
    """How many tokens differ from their opposite, at every position."""
    return jnp.full(len(differs), differs.sum())


def palindrome(mismatches):
    return mismatches == 0


def is_letter(tokens):
    return tokens > PAD


CASE = Case(
    name="palindrome",
    vocabulary=VOCABULARY,
    variables=(
        Variable("opposite", ("tokens",), opposite, head(0, 0)),
        Variable("differs", ("tokens", "opposite"), differs, mlp(0)),
        Variable("mismatches", ("differs",), mismatches, head(1, 0)),
        Variable("palindrome", ("mismatches",), palindrome, mlp(1)),
    ),
    strata=(Uniform(LETTERS), mirrored),
    counted=is_letter,
    sources=OneChanged(LETTERS),
    n_layers=2,
    d_model=24,
    d_head=6,
    n_outputs=2,
    n_ctx=7,
    attention_dir="bidirectional",
)
