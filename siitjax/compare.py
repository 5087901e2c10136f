"""Differences of metrics between two settings, seed by seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from siitjax.errors import UserError
from siitjax.metrics import share
from siitjax.ranks import Differences
from siitjax.results import Row


@dataclass(frozen=True)
class Points:
    """The centre over seeds of what is counted in points: hundredths of a share (see `siitjax.ranks`).

    Attributes:
        centre: None without any seed.
        low, high: its 95% interval; None with fewer than 6 seeds, or where all are the same.
    """

    centre: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.centre is None:
            return "-"
        return f"{self.centre:+.3f}" + ("" if self.low is None else f" ({self.low:+.3f} to {self.high:+.3f})")


def points(shares: Iterable[float]) -> Points:
    """The centre of shares, one a seed, in points."""
    values = tuple(100 * share for share in shares)
    found = Differences(values, values)
    centre, interval = found.centre, found.interval()
    return Points(None if centre is None else centre[0], *(interval or (None, None)))


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
