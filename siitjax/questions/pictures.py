"""What a sweep found, as a picture.

Apart from the tables, since matplotlib takes as long to import as all that trains: what draws nothing does without.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from siitjax.questions.report import Setting, Verdict, summarise
from siitjax.sweep.results import Results, Row

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Okabe and Ito's colours, which all readers can tell apart."""
LINES = ("-", "--", ":", "-.")
FLOOR = 1e-5
"""Where the picture's axes turn from logarithmic to linear, so that an error of 0 has a place: about one token."""
STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42}
"""Of every picture; those with many panels take a smaller font."""


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
