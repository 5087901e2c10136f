"""Where in a transformer does a causal model's variable live? Every node is tried, by interchange interventions.

Geiger et al. 2022 look for the nodes of a network that play the part of a causal model's variables. Here each node of
the kind that the circuit asks for (a head, or an MLP) is swapped as if it held the variable, and the best placement of
all variables together is taken that a transformer can compute in order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.model.forms import PLAIN
from siitjax.model.nodes import Node
from siitjax.model.transformer import Transformer
from siitjax.siit.interchange import interchange


@dataclass(frozen=True)
class Placement:
    """Where the variables of a circuit are found in a transformer.

    Attributes:
        nodes: for each node of the circuit that was declared, the node that plays its part best.
        scores: of each of these nodes, its balanced interchange accuracy, from 0 to 1; see `node_scores`.
    """

    nodes: Mapping[Node, Node]
    scores: Mapping[Node, float]

    def of(self, case: Case) -> Case:
        """The case with its variables placed so."""
        moved = lambda node: self.nodes.get(node, node)
        variables = (
            replace(v, node=tuple(map(moved, v.node)) if isinstance(v.node, tuple) else v.node and moved(v.node))
            for v in case.variables
        )
        return replace(case, variables=tuple(variables))


def node_scores(
    model: Transformer, case: Case, base: Int[Array, "pair seq"], source: Int[Array, "pair seq"]
) -> dict[Node, dict[Node, float]]:
    """How well each node plays the part of each node of the circuit: its balanced interchange accuracy, from 0 to 1.

    That is the mean of two shares: of the tokens whose label the causal model's swap changes, and of the others, those
    that the transformer answers as the causal model does when the node tried takes the source's values. (The share of
    all tokens would call a node good that does nothing, since most swaps leave most labels as they are.)

    Raises:
        UserError: the case has a variable on several nodes, or the transformer or the pairs do not fit the case.
    """
    case.check_fits(model.config, base, source)
    circuit = case.circuit
    if circuit.joint:
        raise UserError(f"{case.name} has a variable on several nodes; only variables on one node each can be placed")
    declared, nodes = [unit[0] for unit in circuit.units], circuit.nodes
    tried = [node for node in nodes if node.layer is not None]
    answered, labels, own, counted = _answers(
        model,
        case,
        base,
        source,
        jnp.asarray(np.stack([nodes.mask([node]) for node in tried])),
        jnp.asarray(np.stack([nodes.mask([node]) for node in declared])),
    )
    found: dict[Node, dict[Node, float]] = {}
    for i, node in enumerate(declared):
        here = labels[:, i]
        each = jnp.broadcast_to(here[:, None], (len(base), len(tried), *here.shape[1:]))
        right, changed = np.asarray(case.loss.correct(answered, each)), ~np.asarray(case.loss.same(here, own))
        shares = [_balanced(right[:, j], changed, np.asarray(counted)) for j in range(len(tried))]
        alike = lambda other, node=node: (node.head is None) == (other.head is None)
        found[node] = {other: x for other, x in zip(tried, shares, strict=True) if alike(other)}
    return found


def find_placement(
    model: Transformer, case: Case, base: Int[Array, "pair seq"], source: Int[Array, "pair seq"]
) -> Placement:
    """The placement of all variables with the highest sum of scores that a transformer can compute in order.

    What shares a declared node stays together; heads go to heads and MLPs to MLPs, no two to the same one.

    Raises:
        UserError: as `node_scores`.

    Example:
        >>> import siitjax
        >>> trained = siitjax.load("left_greater")
        >>> base, source = (jnp.stack([trained.case.tokens(s) for s in pair]) for pair in (("((", "()"), ("))", "(("))))
        >>> found = find_placement(trained.model, trained.case, base, source)
        >>> {str(node): str(other) for node, other in found.nodes.items()}
        {'L0H1': 'L0H1', 'MLP0': 'MLP0'}
    """
    scores = node_scores(model, case, base, source)
    declared = sorted(scores, key=lambda node: node.depth)
    before = {
        node: {sender for sender, reader in case.circuit.edges if reader == node and sender in scores}
        for node in declared
    }
    # Of those that remain, the most that each can add: nothing that cannot beat the best is followed.
    most = [sum(max(scores[node].values()) for node in declared[i:]) for i in range(len(declared) + 1)]
    best: tuple[float, dict[Node, Node]] = (-1.0, {})

    def place(i: int, so_far: float, placed: dict[Node, Node]) -> None:
        nonlocal best
        if so_far + most[i] <= best[0]:
            return
        if i == len(declared):
            best = (so_far, placed)
            return
        node = declared[i]
        first = max((placed[sender].depth for sender in before[node]), default=0)
        for other, score in sorted(scores[node].items(), key=lambda found: -found[1]):
            if other.depth > first and other not in placed.values():
                place(i + 1, so_far + score, {**placed, node: other})

    place(0, 0.0, {})
    return Placement(best[1], {node: scores[node][other] for node, other in best[1].items()})


def _balanced(
    right: Bool[np.ndarray, "pair seq"], changed: Bool[np.ndarray, "pair seq"], counted: Bool[np.ndarray, "pair seq"]
) -> float:
    shares = [right[which & counted].mean() for which in (changed, ~changed) if (which & counted).any()]
    return float(np.mean(shares)) if shares else 0.0


@partial(jax.jit, static_argnums=1)
def _answers(model: Transformer, case: Case, base, source, tried, declared):
    """Logits under each swap that is tried, labels under each that is declared and under none, and what counts."""
    logits, _ = interchange(model, case.circuit, base, source, tried, form=PLAIN)

    def labelled(base, source):
        _, values = case.circuit(source)
        values = (None, *values[1:])
        return jax.vmap(lambda mask: case.circuit(base, (mask, values))[0])(declared), case.circuit(base)[0]

    labels, own = jax.vmap(labelled)(base, source)
    return logits, labels, own, case.counted_mask(base)
