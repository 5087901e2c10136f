"""paren_checker: is the string so far a balanced string of parentheses?"""

import jax
import jax.numpy as jnp
import numpy as np

from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Those, Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "(", ")")
LEFT, RIGHT = 2, 3


def counts(tokens):
    """How many ( and how many ) there are up to each position: (seq, 2)."""
    return jnp.cumsum(jnp.stack([tokens == LEFT, tokens == RIGHT], -1), 0)


def elevation(counts):
    """How many ( are open: negative after a ) too many."""
    return counts[:, 0] - counts[:, 1]


def checks(elevation):
    """(the elevation is zero, the elevation is not negative) at each position: (seq, 2)."""
    return jnp.stack([elevation == 0, elevation >= 0], -1)


def horizon(checks):
    """Whether the elevation has never been negative so far."""
    return jax.lax.cummin(checks[:, 1].astype(jnp.int32)).astype(bool)


def balanced(checks, horizon):
    """1 or 0; class 2 at the first position, BOS's, where there is nothing to check."""
    return jnp.where(jnp.arange(len(horizon)) == 0, 2, (checks[:, 0] & horizon).astype(jnp.int32))


def kind(is_level: bool, stays_up: bool):
    """The strings that end at elevation zero or not, and never go below zero or do."""

    def keep(strings):
        heights = np.cumsum(np.where(strings == LEFT, 1, -1), axis=1)
        return ((heights[:, -1] == 0) == is_level) & ((heights >= 0).all(1) == stays_up)

    return Those(Uniform((LEFT, RIGHT)), keep)


CASE = Case(
    name="paren_checker",
    vocabulary=VOCABULARY,
    variables=(
        Variable("counts", ("tokens",), counts, head(0, 3)),
        Variable("elevation", ("counts",), elevation, mlp(0)),
        Variable("checks", ("elevation",), checks, mlp(1)),
        Variable("horizon", ("checks",), horizon, head(2, 3)),
        Variable("balanced", ("checks", "horizon"), balanced, mlp(2)),
    ),
    strata=(kind(True, True), kind(False, True), kind(True, False), kind(False, False)),
    n_layers=3,
    d_model=20,
    d_head=5,
    n_outputs=3,
)
