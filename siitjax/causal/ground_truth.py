"""The ground truth of a case in the forms that scorers take: variables, a mask of nodes, edges between nodes.

An edge (a, b) says that what node b computes reads what node a holds; "embed" holds the tokens, and "logits" is where
the answer is read. Possible edges are all pairs in which b comes later on the residual stream than a.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from siitjax.causal.case import Case
from siitjax.causal.circuit import Circuit, edge_labels
from siitjax.model.nodes import EMBED, Node, NodeList
from siitjax.model.swaps import EdgeSwaps

LOGITS = "logits"
SAMPLES = 5_000
"""Drawn to see which values each variable takes."""
PAIRS = 2_000
"""Drawn to see which labels a swap of an edge changes."""

Edge = tuple[str, str]
"""The names of two nodes, the earlier one first."""
Measured = tuple[float | None, float | None]
"""Shares of all tokens, and of those whose label a swap changes; None where there are none."""


def edges(circuit: Circuit) -> tuple[Edge, ...]:
    """The circuit's edges by name, in the order of the nodes that they end in."""
    return tuple((str(sender), str(reader)) for sender, reader in circuit.edges)


def possible_edges(nodes: NodeList) -> tuple[Edge, ...]:
    """Every edge that a transformer has, by name."""
    return tuple((str(sender), str(reader)) for sender, reader in nodes.possible_edges)


def edge_effects(case: Case) -> dict[Edge, float]:
    """The share of labels that a swap of each edge of the circuit changes in the causal model, over random pairs.

    Edges between nodes that hold variables together are swapped together, and have the same share. An edge whose swap
    changes none is *silent*: no sample can reveal it, so it is no ground truth.
    """
    circuit = replace(case.circuit, counterfactual="causal")  # the other rule knows no edges
    base, _ = case.draw(PAIRS, PAIRS // 4, np.random.default_rng(0))
    source = case.source_of(jnp.asarray(base), jnp.asarray(np.roll(base, 1, 0)), jax.random.key(0))
    masks = np.stack([circuit.nodes.edge_mask(unit) for unit in circuit.edge_units])

    @jax.jit
    def changed(base, source):
        labels = edge_labels(circuit, base, source, EdgeSwaps.of_all(masks, len(base)))
        own = case.counted_mask(base)[:, None]
        clean = jax.vmap(lambda tokens: circuit(tokens)[0])(base)[:, None]
        differs = ~case.loss.same(labels, jnp.broadcast_to(clean, labels.shape)) & own
        return differs.sum((0, 2)), own.sum()

    found, tokens = changed(jnp.asarray(base), source)
    units = zip(circuit.edge_units, found, strict=True)
    shares = {(str(a), str(b)): int(n) / int(tokens) for unit, n in units for a, b in unit}
    return {edge: shares[edge] for edge in edges(circuit)}


def ground_truth(case: Case, measured: Mapping[str, Measured] | None = None) -> dict[str, Any]:
    """What circuit.json holds.

    Args:
        measured: what a transformer gets right when an edge is swapped, by the edge's name, of all tokens and of those
            whose label the swap changes; it is then told of each edge.

    A variable's values are those that it took, at any position, in 5,000 samples with nothing swapped. The tolerance
    says how far a number may be off and still count as right, in the label's unit; None where labels are classes. Where
    not all of a sample's tokens count, "counted" says which do. The
    edges are those whose swap changes a label, each with the share that it changes; silent ones stand apart.
    """
    circuit, effects = case.circuit, edge_effects(case)
    true = [edge for edge, effect in effects.items() if effect > 0]
    tokens, _ = case.draw(SAMPLES, SAMPLES // 4, np.random.default_rng(0))
    _, taken = jax.jit(jax.vmap(circuit))(jnp.asarray(tokens))
    values = dict(zip((v.name for v in circuit.ordered), taken[1:], strict=True))
    return {
        "case": case.name,
        "variables": [
            {
                "name": v.name,
                "reads": list(v.reads),
                "node": _one_or_several([str(node) for node in v.nodes]),
                "hook": _one_or_several([case.config.hook(node) for node in v.nodes]),
                "values": _values(np.asarray(values[v.name])),
            }
            for v in case.variables
        ],
        "roles": {str(node): role(case, node) for node in circuit.nodes},
        "label": case.variables[-1].name,
        "loss": type(case.loss).__name__,
        "tolerance": getattr(case.loss, "tolerance", None),
        **({} if case.counted is None else {"counted": case.counts}),
        "counterfactual": case.counterfactual,
        "nodes": [str(node) for node in circuit.nodes],
        "hooks": [case.config.hook(node) for node in circuit.nodes],
        "node_mask": circuit.circuit_mask.tolist(),
        "edges": [list(edge) for edge in true],
        "edge_effects": [effects[edge] for edge in true],
        **({} if measured is None else _accuracies(measured, true)),
        "silent_edges": [list(edge) for edge, effect in effects.items() if effect == 0],
        "possible_edges": [list(edge) for edge in possible_edges(circuit.nodes)],
    }


def role(case: Case, node: Node) -> str:
    """What a node does, in words.

    Example:
        >>> import siitjax
        >>> case = siitjax.find_case("left_greater")
        >>> role(case, siitjax.mlp(0))
        'holds left_greater, computed from counts; read by logits'
        >>> role(case, siitjax.head(0, 0))
        'unused: what it holds changes no answer'
    """
    held = case.circuit.at(node)
    if node == EMBED:
        said = "holds the tokens"
    elif not held:
        return "unused: what it holds changes no answer"
    else:
        said = "; ".join(f"holds {v.name}, computed from {_and(v.reads)}" for v in held)
    readers = [str(reader) for sender, reader in case.circuit.edges if sender == node]
    return f"{said}; read by {_and(readers)}" if readers else said


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _accuracies(measured: Mapping[str, Measured], true: Sequence[Edge]) -> dict[str, Any]:
    found = [measured["->".join(edge)] for edge in true]
    return {
        "edge_accuracy": [share for share, _ in found],
        "edge_accuracy_on_changed": [changed for _, changed in found],
    }


def _one_or_several(names: list[str]) -> str | list[str] | None:
    """A variable's one node, or its several, or none."""
    return names if len(names) > 1 else next(iter(names), None)


def _values(taken: np.ndarray) -> dict[str, Any]:
    """The range of a variable of shape (sample, seq, *shape)."""
    kind = {"b": "bool", "i": "int", "f": "float"}[taken.dtype.kind]
    return {"kind": kind, "shape": list(taken.shape[2:]), "least": taken.min().item(), "greatest": taken.max().item()}
