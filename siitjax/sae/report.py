"""What a study of SAEs found, as tables and as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from siitjax.compare import Points, points
from siitjax.report import COLOURS, STYLE, mean
from siitjax.sae.kinds import KINDS
from siitjax.sae.results import Row
from siitjax.sae.site import HOOKS
from siitjax.sae.study import Cost
from siitjax.share import percent

CONTROLS = ("neurons", "PCA", "random")
"""Dictionaries that nothing was trained for."""


def best_settings(rows: Sequence[Row], kind: str, score: str = "recovered", *, trained: bool = True) -> list[list[Row]]:
    """The rows of a kind at each site that has the score: all seeds, at the sparsity where its mean is largest."""
    found = []
    ours = [row for row in rows if row["kind"] == kind and row["trained"] == trained and row.get(score) is not None]
    for place in dict.fromkeys((row["model"], row["site"]) for row in ours):
        here = [row for row in ours if (row["model"], row["site"]) == place]
        settings = [[r for r in here if r["sparsity"] == s] for s in dict.fromkeys(r["sparsity"] for r in here)]
        found.append(max(settings, key=lambda setting: average(setting, score)))
    return found


def average(rows: Sequence[Row], name: str) -> float:
    """The mean of a score over the rows that have it; nan where none has."""
    found = mean(rows, name)
    return float("nan") if found is None else float(found)


@dataclass(frozen=True)
class Compared:
    """The kind of SAE and the control with the largest score on average over the sites, each at its best sparsity."""

    kind: str
    control: str
    sites: int
    found: Points
    other: Points
    above: Points

    def words(self, does: str) -> str:
        return (
            f"the best kind, {self.kind}, {does} {_interval(self.found)}, and the best control, {self.control}, "
            f"{_interval(self.other)} (difference {_interval(self.above)}; {self.sites} sites)"
        )


def compared(rows: Sequence[Row], score: str) -> Compared | None:
    """None where no site has the score of an SAE and of a control."""
    at_best = lambda kind: [average(setting, score) for setting in best_settings(rows, kind, score)]
    shares = {kind: found for kind in (*KINDS, *CONTROLS) if (found := at_best(kind))}
    best = lambda names: max((n for n in names if n in shares), key=lambda n: float(np.mean(shares[n])), default=None)
    kind, control = best(KINDS), best(CONTROLS)
    if kind is None or control is None:
        return None
    above = points(a - b for a, b in zip(shares[kind], shares[control], strict=True))
    return Compared(kind, control, len(shares[kind]), points(shares[kind]), points(shares[control]), above)


def _interval(found: Points) -> str:
    if found.mean is None:
        return "-"
    return f"{found.mean:.0f}%" + ("" if found.low is None else f" (95% interval {found.low:.0f} to {found.high:.0f})")


def kinds_table(rows: Sequence[Row], title: str) -> Table:
    """One row a kind, the means over sites at the sparsity that recovers most."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    columns = {
        "explained": "explained",
        "l0": "L0",
        "dead": "dead",
        "mean_f1": "F1",
        "mean_auroc": "AUROC",
        "coverage": "coverage",
        "recovered": "recovered",
        "purity": "purity",
        "split": "split",
        "absorbed": "absorbed",
        "accuracy": "accuracy",
        "iia": "IIA",
        "latent_changed_iia": "latents' IIA",
    }
    table.add_column("dictionary", no_wrap=True)
    for column in ("of", *columns.values()):
        table.add_column(column, justify="right")
    lines = [(kind, True) for kind in (*KINDS, *CONTROLS, "probe")] + [(kind, False) for kind in (*KINDS, "probe")]
    for kind, trained in lines:
        settings = best_settings(rows, kind, trained=trained)
        ours = [row for setting in settings for row in setting]
        if not ours:
            continue
        shown = {name: mean(ours, name) for name in columns}
        cells = [percent(x) if x is None or name != "l0" else f"{float(x):.1f}" for name, x in shown.items()]
        table.add_row(kind if trained else f"{kind}, untrained model", f"{len(ours)}", *cells)
    table.caption = (
        "in %, means over the sites and seeds, each site at the sparsity that recovers most; coverage: values found at "
        "F1 0.95; recovered: of those that the probe finds; accuracy and IIA with the reconstruction spliced in; "
        "latents' IIA: labels that should change and do, the matched latents alone being interchanged"
    )
    table.caption_justify = "left"
    return table


def beside(costs: Sequence[Cost], peers: Sequence[float]) -> list[tuple[Cost, float]]:
    return list(zip(costs, peers or [0.0] * len(costs), strict=True))


def costs_table(costs: Sequence[Cost], peers: Sequence[float]) -> Table:
    """What an SAE of each shape took, beside SAELens, and all of them together."""
    table = Table(title="Cost", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("kind", "width", "SAEs", "compile, s", "s each", "SAELens, s each", "times"):
        table.add_column(column, justify="left" if column == "kind" else "right")

    def add(kind: str, width: str, saes: int, compile_s: float, ours: float, theirs: float) -> None:
        beside = (f"{theirs:.2f}", f"{theirs / ours:.1f}") if theirs else ("-", "-")
        table.add_row(kind, width, f"{saes}", f"{compile_s:.1f}", f"{ours:.3f}", *beside)

    saes, compile_s, ours, theirs = 0, 0.0, 0.0, 0.0
    for cost, peer in beside(costs, peers):
        add(cost.kind, f"{cost.d_in}", cost.saes, cost.compile_s, cost.seconds, peer)
        saes, compile_s = saes + cost.saes, compile_s + cost.compile_s
        ours, theirs = ours + cost.saes * cost.seconds, theirs + cost.saes * peer
    table.add_section()
    add("all", "", saes, compile_s, ours / saes, theirs / saes)
    return table


def picture(rows: Sequence[Row], title: str, path: Path) -> None:
    """Recovery, and IIA of the matched latents, against L0: a panel a hook, a colour a kind, a dot a setting of a site.

    Lines join the means over the sites, one for each sparsity of a kind; crosses are controls.
    """
    hooks = [hook for hook in HOOKS if any(row["hook"] == hook for row in rows)]
    scores = {"recovered": "values recovered, of the probe's", "latent_changed_iia": "IIA of the matched latents"}
    with matplotlib.rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=(2 + 2.6 * len(hooks), 6.2), layout="constrained")
        axes = figure.subplots(2, len(hooks), sharex=True, sharey=True, squeeze=False)
        for line, (score, label) in zip(axes, scores.items(), strict=True):
            line[0].set_ylabel(label)
            for axis, hook in zip(line, hooks, strict=True):
                _panel(axis, [row for row in rows if row["hook"] == hook and row["trained"]], score)
        for above, beneath, hook in zip(*axes, hooks, strict=True):
            above.set_title(hook, fontsize=9)
            beneath.set_xlabel("L0")
        named = {n: h for axis in axes.flat for h, n in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), frameon=False)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left", wrap=True)
        figure.savefig(path, dpi=150)


def _panel(axis: Axes, rows: Sequence[Row], score: str) -> None:
    for i, kind in enumerate((*KINDS, *CONTROLS)):
        ours = [row for row in rows if row["kind"] == kind and row.get(score) is not None]
        colour, mark, middle = COLOURS[i], "o" if kind in KINDS else "x", []
        for sparsity in dict.fromkeys(row["sparsity"] for row in ours):
            setting = [row for row in ours if row["sparsity"] == sparsity]
            middle.append((average(setting, "l0"), average(setting, score)))
            for place in dict.fromkeys((row["model"], row["site"]) for row in setting):
                seeds = [row for row in setting if (row["model"], row["site"]) == place]
                axis.plot(average(seeds, "l0"), average(seeds, score), mark, color=colour, ms=3, alpha=0.35)
        if middle:
            axis.plot(*zip(*middle, strict=True), f"{mark}-", color=colour, label=kind, ms=6)
    axis.set_xscale("log")
    axis.set_ylim(-0.03, 1.03)
