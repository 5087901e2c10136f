"""Accuracy, IIA, SIIA and the honest variants, in one pass over a validation set.

Most labels do not change under a swap (on paren_checker the answer "no" alone scores 95.7%), so beside IIA stand
IIA on the labels that the swap changed, and over whole sequences. SIIA swaps one unused node at a time; beside it
stand SIIA with all unused nodes, and with a random subset for each example, swapped together.
"""

from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from siitjax.causal.case import Case
from siitjax.model.forms import Form, fastest, summed_over_chunks
from siitjax.model.nodes import EMBED, head
from siitjax.model.transformer import Transformer
from siitjax.siit.interchange import interchange_by_depth
from siitjax.siit.metrics import Errors, Metrics, Tally
from siitjax.siit.objective import swappable

CHUNK = 250
"""Samples evaluated together at most, under every mask: bounds the memory, not the result."""


def evaluate(
    model: Transformer,
    case: Case,
    samples: Int[Array, "sample seq"],
    *,
    key: PRNGKeyArray,
    embedding: bool = False,
    enough: Int[Array, ""] | int | None = None,
    form: Form | None = None,
) -> Metrics:
    """Every metric's counts, each sample paired with another as its source: with all of them in a new random order.

    Args:
        embedding: count the embedding among the circuit's nodes, as the original did.
        enough: samples after which no more are measured once accuracy, IIA or SIIA has a token wrong, so that
            `Metrics.perfect` is as that of all samples; None measures all.

    Raises:
        UserError: the transformer or the samples do not fit the case; see `Case.check_fits`.
    """
    case.check_fits(model.config, samples)
    order_key, subset_key = jax.random.split(key)
    sources = samples[jax.random.permutation(order_key, len(samples))]
    if case.sources is not None:
        sources = case.source_of(samples, sources, jax.random.fold_in(order_key, 1))
    return count(model, case, samples, sources, key=subset_key, embedding=embedding, enough=enough, form=form)


def count(
    model: Transformer,
    case: Case,
    base: Int[Array, "sample seq"],
    source: Int[Array, "sample seq"],
    *,
    key: PRNGKeyArray,
    embedding: bool = False,
    enough: Int[Array, ""] | int | None = None,
    form: Form | None = None,
) -> Metrics:
    """The same, each sample of `base` paired with that of `source`.

    Args:
        key: draws the random subset of each sample.
        enough: as `evaluate` takes it.

    Raises:
        UserError: the transformer or the samples do not fit the case; see `Case.check_fits`.
    """
    case.check_fits(model.config, base, source)
    circuit, form = case.circuit, form or fastest()
    measured, is_circuit = _measured(case, embedding)
    # A layer's MLP goes with its heads: a run less to compile, and hardly more to compute.
    begins = lambda i: EMBED.depth if (layer := circuit.nodes.nodes[i].layer) is None else head(layer, 0).depth
    one = circuit.first_of_unit[None] == np.arange(len(circuit.nodes))[:, None]
    one_at_a_time = [(depth, one[[*nodes]]) for depth, nodes in groupby(measured, key=begins)]
    subsets = jax.random.bernoulli(key, 0.5, (len(base), len(circuit.nodes))) & circuit.unused_mask[None]

    def chunk(base, source, subset):
        joint = jnp.broadcast_to(circuit.unused_mask, subset.shape)
        groups = [*one_at_a_time, (1, jnp.stack([joint, subset], 1))]
        if not form.resumes:
            each = [jnp.broadcast_to(masks, (len(base), *masks.shape[-2:])) for _, masks in groups]
            groups = [(EMBED.depth, jnp.concatenate(each, 1))]
        outputs, labels = interchange_by_depth(model, circuit, base, source, groups, embedding=embedding, form=form)
        own = case.counted_mask(base)[:, None]
        right = case.loss.correct(outputs, labels) & own
        own = jnp.broadcast_to(own, right.shape)
        changed = ~case.loss.same(labels, jnp.broadcast_to(labels[:, :1], labels.shape)) & own
        total = lambda which: which.sum((0, 2))
        tokens = Tally(total(right), total(own))
        whole = (right == own).all(2)
        changes = Tally(total(right & changed), total(changed))
        off = getattr(case.loss, "error", None)  # of numbers alone
        errors = None if off is None else total(jnp.where(own, off(outputs, labels), 0.0))
        return tokens, changes, Tally(whole.sum(0), jnp.ones_like(whole).sum(0)), errors

    size = form.at_once or CHUNK
    # The last two swaps, of several unused nodes at once, are in none of the three.
    none_wrong = lambda total: (total[0].right[:-2] == total[0].of[:-2]).all()
    going = None if enough is None else none_wrong
    tokens, changed, whole, errors = summed_over_chunks(
        chunk, size, base, source, subsets, going=going, enough=0 if enough is None else enough
    )
    nodes, unused = 1 + np.flatnonzero(is_circuit), 1 + np.flatnonzero(~is_circuit)
    return Metrics(
        base=tokens.at(0),
        node=tokens.at(nodes),
        changed=changed.at(nodes),
        whole=whole.at(nodes),
        unused=tokens.at(unused),
        joint=tokens.at(-2),
        subset=tokens.at(-1),
        errors=None if errors is None else Errors(errors[0], errors[nodes], errors[unused]),
    )


def _measured(case: Case, embedding: bool) -> tuple[Int[np.ndarray, " measured"], Bool[np.ndarray, " measured"]]:
    """The nodes that are swapped one at a time, in order, and which of them are the circuit's; of those that are
    swapped together, the first."""
    first = case.circuit.first_of_unit
    counted = swappable(case.circuit, embedding) & (first == np.arange(len(first)))
    measured = np.flatnonzero(counted | case.circuit.unused_mask)
    return measured, counted[measured]
