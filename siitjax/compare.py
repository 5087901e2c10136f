"""Comparisons of two settings, seed by seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import ttest_1samp

from siitjax.errors import UserError
from siitjax.metrics import share
from siitjax.results import Row

MARGIN = 1.25
"""How many times the other's epochs a setting may need and still match it; fixed before any sweep was run."""


@dataclass(frozen=True)
class Lag:
    """How many times the epochs of another setting one needs to converge.

    Attributes:
        kind: "matches" where the whole interval lies below the margin, "behind" where it lies above, else "unclear".
        ratio, low, high: geometric mean over the seeds, and its 95% interval; None with fewer than two pairs.
        pairs: seeds of which at least one of the two converged: the others say nothing.
    """

    kind: Literal["matches", "behind", "unclear"]
    ratio: float | None
    low: float | None
    high: float | None
    pairs: int

    def words(self, one: str, other: str) -> str:
        """The comparison as part of a sentence, the two settings called by these names."""
        if self.ratio is None:
            return f"too few seeds of {one} or {other} converged to compare them ({self.pairs})"
        unclear = f"may lie on either side of the margin, {MARGIN:g}"
        means = {"matches": "matches", "behind": "falls behind", "unclear": unclear}[self.kind]
        interval = f"(95% interval {self.low:.2f}-{self.high:.2f})"
        return f"{one} needs {self.ratio:.2f} times the epochs of {other} {interval}, so it {means}"


def lag(rows: Sequence[Row], others: Sequence[Row]) -> Lag:
    """Compares the epochs to converge of two settings, paired by seed: a t interval on the log of their ratio.

    A member that did not converge counts as converging with its last epoch, the least that it can have needed.

    Raises:
        UserError: the seeds of the two are not the same.
    """
    if [row["seed"] for row in rows] != [row["seed"] for row in others]:
        raise UserError("the two settings were run with different seeds; run both with the same to compare them")
    pairs = [
        (row["epochs"], other["epochs"])
        for row, other in zip(rows, others, strict=True)
        if "converged" in (row["stop"], other["stop"])
    ]
    if len(pairs) < 2:
        return Lag("unclear", None, None, None, len(pairs))
    logs = np.log([a / b for a, b in pairs])
    if np.ptp(logs) < 1e-12:
        low = high = float(logs[0])
    else:
        low, high = map(float, ttest_1samp(logs, 0.0).confidence_interval(0.95))
    kind = "matches" if high < np.log(MARGIN) else "behind" if low > np.log(MARGIN) else "unclear"
    return Lag(kind, float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high)), len(pairs))


def speed(found: Lag) -> Literal["slower", "faster", "as fast", "unclear"]:
    """How one setting's epochs lie to another's, by the whole interval on either side of the margin."""
    if found.low is None or found.high is None:
        return "unclear"
    if found.low > MARGIN:
        return "slower"
    if found.high < 1 / MARGIN:
        return "faster"
    return "as fast" if found.low > 1 / MARGIN and found.high < MARGIN else "unclear"


def speed_words(one: str, other: str, found: Lag) -> str:
    """The same as part of a sentence, the two settings called by these names."""
    if found.ratio is None:
        return found.words(one, other)
    kind = speed(found)
    means = "may or may not be as fast" if kind == "unclear" else f"is {kind}"
    interval = f"(95% interval {found.low:.2f}-{found.high:.2f})"
    return f"{one} needs {found.ratio:.2f} times the epochs of {other} {interval}, so it {means}"


@dataclass(frozen=True)
class Points:
    """A mean over seeds of what is counted in points: hundredths of a share.

    Attributes:
        mean: None without any seed.
        low, high: its 95% interval, Student's t; None with fewer than two seeds.
    """

    mean: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        return f"{self.mean:+.3f}" + ("" if self.low is None else f" ({self.low:+.3f} to {self.high:+.3f})")


def points(shares: Iterable[float]) -> Points:
    """The mean of shares, one a seed, in points."""
    values = 100 * np.array([*shares])
    if len(values) < 2:
        return Points(float(values[0]) if len(values) else None, None, None)
    low = high = mean = float(values.mean())
    if np.ptp(values) > 1e-9:
        low, high = map(float, ttest_1samp(values, 0.0).confidence_interval(0.95))
    return Points(mean, low, high)


def difference(rows: Sequence[Row], others: Sequence[Row], metric: str) -> Points:
    """By how much a metric of one setting lies above another's, paired by seed.

    A seed that has no such figure in one of the two, as where no label changed, says nothing.

    Raises:
        UserError: the seeds of the two are not the same.
    """
    if [row["seed"] for row in rows] != [row["seed"] for row in others]:
        raise UserError("the two settings were run with different seeds; run both with the same to compare them")
    pairs = ((share(row, metric), share(other, metric)) for row, other in zip(rows, others, strict=True))
    return points(float(a - b) for a, b in pairs if a is not None and b is not None)


def by_seed(rows: Sequence[Row], setting: str) -> list[Row]:
    """The rows of one setting, in the order of their seeds."""
    return sorted((row for row in rows if row["setting"] == setting), key=lambda row: row["seed"])
