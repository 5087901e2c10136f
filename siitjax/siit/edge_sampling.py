"""How swaps of edges are drawn for training: of every kind that the circuit should hold under.

Trained under swaps of single nodes, transformers break under two nodes, one edge, or two sources. So the IIT term
mixes kinds (one node, one edge of the circuit, random subsets of either), half of the time with edges outside the
circuit swapped too; the SIIT term swaps subsets of unused nodes or of outside edges, sometimes all. Senders may have
sources of their own, and be swapped at some positions alone. Unused nodes may be held at the base run's values, while
nodes of the circuit are swapped.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from siitjax.causal.circuit import Circuit
from siitjax.model.swaps import EdgeSwaps

GROUP = 40
"""Sources come from a group of this many neighbours in the batch at most, so that parts of it run on their own."""


@runtime_checkable
class Kinds(Protocol):
    """The probabilities of the kinds; numbers, perhaps traced. See `siitjax.siit.config.Hyperparams`."""

    p_edge: Float[Array, ""]
    p_nodes: Float[Array, ""]
    p_edges: Float[Array, ""]
    p_outside: Float[Array, ""]
    p_unused: Float[Array, ""]
    p_whole: Float[Array, ""]
    p_own: Float[Array, ""]
    p_base: Float[Array, ""]
    p_positions: Float[Array, ""]


def group_size(batch: int) -> int:
    """The size of the groups that a batch is cut into: the largest divisor of it up to 40, if more than 20."""
    return next((size for size in range(GROUP, GROUP // 2, -1) if batch % size == 0), batch)


def draw_swaps(
    circuit: Circuit, kinds: Kinds, compound: Bool[Array, ""], batch: int, seq: int, *, key: PRNGKeyArray
) -> EdgeSwaps:
    """The swaps of a batch's IIT and SIIT terms, drawn for each example.

    Runs are counted over the batch's sources, then over its bases.

    Args:
        compound: draw all kinds; otherwise single nodes of the circuit and subsets of the unused nodes alone.
    """
    draw = lambda k: _draw_one(circuit, kinds, compound, seq, k)
    masks_key, own_key, source_key = jax.random.split(key, 3)
    edges, positions = jax.vmap(draw)(jax.random.split(masks_key, batch))
    n, group = len(circuit.nodes), group_size(batch)
    shape = (batch, 2, n)
    own = jax.random.bernoulli(own_key, kinds.p_own, (batch, 1, 1)) & compound
    here = jnp.arange(batch, dtype=jnp.int32)[:, None, None]
    other = here // group * group + jax.random.randint(source_key, shape, 0, group, jnp.int32)
    if circuit.joint:  # nodes that hold a variable together take it from one source, at the same positions
        other, positions = other[..., circuit.first_of_unit], positions[:, :, circuit.first_of_unit]
    held = jax.random.bernoulli(jax.random.fold_in(key, 3), kinds.p_base, (batch, 1, 1)) & compound
    of_iit = np.stack([circuit.unused_mask, np.zeros(n, bool)])  # in the SIIT term it is no swap
    held = held & of_iit[None]
    return EdgeSwaps(edges, positions, jnp.where(held, batch + here, jnp.where(own, other, here)))


def _draw_one(
    circuit: Circuit, kinds: Kinds, compound: Bool[Array, ""], seq: int, key: PRNGKeyArray
) -> tuple[Bool[Array, "2 reader sender"], Bool[Array, "2 sender seq"]]:
    iit, siit, outside, with_outside, some, where, positions = jax.random.split(key, 7)
    inside = _of_circuit(circuit, kinds, compound, iit)
    both = jax.random.bernoulli(with_outside, kinds.p_outside) & compound
    edges = jnp.stack(
        [
            inside | (_outside(circuit, kinds, compound, outside) & both & ~inside),
            _outside(circuit, kinds, compound, siit),
        ]
    )
    only_some = jax.random.bernoulli(some, kinds.p_positions) & compound
    drawn = jax.random.bernoulli(positions, jax.random.uniform(where), (2, len(circuit.nodes), seq))
    return edges, drawn | ~only_some


def _of_circuit(
    circuit: Circuit, kinds: Kinds, compound: Bool[Array, ""], key: PRNGKeyArray
) -> Bool[Array, "reader sender"]:
    """One node of the circuit, one of its edges, or a random subset of either."""
    n = len(circuit.nodes)
    first, first_edge = circuit.first_of_unit, circuit.first_of_edge_unit
    leads = (first_edge == np.arange(n * n)).reshape(n, n)
    nodes = np.flatnonzero(circuit.circuit_mask & (first == np.arange(n)))
    edges = np.argwhere(circuit.edge_mask & leads)
    possible = jnp.asarray(circuit.nodes.edge_mask(circuit.nodes.possible_edges) & ~circuit.within_mask)
    which, node, edge, p, subset, subset_edges = jax.random.split(key, 6)
    share = jax.random.uniform(p)
    a_node = (jnp.arange(n) == jax.random.choice(node, nodes))[None] & possible
    at = jnp.asarray(edges)[jax.random.randint(edge, (), 0, len(edges))]
    an_edge = (jnp.arange(n)[:, None] == at[0]) & (jnp.arange(n)[None] == at[1])
    some_nodes = (jax.random.bernoulli(subset, share, (n,)) & circuit.circuit_mask)[None] & possible
    some_edges = jax.random.bernoulli(subset_edges, share, (n, n)) & circuit.edge_mask
    if circuit.joint:
        a_node, some_nodes = a_node[:, first] & possible, some_nodes[:, first] & possible
        an_edge, some_edges = (mask.ravel()[first_edge].reshape(n, n) for mask in (an_edge, some_edges))
    rest = 1.0 - kinds.p_edge - kinds.p_nodes - kinds.p_edges
    shares = jnp.stack([rest, kinds.p_edge, kinds.p_nodes, kinds.p_edges])
    kind = jax.random.categorical(which, jnp.log(jnp.maximum(shares, 0.0)))
    return jnp.stack([a_node, an_edge, some_nodes, some_edges])[jnp.where(compound, kind, 0)]


def _outside(
    circuit: Circuit, kinds: Kinds, compound: Bool[Array, ""], key: PRNGKeyArray
) -> Bool[Array, "reader sender"]:
    """Unused nodes or edges outside the circuit: a random subset, each with p_unused, or all."""
    of_nodes = circuit.nodes.as_edges(circuit.unused_mask)
    which, whole, nodes, edges = jax.random.split(key, 4)
    some_nodes = (jax.random.bernoulli(nodes, kinds.p_unused, of_nodes.shape[:1]))[None] & of_nodes
    some_edges = jax.random.bernoulli(edges, kinds.p_unused, of_nodes.shape) & circuit.outside_mask
    by_edge = jax.random.bernoulli(which, 0.5) & compound
    all_of_it = jax.random.bernoulli(whole, kinds.p_whole) & compound
    some = jnp.where(by_edge, some_edges, some_nodes)
    return jnp.where(all_of_it, jnp.where(by_edge, circuit.outside_mask, of_nodes), some)
