"""adjacent_remover: each token, or None in the place of one that equals the token before it (case 19 of InterpBench,
Gupta et al. 2024). It is the task of duplicate_remover in a transformer of one layer."""

import jax.numpy as jnp

from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "a", "b", "c")
LETTERS = (2, 3, 4)
NONE = PAD


def shifted(tokens):
    """The token before each position; None before the first."""
    return jnp.concatenate([jnp.full(1, NONE, tokens.dtype), tokens[:-1]])


def kept(tokens, shifted):
    return jnp.where(tokens == shifted, NONE, tokens)


CASE = Case(
    name="adjacent_remover",
    vocabulary=VOCABULARY,
    variables=(
        Variable("shifted", ("tokens",), shifted, head(0, 0)),
        Variable("kept", ("tokens", "shifted"), kept, mlp(0)),
    ),
    strata=(Uniform(LETTERS),),
    n_layers=2,
    d_model=32,
    d_head=8,
    n_outputs=len(VOCABULARY),
    act_fn="gelu",
)
