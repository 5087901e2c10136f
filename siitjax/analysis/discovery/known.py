"""Which edges a method should find, and which it should not."""

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.causal.ground_truth import edge_effects
from siitjax.model.nodes import EMBED, Edge, Node


class Known(NamedTuple):
    """What is known of each of some edges, or of some nodes.

    Attributes:
        names: the edges, or the nodes.
        true: whether it is one of the circuit whose swap changes a label.
        counted: whether it counts. Silent ones do not: no sample can reveal them, so they are neither right nor wrong.
            Nor do edges between nodes that hold a variable together, which no swap ever tested.
    """

    names: tuple[Edge, ...] | tuple[Node, ...]
    true: Bool[np.ndarray, " thing"]
    counted: Bool[np.ndarray, " thing"]


@cache
def known_edges(case: Case) -> Known:
    """The edges of a case's transformer, in the order of `NodeList.possible_edges`.

    Raises:
        UserError: none of the circuit's edges changes a label, or there is no other edge to confuse them with.

    Example:
        >>> import siitjax
        >>> known = known_edges(siitjax.find_case("left_greater"))
        >>> int(known.true.sum()), int(known.counted.sum())
        (3, 15)
    """
    circuit = case.circuit
    effects = edge_effects(case)
    possible = circuit.nodes.possible_edges
    effect = [effects.get((str(a), str(b))) for a, b in possible]
    true = np.array([bool(share) for share in effect])
    silent = np.array([share == 0 for share in effect])
    within = np.isin(np.arange(len(possible)), [possible.index(e) for e in circuit.nodes.edges_in(circuit.within_mask)])
    counted = ~silent & ~within
    if not true.any() or true[counted].all():
        lacking = "no edge whose swap changes a label" if not true.any() else "no edge outside its circuit"
        raise UserError(f"the case {case.name} has {lacking}, so no method can be scored on it; choose another case")
    return Known(possible, true, counted)


@cache
def known_nodes(case: Case) -> Known:
    """The nodes of a case's transformer, but the embedding. One is true from which a true edge leaves.

    Raises:
        UserError: as `known_edges`, or every node holds a variable.
    """
    edges, circuit = known_edges(case), case.circuit
    nodes = tuple(node for node in circuit.nodes if node != EMBED)
    senders = {edge[0] for edge, true in zip(circuit.nodes.possible_edges, edges.true, strict=True) if true}
    true = np.array([node in senders for node in nodes])
    silent = {*circuit.nodes.named(circuit.circuit_mask)} - senders
    counted = np.array([node not in silent for node in nodes])
    if true[counted].all():
        raise UserError(f"every node of the case {case.name} holds a variable, so there is none to tell them from")
    return Known(nodes, true, counted)
