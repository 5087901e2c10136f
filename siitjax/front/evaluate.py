"""`siitjax.evaluate`: does a transformer hold its circuit? Measured on fresh pairs."""

from dataclasses import dataclass, replace
from fractions import Fraction
from io import StringIO
from pathlib import Path

from rich.console import Console

from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.front.load import find_case, load
from siitjax.front.run import Run
from siitjax.io.trained import Trained
from siitjax.model.transformer import Transformer
from siitjax.siit.edge_metrics import edge_tables, holding
from siitjax.siit.fresh_pairs import (
    held_by_node,
    list_batches,
    measure,
    measure_edges,
    node_names,
    node_table,
    summary_table,
)
from siitjax.siit.metrics import Metrics, Shares, shares

SEED = 1_000_000
"""Far from the small seeds of training, so that the strings are others."""
WIDTH = 120


@dataclass(frozen=True)
class NodeShares:
    """What was right when one node took the values of the source run.

    Attributes:
        variables: what the circuit has there; none of an unused node.
        right: the share of tokens that are right: that the circuit gives under the same swap, or, of an unused node,
            that it gives of the base run.
        changed: how many labels the swap changed; 0 of an unused node.
        right_changed: the share of these that are right; None where there are none.
    """

    variables: tuple[str, ...]
    right: Fraction
    changed: int
    right_changed: Fraction | None


@dataclass(frozen=True)
class Evaluation:
    """What `siitjax.evaluate` measured; `str()` of it is a table.

    Attributes:
        case: the circuit that the transformer was measured against.
        counts: right answers, and of how many, as whole numbers.
        pairs: pairs of a base and a source that were measured.

    Example:
        >>> import siitjax
        >>> siitjax.evaluate("left_greater", pairs=200).pairs
        200
    """

    case: Case
    counts: Metrics
    pairs: int

    @property
    def metrics(self) -> Shares:
        """Accuracy, IIA, SIIA and so on: exact shares from 0 to 1.

        Example:
            >>> import siitjax
            >>> siitjax.evaluate("left_greater", pairs=200).metrics.accuracy == 1
            True
        """
        return shares(self.counts)

    def by_node(self) -> dict[str, NodeShares]:
        """What was right when each node was swapped alone, by the node's name; the circuit's nodes first.

        Example:
            >>> import siitjax
            >>> found = siitjax.evaluate("left_greater", pairs=200).by_node()
            >>> sorted(found), found["L0H1"].variables
            (['L0H0', 'L0H1', 'L0H2', 'L0H3', 'MLP0'], ('counts',))
        """
        circuit, unused = node_names(self.case)
        held, counts = held_by_node(self.case), self.counts
        seen = zip(circuit, counts.node.shares, counts.changed.of, counts.changed.shares, strict=True)
        found = {
            node: NodeShares(tuple(held[node]), _known(right), int(changed), right_changed)
            for node, right, changed, right_changed in seen
        }
        rest = zip(unused, counts.unused.shares, strict=True)
        return found | {node: NodeShares((), _known(right), 0, None) for node, right in rest}

    def __str__(self) -> str:
        text = StringIO()
        screen = Console(file=text, width=WIDTH, highlight=False)
        screen.print(f"{self.case.name}")
        screen.print(summary_table(self.case, self.counts, self.pairs))
        screen.print(node_table(self.case, self.counts))
        if self.counts.edges is not None:
            for table in edge_tables(self.case, self.counts.edges):
                screen.print(table)
            screen.print(f"{self.case.name} {holding(self.case, self.counts.edges)}.")
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def __repr__(self) -> str:
        return str(self)


def evaluate(
    model: Transformer | Run | Trained | str | Path,
    case: Case | str | None = None,
    *,
    pairs: int = 2_000,
    edges: bool = False,
    seed: int = SEED,
) -> Evaluation:
    """Measures whether a transformer holds a circuit: accuracy, IIA and SIIA, on pairs that are drawn anew.

    IIA is Geiger et al. 2022, section 3; SIIA Gupta et al. 2024, section 3.

    Args:
        model: a transformer, a `Run`, what `load` gives, or what `load` takes.
        case: the case, or its name; None for the one that the model was trained on. A bare transformer needs it.
        pairs: random pairs of a base and a source.
        edges: measure swaps of every kind too (two nodes, one edge, and so on), on 5,000 of the pairs at most.
        seed: decides the strings and their pairs.

    Raises:
        UserError: the model and the case do not fit each other, or none of either is found.

    Example:
        >>> import siitjax
        >>> found = siitjax.evaluate("left_greater", pairs=200)
        >>> print(found)  # doctest: +ELLIPSIS
        left_greater
        <BLANKLINE>
          % of tokens, 200 pairs    measured
         ────────────────────────────────────
          accuracy                       100
        ...
    """
    if pairs < 2:
        raise UserError(f"pairs is {pairs}; it must be at least 2")
    if isinstance(model, str | Path):
        model = load(model, case)
    if isinstance(model, Transformer):
        if case is None:
            raise UserError("a bare transformer does not say its case; give it: siitjax.evaluate(model, case)")
        own, weights = find_case(case), model
    else:
        own, weights = model.case if case is None else find_case(case), model.model
    own.check_fits(weights.config)
    batches = list_batches(own, pairs, seed)
    counts = measure(own, weights, batches, seed)
    if edges:
        counts = replace(counts, edges=measure_edges(own, weights, pairs, seed))
    return Evaluation(own, counts, sum(len(base) for base, _ in batches))


def _known(share: Fraction | None) -> Fraction:
    assert share is not None
    return share
