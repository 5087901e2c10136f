"""Accuracy, IIA, SIIA and the honest variants, in one pass over a validation set.

Most labels do not change under a swap (on paren_checker the answer "no" alone scores 95.7%), so beside IIA stand
IIA on the labels that the swap changed, and over whole sequences. SIIA swaps one unused node at a time; beside it
stand SIIA with all unused nodes, and with a random subset for each example, swapped together.
"""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from siitjax.case import Case
from siitjax.forms import Form, fastest
from siitjax.interchange import interchange_by_depth
from siitjax.objective import swappable
from siitjax.transformer import Transformer

CHUNK = 250
"""Samples evaluated together at most, under every mask: bounds the memory, not the result."""


class Metrics(eqx.Module):
    """Shares of tokens that are right, from 0 to 1, each over the whole validation set.

    Attributes:
        accuracy: nothing swapped.
        iia: interchange intervention accuracy, the mean over the circuit's nodes, swapped one at a time
            (Geiger et al. 2022, section 3).
        changed_iia: the same on the tokens whose label the swap changed, the mean over the nodes that change any.
        worst_changed_iia: the least of those nodes; nan, as is the mean, where none changes any.
        sequence_iia: the share of samples that are right at every token, the mean over the circuit's nodes.
        siia: strict IIA, the mean over the unused nodes, swapped one at a time (Gupta et al. 2024, section 3).
        joint_siia: all unused nodes swapped together.
        subset_siia: a random subset of them swapped together, each with probability 1/2, drawn for each sample.
        node_iia: IIA of each circuit node.
        node_changed_iia: IIA on changed labels of each circuit node; nan where a node changes none.
        node_changed: how many labels each circuit node's swap changed.
        node_siia: SIIA of each unused node.
        perfect: whether accuracy, IIA and SIIA count no token wrong.
    """

    accuracy: Float[Array, ""]
    iia: Float[Array, ""]
    changed_iia: Float[Array, ""]
    worst_changed_iia: Float[Array, ""]
    sequence_iia: Float[Array, ""]
    siia: Float[Array, ""]
    joint_siia: Float[Array, ""]
    subset_siia: Float[Array, ""]
    node_iia: Float[Array, " circuit_node"]
    node_changed_iia: Float[Array, " circuit_node"]
    node_changed: Int[Array, " circuit_node"]
    node_siia: Float[Array, " unused_node"]
    perfect: Bool[Array, ""]


class Counts(eqx.Module):
    """Tokens counted over samples: of the base run, each measured node, all unused nodes, a random subset of them.

    Counts of the same case may be added up, leaf by leaf.

    Attributes:
        wrong: tokens answered wrong under each mask.
        wrong_samples: samples with such a token.
        wrong_changed: of the tokens whose label the swap changed, those answered wrong.
        changed: tokens whose label the swap changed.
        tokens, samples: how many there were.
    """

    wrong: Int[Array, " mask"]
    wrong_samples: Int[Array, " mask"]
    wrong_changed: Int[Array, " mask"]
    changed: Int[Array, " mask"]
    tokens: Int[Array, ""]
    samples: Int[Array, ""]


def evaluate(
    model: Transformer,
    case: Case,
    samples: Int[Array, "sample seq"],
    *,
    key: PRNGKeyArray,
    embedding: bool = False,
    form: Form | None = None,
) -> Metrics:
    """Every metric, each sample paired with another as its source: with all of them in a new random order.

    Args:
        embedding: count the embedding among the circuit's nodes, as the original did.

    Raises:
        UserError: the transformer or the samples do not fit the case; see `Case.check_fits`.
    """
    case.check_fits(model.config, samples)
    order_key, subset_key = jax.random.split(key)
    sources = samples[jax.random.permutation(order_key, len(samples))]
    counts = count(model, case, samples, sources, key=subset_key, embedding=embedding, form=form)
    return shares_right(counts, case, embedding=embedding)


def count(
    model: Transformer,
    case: Case,
    base: Int[Array, "sample seq"],
    source: Int[Array, "sample seq"],
    *,
    key: PRNGKeyArray,
    embedding: bool = False,
    form: Form | None = None,
) -> Counts:
    """What the metrics are shares of, each sample of `base` paired with that of `source`.

    Args:
        key: draws the random subset of each sample.

    Raises:
        UserError: the transformer or the samples do not fit the case; see `Case.check_fits`.
    """
    case.check_fits(model.config, base, source)
    circuit = case.circuit
    measured, _ = _measured(case, embedding)
    begins = lambda node: circuit.nodes.nodes[node].depth
    one = np.eye(len(circuit.nodes), dtype=bool)
    one_at_a_time = [(depth, one[[*nodes]]) for depth, nodes in groupby(measured, key=begins)]
    subsets = jax.random.bernoulli(key, 0.5, (len(base), len(circuit.nodes))) & circuit.unused_mask[None]

    def chunk(base, source, subset):
        joint = jnp.broadcast_to(circuit.unused_mask, subset.shape)
        groups = [*one_at_a_time, (1, jnp.stack([joint, subset], 1))]
        outputs, labels = interchange_by_depth(model, circuit, base, source, groups, embedding=embedding, form=form)
        own = case.token_mask(base)[:, None]
        wrong = ~case.loss.correct(outputs, labels) & own
        changed = ~case.loss.same(labels, jnp.broadcast_to(labels[:, :1], labels.shape)) & own
        return wrong.sum((0, 2)), wrong.any(2).sum(0), (wrong & changed).sum((0, 2)), changed.sum((0, 2)), own.sum()

    found = _summed_over_chunks(chunk, (form or fastest()).at_once or CHUNK, base, source, subsets)
    return Counts(*found, samples=jnp.int32(len(base)))


def shares_right(counts: Counts, case: Case, *, embedding: bool = False) -> Metrics:
    """The metrics that the counts of a case give."""

    def right(wrong, total):
        # Compiled, the quotient of equals may lie a rounding above 1.
        return jnp.maximum(1 - wrong.astype(jnp.float32) / jnp.asarray(total, jnp.float32), 0.0)

    _, circuit_nodes = _measured(case, embedding)
    nodes, unused = 1 + np.flatnonzero(circuit_nodes), 1 + np.flatnonzero(~circuit_nodes)
    wrong, changed = counts.wrong, counts.changed
    node_changed_iia = right(counts.wrong_changed[nodes], changed[nodes])  # 0 / 0 is the nan it should be
    node_iia, node_siia = right(wrong[nodes], counts.tokens), right(wrong[unused], counts.tokens)
    return Metrics(
        accuracy=right(wrong[0], counts.tokens),
        iia=node_iia.mean(),
        changed_iia=jnp.nanmean(node_changed_iia),
        worst_changed_iia=jnp.nanmin(node_changed_iia),
        sequence_iia=right(counts.wrong_samples[nodes], counts.samples).mean(),
        # Without unused nodes nothing can be wrong, and no mean be taken.
        siia=node_siia.mean() if len(unused) else jnp.ones(()),
        joint_siia=right(wrong[-2], counts.tokens),
        subset_siia=right(wrong[-1], counts.tokens),
        node_iia=node_iia,
        node_changed_iia=node_changed_iia,
        node_changed=changed[nodes],
        node_siia=node_siia,
        perfect=(wrong[:-2] == 0).all(),
    )


def _measured(case: Case, embedding: bool) -> tuple[Int[np.ndarray, " measured"], Bool[np.ndarray, " measured"]]:
    """The nodes that are swapped one at a time, in order, and which of them are the circuit's."""
    counted = swappable(case.circuit, embedding)
    measured = np.flatnonzero(counted | case.circuit.unused_mask)
    return measured, counted[measured]


def _summed_over_chunks(count: Callable[..., Any], size: int, *arrays: Array) -> Any:
    """The sum of what `count` gives of all chunks of the samples, `size` long but for the last."""
    n = len(arrays[0])
    whole, rest = divmod(n, min(size, n))
    chunks = [x[: n - rest].reshape(whole, -1, *x.shape[1:]) for x in arrays]
    total = jax.tree.map(lambda x: x.sum(0), jax.lax.map(lambda chunk: count(*chunk), chunks))
    return jax.tree.map(jnp.add, total, count(*(x[n - rest :] for x in arrays))) if rest else total


if __name__ == "__main__":
    from siitjax.command import main
    from siitjax.measure import Evaluate

    main(Evaluate)
