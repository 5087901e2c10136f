"""What methods found at the nodes of several models: what is chosen of each, a table, and a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from siitjax.analysis.alignment.study import UNTRAINED, WRONG
from siitjax.base.jsonl import Row
from siitjax.questions.pictures import COLOURS, STYLE
from siitjax.questions.statistics.ranks import Differences

NEAR = 0.01
"""The smallest size is chosen that is within this of the best one's balanced accuracy, on the pairs to choose on."""
AT_NODES = "@nodes"
"""How models are marked that were trained under swaps of single nodes alone."""

Kind = tuple[str, str]
"""A method, and a control or "" for none."""


def kinds(rows: Sequence[Row]) -> list[Kind]:
    """The methods, in the order of the rows, and then those of the controls."""
    found = dict.fromkeys((row["method"], row["control"]) for row in rows)
    return sorted(found, key=lambda kind: ["", WRONG, UNTRAINED].index(kind[1]))


def name_of(kind: Kind) -> str:
    """What tables call a method, or a control."""
    return kind[0] + (f", {kind[1]}" if kind[1] else "")


def chosen(rows: Sequence[Row]) -> list[Row]:
    """Of each variable at a node, and each method, the row of the size and seed that are chosen on other pairs."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("model", "node", "variable", "method", "control"))
        groups.setdefault(key, []).append(row)
    return [_chosen(group) for group in groups.values()]


def _chosen(rows: Sequence[Row]) -> Row:
    near = max(row["validation"] for row in rows) - NEAR
    size = min(row["size"] for row in rows if row["validation"] >= near)
    return max((row for row in rows if row["size"] == size), key=lambda row: row["validation"])


def shared(rows: Sequence[Row]) -> list[Row]:
    """The rows of nodes that hold variables of several tasks."""
    return [row for row in rows if row["shared"]]


def by_model(rows: Sequence[Row], kind: Kind, score: str = "balanced") -> dict[str, float]:
    """The mean of a score over a model's nodes and variables; rows that are chosen."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row["method"], row["control"]) == kind and row[score] is not None:
            found.setdefault(row["model"], []).append(row[score])
    return {model: float(np.mean(each)) for model, each in found.items()}


def lead(rows: Sequence[Row], kind: Kind, other: Kind) -> Differences:
    """By how much one method's balanced accuracy lies above another's, model by model."""
    ours, theirs = by_model(rows, kind), by_model(rows, other)
    each = [ours[model] - theirs[model] for model in ours if model in theirs]
    return Differences(each, each)


def words(found: Differences, sign: str = "") -> str:
    """A centre and its interval, in %."""
    if found.centre is None:
        return "-"
    interval, number = found.interval(), lambda x: f"{100 * x:{sign}.1f}"
    within = "" if interval is None else f" ({number(interval[0])} to {number(interval[1])})"
    return number(found.centre[0]) + within


def over_models(rows: Sequence[Row], kind: Kind, score: str = "balanced") -> Differences:
    """A score over models."""
    each = [*by_model(rows, kind, score).values()]
    return Differences(each, each)


def methods_table(rows: Sequence[Row], title: str) -> Table:
    """One row a method, and kind of node."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in ("node", "method"):
        table.add_column(column, no_wrap=True)
    for column in ("variables", "balanced", "lowest", "caused", "isolated", "all tokens", "size", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    taken = chosen(rows)
    for label, part in _parts(taken):
        for kind in kinds(part):
            ours = [row for row in part if (row["method"], row["control"]) == kind]
            table.add_row(
                label,
                name_of(kind),
                f"{len(ours)}",
                words(over_models(ours, kind)),
                f"{100 * min(row['balanced'] for row in ours):.1f}",
                *(words(over_models(ours, kind, score)) for score in ("caused", "isolated", "every")),
                f"{np.median([row['size'] for row in ours]):g}",
                f"{np.median([row['seconds'] for row in ours]):.2f}",
            )
    table.caption = (
        "% of tokens; centre over models (Hodges and Lehmann) of the mean over a model's nodes and variables, and its "
        "95% interval; lowest: of a variable; size: median of those chosen; s: median of a lane, with compilation"
    )
    table.caption_justify = "left"
    return table


def _parts(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The kinds of node: that hold variables of several tasks, or of one; those of models that hold at nodes apart."""
    at_nodes = lambda row: row["model"].endswith(AT_NODES)
    kinds_of_node: list[tuple[str, Callable[[Row], bool]]] = [
        ("shared", lambda row: row["shared"] and not at_nodes(row)),
        (f"shared, {AT_NODES}", lambda row: row["shared"] and at_nodes(row)),
        ("one task's", lambda row: not row["shared"]),
    ]
    parts = [(label, [row for row in rows if within(row)]) for label, within in kinds_of_node]
    return [(label, part) for label, part in parts if part]


def picture(rows: Sequence[Row], title: str, path: Path) -> None:
    """Balanced accuracy against size, a line a method, and of the chosen size, a dot a model; at the first kind of node
    that there is, those shared by several tasks."""
    label, part = _parts(rows)[0]
    taken = chosen(part)
    found = kinds(part)
    widest = max(row["size"] for row in part if row["method"] not in ("full vector", "non-linear"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axes: Any = figure.subplots(1, 2, width_ratios=(3, 2))
        for i, kind in enumerate(kind for kind in found if not kind[1] and kind[0] != "full vector"):
            sizes, line = _by_size(part, kind)
            axes[0].plot(sizes, line, "o-", color=COLOURS[i % len(COLOURS)], label=kind[0], markersize=3)
        axes[0].set_xscale("log", base=2)
        ticks = [2**i for i in range(int(np.log2(widest)) + 1)]
        axes[0].set_xticks(ticks, map(str, ticks))
        axes[0].set(xlabel="directions or features swapped", ylabel=f"balanced accuracy, % ({label} nodes)")
        axes[0].set(ylim=(-3, 103))
        axes[0].legend(frameon=False, fontsize=8)
        for place, kind in enumerate(found):
            for model, value in by_model(taken, kind).items():
                offset = 0.3 * (_place_of(model, taken) - 0.5)
                axes[1].plot(100 * value, place + offset, "o", color=COLOURS[7 if kind[1] else 0], markersize=4)
        axes[1].set_yticks(range(len(found)), map(name_of, found))
        axes[1].set(xlabel="at the size chosen, a dot a model, %", xlim=(-3, 103), ylim=(len(found) - 0.5, -0.5))
        axes[1].axvline(50, color="#999999", linewidth=0.8)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left", wrap=True)
        figure.savefig(path, dpi=150)


def _place_of(model: str, rows: Sequence[Row]) -> float:
    """Where a model stands among all, from 0 to 1."""
    models = [*dict.fromkeys(row["model"] for row in rows)]
    return models.index(model) / max(len(models) - 1, 1)


def _by_size(rows: Sequence[Row], kind: Kind) -> tuple[list[int], list[float]]:
    """At each size, the mean over models of the seed that is best on the pairs to choose on, in %."""
    ours = [row for row in rows if (row["method"], row["control"]) == kind]
    sizes = sorted({row["size"] for row in ours})
    each = [by_model(chosen([row for row in ours if row["size"] == size]), kind) for size in sizes]
    return sizes, [100 * float(np.mean([*found.values()])) for found in each]
