"""ACDC (Conmy et al. 2023): edges are patched one after another, from the logits back, and stay so where that is cheap.

An edge stays patched when the Kullback-Leibler divergence from the base run rises by less than a threshold. Thresholds
are swept side by side; an edge's score is how many of them kept it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from siitjax.analysis.discovery.masked import masked_effects
from siitjax.analysis.discovery.pairs import Pairs
from siitjax.analysis.discovery.patching import of_edges
from siitjax.analysis.discovery.runs import Ablation, run_pairs
from siitjax.causal.case import Case
from siitjax.model.transformer import Transformer

THRESHOLDS = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3)
"""In nats a token."""
PAIRS = 16
"""How many of the pairs are run at most: every edge is tried on all of them, at every threshold."""


def acdc(
    model: Transformer,
    case: Case,
    pairs: Pairs,
    *,
    ablation: Ablation = "resample",
    thresholds: tuple[float, ...] = THRESHOLDS,
    most: int = PAIRS,
) -> Float[np.ndarray, " edge"]:
    """At how many thresholds each edge is kept, on the first pairs.

    Args:
        most: how many pairs.

    Raises:
        UserError: these do not fit each other.
    """
    runs = run_pairs(model, case, Pairs(pairs.base[:most], pairs.source[:most]), ablation)
    nodes = model.config.nodes
    limits = jnp.asarray(thresholds, jnp.float32)
    removed = jnp.zeros((len(thresholds), len(nodes), len(nodes)))
    spent = jnp.zeros(len(thresholds))
    places = {node: i for i, node in enumerate(nodes)}
    for reader, node in reversed([*enumerate(nodes.readers)]):
        for sender in reversed([places[a] for a in nodes if a.depth < node.depth]):
            removed, spent = _try(model, runs, removed, spent, limits, reader, sender)
    return of_edges(nodes, len(thresholds) - np.asarray(removed).sum(0))


@jax.jit
def _try(model, runs, removed, spent, limits, reader, sender):
    """Patches one edge more at the thresholds where that costs little."""
    tried = removed.at[:, reader, sender].set(1.0)
    cost = masked_effects(model, runs, tried, "kl")
    fine = cost - spent < limits
    return jnp.where(fine[:, None, None], tried, removed), jnp.where(fine, cost, spent)
