"""Attribution patching: all edges' effects at once, to first order, from gradients at what each reader sees.

The score of an edge is the gradient of the metric with respect to what the reader sees, times what the sender would
write less what it writes. Edge attribution patching (EAP; Syed et al. 2023) takes the gradient of the base run. EAP-IG
(Hanna et al. 2024) takes its mean along a path from the source to the base, along which either the embedding is
interpolated ("inputs"), or what each site writes, one site after another ("activations").

Heads have one reader here: what q, k and v see together.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from siitjax.analysis.discovery.metrics import log_odds_lost
from siitjax.analysis.discovery.pairs import Pairs
from siitjax.analysis.discovery.patching import of_edges
from siitjax.analysis.discovery.relaxed import EdgeWeights, relaxed
from siitjax.analysis.discovery.runs import Ablation, Runs, run_pairs
from siitjax.causal.case import Case
from siitjax.model.forms import summed_over_chunks
from siitjax.model.nodes import EMBED
from siitjax.model.transformer import Transformer

AT_ONCE = 32
"""Pairs that run together: bounds the memory, not the result."""
STEPS = 5
"""Points of a path."""


def eap(model: Transformer, case: Case, pairs: Pairs, *, ablation: Ablation = "resample") -> Float[np.ndarray, " edge"]:
    """Edge attribution patching: log-odds lost a counted token, to first order at the base run.

    Raises:
        UserError: these do not fit each other; see `siitjax.analysis.discovery.runs.run_pairs`.
    """
    runs = run_pairs(model, case, pairs, ablation)
    nodes = model.config.nodes
    return of_edges(nodes, _mean_over(model, runs, [jnp.zeros((len(nodes), len(nodes)))]))


def eap_ig_inputs(
    model: Transformer, case: Case, pairs: Pairs, *, ablation: Ablation = "resample", steps: int = STEPS
) -> Float[np.ndarray, " edge"]:
    """EAP-IG along the path on which the embedding goes from the source's to the base's.

    Raises:
        UserError: these do not fit each other.
    """
    runs = run_pairs(model, case, pairs, ablation)
    nodes = model.config.nodes
    at = nodes.mask([EMBED])[None]
    path = [_column(at, part) for part in _parts(steps)]
    return of_edges(nodes, _mean_over(model, runs, path))


def eap_ig_activations(
    model: Transformer, case: Case, pairs: Pairs, *, ablation: Ablation = "resample", steps: int = STEPS
) -> Float[np.ndarray, " edge"]:
    """EAP-IG along the paths on which what one site writes goes from the source's to the base's; their mean.

    A site is the embedding, a layer's heads together, or an MLP.

    Raises:
        UserError: these do not fit each other.
    """
    runs = run_pairs(model, case, pairs, ablation)
    nodes = model.config.nodes
    depths = np.array([node.depth for node in nodes])
    path = [_column((depths == depth)[None], part) for depth in sorted({*depths}) for part in _parts(steps)]
    return of_edges(nodes, _mean_over(model, runs, path))


def node_scores(model: Transformer, edges: Float[np.ndarray, " edge"]) -> Float[np.ndarray, " node"]:
    """What edge scores say of each node but the embedding: the sum over the edges that leave it.

    Of EAP that is attribution patching of the node, as a sender's gradient is the sum of its readers'.
    """
    nodes = model.config.nodes
    leaving = {node: 0.0 for node in nodes}
    for (sender, _), score in zip(nodes.possible_edges, edges, strict=True):
        leaving[sender] += float(score)
    return np.array([leaving[node] for node in nodes if node != EMBED])


def _parts(steps: int) -> list[float]:
    """How much of the source is left at each point of a path, the base run last."""
    return [1 - step / steps for step in range(1, steps + 1)]


def _column(at: np.ndarray, part: float) -> EdgeWeights:
    """Weights at which all readers of some senders see them alike."""
    return jnp.asarray(np.where(at, part, 0.0).repeat(at.shape[1], 0), jnp.float32)


def _mean_over(model: Transformer, runs: Runs, path: Iterable[EdgeWeights]) -> Float[np.ndarray, "reader sender"]:
    return np.mean([np.asarray(_attributed(model, runs, weights)) for weights in path], 0)


@jax.jit
def _attributed(model: Transformer, runs: Runs, weights: EdgeWeights) -> Float[Array, "reader sender"]:
    """Gradient times difference, where the edges have these weights."""

    def chunk(base, counted, logits, here, there):
        def sample(base, counted, clean, here, there):
            def lost(nudges):
                patched, _ = relaxed(model, base, weights, there, nudges)
                return (log_odds_lost(patched, clean) * counted.astype(clean.dtype)).sum()

            gradient = jax.grad(lost)(jnp.zeros_like(here))
            return jnp.einsum("rtd,std->rs", gradient, there - here)

        return jax.vmap(sample)(base, counted, logits, here, there).sum(0), counted.astype(logits.dtype).sum()

    total, tokens = summed_over_chunks(chunk, AT_ONCE, runs.base, runs.counted, runs.logits, runs.here, runs.there)
    return total / tokens
