"""Interchange interventions: patched logits and counterfactual labels, both from one mask."""

from dataclasses import replace

import jax
from jaxtyping import Array, Bool, Float, Int, Shaped

from siitjax.circuit import Circuit
from siitjax.transformer import Transformer


def interchange(
    model: Transformer,
    circuit: Circuit,
    base: Int[Array, " seq"],
    source: Int[Array, " seq"],
    masks: Bool[Array, "mask node"],
    *,
    embedding: bool = False,
) -> tuple[Float[Array, "mask seq out"], Shaped[Array, "mask seq *label"]]:
    """What the transformer answers, and what the circuit says it should, when the masked nodes take the
    source run's values.

    The source runs once, and no gradient flows through it: its values are data, as in the papers' own code
    (Geiger et al. 2022, section 3; Gupta et al. 2024, Algorithm 1). Only what a mask can change is computed
    once a mask: the base run up to layer 0's `hook_z` is shared.

    Args:
        embedding: let masks swap the embedding too. Otherwise their first entry, the embedding's, has no effect.
    """
    _, activations = model(source)
    activations = jax.lax.stop_gradient(activations)
    _, values = circuit(source)
    if not embedding:
        activations, values = replace(activations, embed=None), (None, *values[1:])

    def patched(mask: Bool[Array, " node"]):
        logits, _ = model(base, (mask, activations))
        labels, _ = circuit(base, (mask, values))
        return logits, labels

    return jax.vmap(patched)(masks)
