"""What a sweep found: a summary a setting, as a table and as a picture."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from scipy.stats import binomtest

from siitjax.base.share import percent
from siitjax.siit.metrics import mean as mean_share
from siitjax.siit.metrics import share
from siitjax.sweep.results import Results, Row

MEANS = ("accuracy", "iia", "changed_iia", "siia", "joint_siia")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Okabe and Ito's colours, which all readers can tell apart."""
LINES = ("-", "--", ":", "-.")
FLOOR = 1e-5
STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42}
"""Of every picture; those with many panels take a smaller font."""
"""Where the picture's axes turn from logarithmic to linear, so that an error of 0 has a place: about one token."""


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


def picture(results: Results, rows: Sequence[Row], title: str, verdict: Verdict, path: Path) -> None:
    """Training curves by setting with bands, and convergence with intervals.

    A curve is the median over seeds, its band their quartiles; a member that stopped early keeps its last value.
    Bars are Wilson 95% intervals; a dot is a member, open where it did not converge, and a stroke their median.
    """
    settings = summarise(rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.9 + 0.12 * len(settings)), layout="constrained")
        axes = figure.subplots(1, 4, width_ratios=(3, 3, 2, 2))
        for axis, metric, label in zip(axes, ("changed_iia", "siia"), ("IIA on changed labels", "SIIA"), strict=False):
            for i, s in enumerate(settings):
                _curve(axis, _errors(results, [r for r in rows if r["setting"] == s.name], metric), i, s.name)
            axis.set_yscale("symlog", linthresh=FLOOR, linscale=0.4)
            axis.set(xlabel="epoch", ylabel=f"1 - {label}", ylim=(-0.05 * FLOOR, 1), xlim=(1, None))
        _convergence(axes[2], settings)
        _epochs(axes[3], settings, rows)
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
        figure.suptitle(f"{title}\n{verdict}", fontsize=9, x=0.01, ha="left", wrap=True)
        figure.savefig(path, dpi=150)


def heat_map(
    shares: Sequence[Sequence[float]],
    rows: Sequence[Any],
    columns: Sequence[Any],
    labels: tuple[str, str],
    title: str,
    path: Path,
) -> None:
    """Shares from 0 to 1 as a map, a line of it for each of `rows`; `labels` name the rows and the columns."""
    with matplotlib.rc_context({"font.size": 9, "pdf.fonttype": 42}):
        figure = Figure(figsize=(2.5 + 0.8 * len(columns), 1.8 + 0.45 * len(rows)), layout="constrained")
        axis = figure.subplots()
        drawn = axis.imshow(np.array(shares), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set_xticks(range(len(columns)), [str(column) for column in columns])
        axis.set_yticks(range(len(rows)), [str(row) for row in rows])
        for i, line in enumerate(shares):
            for j, share in enumerate(line):
                axis.text(
                    j, i, f"{100 * share:.0f}", ha="center", va="center", color="black" if share > 0.6 else "white"
                )
        axis.set(ylabel=labels[0], xlabel=labels[1])
        figure.colorbar(drawn, label="share of seeds")
        figure.suptitle(title, fontsize=9, x=0.01, ha="left", wrap=True)
        figure.savefig(path, dpi=150)


def cost_picture(timings: Sequence[Row], title: str, path: Path) -> None:
    """What a member's training step costs against the members at once, a line a form."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.5, 3.6), layout="constrained")
        axis = figure.subplots()
        for i, form in enumerate(dict.fromkeys(timing["form"] for timing in timings)):
            points = sorted((t["lanes"], t["step_ms"]) for t in timings if t["form"] == form)
            axis.plot(*zip(*points, strict=True), f"o{_look(i)[1]}", color=_look(i)[0], label=form, markersize=4)
        lanes = sorted({timing["lanes"] for timing in timings})
        axis.set_xscale("log", base=2)
        axis.set_xticks(lanes, map(str, lanes))
        axis.set(xlabel="members at once", ylabel="ms a training step a member", ylim=(0, None), title=title)
        axis.legend(frameon=False)
        figure.savefig(path, dpi=150)


def _errors(results: Results, rows: Sequence[Row], metric: str) -> Float[np.ndarray, "seed epoch"]:
    curves = [1 - np.asarray(results.curves(row)[metric] or [np.nan]) for row in rows]
    longest = max(map(len, curves))
    held = [np.pad(curve, (0, longest - len(curve)), mode="edge") for curve in curves]
    return np.stack(held)


def _curve(axis: Axes, errors: Float[np.ndarray, "seed epoch"], i: int, name: str) -> None:
    epochs = np.arange(1, errors.shape[1] + 1)
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # an epoch that no seed has is a gap
        low, middle, high = np.nanpercentile(errors, (25, 50, 75), axis=0)
    colour, line = _look(i)
    axis.plot(epochs, middle, line, color=colour, label=name, linewidth=1.5)
    axis.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)


def _look(i: int) -> tuple[str, str]:
    return COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)]


def _convergence(axis: Axes, settings: Sequence[Setting]) -> None:
    for i, s in enumerate(settings):
        share = s.converged / s.run
        spread = np.array([[max(share - s.low, 0)], [max(s.high - share, 0)]])
        axis.errorbar([share], [i], xerr=spread, fmt="o", color=_look(i)[0], capsize=3)
        axis.annotate(f"{s.converged}/{s.run}", (share, i), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axis.set(xlim=(-0.08, 1.08), xlabel="share converged", ylim=(len(settings) - 0.4, -0.6))
    axis.set_yticks(range(len(settings)), [s.name for s in settings], fontsize=8)


def _epochs(axis: Axes, settings: Sequence[Setting], rows: Sequence[Row]) -> None:
    for i, s in enumerate(settings):
        ours = [row for row in rows if row["setting"] == s.name]
        spread = np.linspace(-0.18, 0.18, len(ours)) if len(ours) > 1 else np.zeros(1)
        for offset, row in zip(spread, ours, strict=True):
            full = row["stop"] == "converged"
            axis.plot(
                row["epochs"], i + offset, "o", color=_look(i)[0], markerfacecolor=_look(i)[0] if full else "none", ms=4
            )
        if s.median_epochs is not None:
            axis.vlines(s.median_epochs, i - 0.3, i + 0.3, color=_look(i)[0], linewidth=1.5)
    axis.set(xlabel="epochs run", ylim=(len(settings) - 0.4, -0.6), xlim=(0, None))
    axis.set_yticks([])
