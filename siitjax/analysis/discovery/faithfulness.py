"""How much of a model's answer the best edges of a method keep, as MIB measures it (Mueller et al. 2025).

The faithfulness of a circuit is (m(C) - m(nothing)) / (m(model) - m(nothing)), where m is the mean log-odds of the base
run's answer and all edges outside C are patched. CPR is the area under faithfulness by the share of edges kept: more is
better. CMD is the area between it and 1: less is better. Edges are kept by their absolute scores.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from siitjax.analysis.discovery.masked import masked_effects
from siitjax.analysis.discovery.patching import edge_indices
from siitjax.analysis.discovery.runs import Runs
from siitjax.model.transformer import Transformer

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's budgets: the share of the edges that are kept."""


class Curve(NamedTuple):
    """Faithfulness at each of `SHARES`, and its areas.

    Attributes:
        faithfulness: 0 of nothing, 1 of the model.
        cpr: the area under it.
        cmd: the area between it and 1.
    """

    faithfulness: Float[np.ndarray, " share"]
    cpr: float
    cmd: float


def faithfulness(model: Transformer, runs: Runs, scores: Float[np.ndarray, " edge"]) -> Curve:
    """The curve of a method's scores on some pairs."""
    readers, senders = (np.array(x) for x in edge_indices(model.config.nodes))
    order = np.argsort(-np.abs(scores), kind="stable")
    masks = np.zeros((1 + len(SHARES), *(2 * [len(model.config.nodes)])), np.float32)
    for mask, share in zip(masks, (0.0, *SHARES), strict=True):
        patched = order[int(share * len(order)) :]
        mask[readers[patched], senders[patched]] = 1
    lost = np.asarray(masked_effects(model, runs, jnp.asarray(masks), "log_odds"), float)
    found = 1 - lost[1:] / lost[0]
    return Curve(found, float(np.trapezoid(found, SHARES)), float(np.trapezoid(np.abs(1 - found), SHARES)))
