"""Settings under swaps of every kind, which their training may not have drawn: the worst swap of each kind."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from rich import box
from rich.table import Table

from siitjax.base.jsonl import Row
from siitjax.base.share import percent
from siitjax.model.weights import load_weights
from siitjax.questions.statistics.paired import by_seed, points
from siitjax.siit.edge_metrics import rows as edge_rows
from siitjax.siit.fresh_pairs import measure_edges
from siitjax.sweep.results import Results

PAIRS, SEED = 1_000, 7_000_000
"""Fresh ones, on which each member is measured; and what draws them."""


def kinds_scores(row: Row, results: Results) -> list[Row]:
    """What a member comes to under swaps of every kind, on fresh pairs: a row a kind, as of `edge_metrics.rows`."""
    case = results.members[row["member"]].config.case
    measured = measure_edges(case, load_weights(results.weights(row)), PAIRS, SEED)
    return [kind.to_json() for kind in edge_rows(case, measured)]


def worst_by_kind(rows: Sequence[Row], scores: str = "edges") -> dict[str, list[float]]:
    """The worst swap of each kind, a share a row: of the labels that it changes, or of all tokens if it changes none.

    Args:
        scores: where a row has its kinds.

    Example:
        >>> kinds = [{"words": "one edge", "worst": 0.9, "worst_changed": 0.5}]
        >>> worst_by_kind([{"edges": kinds}, {"edges": [kinds[0] | {"worst_changed": None}]}])
        {'one edge': [0.5, 0.9]}
    """
    found: dict[str, list[float]] = {}
    for row in rows:
        for kind in row[scores]:
            share = kind["worst"] if kind["worst_changed"] is None else kind["worst_changed"]
            found.setdefault(kind["words"], []).append(share)
    return found


def kinds_table(rows: Sequence[Row], pairs: Mapping[str, str]) -> Table:
    """A column a setting, a line a kind; and how far each setting lies above the one that it is compared with.

    Args:
        rows: of each setting and seed, with `kinds_scores` as "kinds".
        pairs: settings, each with the one that it is compared with, seed by seed.
    """
    settings = [*dict.fromkeys(name for pair in pairs.items() for name in reversed(pair))]
    table = Table(title="Under swaps of every kind", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("worst swap")
    for name in (*settings, *(f"{a} - {b}" for a, b in pairs.items())):
        table.add_column(name, justify="right")
    shares = {name: worst_by_kind(by_seed(rows, name), "kinds") for name in settings}
    for kind in shares[settings[0]]:
        seeds = {name: shares[name][kind] for name in settings}
        table.add_row(kind, *(_cell(seeds[name]) for name in settings), *_differences(seeds, pairs))
    table.caption = (
        f"% of the labels that the swap changes, or of all tokens where it changes none, on {PAIRS} fresh pairs: the "
        "median over the seeds, in brackets the worst seed; then the median difference in points and its 95% interval"
    )
    table.caption_justify = "left"
    return table


def _cell(shares: Sequence[float]) -> str:
    return f"{percent(median(shares))} ({percent(min(shares))})"


def _differences(seeds: Mapping[str, Sequence[float]], pairs: Mapping[str, str]) -> Iterator[str]:
    for name, other in pairs.items():
        yield str(points(a - b for a, b in zip(seeds[name], seeds[other], strict=True)))
