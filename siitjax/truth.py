"""The ground truth of a case in the forms that scorers take: variables, a mask of nodes, edges between nodes.

An edge (a, b) says that what node b computes reads what node a holds; "embed" holds the tokens, and "logits" is where
the answer is read. Possible edges are all pairs in which b comes later on the residual stream than a.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from siitjax.case import Case
from siitjax.circuit import TOKENS, Circuit
from siitjax.nodes import EMBED, NodeList

LOGITS = "logits"
SAMPLES = 5_000
"""Drawn to see which values each variable takes."""

Edge = tuple[str, str]
"""The names of two nodes, the earlier one first."""


def edges(circuit: Circuit) -> tuple[Edge, ...]:
    """The circuit's edges, in the order of the nodes that they end in.

    Variables that no node holds are looked through: who reads one reads what it was computed from.
    """
    holders = {TOKENS: {str(EMBED)}}
    found: dict[str, set[str]] = {}
    for variable in circuit.ordered:
        read = set[str]().union(*(holders[name] for name in variable.reads))
        if variable.node is None:
            holders[variable.name] = read
            continue
        node = str(variable.node)
        found.setdefault(node, set()).update(read - {node})
        holders[variable.name] = {node}
    found[LOGITS] = holders[circuit.variables[-1].name]
    order = [*map(str, circuit.nodes), LOGITS]
    ends = sorted(found, key=order.index)
    return tuple((begin, end) for end in ends for begin in sorted(found[end], key=order.index))


def possible_edges(nodes: NodeList) -> tuple[Edge, ...]:
    """Every edge that a transformer has: from each node to each that is deeper, and to the logits."""
    later = lambda node: [*(str(other) for other in nodes if other.depth > node.depth), LOGITS]
    return tuple((str(node), end) for node in nodes for end in later(node))


def ground_truth(case: Case) -> dict[str, Any]:
    """What circuit.json holds.

    A variable's values are those that it took, at any position, in 5,000 samples with nothing swapped. The tolerance
    says how far a number may be off and still count as right, in the label's unit; None where labels are classes.
    """
    circuit = case.circuit
    tokens, _ = case.draw(SAMPLES, SAMPLES // 4, np.random.default_rng(0))
    _, taken = jax.jit(jax.vmap(circuit))(jnp.asarray(tokens))
    values = dict(zip((v.name for v in circuit.ordered), taken[1:], strict=True))
    return {
        "case": case.name,
        "variables": [
            {
                "name": v.name,
                "reads": list(v.reads),
                "node": str(v.node) if v.node else None,
                "hook": v.node.hook if v.node else None,
                "values": _values(np.asarray(values[v.name])),
            }
            for v in case.variables
        ],
        "label": case.variables[-1].name,
        "loss": type(case.loss).__name__,
        "tolerance": getattr(case.loss, "tolerance", None),
        "counterfactual": case.counterfactual,
        "nodes": [str(node) for node in circuit.nodes],
        "hooks": [node.hook for node in circuit.nodes],
        "node_mask": circuit.circuit_mask.tolist(),
        "edges": [list(edge) for edge in edges(circuit)],
        "possible_edges": [list(edge) for edge in possible_edges(circuit.nodes)],
    }


def _values(taken: np.ndarray) -> dict[str, Any]:
    """The range of a variable of shape (sample, seq, *shape)."""
    kind = {"b": "bool", "i": "int", "f": "float"}[taken.dtype.kind]
    return {"kind": kind, "shape": list(taken.shape[2:]), "least": taken.min().item(), "greatest": taken.max().item()}
