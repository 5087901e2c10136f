"""What a sweep found, as a picture.

Apart from the tables, since matplotlib takes as long to import as all that trains: what draws nothing does without.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from siitjax.questions.statistics.ranks import Differences
from siitjax.questions.statistics.speed import MARGIN
from siitjax.sweep.results import Results, Row

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Okabe and Ito's colours, which all readers can tell apart."""
LINES = ("-", "--", ":", "-.")
FLOOR = 1e-5
"""Where the picture's axes turn from logarithmic to linear, so that an error of 0 has a place: about one token."""
STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42}
"""Of every picture; those with many panels take a smaller font."""


def picture(rows: Sequence[Row], comparisons: Mapping[str, Differences], title: str, path: Path) -> None:
    """The share of members that have converged, by epoch and setting; and how many times another's epochs each needs.

    A faint dot is a seed, an arrow one of which only a bound is known; a stroke is the centre with its 95% interval
    (each without correction for the others), and the band is what counts as equal, from 1 / 1.25 to 1.25.
    """
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    with matplotlib.rc_context(STYLE):
        height = 2.2 + 0.16 * len(settings) + 0.42 * len(comparisons)
        figure = Figure(figsize=(6, height), layout="constrained")
        figure.suptitle(_wrapped(title), fontsize=9, x=0.01, ha="left")
        parts = 1 + bool(comparisons)
        axes = figure.subplots(parts, squeeze=False, height_ratios=(2.2, 0.4 + 0.42 * len(comparisons))[:parts])[:, 0]
        for i, name in enumerate(settings):
            _converging(axes[0], [row for row in rows if row["setting"] == name], i, name)
        axes[0].set(xlabel="epoch", ylabel="share converged", ylim=(-0.03, 1.03), xlim=(0, None))
        if settings:
            figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8)
        if comparisons:
            _ratios(axes[1], comparisons)
        figure.savefig(path, dpi=150)


def strips(values: Mapping[str, Sequence[float]], label: str, margin: float, title: str, path: Path) -> None:
    """A line a setting, a dot a seed, a stroke their median; the axis is linear up to `margin`, logarithmic beyond."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 1.5 + 0.35 * len(values)), layout="constrained")
        axis = figure.subplots()
        for i, seeds in enumerate(values.values()):
            strip(axis, seeds, i, _look(i)[0])
        axis.axvline(margin, color="black", linewidth=0.8, linestyle=":")
        axis.set_xscale("symlog", linthresh=margin, linscale=0.5)
        axis.set(xlabel=label, ylim=(len(values) - 0.5, -0.5), xlim=(-0.1 * margin, None))
        axis.set_yticks(range(len(values)), [*values])
        figure.suptitle(_wrapped(title), fontsize=9, x=0.01, ha="left")
        figure.savefig(path, dpi=150)


def strip(axis: Axes, values: Sequence[float], i: int, colour: str) -> None:
    """Line `i` of an axis: a dot a value, one above the other, and a stroke at their median."""
    axis.plot(values, i + _spread(len(values)), "o", color=colour, markersize=4, alpha=0.6)
    if len(values):
        axis.vlines(float(np.median(values)), i - 0.35, i + 0.35, color=colour, linewidth=2)


def _spread(n: int) -> Float[np.ndarray, " n"]:
    """Heights that keep n dots of a line apart."""
    return np.linspace(-0.25, 0.25, n) if n > 1 else np.zeros(n)


def curves_picture(results: Results, rows: Sequence[Row], title: str, path: Path) -> None:
    """Training curves by setting: the median over seeds, in a band of their quartiles.

    A member that stopped early keeps its last value.
    """
    settings = dict.fromkeys(row["setting"] for row in rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.4 + 0.12 * len(settings)), layout="constrained")
        axes = figure.subplots(1, 2)
        for axis, metric, label in zip(axes, ("changed_iia", "siia"), ("IIA on changed labels", "SIIA"), strict=True):
            for i, name in enumerate(settings):
                _curve(axis, _errors(results, [row for row in rows if row["setting"] == name], metric), i, name)
            axis.set_yscale("symlog", linthresh=FLOOR, linscale=0.4)
            axis.set(xlabel="epoch", ylabel=f"1 - {label}", ylim=(-0.05 * FLOOR, 1), xlim=(1, None))
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
        figure.suptitle(_wrapped(title), fontsize=9, x=0.01, ha="left")
        figure.savefig(path, dpi=150)


def heat_map(
    shares: Sequence[Sequence[float]],
    rows: Sequence[Any],
    columns: Sequence[Any],
    labels: tuple[str, str],
    title: str,
    path: Path,
    what: str = "share of seeds",
) -> None:
    """Shares from 0 to 1 as a map, a line of it for each of `rows`; `labels` name the rows and the columns."""
    with matplotlib.rc_context({"font.size": 9, "pdf.fonttype": 42}):
        figure = Figure(figsize=(3 + 0.55 * len(columns), 1.8 + 0.35 * len(rows)), layout="constrained")
        axis = figure.subplots()
        drawn = axis.imshow(np.array(shares), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        slant: dict[str, Any] = {"rotation": 30, "ha": "right"} if max(map(len, map(str, columns))) > 8 else {}
        axis.set_xticks(range(len(columns)), [str(column) for column in columns], **slant)
        axis.set_yticks(range(len(rows)), [str(row) for row in rows])
        for i, line in enumerate(shares):
            for j, share in enumerate(line):
                axis.text(
                    j, i, f"{100 * share:.0f}", ha="center", va="center", color="black" if share > 0.6 else "white"
                )
        axis.set(ylabel=labels[0], xlabel=labels[1])
        figure.colorbar(drawn, label=what)
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


def growth_picture(
    lines: Mapping[str, tuple[Sequence[tuple[int, float]], float, float]],
    axes: Mapping[str, str],
    title: str,
    path: Path,
) -> None:
    """What a training step costs against each of six sizes, in logarithms.

    Args:
        lines: (size, ms) points, the slope of the time, and that of the operations, which is dashed; by a name whose
            part before a comma is the panel's.
        axes: the panels, and what their axes say.
    """
    with matplotlib.rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=(6, 6.4), layout="constrained")
        figure.suptitle(_wrapped(title), fontsize=9, x=0.01, ha="left")
        panels = dict(zip(axes, figure.subplots(3, 2).ravel(), strict=True))
        for name, axis in panels.items():
            axis.set(xscale="log", yscale="log", xlabel=axes[name], ylabel="ms a step")
        for name, (points, slope, counted) in lines.items():
            panel, _, kind = name.partition(", ")
            axis = panels[panel]
            colour, (sizes, ms) = _look(len(axis.get_lines()) // 2)[0], np.array(points, float).T
            axis.plot(
                sizes, ms, "o-", color=colour, markersize=4, label=f"{kind or 'time'} {slope:.2f}, FLOPs {counted:.2f}"
            )
            middle = np.exp(np.log(sizes).mean()), np.exp(np.log(ms).mean())
            axis.plot(sizes, middle[1] * (sizes / middle[0]) ** counted, "--", color=colour, linewidth=1)
            axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
            axis.margins(y=0.25)  # room for the words
            axis.legend(frameon=False, fontsize=7)
        figure.savefig(path, dpi=150)


def _wrapped(title: str) -> str:
    """The title in lines that a picture of six inches has room for."""
    return "\n".join(line for part in title.splitlines() for line in wrap(part, 86))


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


def _converging(axis: Axes, rows: Sequence[Row], i: int, name: str) -> None:
    """How the share of a setting's members that have converged rises; one that ended otherwise never does."""
    ended = sorted(row["epochs"] for row in rows if row["stop"] == "converged")
    until = max((row["epochs"] for row in rows), default=0)
    shares = [n / len(rows) for n in range(len(ended) + 1)]
    label = f"{name}: {len(ended)} of {len(rows)}"
    axis.step([0, *ended, until], [*shares, shares[-1]], _look(i)[1], where="post", color=_look(i)[0], label=label)


def _ratios(axis: Axes, comparisons: Mapping[str, Differences]) -> None:
    """Each comparison's seeds, centre and interval, on a logarithmic axis."""
    axis.axvspan(1 / MARGIN, MARGIN, color="#dddddd", linewidth=0)
    axis.set_xscale("log", base=2)
    for i, found in enumerate(comparisons.values()):
        low, high = np.exp(np.array(found.low, float)), np.exp(np.array(found.high, float))
        for a, b, y in zip(low, high, i + _spread(len(found)), strict=True):
            finite = [x for x in (a, b) if 0 < x < np.inf]
            if finite:
                marker = "o" if a == b else ">" if np.isfinite(a) and a > 0 else "<"
                axis.plot(finite[0], y, marker, color="#0072b2", alpha=0.35, markersize=3, markeredgewidth=0)
        if found.centre is not None and all(map(np.isfinite, found.centre)):
            axis.plot(np.exp(np.mean(found.centre)), i, "|", color="black", markersize=9, markeredgewidth=1.5)
    axis.set_xlim(*axis.get_xlim())
    for i, found in enumerate(comparisons.values()):
        if (interval := found.interval()) is not None:  # an end that is not known lies beyond the axis
            axis.plot(np.clip(np.exp(interval), 1e-9, 1e9), [i, i], color="black", linewidth=1.5)
    axis.set_yticks(range(len(comparisons)), [*comparisons], fontsize=8)
    axis.set(xlabel="times the epochs", ylim=(len(comparisons) - 0.5, -0.5))
    axis.xaxis.set_major_formatter("{x:g}")
