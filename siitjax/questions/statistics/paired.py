"""Differences of metrics between two settings, seed by seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr

from siitjax.base.errors import UserError
from siitjax.questions.statistics.ranks import LEVEL
from siitjax.siit.metrics import share
from siitjax.sweep.results import Row


@dataclass(frozen=True)
class Points:
    """The median over seeds of what is counted in points: hundredths of a share.

    Attributes:
        median: None without any seed.
        low, high: its 95% interval, of the sign test, which holds whatever the distribution: most seeds may lose
            nothing, and some much. None with fewer than 6 seeds, or where all are the same.
    """

    median: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.median is None:
            return "-"
        return f"{self.median:+.3f}" + ("" if self.low is None else f" ({self.low:+.3f} to {self.high:+.3f})")


def points(shares: Iterable[float]) -> Points:
    """The median of shares, one a seed, in points."""
    values = np.sort([100 * share for share in shares])
    if not len(values):
        return Points(None, None, None)
    # Of n signs that are + or - by chance, this many or fewer are + in half of `LEVEL` of all cases.
    dropped = int((bdtr(np.arange(len(values)), len(values), 0.5) <= LEVEL / 2).sum()) - 1
    if dropped < 0 or np.ptp(values) < 1e-9:
        return Points(float(np.median(values)), None, None)
    return Points(float(np.median(values)), float(values[dropped]), float(values[-1 - dropped]))


def difference(rows: Sequence[Row], others: Sequence[Row], metric: str) -> Points:
    """By how much a metric of one setting lies above another's, paired by seed.

    A seed that has no such figure in one of the two, as where no label changed, says nothing.

    Raises:
        UserError: the seeds of the two are not the same.
    """
    rows, others = (sorted(each, key=lambda row: row["seed"]) for each in (rows, others))
    if [row["seed"] for row in rows] != [row["seed"] for row in others]:
        raise UserError("the two settings were run with different seeds; run both with the same to compare them")
    pairs = ((share(row, metric), share(other, metric)) for row, other in zip(rows, others, strict=True))
    return points(float(a - b) for a, b in pairs if a is not None and b is not None)


def by_seed(rows: Sequence[Row], setting: str) -> list[Row]:
    """The rows of one setting, in the order of their seeds."""
    return sorted((row for row in rows if row["setting"] == setting), key=lambda row: row["seed"])
