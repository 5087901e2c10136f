"""What a sweep found: a summary a setting, as a table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from rich import box
from rich.table import Table

from siitjax.base.share import percent
from siitjax.siit.metrics import mean as mean_share
from siitjax.siit.metrics import share
from siitjax.sweep.results import Row

MEANS = ("accuracy", "iia", "changed_iia", "siia", "joint_siia")


@dataclass(frozen=True)
class Setting:
    """What the members of one setting gave; metrics are exact means over those that have them, from 0 to 1.

    A metric that none of them has, as where no label changed, is None.

    Attributes:
        low, high: the Wilson 95% interval of the share of members that converge.
        median_epochs: median over the members that converged; None where none did.
        worst_changed_iia: the least, over members and nodes, of IIA on changed labels.
        median_seconds: median wall time a member, compilation not counted.
    """

    name: str
    run: int
    converged: int
    diverged: int
    low: float
    high: float
    median_epochs: float | None
    accuracy: Fraction | None
    iia: Fraction | None
    changed_iia: Fraction | None
    siia: Fraction | None
    joint_siia: Fraction | None
    worst_changed_iia: Fraction | None
    median_seconds: float


@dataclass(frozen=True)
class Verdict:
    """A question's answer, and by what: `because` ends the sentence that `kind` begins."""

    kind: Literal["supported", "contradicted", "undecided"]
    because: str

    def __str__(self) -> str:
        return f"{self.kind.capitalize()}: {self.because}"


def summarise(rows: Sequence[Row]) -> list[Setting]:
    """One summary a setting, in the order of the rows."""
    names = dict.fromkeys(row["setting"] for row in rows)
    return [_setting(name, [row for row in rows if row["setting"] == name]) for name in names]


def _setting(name: str, rows: Sequence[Row]) -> Setting:
    from scipy.stats import binomtest  # which takes as long to import as all that trains

    converged = [row["epochs"] for row in rows if row["stop"] == "converged"]
    interval = binomtest(len(converged), len(rows)).proportion_ci(0.95, method="wilson")
    return Setting(
        name=name,
        run=len(rows),
        converged=len(converged),
        diverged=sum(row["stop"] == "diverged" for row in rows),
        low=float(interval.low),
        high=float(interval.high),
        median_epochs=float(np.median(converged)) if converged else None,
        **{metric: mean(rows, metric) for metric in MEANS},
        worst_changed_iia=min((x for row in rows if (x := share(row, "worst_changed_iia")) is not None), default=None),
        median_seconds=float(np.median([row["seconds"] for row in rows])),
    )


def mean(rows: Sequence[Row], metric: str) -> Fraction | None:
    """The mean of a metric over the rows that have it; None where none has."""
    return mean_share(share(row, metric) for row in rows)


def table(settings: Sequence[Setting], title: str) -> Table:
    """The sweep's table: one row a setting."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("setting", no_wrap=True)
    columns = (
        "converged",
        "95% interval",
        "epochs",
        "accuracy",
        "IIA",
        "changed IIA",
        "worst node",
        "SIIA",
        "joint SIIA",
    )
    for column in (*columns, "s a member"):
        table.add_column(column, justify="right")
    for s in settings:
        table.add_row(
            s.name,
            f"{s.converged} of {s.run}" + (f" ({s.diverged} diverged)" if s.diverged else ""),
            f"{100 * s.low:.0f}-{100 * s.high:.0f}%",
            "-" if s.median_epochs is None else f"{s.median_epochs:g}",
            *map(percent, (s.accuracy, s.iia, s.changed_iia, s.worst_changed_iia, s.siia, s.joint_siia)),
            f"{s.median_seconds:.1f}",
        )
    table.caption = (
        "epochs: median of the seeds that converged; metrics in %, means over all seeds, on validation pairs "
        "drawn after the end; worst node: the least changed-label IIA of any node of any seed"
    )
    table.caption_justify = "left"
    return table


def summary(settings: Sequence[Setting], verdict: Verdict) -> dict[str, Any]:
    """What summary.json holds."""
    number = lambda x: float(x) if isinstance(x, Fraction) else x
    found = [{name: number(value) for name, value in asdict(s).items()} for s in settings]
    return {"verdict": asdict(verdict), "settings": found}
