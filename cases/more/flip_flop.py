"""flip_flop: a memory of one bit. "w0" and "w1" write it, and "i0" and "i1" are ignored (Liu et al. 2023).

The answer is the bit that was written last, at every token, and the other one at "n".
"""

import jax.numpy as jnp

from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp

VOCABULARY = ("BOS", "PAD", "w0", "w1", "i0", "i1", "n")
INSTRUCTIONS = (2, 3, 4, 5, 6)
WRITE_0, WRITE_1, NEGATED = 2, 3, 6
NONE, BIT_0, BIT_1 = range(3)


def memory(tokens):
    """The bit that was written last, at each position; none before the first."""
    here = jnp.arange(len(tokens))
    writes = ((tokens == WRITE_0) | (tokens == WRITE_1))[None] & (here[None] <= here[:, None])
    last = jnp.where(writes, here[None], -1).max(1)
    return jnp.where(last < 0, NONE, jnp.where(tokens[last] == WRITE_0, BIT_0, BIT_1))


def answer(tokens, memory):
    """The bit; the other one at "n"; none where none is stored."""
    other = jnp.where(memory == NONE, NONE, BIT_0 + BIT_1 - memory)
    return jnp.where(tokens == NEGATED, other, memory)


CASE = Case(
    name="flip_flop",
    vocabulary=VOCABULARY,
    variables=(
        Variable("memory", ("tokens",), memory, head(0, 0)),
        Variable("answer", ("tokens", "memory"), answer, mlp(0)),
    ),
    strata=(Uniform(INSTRUCTIONS),),
    n_layers=1,
    d_model=24,
    d_head=6,
    n_outputs=3,
    n_ctx=12,
)
