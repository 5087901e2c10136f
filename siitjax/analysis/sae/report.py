"""What a study of SAEs found, as tables and as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mode

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from siitjax.analysis.sae.kinds import KINDS
from siitjax.analysis.sae.results import Row
from siitjax.analysis.sae.study import Cost
from siitjax.base.share import percent
from siitjax.questions.pictures import COLOURS, STYLE, strip
from siitjax.questions.report import mean
from siitjax.questions.statistics.paired import Points, points

CONTROLS = ("neurons", "PCA", "random")
"""Dictionaries that nothing was trained for."""


def average(rows: Sequence[Row], name: str) -> float:
    """The mean of a score over the rows that have it; nan where none has."""
    found = mean(rows, name)
    return float("nan") if found is None else float(found)


@dataclass(frozen=True)
class Compared:
    """SAEs beside controls, a figure a model, each at what is best on the other models.

    Attributes:
        kind: of the SAEs that were chosen most often.
        control: the same of controls.
        models: how many have the score.
        found, other, above: the shares of the SAEs and of the controls, and their differences.
    """

    kind: str
    control: str
    models: int
    found: Points
    other: Points
    above: Points

    def words(self, does: str) -> str:
        """The comparison in a sentence; `does` is the verb, such as "recovers"."""
        return (
            f"the best kind (mostly {self.kind}) {does} {_interval(self.found)}, and the best control (mostly "
            f"{self.control}) {_interval(self.other)} (difference {_interval(self.above)}; {self.models} models)"
        )


def compared(rows: Sequence[Row], score: str) -> Compared | None:
    """SAEs and controls by a score; None with fewer than two models that have it of both."""
    ours = [row for row in rows if row["trained"] and row.get(score) is not None]
    saes, controls = (_elsewhere_best(ours, kinds, score) for kinds in (tuple(KINDS), CONTROLS))
    models = [model for model in saes if model in controls]
    if not models:
        return None
    most = lambda chosen: mode(kind for model in models for kind in chosen[model][1])
    found, other = ([chosen[model][0] for model in models] for chosen in (saes, controls))
    above = points(a - b for a, b in zip(found, other, strict=True))
    return Compared(most(saes), most(controls), len(models), points(found), points(other), above)


def _elsewhere_best(rows: Sequence[Row], kinds: Sequence[str], score: str) -> dict[str, tuple[float, list[str]]]:
    """Of each model, the mean score over its sites, and the kind at each: at the kind and sparsity whose mean is
    largest at the same hook of the other models. What is measured had no part in the choice.
    """
    found: dict[str, tuple[float, list[str]]] = {}
    ours = [row for row in rows if row["kind"] in kinds]
    for model in dict.fromkeys(row["model"] for row in ours):
        shares, chosen = [], []
        for hook in dict.fromkeys(row["hook"] for row in ours if row["model"] == model):
            elsewhere = [row for row in ours if row["hook"] == hook and row["model"] != model]
            settings = dict.fromkeys((row["kind"], row["sparsity"]) for row in elsewhere)
            if not settings:
                continue
            of = lambda rows, setting: [row for row in rows if (row["kind"], row["sparsity"]) == setting]
            best = max(settings, key=lambda setting: average(of(elsewhere, setting), score))
            own = of([row for row in ours if (row["model"], row["hook"]) == (model, hook)], best)
            by_site = _by_site(own, score)
            shares += by_site
            chosen += [best[0]] * len(by_site)
        if shares:
            found[model] = float(np.mean(shares)), chosen
    return found


def _by_site(rows: Sequence[Row], score: str) -> list[float]:
    """Of each site, the mean over its rows."""
    sites = dict.fromkeys(row["site"] for row in rows)
    return [average([row for row in rows if row["site"] == site], score) for site in sites]


def _interval(found: Points) -> str:
    if found.median is None:
        return "-"
    return f"{round(found.median)}%" + (
        "" if found.low is None or found.high is None else f" (95% interval {round(found.low)} to {round(found.high)})"
    )


def kinds_table(rows: Sequence[Row], title: str) -> Table:
    """One row a kind and sparsity, the means over sites."""
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
        "mcc": "MCC",
        "uniqueness": "unique",
        "accuracy": "accuracy",
        "iia": "IIA",
        "latent_changed_iia": "latents' IIA",
    }
    table.add_column("dictionary", no_wrap=True)
    for column in ("of", *columns.values()):
        table.add_column(column, justify="right")
    order = (*KINDS, *CONTROLS, "probe")
    place = lambda row: (not row["trained"], order.index(row["kind"]), row["sparsity"] or 0)
    for setting in dict.fromkeys((r["kind"], r["sparsity"], r["trained"]) for r in sorted(rows, key=place)):
        kind, sparsity, trained = setting
        if not trained and kind in CONTROLS:
            continue
        ours = [row for row in rows if (row["kind"], row["sparsity"], row["trained"]) == setting]
        shown = {name: mean(ours, name) for name in columns}
        cells = [percent(x) if x is None or name != "l0" else f"{float(x):.1f}" for name, x in shown.items()]
        name = kind if sparsity is None else f"{kind} {sparsity:g}"
        table.add_row(name if trained else f"{name}, untrained model", f"{len(ours)}", *cells)
    table.caption = (
        "in %, means over the sites and seeds; coverage: values found at F1 0.95; recovered: of those that the probe "
        "finds; MCC and unique: decoder directions beside the values' own, as SAELens has them; accuracy and IIA with "
        "the reconstruction spliced in; latents' IIA: labels that should change and do, the matched latents alone "
        "being interchanged"
    )
    table.caption_justify = "left"
    return table


def beside(costs: Sequence[Cost], peers: Sequence[float]) -> list[tuple[Cost, float]]:
    """Each cost with SAELens' seconds for an SAE of its shape; 0 where it was not timed."""
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
    """Recovery, and IIA of the matched latents: a line a dictionary, a dot a model, a stroke their median."""
    scores = {"recovered": "values recovered, of the probe's", "latent_changed_iia": "IIA of the matched latents"}
    ours = [row for row in rows if row["trained"] and row["kind"] != "probe"]
    order = (*KINDS, *CONTROLS)
    place = lambda row: (order.index(row["kind"]), row["sparsity"] or 0)
    settings = dict.fromkeys((row["kind"], row["sparsity"]) for row in sorted(ours, key=place))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 1.3 + 0.22 * len(settings)), layout="constrained")
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (score, label) in zip(axes, scores.items(), strict=True):
            for i, setting in enumerate(settings):
                held = [row for row in ours if (row["kind"], row["sparsity"]) == setting]
                strip(axis, by_model(held, score), i, COLOURS[order.index(setting[0])])
            axis.set(xlabel=f"{label}, %", xlim=(-3, 103), ylim=(len(settings) - 0.5, -0.5))
        axes[0].set_yticks(range(len(settings)), [k if s is None else f"{k} {s:g}" for k, s in settings], fontsize=8)
        figure.savefig(path, dpi=150)


def by_model(rows: Sequence[Row], score: str) -> list[float]:
    """In %, of each model that has the score, the mean over its sites of the mean over their seeds."""
    known = [row for row in rows if row.get(score) is not None]
    of = lambda model: [row for row in known if row["model"] == model]
    return [100 * float(np.mean(_by_site(of(model), score))) for model in dict.fromkeys(row["model"] for row in known)]
