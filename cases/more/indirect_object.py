"""indirect_object: of two names, of which one comes again, the other: "Ann and Bob . Ann to" gives Bob. By attention
alone in three layers, as GPT-2 does it: a duplicate token head, an S-inhibition head, a name mover (Wang et al. 2023).
"""

import jax.numpy as jnp
import numpy as np

from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Variable
from siitjax.model.nodes import head

VOCABULARY = ("BOS", "PAD", "Ann", "Bob", "Cal", "Dan", "Eve", "and", "with", ".", ";", "to", "for")
NAMES = (2, 3, 4, 5, 6)
BETWEEN, AFTER, LAST = (7, 8), (9, 10), (11, 12)
FIRST, SECOND, AGAIN = 1, 3, 5
"""Where the names stand."""
NOWHERE = 0


def sentences(rng, n, length):
    """Name, word, another name, word, one of both names, word; then PADs, as many as the length asks for."""
    two = rng.permuted(np.tile(NAMES, (n, 1)), axis=1)[:, :2]
    words = np.stack([rng.choice(kind, n) for kind in (BETWEEN, AFTER, LAST)])
    again = two[np.arange(n), rng.integers(0, 2, n)]
    string = np.stack([two[:, 0], words[0], two[:, 1], words[1], again, words[2]], 1)
    return np.pad(string, ((0, 0), (0, length - string.shape[1])), constant_values=PAD).astype(np.int32)


def earlier(tokens):
    """The position at which each token stood before; nowhere if it did not."""
    here = jnp.arange(len(tokens))
    stood = (tokens[None] == tokens[:, None]) & (here[None] < here[:, None])
    return jnp.where(stood, here[None], NOWHERE).max(1)


def inhibited(earlier):
    """From the name that comes again on, the position at which it stood before; nowhere up to it."""
    return jnp.where(jnp.arange(len(earlier)) > AGAIN, earlier[AGAIN], NOWHERE)


def other(tokens, inhibited):
    """The name of the first two that is not inhibited; the second where none is, and in front of it BOS."""
    name = jnp.where(inhibited == SECOND, tokens[FIRST], tokens[SECOND])
    return jnp.where(jnp.arange(len(tokens)) > AGAIN, name, tokens[0])


CASE = Case(
    name="indirect_object",
    vocabulary=VOCABULARY,
    variables=(
        Variable("earlier", ("tokens",), earlier, head(0, 0)),
        Variable("inhibited", ("earlier",), inhibited, head(1, 0)),
        Variable("other", ("tokens", "inhibited"), other, head(2, 0)),
    ),
    strata=(sentences,),
    counted="last",
    n_layers=3,
    d_model=32,
    d_head=8,
    n_outputs=len(VOCABULARY),
    n_ctx=7,
    attn_only=True,
)
