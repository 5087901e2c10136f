"""Members of the original's frozen rule, scored by true counterfactuals."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from siitjax.model.weights import load_weights
from siitjax.siit.edge_metrics import rows as edge_rows
from siitjax.siit.fresh_pairs import list_batches, measure, measure_edges
from siitjax.siit.metrics import shares
from siitjax.sweep.results import Results, Row

PAIRS, SEED = 2_000, 7_000_000
"""Fresh ones, on which each is measured; and what draws them."""


def causal_scores(rows: Sequence[Row], results: Results) -> Iterator[Row]:
    """Of each member the metrics under swaps of single nodes ("causal"), and of every kind ("causal_edges")."""
    for row in rows:
        case = replace(results.members[row["member"]].config.case, counterfactual="causal")
        model = load_weights(results.weights(row))
        found = shares(measure(case, model, list_batches(case, PAIRS, SEED), SEED))
        edges = edge_rows(case, measure_edges(case, model, PAIRS, SEED))
        yield {"member": row["member"], "causal": found.to_json(), "causal_edges": [e.to_json() for e in edges]}
