"""The area under the ROC curve over ten sizes of circuit, as MIB draws it (Mueller et al. 2025).

MIB (`area_under_roc` in its circuit track) makes a circuit of each of ten shares of all edges. It starts at the logits
and takes, of the edges whose reader is the logits or sends an edge taken before, the one with the largest absolute
score. Of each circuit it notes the rates of true and of false positives. The area is that under straight lines between
the ten points.

MIB's code adds no (0, 0), and its code for the area itself is not among what could be read. Here (0, 0) is the first
point; without it, what lies left of the first circuit would be lost. Silent edges may be taken, as routes to others,
and count in neither rate. Even perfect scores have less than 1 where no circuit has the true size.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from siitjax.analysis.discovery.faithfulness import SHARES
from siitjax.model.nodes import LOGITS, Edge


def mib_auroc(
    edges: Sequence[Edge],
    scores: Float[np.ndarray, " edge"],
    true: Bool[np.ndarray, " edge"],
    counted: Bool[np.ndarray, " edge"],
) -> float:
    """The area under the rates at `SHARES` of the edges; the number of edges is rounded up, ties go by their order.

    Example:
        >>> from siitjax.model.nodes import NodeList
        >>> edges = NodeList(1, 2, has_mlp=False).possible_edges
        >>> [f"{a}->{b}" for a, b in edges]
        ['embed->L0H0', 'embed->L0H1', 'embed->logits', 'L0H0->logits', 'L0H1->logits']
        >>> true, all_five = np.array([1, 0, 0, 1, 0], bool), np.ones(5, bool)
        >>> round(12 * mib_auroc(edges, true.astype(float), true, all_five), 6)  # circuits of 1, 3 and 5 edges
        11.0
    """
    order = grown(edges, scores)
    hits, misses = (np.cumsum((which & counted)[order]) / (which & counted).sum() for which in (true, ~true))
    sizes = [math.ceil(share * len(edges)) for share in SHARES]
    return float(np.trapezoid([0.0, *(hits[n - 1] for n in sizes)], [0.0, *(misses[n - 1] for n in sizes)]))


def grown(edges: Sequence[Edge], scores: Float[np.ndarray, " edge"]) -> list[int]:
    """The edges in the order in which a circuit that grows from the logits takes them."""
    left = sorted(range(len(edges)), key=lambda i: -abs(scores[i]))
    reached, order = {LOGITS}, []
    while left:
        taken = next(i for i in left if edges[i][1] in reached)
        left.remove(taken)
        reached.add(edges[taken][0])
        order.append(taken)
    return order
