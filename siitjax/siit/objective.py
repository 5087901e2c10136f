"""The SIIT objective: three terms, each the loss of the transformer against the circuit under one mask.

    L = w_base L(M(x1), y1) + w_IIT L(M(x1 | circuit node <- x2), H(x1 | node <- x2))
      + w_SIIT L(M(x1 | unused nodes <- x2), y1)

Source: Gupta et al. 2024, section 3 and Algorithm 1, summed as in Anders & Garriga-Alonso 2024. The weights are
applied here and nowhere else, once.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.causal.circuit import Circuit
from siitjax.model.forms import Form
from siitjax.model.nodes import EMBED
from siitjax.model.swaps import EdgeSwaps
from siitjax.model.transformer import Transformer
from siitjax.siit.interchange import interchange, interchange_edges

TERMS = ("base", "iit", "siit")
"""The terms in the order of their masks and of their weights."""
BASE, IIT, SIIT = range(3)

CircuitNodes = Literal["one", "subset"]
UnusedNodes = Literal["subset", "one", "all"]
DrawnPer = Literal["batch", "example"]
Swaps = Literal["nodes", "edges"]


@dataclass(frozen=True)
class Sampling:
    """How the nodes to swap are drawn. The defaults are those of Anders & Garriga-Alonso 2024.

    Attributes:
        circuit_nodes: "one" of the circuit, or a random "subset", each node with probability p_circuit.
        unused_nodes: a random "subset", each node with probability p_unused; "one"; or "all" of them.
        drawn_per: draw once a "batch", or for every "example".
        embedding: count the embedding as a node of the circuit, as the original did. Its swap is trivial.
        swaps: "nodes", as above, or "edges": every kind of `siitjax.siit.edge_sampling`, drawn for every example.

    Raises:
        UserError: a value is none of these, or the others are not what swaps of edges are drawn by.
    """

    circuit_nodes: CircuitNodes = "one"
    unused_nodes: UnusedNodes = "subset"
    drawn_per: DrawnPer = "batch"
    embedding: bool = False
    swaps: Swaps = "nodes"

    def __post_init__(self):
        accepted = {"circuit_nodes": CircuitNodes, "unused_nodes": UnusedNodes, "drawn_per": DrawnPer, "swaps": Swaps}
        for name, kinds in accepted.items():
            check_choice(name, getattr(self, name), get_args(kinds))
        if self.swaps == "edges" and (self.circuit_nodes, self.unused_nodes, self.drawn_per, self.embedding) != (
            "one",
            "subset",
            "example",
            False,
        ):
            raise UserError(
                'swaps is "edges", which are drawn per example, one circuit node or subsets, without the embedding; '
                'leave circuit_nodes "one", unused_nodes "subset", embedding off, and set drawn_per to "example"'
            )


def swappable(circuit: Circuit, embedding: bool) -> Bool[np.ndarray, " node"]:
    """The nodes that the IIT term and IIA swap: those of the circuit, with the embedding if it is asked for."""
    return circuit.circuit_mask | circuit.nodes.mask([EMBED]) if embedding else circuit.circuit_mask


def draw_masks(
    circuit: Circuit,
    sampling: Sampling,
    p_circuit: Float[Array, ""],
    p_unused: Float[Array, ""],
    *,
    key: PRNGKeyArray,
) -> Bool[Array, "3 node"]:
    """The masks of the three terms: nothing, nodes of the circuit, unused nodes."""
    circuit_key, unused_key = jax.random.split(key)
    nodes = swappable(circuit, sampling.embedding)
    return jnp.stack(
        [
            jnp.zeros(len(nodes), bool),
            _draw_units(circuit, nodes, sampling.circuit_nodes, p_circuit, circuit_key),
            _draw(circuit.unused_mask, sampling.unused_nodes, p_unused, unused_key),
        ]
    )


def _draw_units(
    circuit: Circuit, nodes: Bool[np.ndarray, " node"], how: str, p: Float[Array, ""], key: PRNGKeyArray
) -> Bool[Array, " node"]:
    """The same of the circuit's nodes, in which those that hold a variable together are drawn together."""
    if not circuit.joint:
        return _draw(nodes, how, p, key)
    first = circuit.first_of_unit
    return _draw(nodes & (first == np.arange(len(first))), how, p, key)[first]


def _draw(nodes: Bool[np.ndarray, " node"], how: str, p: Float[Array, ""], key: PRNGKeyArray) -> Bool[Array, " node"]:
    if how == "all" or not nodes.any():
        return jnp.asarray(nodes)
    if how == "subset":
        return jax.random.bernoulli(key, p, nodes.shape) & nodes
    return jnp.arange(len(nodes)) == jax.random.choice(key, np.flatnonzero(nodes).astype(np.int32))


def batch_masks(
    circuit: Circuit,
    sampling: Sampling,
    p_circuit: Float[Array, ""],
    p_unused: Float[Array, ""],
    batch: int,
    *,
    key: PRNGKeyArray,
) -> Bool[Array, "batch 3 node"] | Bool[Array, "3 node"]:
    """The masks of one batch: one set for all its examples, or one for each."""
    if sampling.drawn_per == "batch":
        return draw_masks(circuit, sampling, p_circuit, p_unused, key=key)
    draw = lambda k: draw_masks(circuit, sampling, p_circuit, p_unused, key=k)
    return jax.vmap(draw)(jax.random.split(key, batch))


def term_losses(
    model: Transformer,
    case: Case,
    base: Int[Array, "batch seq"],
    source: Int[Array, "batch seq"],
    masks: Bool[Array, "batch mask node"] | Bool[Array, "mask node"],
    *,
    embedding: bool = False,
    form: Form | None = None,
) -> Float[Array, " mask"]:
    """The loss under each mask: the mean over a sample's counted tokens, then over the batch.

    The loss's unit is its kind's: nats for cross-entropy.

    Raises:
        UserError: the transformer or the samples do not fit the case; see `Case.check_fits`.
    """
    case.check_fits(model.config, base, source)
    outputs, labels = interchange(model, case.circuit, base, source, masks, embedding=embedding, form=form)
    return _mean_over_own(case.loss.per_token(outputs, labels), case.counted_mask(base)).mean(0)


def edge_term_losses(
    model: Transformer,
    case: Case,
    base: Int[Array, "batch seq"],
    source: Int[Array, "batch seq"],
    swaps: EdgeSwaps,
    w_changed: Float[Array, ""],
    *,
    form: Form | None = None,
) -> Float[Array, " term"]:
    """The loss with nothing swapped, then under each swap.

    Args:
        swaps: as `draw_swaps` draws them; see `interchange_edges`.
        w_changed: how much more a token weighs whose label a swap changed: few do.
    """
    outputs, labels = interchange_edges(model, case.circuit, base, source, swaps, form=form)
    changed = ~case.loss.same(labels, jnp.broadcast_to(labels[:, :1], labels.shape))
    losses = case.loss.per_token(outputs, labels)
    return _mean_over_own(losses * jnp.where(changed, 1 + w_changed, 1.0), case.counted_mask(base)).mean(0)


def _mean_over_own(losses: Float[Array, "batch mask seq"], own: Bool[Array, "batch seq"]) -> Float[Array, "batch mask"]:
    # A pad's loss is replaced, not multiplied by zero, so that not even a nan in it counts.
    counted = jnp.maximum(own.sum(-1), 1).astype(losses.dtype)
    return jnp.where(own[:, None], losses, 0.0).sum(-1) / counted[:, None]
