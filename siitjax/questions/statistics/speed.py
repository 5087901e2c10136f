"""How many times the epochs of another setting one needs to converge, seed by seed.

Epochs to converge are censored times on a grid. A member that converged with epoch e did so after e - 1 epochs and
before e: its time is taken as e - 1/2, and no interval is narrower than this rounding. One that ran all its epochs
needs more than these. One that diverged never converges. A seed of which neither setting converges says nothing of
their ratio, and is left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from siitjax.base.errors import UserError
from siitjax.questions.statistics.ranks import LEAST, LEVEL, Differences
from siitjax.sweep.results import Row

MARGIN = 1.25
"""How many times the other's epochs a setting may need and still be as fast; fixed before any sweep was run."""

Kind = Literal["slower", "as fast", "faster", "unclear"]
K = TypeVar("K")


@dataclass(frozen=True)
class Speed:
    """How many times the epochs of another setting one needs to converge.

    Attributes:
        kind: "slower" where the whole interval lies above the margin, "faster" where it lies below 1 / margin, "as
            fast" where it lies between the two, else "unclear".
        least, most: between which values the centre of the seeds' ratios lies: the same, unless members that did not
            converge hide it. None without any seed.
        low, high: its 95% interval; None from fewer than 6 seeds, or from ratios that are all the same.
        seeds: of which at least one of the two converged.
        family: comparisons that Holm's correction was for; `kind` follows from the intervals that it asks for.
    """

    kind: Kind
    least: float | None
    most: float | None
    low: float | None
    high: float | None
    seeds: int
    family: int = 1

    def words(self, one: str, other: str) -> str:
        """The comparison as part of a sentence, the two settings called by these names."""
        if self.least is None or self.most is None:
            return f"no seed of {one} or {other} converged, so they cannot be compared"
        needs = f"{one} needs {_span(self.least, self.most)} times the epochs of {other}"
        return f"{needs} {self._interval({'slower': 'slower', 'faster': 'faster', 'as fast': 'as fast'})}"

    def change(self, one: str, other: str) -> str:
        """The same of two ratios, of which this is how many times larger one is than the other."""
        if self.least is None or self.most is None:
            return f"no seed converged, so {one} and {other} cannot be compared"
        times = f"{one} is {_span(self.least, self.most)} times {other}"
        return f"{times} {self._interval({'slower': 'larger', 'faster': 'smaller', 'as fast': 'as large'})}"

    def _interval(self, names: Mapping[Kind, str]) -> str:
        """The interval and what follows from it, or why there is none."""
        if self.low is None or self.high is None:
            few = f"over {self.seeds} seeds, too few: an interval takes {LEAST} of which one or the other converged"
            return few if self.seeds < LEAST else f"in all of {self.seeds} seeds: an interval takes ratios that differ"
        means = f"may or may not be {names['as fast']}"
        if self.kind != "unclear":
            means = f"is {names[self.kind]}"
        elif (alone := _kind((self.low, self.high))) != "unclear":
            means = f"would be {names[alone]}, but not with Holm's correction for {self.family} comparisons"
        return f"(95% interval {_ends(self.low, self.high)}), so it {means}"

    def __str__(self) -> str:
        if self.least is None or self.most is None:
            return "-"
        shown = _span(self.least, self.most)
        return shown if self.low is None or self.high is None else f"{shown} ({_ends(self.low, self.high)})"


def ratio(rows: Sequence[Row], others: Sequence[Row]) -> Differences:
    """Logs of how many times the epochs of the others the rows need, paired by seed.

    Raises:
        UserError: the seeds of the two are not the same.
    """
    return _contrast([rows], [others])


def interaction(
    rows: Sequence[Row], others: Sequence[Row], then: Sequence[Row], others_then: Sequence[Row]
) -> Differences:
    """Logs of how many times larger the ratio of the latter two is than that of the first two, paired by seed.

    A seed of which none of the four converges is left out.

    Raises:
        UserError: the seeds of the four are not the same.
    """
    return _contrast([then, others], [others_then, rows])


def compare(rows: Sequence[Row], others: Sequence[Row]) -> Speed:
    """One setting against another, seed by seed.

    Raises:
        UserError: the seeds of the two are not the same.
    """
    return holm({0: ratio(rows, others)})[0]


def holm(family: Mapping[K, Differences]) -> dict[K, Speed]:
    """Several comparisons that one verdict rests on, corrected so that a false one comes out in 5% of sweeps at most.

    Holm's step-down (1979): of m comparisons, one is decided whose interval of confidence 1 - 0.05 / m decides it,
    then of those left one whose interval of confidence 1 - 0.05 / (m - 1) does, and so on, until none is.
    """
    kinds: dict[K, Kind] = {}
    while left := {name: each for name, each in family.items() if name not in kinds}:
        found: dict[K, Kind] = {name: _kind(_ratios(each.interval(LEVEL / len(left)))) for name, each in left.items()}
        decided = [name for name, kind in found.items() if kind != "unclear"]
        if not decided:
            break
        kinds[decided[0]] = found[decided[0]]
    return {name: _speed(each, kinds.get(name, "unclear"), len(family)) for name, each in family.items()}


def _speed(differences: Differences, kind: Kind, family: int) -> Speed:
    centre, interval = _ratios(differences.centre), _ratios(differences.interval())
    return Speed(kind, *(centre or (None, None)), *(interval or (None, None)), len(differences), family)


def _kind(interval: tuple[float, float] | None) -> Kind:
    """Where a whole interval of ratios lies."""
    if interval is None:
        return "unclear"
    low, high = interval
    if low > MARGIN:
        return "slower"
    if high < 1 / MARGIN:
        return "faster"
    return "as fast" if low > 1 / MARGIN and high < MARGIN else "unclear"


def _ratios(logs: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if logs is None else (float(np.exp(logs[0])), float(np.exp(logs[1])))


def _contrast(above: Sequence[Sequence[Row]], beneath: Sequence[Sequence[Row]]) -> Differences:
    """The sum of the log times of the settings above, less that of those beneath, seed by seed."""
    settings = [sorted(rows, key=lambda row: row["seed"]) for rows in (*above, *beneath)]
    if any([row["seed"] for row in rows] != [row["seed"] for row in settings[0]] for rows in settings):
        raise UserError("the settings were run with different seeds; run all with the same to compare them")
    converged = np.array([[row["stop"] == "converged" for row in rows] for rows in settings], bool)
    bounds = np.array([[_bounds(row) for row in rows] for rows in settings], float).reshape(*converged.shape, 2)
    low, high = bounds[..., 0], bounds[..., 1]
    n = len(above)
    with np.errstate(invalid="ignore"):  # where two of the times are infinite, nothing is known of their difference
        lows, highs = low[:n].sum(0) - high[n:].sum(0), high[:n].sum(0) - low[n:].sum(0)
    lows, highs = np.where(np.isnan(lows), -np.inf, lows), np.where(np.isnan(highs), np.inf, highs)
    said = converged.any(0)
    # Half an epoch, relative to each member's epochs.
    grains = np.where(converged, 0.5 * np.exp(-low), 0.0).sum(0)[said]
    grain = float(np.median(grains)) if len(grains) else 0.0
    return Differences(tuple(lows[said].tolist()), tuple(highs[said].tolist()), grain)


def _bounds(row: Row) -> tuple[float, float]:
    """Between which values the log of a member's epochs to converge lies."""
    if row["stop"] == "converged":
        time = math.log(row["epochs"] - 0.5)
        return time, time
    return (math.inf, math.inf) if row["stop"] == "diverged" else (math.log(row["epochs"]), math.inf)


def _span(low: float, high: float) -> str:
    """Two bounds of a ratio in words."""
    if np.isinf(low):
        return "infinitely many"
    if np.isinf(high):
        return "an unknown number of" if low == 0 else f"{low:.2f} or more"
    if low == 0:
        return f"{high:.2f} or less"
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}-{high:.2f}"


def _ends(low: float, high: float) -> str:
    """An interval in words."""
    return "of any size" if low == 0 and math.isinf(high) else _span(low, high)
