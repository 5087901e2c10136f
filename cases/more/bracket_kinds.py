"""bracket_kinds: which bracket may close next, in the beginnings of nested strings of two kinds of brackets (Dyck-2, of
limited depth; Yao et al. 2021)."""

import jax.numpy as jnp
import numpy as np

from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "(", "[", ")", "]")
OPEN, CLOSE = (2, 3), (4, 5)
DEEPEST = 3
NONE, ROUND, SQUARE = range(3)


def beginnings(rng, n, length):
    """Beginnings of nested strings: each token opens a bracket of either kind or closes the last open one, evenly
    likely, and opens where none is open and closes where DEEPEST are."""
    strings = np.empty((n, length), np.int32)
    stack, depth = np.zeros((n, DEEPEST + 1), np.int32), np.zeros(n, np.int32)
    rows = np.arange(n)
    for i in range(length):
        opens = (rng.random(n) < 0.5) & (depth < DEEPEST) | (depth == 0)
        kind = rng.integers(0, 2, n)
        stack[rows[opens], depth[opens]] = kind[opens]
        depth += np.where(opens, 1, -1)
        strings[:, i] = np.where(opens, OPEN[0] + kind, CLOSE[0] + stack[rows, depth])
    return strings


def is_open(tokens):
    return (tokens == OPEN[0]) | (tokens == OPEN[1])


def balance(tokens):
    """How many more brackets have opened than closed, up to each position."""
    closes = (tokens == CLOSE[0]) | (tokens == CLOSE[1])
    return jnp.cumsum(is_open(tokens).astype(jnp.int32) - closes.astype(jnp.int32))


def depth(balance):
    """How many brackets are open: what the head holds as a share of its attention, as a number."""
    return balance


def closes_next(tokens, depth):
    """The kind of the last bracket that opened at the depth here; none where nothing is open or did."""
    here = jnp.arange(len(tokens))
    opened = is_open(tokens)[None] & (depth[None] == depth[:, None]) & (here[None] <= here[:, None])
    last = jnp.where(opened, here[None], -1).max(1)
    kind = jnp.where(tokens[last] == OPEN[0], ROUND, SQUARE)
    return jnp.where((last < 0) | (depth <= 0), NONE, kind)


CASE = Case(
    name="bracket_kinds",
    vocabulary=VOCABULARY,
    variables=(
        Variable("balance", ("tokens",), balance, head(0, 0)),
        Variable("depth", ("balance",), depth, mlp(0)),
        Variable("closes_next", ("tokens", "depth"), closes_next, head(1, 0)),
    ),
    strata=(beginnings,),
    n_layers=2,
    d_model=32,
    d_head=8,
    n_outputs=3,
    n_ctx=10,
)
