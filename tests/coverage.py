"""Measures how often the statistics of verdicts are right, on simulated sweeps whose truth is known.

    python -m tests.coverage --sweeps=1000

Epochs to converge are drawn from log-normal distributions, of which seeds share a part; they are rounded up, cut at a
budget that so many members exceed, and some members diverge. The rows pass through `siitjax.questions.statistics.speed`
as a sweep's do. Differences of metrics are drawn as far from symmetric as those of backup behaviour are: most 0, and
some large. Exits with 1 where an interval covers the truth in less than 93% of the sweeps that give one, where a wrong
verdict comes out in 5% of the sweeps or more, or where anything is decided from fewer than 6 seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.optimize import root_scalar
from scipy.stats import norm

from siitjax.base.command import Command, flag, main
from siitjax.questions.statistics.paired import points
from siitjax.questions.statistics.ranks import LEAST, Differences
from siitjax.questions.statistics.speed import MARGIN, holm, interaction, ratio
from siitjax.sweep.results import Row

SEEDS = (4, 8, 16, 32)
MEDIAN = 10.0
"""Epochs that a setting of ratio 1 takes."""
SHARED = 0.3
"""Of the variance of log epochs, what the settings of a seed share."""
COVERS, WRONG = 0.93, 0.05
"""The least share of intervals that cover the truth, and the share of wrong verdicts that is too large."""
FULL = 1_000
"""Sweeps from which these are demanded as they stand; of fewer, three standard errors are allowed for."""


@dataclass(frozen=True)
class World:
    """What sweeps are drawn from.

    Attributes:
        what: "ratio" of two settings, "interaction" of four, or "family" of three ratios to one first setting.
        truth: the ratio, the ratio of ratios (of 1.6 and so many times 1.6), or all three ratios.
        spread: geometric standard deviation of the epochs of a setting over its seeds.
        censored: share of the members that need more than the budget.
        diverged: share of the members that diverge, of the first setting and of the others.
    """

    what: str
    truth: float
    spread: float
    censored: float
    diverged: tuple[float, float]

    @property
    def ratios(self) -> Sequence[float]:
        """Of each setting's epochs to `MEDIAN`."""
        return {
            "ratio": (self.truth, 1.0),
            "interaction": (1.6, 1.0, 1.6 * self.truth, 1.0),
            "family": (1.0, *[self.truth] * 3),
        }[self.what]

    @property
    def centre(self) -> float:
        """The ratio that intervals are to cover: that of which half the means of two seeds lie above.

        It is the truth, unless settings diverge unequally; then, of two settings that are never cut short, the log
        ratio is infinite in so many seeds, and normal in the others.
        """
        more, fewer = self.diverged
        if more == fewer:
            return self.truth
        assert self.what == "ratio"
        assert fewer == self.censored == 0
        sd = np.log(self.spread) * np.sqrt(2 * (1 - SHARED))
        return float(self.truth * np.exp(sd / np.sqrt(2) * norm.ppf(0.5 / (1 - more) ** 2)))

    @cached_property
    def budget(self) -> float:
        """Epochs that the share of members exceeds."""
        if not self.censored:
            return np.inf
        medians, sd = np.log(MEDIAN) + np.log(self.ratios), np.log(self.spread)
        over = lambda log: norm.sf((log - medians) / sd).mean() - self.censored
        return float(np.ceil(np.exp(root_scalar(over, bracket=(-5, 20)).root)))

    def rows(self, seeds: int, rng: np.random.Generator) -> list[list[Row]]:
        """Each setting's rows, by seed."""
        sd = float(np.log(self.spread))
        medians = np.log(MEDIAN) + np.log(self.ratios)
        shared = rng.normal(0, sd * np.sqrt(SHARED), seeds)
        times = medians[:, None] + shared + rng.normal(0, sd * np.sqrt(1 - SHARED), (len(medians), seeds))
        budget = self.budget
        epochs = np.ceil(np.exp(times))
        more, fewer = self.diverged
        rates = np.array([more, *[fewer] * (len(medians) - 1)])
        diverges = rng.random(epochs.shape) < rates[:, None]
        blown = rng.integers(0, 5, epochs.shape)  # 0: in its first epoch

        def row(i: int, seed: int) -> Row:
            if diverges[i, seed]:
                return {"seed": seed, "stop": "diverged", "epochs": int(blown[i, seed])}
            if epochs[i, seed] > budget:
                return {"seed": seed, "stop": "exhausted", "epochs": int(budget)}
            return {"seed": seed, "stop": "converged", "epochs": int(epochs[i, seed])}

        return [[row(i, seed) for seed in range(seeds)] for i in range(len(medians))]

    def sweep(self, seeds: int, rng: np.random.Generator) -> "Trial":
        """One sweep, and the verdict on it."""
        rows = self.rows(seeds, rng)
        first, *others = rows
        family: dict[int, Differences] = {
            "ratio": lambda: {0: ratio(*rows)},
            "interaction": lambda: {0: interaction(*rows)},
            "family": lambda: {i: ratio(other, first) for i, other in enumerate(others)},
        }[self.what]()
        kinds = {i: speed.kind for i, speed in holm(family).items()}
        intervals = [interval for each in family.values() if (interval := each.interval())]
        rash = any(kinds[i] != "unclear" and (len(each) < LEAST or each.alike) for i, each in family.items())
        return Trial(intervals, {*kinds.values()} - {"unclear"}, rash)

    @property
    def log(self) -> float:
        """What the intervals are to cover."""
        return float(np.log(self.centre))

    @property
    def labels(self) -> tuple[str, ...]:
        """As the table has it."""
        diverged = "/".join(dict.fromkeys(f"{100 * share:.0f}" for share in self.diverged))
        return self.what, f"{self.centre:.3g}", f"{self.spread:g}", f"{100 * self.censored:.0f}%", f"{diverged}%"

    @property
    def kind(self) -> str:
        """What a verdict may say; at the margin, nothing."""
        if np.isclose(self.centre, MARGIN):
            return "unclear"
        return "slower" if self.centre > MARGIN else "as fast"


@dataclass(frozen=True)
class Shares:
    """Metrics of two settings, in points: most seeds lose nothing, and some lose much.

    Attributes:
        truth: the median difference, from many of them.
        spread: geometric standard deviation of what is lost.
        loses: the share of seeds that lose something, in the one setting and in the other.
    """

    truth: float
    spread: float
    loses: tuple[float, float]

    @classmethod
    def of(cls, spread: float, loses: tuple[float, float]) -> "Shares":
        return cls(float(np.median(cls(0, spread, loses)._lost(1_000_000, np.random.default_rng(0)))), spread, loses)

    def _lost(self, seeds: int, rng: np.random.Generator) -> Float[np.ndarray, " seed"]:
        one, other = ((rng.random(seeds) < p) * rng.lognormal(-1, np.log(self.spread), seeds) for p in self.loses)
        return one - other

    @property
    def log(self) -> float:
        return self.truth

    def sweep(self, seeds: int, rng: np.random.Generator) -> "Trial":
        found = points(self._lost(seeds, rng) / 100)
        given = [] if found.low is None or found.high is None else [(found.low, found.high)]
        return Trial(given, set(), bool(given) and seeds < LEAST)

    @property
    def labels(self) -> tuple[str, ...]:
        """As the table has it."""
        return "points", f"{self.truth:.3g}", f"{self.spread:g}", "-", "-"

    kind = "unclear"


class Trial(NamedTuple):
    """One sweep: the intervals it gives, what its verdict says, and whether that rests on too little."""

    intervals: list[tuple[float, float]]
    said: set[str]
    rash: bool


@dataclass(frozen=True)
class Seen:
    """What sweeps of one world and so many seeds gave.

    Attributes:
        sweeps: how many there were.
        given: comparisons with an interval.
        covered: of these, those that cover the truth.
        decided, wrong: sweeps that say something of one comparison or more, and something wrong.
        rash: sweeps that say something from fewer than 6 seeds, or from ratios that are all the same.
    """

    sweeps: int
    given: int
    covered: int
    decided: int
    wrong: int
    rash: int

    @property
    def short(self) -> bool:
        allowed = lambda share, of: 0.0 if of >= FULL else 3 * np.sqrt(share * (1 - share) / max(of, 1))
        least = COVERS - allowed(COVERS, min(self.sweeps, self.given))
        most = WRONG + allowed(WRONG, self.sweeps)
        return self.covered < least * self.given or self.wrong >= most * self.sweeps or self.rash > 0

    def __str__(self) -> str:
        covers = f"{100 * self.covered / self.given:5.1f}" if self.given else "    -"
        return f"{covers} {100 * self.decided / self.sweeps:3.0f} {100 * self.wrong / self.sweeps:4.1f}"


WORLDS = (
    *(
        World("ratio", truth, spread, censored, (diverged, diverged))
        for truth, spread, censored, diverged in product((1.0, 1.25, 2.0), (1.25, 1.8), (0.0, 0.2, 0.5), (0.0, 0.05))
    ),
    *(World("ratio", truth, 1.05, 0.0, (0.0, 0.0)) for truth in (1.0, 1.25, 2.0)),  # less than an epoch's rounding
    *(World("ratio", truth, 1.25, 0.0, (0.1, 0.0)) for truth in (1.0, 2.0)),
    *(
        World("interaction", truth, 1.25, censored, (0.05, 0.05))
        for truth, censored in product((1.0, 1.25, 3.8), (0.0, 0.2, 0.5))
    ),
    *(World("family", 1.25, spread, c, (0.05, 0.05)) for spread, c in product((1.25, 1.8), (0.0, 0.2, 0.5))),
    Shares.of(4.5, (0.5, 0.2)),
    Shares.of(2.7, (1.0, 0.0)),
)


def simulate(world: World | Shares, seeds: int, sweeps: int, rng: np.random.Generator) -> Seen:
    """So many sweeps of a world."""
    given = covered = decided = wrong = rash = 0
    for _ in range(sweeps):
        trial = world.sweep(seeds, rng)
        given += len(trial.intervals)
        covered += sum(low - 1e-9 <= world.log <= high + 1e-9 for low, high in trial.intervals)
        decided += bool(trial.said)
        wrong += bool(trial.said - {world.kind})
        rash += trial.rash
    return Seen(sweeps, given, covered, decided, wrong, rash)


@dataclass(frozen=True)
class Coverage(Command):
    """Measures, on simulated sweeps, how often intervals cover the truth and verdicts are wrong."""

    sweeps: int = flag(FULL, "simulated sweeps of each kind", least=1)
    seed: int = flag(0, "decides what is drawn", least=0)

    def run(self) -> int:
        table = Table(
            title=f"{self.sweeps} sweeps each: intervals that cover the truth, sweeps decided, decided wrongly (%)",
            box=box.SIMPLE_HEAD,
            title_justify="left",
        )
        for column in ("of", "truth", "spread", "censored", "diverged", *(f"{n} seeds" for n in SEEDS)):
            table.add_column(column, justify="left" if column == "of" else "right", no_wrap=True)
        rng, short, least, most = np.random.default_rng(self.seed), 0, 1.0, 0.0
        for world in WORLDS:
            cells = []
            for seeds in SEEDS:
                seen = simulate(world, seeds, self.sweeps, rng)
                short += seen.short
                least = min(least, seen.covered / seen.given if seen.given else 1.0)
                most = max(most, seen.wrong / seen.sweeps)
                cells.append(f"{seen}{' !' if seen.short else '  '}")
            table.add_row(*world.labels, *cells)
        Console(width=140, highlight=False).print(table)
        print(f"least coverage {100 * least:.1f}%, most wrong verdicts {100 * most:.1f}%; {short} fall short (!)")
        return 1 if short else 0


if __name__ == "__main__":
    main(Coverage)
