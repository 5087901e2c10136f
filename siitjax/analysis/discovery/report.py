"""What discovery methods found over several models: a table, paired differences, and a picture."""

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


def above_chance(rows: Sequence[Row], model: str, at: str) -> float | None:
    """The mean, over the approximate methods, of a model's average precision above chance; None where one lacks."""
    found = {row["method"]: row["above_chance"] for row in rows if (row["model"], row["at"]) == (model, at)}
    wanted = approximate(rows)
    return float(np.mean([found[method] for method in wanted])) if wanted and set(wanted) <= set(found) else None


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
    columns = ("AUROC", "average precision", "least", "at size", "CPR", "CMD", "nodes: AUROC", "nodes: AP", "s")
    for column in ("method", "models", *columns):
        table.add_column(column, justify="left" if column in ("method", "models") else "right", no_wrap=True)
    for at in (AT_EDGES, AT_NODES):
        for method in methods_of(rows):
            ours = [row for row in rows if (row["method"], row["at"]) == (method, at)]
            if not ours:
                continue
            each = lambda name, ours=ours: [row[name] for row in ours if row[name] is not None]
            seconds = [row["seconds"] for row in ours if row["compiled"]]
            table.add_row(
                method,
                f"{len(ours)} true at {at}",
                span(each("auroc")),
                span(each("average_precision")),
                f"{min(each('average_precision')):.2f}",
                span(each("at_size")),
                span(each("cpr")),
                span(each("cmd")),
                span(each("node_auroc")),
                span(each("node_average_precision")),
                f"{np.median(seconds):.2f}" if seconds else "-",
            )
    table.caption = (
        "centre over models (Hodges and Lehmann) and its 95% interval (signed ranks); least: the lowest average "
        "precision of a model; s: median of the runs whose program was compiled before"
    )
    table.caption_justify = "left"
    return table


def picture(rows: Sequence[Row], title: str, path: Path) -> None:
    """Average precision by method, a dot a model: full where its edges are true, open where it holds at nodes alone."""
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
