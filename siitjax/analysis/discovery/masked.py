"""What becomes of the answer when many edges are patched together."""

from functools import partial

import jax
from jaxtyping import Array, Float

from siitjax.analysis.discovery.metrics import METRICS, Metric
from siitjax.analysis.discovery.relaxed import EdgeWeights, relaxed
from siitjax.analysis.discovery.runs import Runs
from siitjax.model.forms import summed_over_chunks
from siitjax.model.transformer import Transformer

AT_ONCE = 8
"""Pairs that run together under all masks: bounds the memory, not the result."""


@partial(jax.jit, static_argnums=3)
def masked_effects(
    model: Transformer, runs: Runs, masks: Float[Array, "mask reader sender"], metric: Metric
) -> Float[Array, " mask"]:
    """The metric under each mask, on average over the counted tokens; 1 is a patched edge, 0 one that is not."""

    def chunk(base, counted, logits, there):
        each = jax.vmap(partial(effect_of_sample, model, metric=metric), (None, None, None, None, 0))
        return jax.vmap(each, (0, 0, 0, 0, None))(base, counted, logits, there, masks).sum(0), counted.astype(
            logits.dtype
        ).sum()

    total, tokens = summed_over_chunks(chunk, AT_ONCE, runs.base, runs.counted, runs.logits, runs.there)
    return total / tokens


def effect_of_sample(
    model: Transformer,
    base: Array,
    counted: Array,
    clean: Array,
    there: Array,
    weights: EdgeWeights,
    *,
    metric: Metric,
) -> Float[Array, ""]:
    """The metric under weights of edges, summed over one sample's counted tokens."""
    logits, _ = relaxed(model, base, weights, there)
    return (METRICS[metric](logits, clean) * counted.astype(clean.dtype)).sum()
