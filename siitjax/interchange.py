"""Interchange interventions: patched logits and counterfactual labels, both from one mask."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from siitjax.circuit import Circuit
from siitjax.transformer import Activations

LowLevel = Callable[..., tuple[Array, Activations]]
"""The low-level model: a `Transformer`, perhaps with arguments of its call fixed."""


def interchange(
    model: LowLevel,
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
    activations, values = _source(model, circuit, source, embedding)

    def patched(mask: Bool[Array, " node"]):
        return model(base, (mask, activations))[0], circuit(base, (mask, values))[0]

    return jax.vmap(patched)(masks)


def interchange_by_layer(
    model: LowLevel,
    circuit: Circuit,
    base: Int[Array, " seq"],
    source: Int[Array, " seq"],
    groups: Sequence[tuple[int | None, Bool[Array, "_ node"]]],
    *,
    embedding: bool = False,
) -> tuple[Float[Array, "mask seq out"], Shaped[Array, "mask seq *label"]]:
    """`interchange` under masks of which is known where they begin: nothing is computed again before that.

    The first answer returned is the base run's, with nothing swapped; those of the groups' masks follow, in order.

    Args:
        groups: masks, each group with the first layer that any of them swaps, or None for the embedding.
    """
    activations, values = _source(model, circuit, source, embedding)
    logits, own = model(base)
    labels, _ = circuit(base)
    assert own.stream is not None
    answers = [(logits[None], labels[None])]
    for first, masks in groups:
        resume = None if first is None else (first, own.stream[first])

        def patched(mask: Bool[Array, " node"], resume=resume):
            return model(base, (mask, activations), resume=resume)[0], circuit(base, (mask, values))[0]

        answers.append(jax.vmap(patched)(masks))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *answers)


def _source(model: LowLevel, circuit: Circuit, source: Int[Array, " seq"], embedding: bool):
    """What a swap takes from the source run, on both levels; None at the embedding where that is not swapped."""
    _, activations = model(source)
    _, values = circuit(source)
    if not embedding:
        activations, values = replace(activations, embed=None), (None, *values[1:])
    return jax.lax.stop_gradient(activations), values
