"""ioi: indirect object identification. "later that day , Ann and Bob went to the park . Bob gave a ring to" is answered
by Ann. The circuit, its places and the transformer are those of InterpBench (Gupta et al. 2024; the task is of Wang et
al. 2023), with MLPs of 256; `ioi_full` has its 3,072. Names and words are our own, each of one token.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Strings
from siitjax.model.nodes import head, mlp

NAMES = ("Ann", "Bob", "Cal", "Dan", "Eve", "Fay", "Gil", "Hal", "Ida", "Jon", "Kim", "Lou")
PLACES = ("park", "shop", "school", "garden", "station")
VERBS = ("gave", "handed", "passed", "sold")
THINGS = ("ring", "book", "drink", "ball", "letter")
OPENINGS = (("later", "that", "day", ","), ("after", "a", "lunch", ","), ("it", "rained", "again", "."))
"""What stands in front: as many words each, so that the names keep their places."""
WORDS = ("and", "went", "to", "the", ".", "a", *dict.fromkeys(word for words in OPENINGS for word in words))
VOCABULARY = tuple(dict.fromkeys(("BOS", "PAD", *NAMES, *PLACES, *VERBS, *THINGS, *WORDS)))
ID = {word: i for i, word in enumerate(VOCABULARY)}
FIRST, SECOND, AGAIN = 5, 7, 13
"""Where the names stand."""
NOWHERE = 0


@dataclass(frozen=True)
class Sentences:
    """Two names went somewhere, and one of them gave something to the other (ABA and ABB); or any three names did.

    Without the last kind every string would inhibit a name, and no swap would show where that is decided. Wang et al.
    2023 corrupt their sentences with it (ABC).

    Attributes:
        opening: the words in front.
        again: whether one of the first two names comes again.
    """

    opening: tuple[str, ...]
    again: bool

    def __call__(self, rng: np.random.Generator, n: int, length: int) -> Strings:
        any_of = lambda words: rng.choice([ID[word] for word in words], n)
        always = lambda *words: [np.full(n, ID[word]) for word in words]
        one, two = rng.permuted(np.tile([ID[name] for name in NAMES], (n, 1)), axis=1)[:, :2].T
        if self.again:
            three = np.where(rng.integers(0, 2, n), two, one)
        else:  # what was drawn above is left, so that the strings stay those of the shipped model's training
            three, one, two = any_of(NAMES), any_of(NAMES), any_of(NAMES)
        columns = [
            *always(*self.opening),
            *(one, *always("and"), two, *always("went", "to", "the"), any_of(PLACES), *always(".")),
            *(three, any_of(VERBS), *always("a"), any_of(THINGS), *always("to")),
        ]
        strings = np.stack(columns, 1)[:, :length]
        return np.pad(strings, ((0, 0), (0, length - strings.shape[1])), constant_values=PAD).astype(np.int32)


def word(tokens):
    return tokens


def duplicate(word):
    """Where each word stood among the first two names, the last time; nowhere if it did not."""
    here = jnp.arange(len(word))
    stood = (word[None] == word[:, None]) & (here[None] < here[:, None]) & ((here == FIRST) | (here == SECOND))[None]
    return jnp.where(stood, here[None], NOWHERE).max(1)


def inhibited(word, duplicate):
    """From the third name on, that name if it stood before; else, and up to it, what stands first: BOS."""
    found = (duplicate[AGAIN] != NOWHERE) & (jnp.arange(len(word)) >= AGAIN)
    return jnp.where(found, word[AGAIN], word[0])


def indirect_object(word, inhibited):
    """Where a name is inhibited, the first of the two that is not; else BOS."""
    left = jnp.where(word[SECOND] != inhibited, word[SECOND], word[0])
    return jnp.where(inhibited != word[0], jnp.where(word[FIRST] != inhibited, word[FIRST], left), word[0])


CASE = Case(
    name="ioi",
    vocabulary=VOCABULARY,
    variables=(
        Variable("word", ("tokens",), word, mlp(0)),
        Variable("duplicate", ("word",), duplicate, head(1, 1)),
        Variable("inhibited", ("word", "duplicate"), inhibited, head(2, 1)),
        Variable("indirect_object", ("word", "inhibited"), indirect_object, head(4, 1)),
    ),
    strata=tuple(Sentences(opening, again) for opening in OPENINGS for again in (False, True)),
    counted="last",
    n_layers=6,
    d_model=64,
    d_head=16,
    d_mlp=256,
    act_fn="gelu",
    n_outputs=len(VOCABULARY),
    n_ctx=18,
)
