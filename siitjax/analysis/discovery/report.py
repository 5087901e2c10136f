"""What discovery methods found over several models: tables, paired differences, and a picture.

A model may have several transformers: the shipped one, and others that were trained from other seeds. They are averaged
first, so that intervals are over models.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from siitjax.analysis.discovery.methods import CONTROLS, EXACT
from siitjax.base.jsonl import Row
from siitjax.questions.pictures import COLOURS, STYLE
from siitjax.questions.statistics.ranks import Differences

AT_EDGES, AT_NODES = "edges", "nodes"
"""Whether a model holds its circuit under swaps of every kind, or was trained under those of single nodes alone."""


def methods_of(rows: Iterable[Row]) -> list[str]:
    """The methods, in the order of the rows."""
    return [*dict.fromkeys(row["method"] for row in rows)]


def approximate(rows: Iterable[Row]) -> list[str]:
    """The methods that are no control, and do not patch every edge."""
    return [method for method in methods_of(rows) if method not in (*CONTROLS, *EXACT)]


def of_models(rows: Iterable[Row], figure: str) -> dict[str, list[float]]:
    """By model, a figure of each of its transformers; without those that have none."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row[figure] is not None:
            found.setdefault(row["model"], []).append(row[figure])
    return found


def over_models(rows: Iterable[Row], figure: str) -> list[float]:
    """A figure of each model, the mean of its transformers."""
    return [float(np.mean(each)) for each in of_models(rows, figure).values()]


def above_chance(rows: Sequence[Row], model: str, at: str) -> float | None:
    """The mean, over the approximate methods, of a model's average precision above chance; None where one lacks."""
    ours, wanted = [row for row in rows if (row["model"], row["at"]) == (model, at)], approximate(rows)
    found = [over_models([row for row in ours if row["method"] == method], "above_chance") for method in wanted]
    return float(np.mean(found)) if found and all(found) else None


def sharing(rows: Sequence[Row]) -> Differences:
    """By how much more is found in the single tasks' models, on average, than in the combined model of these tasks."""
    found = []
    for model in dict.fromkeys(row["model"] for row in rows if row["tasks"] > 1):
        parts = [above_chance(rows, part, AT_EDGES) for part in model.split("+")]
        own, known = above_chance(rows, model, AT_EDGES), [part for part in parts if part is not None]
        if own is not None and len(known) == len(parts):
            found.append(float(np.mean(known)) - own)
    return Differences(found, found)


def truth(rows: Sequence[Row], value: Callable[[Sequence[Row], str, str], float | None] = above_chance) -> Differences:
    """By how much more is found in models whose edges are true than in those of the same cases that hold at nodes."""
    pairs = [
        (value(rows, model, AT_EDGES), value(rows, model, AT_NODES)) for model in {row["model"]: 0 for row in rows}
    ]
    found = [one - other for one, other in pairs if one is not None and other is not None]
    return Differences(found, found)


def words(differences: Differences) -> str:
    """A centre and its interval, over so many models."""
    if differences.centre is None:
        return "- (no model)"
    interval = differences.interval()
    within = "no interval" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"
    return f"{differences.centre[0]:+.3f} ({within}; {len(differences)} models)"


def span(values: Sequence[float]) -> str:
    """The centre of one figure over models, with its 95% interval where there is one."""
    found = Differences(values, values)
    if found.centre is None:
        return "-"
    interval = found.interval()
    return f"{found.centre[0]:.2f}" + ("" if interval is None else f" ({interval[0]:.2f}-{interval[1]:.2f})")


def methods_table(rows: Sequence[Row], title: str) -> Table:
    """One row a method, and kind of model."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    columns = ("AUROC", "MIB's AUROC", "average precision", "least", "at size", "CPR", "CMD", "nodes: AUROC")
    columns += ("nodes: AP", "s")
    for column in ("method", "models", *columns):
        table.add_column(column, justify="left" if column in ("method", "models") else "right", no_wrap=True)
    for at in (AT_EDGES, AT_NODES):
        for method in methods_of(rows):
            ours = [row for row in rows if (row["method"], row["at"]) == (method, at)]
            if not ours:
                continue
            each = lambda name, ours=ours: over_models(ours, name)
            seconds = [row["seconds"] for row in ours if row["compiled"]]
            table.add_row(
                method,
                f"{len(of_models(ours, 'auroc'))} true at {at}",
                span(each("auroc")),
                span(each("mib_auroc")),
                span(each("average_precision")),
                f"{min(row['average_precision'] for row in ours):.2f}",
                span(each("at_size")),
                span(each("cpr")),
                span(each("cmd")),
                span(each("node_auroc")),
                span(each("node_average_precision")),
                f"{np.median(seconds):.2f}" if seconds else "-",
            )
    table.caption = (
        "centre over models (Hodges and Lehmann) and its 95% interval (signed ranks); least: the lowest average "
        "precision of a transformer; s: median of the runs whose program was compiled before"
    )
    table.caption_justify = "left"
    return table


def seeds_table(rows: Sequence[Row], title: str) -> Table | None:
    """By how much average precision differs between the seeds of a model, and between models; one row a method.

    Both are standard deviations, over models whose edges are true and that have two transformers or more: within a
    model, the root of the mean variance; between models, that of their means. None where there are not two such models.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in ("method", "models", "transformers", "sd within a model", "sd between models"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for method in methods_of(rows):
        ours = [row for row in rows if (row["method"], row["at"]) == (method, AT_EDGES)]
        found = [each for each in of_models(ours, "average_precision").values() if len(each) > 1]
        if len(found) < 2:
            return None
        within = np.sqrt(np.mean([np.var(each, ddof=1) for each in found]))
        between = np.std([np.mean(each) for each in found], ddof=1)
        table.add_row(method, f"{len(found)}", f"{sum(map(len, found))}", f"{within:.3f}", f"{between:.3f}")
    table.caption = "standard deviations of average precision over edges, where the edges are true"
    table.caption_justify = "left"
    return table


def models_table(rows: Sequence[Row], title: str) -> Table:
    """Average precision of each method on each of a few models."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in ("model", "true of all edges", *methods_of(rows)):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for model, one in {row["model"]: row for row in rows}.items():
        ours = [[row for row in rows if (row["model"], row["method"]) == (model, m)] for m in methods_of(rows)]
        found = (f"{over_models(each, 'average_precision')[0]:.2f}" if each else "-" for each in ours)
        table.add_row(model, f"{one['true']} of {one['counted']}", *found)
    table.caption = "average precision over edges; the verdict leaves these models out"
    table.caption_justify = "left"
    return table


def picture(rows: Sequence[Row], title: str, path: Path) -> None:
    """Average precision by method, a dot a transformer: full where its edges are true, open where it holds at nodes
    alone."""
    methods = methods_of(rows)
    tasks = sorted({row["tasks"] for row in rows})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 1.8 + 0.42 * len(methods)), layout="constrained")
        axes: Any = figure.subplots(1, 2, sharey=True)
        labels = {"average_precision": "average precision", "auroc": "AUROC"}
        for axis, (score, label) in zip(axes, labels.items(), strict=True):
            for row in rows:
                full = row["at"] == AT_EDGES
                colour = COLOURS[tasks.index(row["tasks"])]
                place = methods.index(row["method"]) + (-0.17 if full else 0.17)
                place += 0.05 * (tasks.index(row["tasks"]) - (len(tasks) - 1) / 2)
                axis.plot(row[score], place, "o", color=colour, markerfacecolor=colour if full else "none", ms=4)
            axis.set(xlabel=f"{label} over edges", xlim=(-0.02, 1.02), ylim=(len(methods) - 0.5, -0.5))
            axis.set_yticks(range(len(methods)), methods)
        for i, n in enumerate(tasks):
            axes[0].plot([], [], "o", color=COLOURS[i], label=f"{n} task{'s' if n > 1 else ''}")
        axes[0].plot([], [], "o", color="black", markerfacecolor="none", label="holds at nodes alone")
        figure.legend(loc="outside lower center", ncols=5, frameon=False)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left", wrap=True)
        figure.savefig(path, dpi=150)
