"""The centre of paired differences and its exact interval, where some differences are known only within bounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.05
"""Intervals miss the truth this often at most."""
LEAST = 6
"""The fewest pairs that an interval at `LEVEL` is given from: of 5, all lie on one side by chance in 2 of 32."""


@dataclass(frozen=True)
class Differences:
    """Paired differences, one a seed, each of which lies between its `low` and its `high`.

    Their centre is Hodges and Lehmann's (1963), the median of the means of two differences. The interval holds the
    values that Wilcoxon's signed-rank test, with its exact distribution, does not reject. Nothing is assumed of what
    lies within the bounds: the lower end comes from the low bounds, the upper from the high ones. Where differences
    are symmetric about their centre, it is covered at least as often as the interval says; tests/coverage.py measures
    how often.

    Attributes:
        low, high: the same where a difference is known exactly; infinite where nothing bounds it.
        grain: half the width that the differences are rounded to. The interval goes at least as far on either side
            of the centre.
    """

    low: Sequence[float]
    high: Sequence[float]
    grain: float = 0.0

    def __len__(self) -> int:
        return len(self.low)

    @cached_property
    def alike(self) -> bool:
        """Whether all differences are known and the same: they have no spread that an interval could be taken from."""
        both = np.array([*self.low, *self.high])
        return len(both) > 0 and bool(np.isfinite(both).all()) and float(np.ptp(both)) < 1e-9

    @cached_property
    def centre(self) -> tuple[float, float] | None:
        """Between which values the centre of the sample lies; None without any difference."""
        if not len(self):
            return None
        return _middle(self._lows, -np.inf), _middle(self._highs, np.inf)

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """The interval of confidence 1 - level; None from too few differences, or from differences all alike."""
        dropped = _dropped(len(self), level)
        if self.centre is None or self.alike or dropped < 0:
            return None
        low, high = float(self._lows[dropped]), float(self._highs[-1 - dropped])
        return min(low, self.centre[0] - self.grain), max(high, self.centre[1] + self.grain)

    @cached_property
    def _lows(self) -> Float[np.ndarray, " pair"]:
        return _means(self.low, -np.inf)

    @cached_property
    def _highs(self) -> Float[np.ndarray, " pair"]:
        return _means(self.high, np.inf)


def _means(values: Sequence[float], unknown: float) -> Float[np.ndarray, " pair"]:
    """The mean of every two values, and of each with itself, in order; `unknown` where the two are inf and -inf."""
    x = np.array(values, float)
    i, j = _pairs(len(x))
    with np.errstate(invalid="ignore"):
        means = (x[i] + x[j]) / 2
    return np.sort(np.where(np.isnan(means), unknown, means))


@lru_cache
def _pairs(n: int) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    return np.triu_indices(n)


def _middle(ordered: Float[np.ndarray, " pair"], unknown: float) -> float:
    """The median, which may be infinite; `unknown` where it lies between -inf and inf."""
    low, high = float(ordered[(len(ordered) - 1) // 2]), float(ordered[len(ordered) // 2])
    if low == high:
        return low
    return unknown if np.isinf(low) and np.isinf(high) else (low + high) / 2


@lru_cache
def _dropped(n: int, level: float) -> int:
    """How many of the means, at either end, the interval leaves out; -1 where n pairs cannot give one.

    The largest k for which the signed-rank statistic of n pairs is at most k in level / 2 of all 2^n signs.
    """
    counts = np.ones(1)
    for rank in range(1, n + 1):
        counts = np.convolve(counts, [1.0, *[0.0] * (rank - 1), 1.0])
    return int((np.cumsum(counts) / 2.0**n <= level / 2).sum()) - 1
