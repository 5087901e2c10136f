"""How well scores tell the edges of a circuit from the others: exact AUROC, average precision, precision at the size.

All are of the absolute scores, over the edges that count; equal scores are counted as if they were put in order by
chance, or taken together.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from siitjax.analysis.discovery.budgets import mib_auroc
from siitjax.analysis.discovery.known import Known, known_edges
from siitjax.analysis.discovery.methods import Method
from siitjax.analysis.discovery.pairs import Pairs
from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.model.transformer import Transformer


@dataclass(frozen=True)
class Found:
    """What a method's scores come to.

    Attributes:
        auroc: the share of pairs, a true edge and another, in which the true one has the larger score.
        average_precision: the mean, over the true edges, of the precision among the edges that score as much or more.
        at_size: the share of the k edges with the largest scores that are true, where k are true: precision and recall
            are equal there.
        true, counted: how many edges are true, and how many count.
        mib_auroc: the area over circuits of ten sizes (see `siitjax.analysis.discovery.budgets`); None of nodes.
    """

    auroc: float
    average_precision: float
    at_size: float
    true: int
    counted: int
    mib_auroc: float | None


def examine(
    method: Method, model: Transformer, case: Case, pairs: Pairs, name: str = "the method"
) -> tuple[Found, Float[np.ndarray, " edge"]]:
    """Scores a method on a model whose edges are known; also gives the method's own scores.

    Args:
        name: what an error calls the method.

    Raises:
        UserError: the method gives another number of scores than there are edges, or one that is not finite; or the
            case has no edges to score it on.

    Example:
        >>> import siitjax
        >>> from siitjax.analysis.discovery.attribution import eap_ig_inputs
        >>> from siitjax.analysis.discovery.pairs import draw_pairs
        >>> trained = siitjax.load("left_greater")
        >>> found, _ = examine(eap_ig_inputs, trained.model, trained.case, draw_pairs(trained.case, 100))
        >>> found.auroc
        1.0
    """
    known = known_edges(case)
    scores = np.asarray(method(model, case, pairs))
    return score(scores, known, name), scores


def score(scores: np.ndarray, known: Known, name: str = "the method") -> Found:
    """What scores of edges, or of nodes, come to.

    Args:
        name: what an error calls the method.

    Raises:
        UserError: their number is another, or one is not finite.
    """
    if scores.shape != known.true.shape:
        raise UserError(
            f"{name} gives scores of shape {scores.shape}; it must give {known.true.shape}, one for each of "
            f"{', '.join(map(_word, known.names[:2]))}, ..."
        )
    if not np.isfinite(scores).all():
        where = _word(known.names[int(np.flatnonzero(~np.isfinite(scores))[0])])
        raise UserError(f"{name} gives {scores[~np.isfinite(scores)][0]} for {where}; scores must be finite numbers")
    size, true = np.abs(scores.astype(float))[known.counted], known.true[known.counted]
    edges = [name for name in known.names if isinstance(name, tuple)]
    return Found(
        auroc(size, true),
        average_precision(size, true),
        at_size(size, true),
        int(true.sum()),
        len(true),
        mib_auroc(edges, scores.astype(float), known.true, known.counted) if edges else None,
    )


def _word(thing: object) -> str:
    return "->".join(map(str, thing)) if isinstance(thing, tuple) else str(thing)


def auroc(scores: Float[np.ndarray, " thing"], true: Bool[np.ndarray, " thing"]) -> float:
    """The area under the ROC curve: the share of (true, other) pairs in which the true one scores more, ties half.

    Example:
        >>> auroc(np.array([3.0, 1.0, 2.0]), np.array([True, True, False]))
        0.5
    """
    n, others = int(true.sum()), int((~true).sum())
    return float((rankdata(scores)[true].sum() - n * (n + 1) / 2) / (n * others))


def average_precision(scores: Float[np.ndarray, " thing"], true: Bool[np.ndarray, " thing"]) -> float:
    """The sum over thresholds of the rise in recall times the precision, as scikit-learn's average_precision_score.

    Example:
        >>> average_precision(np.array([3.0, 1.0, 2.0]), np.array([True, True, False]))
        0.8333333333333333
    """
    thresholds = np.unique(scores)
    above, hits = ((len(x) - np.searchsorted(np.sort(x), thresholds)) for x in (scores, scores[true]))
    precision = hits / above
    return float(precision @ (hits - np.append(hits[1:], 0)) / true.sum())


def at_size(scores: Float[np.ndarray, " thing"], true: Bool[np.ndarray, " thing"]) -> float:
    """The precision among the k largest scores, where k are true; of what ties for the last places, the mean.

    Example:
        >>> at_size(np.array([3.0, 1.0, 2.0]), np.array([True, True, False]))
        0.5
    """
    k = int(true.sum())
    last = np.sort(scores)[-k]
    above, tied = scores > last, scores == last
    return float((true[above].sum() + true[tied].mean() * (k - above.sum())) / k)
