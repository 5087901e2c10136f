"""Trained models over their seeds, a line a model: what each reaches under swaps of nodes, or of every kind."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

from rich import box
from rich.table import Table

from siitjax.base.jsonl import Row
from siitjax.base.share import percent
from siitjax.questions.report import Verdict
from siitjax.siit.metrics import share

METRICS = {
    "iia": "IIA",
    "changed_iia": "changed IIA",
    "worst_changed_iia": "worst node",
    "siia": "SIIA",
    "joint_siia": "joint SIIA",
}


def latest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each setting and seed: that of the longest training, where one was gone on with."""
    return [*{(row["setting"], row["seed"]): row for row in rows}.values()]


def two_thirds_hold(rows: Sequence[Row], holds: Callable[[Row], bool]) -> Verdict:
    """Supported where two thirds of the seeds of every model hold, contradicted where of some model fewer do."""
    seeds = {model: [*map(holds, ours)] for model, ours in _by_model(rows)}
    short = [f"{name} ({sum(good)} of {len(good)})" for name, good in seeds.items() if 3 * sum(good) < 2 * len(good)]
    held = f"{len(seeds) - len(short)} of {len(seeds)} models hold their circuits in two thirds of their seeds"
    if not short:
        return Verdict("supported", f"{held}.")
    return Verdict("contradicted", f"{held}; short of it: {', '.join(short)}.")


def nodes_table(
    rows: Sequence[Row], holds: Callable[[Row], bool], title: str, published: Mapping[str, float | int] | None = None
) -> Table:
    """What models reach under swaps of single nodes, from the least seed to the best."""
    names = [*(["published"] if published else []), "holds", "epochs", *METRICS.values(), "s a member"]
    table = _table(title, names)
    for model, seeds in _by_model(rows):
        shares = ([share(row, metric) for row in seeds] for metric in METRICS)
        table.add_row(
            model,
            *([f"{published[model]:g}" if model in published else "-"] if published else []),
            f"{sum(map(holds, seeds))} of {len(seeds)}",
            ", ".join(f"{row['epochs']}" for row in seeds),
            *map(_span, shares),
            ", ".join(f"{row['seconds']:.0f}" for row in seeds),
        )
    return table


def edges_table(rows: Sequence[Row], holds: Callable[[Row], bool], title: str) -> Table:
    """What models reach under swaps of every kind: the worst swap of any kind, of the least seed and of the best."""
    table = _table(title, ("holds", "epochs", "worst swap", "of changed labels", "kind", "s a member"))
    for model, seeds in _by_model(rows):
        worst = [min(kind["worst"] for kind in row["edges"]) for row in seeds]
        changed = [min(k["worst_changed"] for k in row["edges"] if k["worst_changed"] is not None) for row in seeds]
        least = seeds[worst.index(min(worst))]
        table.add_row(
            model,
            f"{sum(map(holds, seeds))} of {len(seeds)}",
            ", ".join(f"{row['epochs']}" for row in seeds),
            _span(worst),
            _span(changed),
            min(least["edges"], key=lambda kind: kind["worst"])["words"],
            ", ".join(f"{row['seconds']:.0f}" for row in seeds),
        )
    table.caption = "worst swap: % of tokens, of the least seed and of the best; kind: of that worst swap"
    table.caption_justify = "left"
    return table


def published_table(
    rows: Sequence[Row], holds: Callable[[Row], bool], published: Mapping[str, float | int], title: str
) -> Table:
    """Models of the original's recipe: by its own rule, and by true counterfactuals under swaps of every kind."""
    kinds = {"one node": "one node", "two nodes": "two nodes", "one edge": "one edge of the circuit", "any kind": ""}
    table = _table(title, ("holds", "epochs", "IIA published", "IIA", "SIIA", "causal IIA", *kinds))
    for model, seeds in _by_model(rows):
        table.add_row(
            model,
            f"{sum(map(holds, seeds))} of {len(seeds)}",
            ", ".join(f"{row['epochs']}" for row in seeds),
            f"{published[model]:g}" if model in published else "-",
            *(_span(share(row, name) for row in seeds) for name in ("iia", "siia")),
            _span(share(row["causal"], "iia") for row in seeds),
            *(_worst([row["causal_edges"] for row in seeds], words) for words in kinds.values()),
        )
    table.caption = (
        "IIA and SIIA: by the original's rule, in %; what follows: by true counterfactuals, on fresh pairs: the worst "
        "swap of each kind, in % of tokens, in brackets of those whose label it changes"
    )
    table.caption_justify = "left"
    return table


def _worst(members: Sequence[Sequence[Row]], words: str) -> str:
    """The worst swap of a kind, or of any where it has no words, from the least seed to the best."""
    ours = [[kind for kind in kinds if words in ("", kind["words"])] for kinds in members]
    least = lambda name: [min((kind[name] for kind in kinds if kind[name] is not None), default=None) for kinds in ours]
    return f"{_span(least('worst'))} ({_span(least('worst_changed'))})"


def _table(title: str, names: Sequence[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("model", *names):
        table.add_column(name, justify="left" if name in ("model", "kind") else "right", no_wrap=True)
    return table


def _by_model(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The models, from few tasks to many, and the rows of each by seed."""
    names = dict.fromkeys(row["setting"].partition(",")[0] for row in rows)
    ours = lambda name: [row for row in rows if row["setting"].partition(",")[0] == name]
    return [
        (name, sorted(ours(name), key=lambda row: row["seed"]))
        for name in sorted(names, key=lambda name: name.count("+"))
    ]


def _span(shares: Iterable[Fraction | float | None]) -> str:
    """Shares in %, from the least to the largest."""
    known = [x for x in shares if x is not None]
    if not known:
        return "-"
    low, high = percent(min(known)), percent(max(known))
    return low if low == high else f"{low}-{high}"
