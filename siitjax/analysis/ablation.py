"""What a trained transformer's unused nodes hide: its answers under their worst subset, and without any of them.

Single swaps miss two unused nodes that stand in for each other, a joint swap misses two that cancel, and random subsets
show both only now and then. Here the subset that does most harm is looked for; and all unused nodes are ablated: held
at 0, or at their mean.
"""

from collections.abc import Callable
from itertools import product

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from siitjax.causal.case import Case
from siitjax.model.forms import PLAIN, Form, fastest, summed_over_chunks
from siitjax.model.transformer import Transformer
from siitjax.siit.interchange import interchange
from siitjax.siit.metrics import Tally

EXHAUSTIVE = 10
"""Unused nodes at most of which every subset is tried: 1024 masks."""
AT_ONCE = 16
"""Masks that run together: bounds the memory, not the result."""


class Ablations(eqx.Module):
    """Tokens answered right, whatever becomes of the unused nodes.

    Attributes:
        worst_siia: the worst subset of the unused nodes swapped together.
        worst_subset: that subset's mask; of several as bad, one with the fewest nodes where all were tried.
        zero: all unused nodes held at 0.
        mean: all unused nodes held at their mean over the samples, one mean a position.
    """

    worst_siia: Tally
    worst_subset: Bool[Array, " node"]
    zero: Tally
    mean: Tally


def ablate(
    model: Transformer, case: Case, samples: Int[Array, "sample seq"], *, key: PRNGKeyArray, form: Form | None = None
) -> Ablations:
    """All of these, each sample paired with its source as `siitjax.siit.evaluate.evaluate` pairs them with the same
    key."""
    order_key, _ = jax.random.split(key)
    sources = samples[jax.random.permutation(order_key, len(samples))]
    worst_siia, subset = worst_subset(model, case, samples, sources, form=form)
    return Ablations(worst_siia, subset, zero_ablation(model, case, samples), mean_ablation(model, case, samples))


def worst_subset(
    model: Transformer,
    case: Case,
    base: Int[Array, "sample seq"],
    source: Int[Array, "sample seq"],
    *,
    form: Form | None = None,
) -> tuple[Tally, Bool[Array, " node"]]:
    """The fewest tokens that are answered right when some subset of the unused nodes is swapped, and that subset.

    Every subset is tried of 10 unused nodes or fewer. Of more, the one is looked for from two sides, none of them and
    all: the node is added or left out that makes most tokens wrong, until none makes more wrong; a worse subset may
    exist. From none alone, nodes that stand in for each other would be missed: each of them does no harm. The number is
    the least that was seen on these pairs, so on others the same subset will do a little better.
    """
    case.check_fits(model.config, base, source)
    circuit = case.circuit
    unused = np.flatnonzero(circuit.unused_mask)
    none = np.zeros(len(circuit.nodes), bool)

    def wrong(masks):
        return _wrong(model, case, base, source, masks, form or fastest())

    if len(unused) <= EXHAUSTIVE:
        subsets = sorted(product((False, True), repeat=len(unused)), key=sum)
        masks = np.tile(none, (len(subsets), 1))
        masks[:, unused] = subsets
        counts, tokens = wrong(jnp.asarray(masks))
        return Tally(tokens - counts.max(), tokens), jnp.asarray(masks)[counts.argmax()]

    each = jnp.asarray(np.eye(len(none), dtype=bool)[unused])

    def change(state):
        mask, most, _ = state
        masks = mask[None] ^ each
        counts, _ = wrong(masks)
        worse = counts.max() > most
        return jnp.where(worse, masks[counts.argmax()], mask), jnp.maximum(counts.max(), most), worse

    starts = jnp.stack([jnp.asarray(none), jnp.asarray(circuit.unused_mask)])
    counts, tokens = wrong(starts)
    search = lambda start: jax.lax.while_loop(lambda state: state[-1], change, (*start, jnp.asarray(True)))
    masks, most, _ = jax.lax.map(search, (starts, counts))
    return Tally(tokens - most.max(), tokens), masks[most.argmax()]


def zero_ablation(model: Transformer, case: Case, samples: Int[Array, "sample seq"]) -> Tally:
    """Tokens answered right when all unused nodes give 0."""
    return _ablated(model, case, samples, jnp.zeros_like)


def mean_ablation(model: Transformer, case: Case, samples: Int[Array, "sample seq"]) -> Tally:
    """Tokens answered right when all unused nodes give, at each position, their mean over the samples."""
    return _ablated(model, case, samples, lambda x: jnp.broadcast_to(x.mean(0, keepdims=True), x.shape))


def _ablated(
    model: Transformer, case: Case, samples: Int[Array, "sample seq"], value: Callable[[Array], Array]
) -> Tally:
    case.check_fits(model.config, samples)
    # The plain form's activations have the samples as first axis, as `value` expects; one mask needs no fast form.
    _, activations = PLAIN.run(model, samples)
    held = eqx.tree_at(lambda a: a.embed, jax.tree.map(value, activations), None)
    logits, _ = PLAIN.run(model, samples, (case.circuit.unused_mask[None], held))
    labels, _ = jax.vmap(case.circuit)(samples)
    own = case.counted_mask(samples)
    return Tally((case.loss.correct(logits[:, 0], labels) & own).sum(), own.sum())


def _wrong(
    model: Transformer,
    case: Case,
    base: Int[Array, "sample seq"],
    source: Int[Array, "sample seq"],
    masks: Bool[Array, "mask node"],
    form: Form,
) -> tuple[Int[Array, " mask"], Int[Array, ""]]:
    """Tokens answered wrong under each mask, and tokens there are."""
    size = AT_ONCE if len(masks) % AT_ONCE == 0 else len(masks)

    def count(base, source):
        own = case.counted_mask(base)

        def under(masks):
            outputs, labels = interchange(model, case.circuit, base, source, masks, form=form)
            return (~case.loss.correct(outputs, labels) & own[:, None]).sum((0, 2))

        counts = jax.lax.map(under, masks.reshape(-1, size, masks.shape[1])).ravel()
        return counts, own.sum()

    return summed_over_chunks(count, form.part(len(base)), base, source)
