"""What a discovery method is given beside a model and its case: pairs of a base and a source."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int

from siitjax.causal.case import Case
from siitjax.siit.fresh_pairs import BATCH, list_batches

SEED = 5_000_000
"""Far from the small seeds of training, so that the strings are others."""


class Pairs(NamedTuple):
    """Tokens of strings, each with the string that its swaps take their values from.

    Attributes:
        base: what the transformer answers.
        source: what a patched edge carries the values of.
    """

    base: Int[Array | np.ndarray, "pair seq"]
    source: Int[Array | np.ndarray, "pair seq"]


def draw_pairs(case: Case, n: int, seed: int = SEED) -> Pairs:
    """Random pairs of a case's strings, 5,000 at most.

    Example:
        >>> import siitjax
        >>> draw_pairs(siitjax.find_case("left_greater"), 3).base.shape
        (3, 15)
    """
    ((base, source),) = list_batches(case, min(n, BATCH), seed)
    return Pairs(base, source)
