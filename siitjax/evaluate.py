"""Accuracy, IIA, SIIA and the honest variants, in one pass over a validation set.

Most labels do not change under a swap (on paren_checker the answer "no" alone scores 95.7%), so beside IIA stand
IIA on the labels that the swap changed, and over whole sequences. SIIA swaps one unused node at a time; beside it
stand SIIA with all unused nodes, and with a random subset for each example, swapped together.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from siitjax.case import Case
from siitjax.interchange import interchange
from siitjax.objective import swappable
from siitjax.transformer import Transformer

CHUNK = 250
"""Samples evaluated together, under every mask: bounds the memory, not the result."""


@flax.struct.dataclass
class Metrics:
    """Shares of tokens that are right, from 0 to 1, each over the whole validation set.

    Attributes:
        accuracy: nothing swapped.
        iia: interchange intervention accuracy, the mean over the circuit's nodes, swapped one at a time
            (Geiger et al. 2022, section 3).
        changed_iia: the same on the tokens whose label the swap changed, the mean over the nodes that change any.
        worst_changed_iia: the least of those nodes.
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


def evaluate(
    model: Transformer,
    case: Case,
    samples: Int[Array, "sample seq"],
    *,
    key: PRNGKeyArray,
    embedding: bool = False,
) -> Metrics:
    """Every metric, each sample paired with another as its source: with all of them in a new random order.

    Args:
        embedding: count the embedding among the circuit's nodes, as the original did.
    """
    circuit = case.circuit
    order_key, subset_key = jax.random.split(key)
    sources = samples[jax.random.permutation(order_key, len(samples))]
    circuit_nodes = np.flatnonzero(swappable(circuit, embedding))
    unused_nodes = np.flatnonzero(circuit.unused_mask)
    one_at_a_time = np.eye(len(circuit.nodes), dtype=bool)[np.concatenate([circuit_nodes, unused_nodes])]
    nothing = np.zeros((1, len(circuit.nodes)), bool)
    fixed_masks = jnp.asarray(np.concatenate([nothing, one_at_a_time, circuit.unused_mask[None]]))
    subsets = jax.random.bernoulli(subset_key, 0.5, (len(samples), len(circuit.nodes))) & circuit.unused_mask[None]

    def count(pair):
        base, source, subset = pair
        masks = jnp.concatenate([fixed_masks, subset[None]])
        outputs, labels = interchange(model, circuit, base, source, masks, embedding=embedding)
        own = case.token_mask(base)[None]
        wrong = ~case.loss.correct(outputs, labels) & own
        changed = ~case.loss.same(labels, jnp.broadcast_to(labels[:1], labels.shape)) & own
        return wrong.sum(-1), wrong.any(-1), (wrong & changed).sum(-1), changed.sum(-1), own.sum()

    counts = jax.lax.map(count, (samples, sources, subsets), batch_size=CHUNK)
    wrong, wrong_samples, wrong_changed, changed, tokens = (c.sum(0) for c in counts)

    def right(wrong, total):
        return 1 - wrong.astype(jnp.float32) / jnp.asarray(total, jnp.float32)

    nodes = slice(1, 1 + len(circuit_nodes))
    unused = slice(nodes.stop, nodes.stop + len(unused_nodes))
    node_changed_iia = right(wrong_changed[nodes], changed[nodes])  # 0 / 0 is the nan it should be
    any_changed = changed[nodes] > 0
    node_iia, node_siia = right(wrong[nodes], tokens), right(wrong[unused], tokens)
    return Metrics(
        accuracy=right(wrong[0], tokens),
        iia=node_iia.mean(),
        changed_iia=jnp.nanmean(node_changed_iia),
        worst_changed_iia=jnp.where(any_changed, node_changed_iia, 1.0).min(),
        sequence_iia=right(wrong_samples[nodes], len(samples)).mean(),
        # Without unused nodes nothing can be wrong, and no mean be taken.
        siia=node_siia.mean() if len(unused_nodes) else jnp.ones(()),
        joint_siia=right(wrong[unused.stop], tokens),
        subset_siia=right(wrong[unused.stop + 1], tokens),
        node_iia=node_iia,
        node_changed_iia=node_changed_iia,
        node_changed=changed[nodes],
        node_siia=node_siia,
        perfect=(wrong[: unused.stop] == 0).all(),
    )
