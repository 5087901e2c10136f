"""ioi: indirect object identification. "Ann and Bob went to the park . Bob gave a ring to" is answered by Ann. The
circuit, its places and the transformer are those of InterpBench (Gupta et al. 2024; the task is of Wang et al. 2023),
with MLPs of 256; `ioi_full` has its 3,072. Names and words are our own, each of one token.
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
OPENINGS = ((), ("then",), ("after", "lunch", ","), ("it", "rained", "all", "day", "."))
"""What may stand in front, so that the names are not always at the same places."""
WORDS = ("and", "went", "to", "the", ".", "a", *dict.fromkeys(word for words in OPENINGS for word in words))
VOCABULARY = tuple(dict.fromkeys(("BOS", "PAD", *NAMES, *PLACES, *VERBS, *THINGS, *WORDS)))
ID = {word: i for i, word in enumerate(VOCABULARY)}
FIRST_NAME, LAST_NAME = ID[NAMES[0]], ID[NAMES[-1]]
NOWHERE = 0


@dataclass(frozen=True)
class Sentences:
    """Two names went somewhere, and one of them gave something to: the other.

    Attributes:
        opening: the words in front.
        again: which of the two names comes again, the first (ABA) or the second (ABB).
    """

    opening: tuple[str, ...]
    again: int

    def __call__(self, rng: np.random.Generator, n: int, length: int) -> Strings:
        two = rng.permuted(np.tile([ID[name] for name in NAMES], (n, 1)), axis=1)[:, :2]
        any_of = lambda words: rng.choice([ID[word] for word in words], n)
        always = lambda *words: [np.full(n, ID[word]) for word in words]
        columns = [
            *always(*self.opening),
            *(two[:, 0], *always("and"), two[:, 1], *always("went", "to", "the"), any_of(PLACES), *always(".")),
            *(two[:, self.again], any_of(VERBS), *always("a"), any_of(THINGS), *always("to")),
        ]
        strings = np.stack(columns, 1)[:, :length]
        return np.pad(strings, ((0, 0), (0, length - strings.shape[1])), constant_values=PAD).astype(np.int32)


def is_name(words):
    return (words >= FIRST_NAME) & (words <= LAST_NAME)


def word(tokens):
    return tokens


def duplicate(word):
    """Where each name stood before, the last time; nowhere if it did not, or if it is no name."""
    here = jnp.arange(len(word))
    stood = (word[None] == word[:, None]) & (here[None] < here[:, None]) & is_name(word)[None]
    return jnp.where(stood, here[None], NOWHERE).max(1)


def inhibited(word, duplicate):
    """The name that came again last; what stands first, BOS, where none did."""
    here = jnp.arange(len(word))
    again = jnp.where((duplicate != NOWHERE)[None] & (here[None] <= here[:, None]), here[None], 0).max(1)
    return word[again]


def indirect_object(word, inhibited):
    """The first name so far that is not inhibited; what stands first, BOS, where there is none."""
    here = jnp.arange(len(word))
    may = (is_name(word)[None] & (word[None] != inhibited[:, None])) & (here[None] <= here[:, None])
    first = jnp.where(may, here[None], len(word)).min(1)
    return jnp.where(first < len(word), word[jnp.minimum(first, len(word) - 1)], word[0])


CASE = Case(
    name="ioi",
    vocabulary=VOCABULARY,
    variables=(
        Variable("word", ("tokens",), word, mlp(0)),
        Variable("duplicate", ("word",), duplicate, head(1, 1)),
        Variable("inhibited", ("word", "duplicate"), inhibited, head(2, 1)),
        Variable("indirect_object", ("word", "inhibited"), indirect_object, head(4, 1)),
    ),
    strata=tuple(Sentences(opening, again) for opening in OPENINGS for again in (0, 1)),
    counted="last",
    n_layers=6,
    d_model=64,
    d_head=16,
    d_mlp=256,
    act_fn="gelu",
    n_outputs=len(VOCABULARY),
    n_ctx=19,
)
