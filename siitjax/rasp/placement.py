"""Where the variables of a RASP program live: each on the first head or MLP behind all that it reads.

Every variable that moves values between positions has a head to itself; those at the same position share the MLPs, as
in tracr. tracr puts a variable as many layers deep as there are s-ops before it; here it is as many as it must be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError
from siitjax.causal.circuit import Variable
from siitjax.model.nodes import Node, block_of, head, mlp
from siitjax.rasp.program import Step


def placed(steps: Sequence[Step], chosen: Mapping[str, Node]) -> tuple[Variable, ...]:
    """The variables on their nodes.

    Args:
        steps: each after those that it reads.
        chosen: nodes that are wanted for some of the variables, by name.

    Raises:
        UserError: there is no variable of a name, or the node wanted cannot compute it, or comes too early.
    """
    names = [step.variable.name for step in steps]
    for name in chosen:
        check_choice("the variable to place", name, names)
    depth: dict[str, int] = {}
    taken = {*chosen.values()}
    found = []
    for step in steps:
        name = step.variable.name
        behind = max((depth.get(read, 0) for read in step.variable.reads), default=0)
        if name in chosen:
            node = chosen[name]
            _check(step, node, behind)
        else:
            node = _first(step.on_head, behind, taken)
        taken.add(node)
        depth[name] = node.depth
        found.append(replace(step.variable, node=node))
    return tuple(found)


def _first(on_head: bool, behind: int, taken: set[Node]) -> Node:
    """The first head that is free, or the first MLP, deeper than `behind`."""
    layer, _ = block_of(behind + 1)
    if not on_head:
        return mlp(layer)
    layer += (behind + 1) % 2 == 0
    index = 0
    while head(layer, index) in taken:
        index += 1
    return head(layer, index)


def _check(step: Step, node: Node, behind: int) -> None:
    name = step.variable.name
    if not isinstance(node, Node) or node.layer is None:
        raise UserError(f'"{name}" is to live on {node!r}; give a head or an MLP: head(0, 1), mlp(0)')
    if step.on_head and node.head is None:
        raise UserError(
            f'"{name}" cannot live on {node}: it moves values between positions, which only heads do; place it on a '
            f"head at depth {behind + 1} or later, such as {_first(True, behind, set())}"
        )
    if node.depth <= behind:
        raise UserError(
            f'"{name}" cannot live on {node}, at depth {node.depth}: what it reads lies at depth {behind}; place it '
            f"deeper, such as on {_first(step.on_head, behind, set())}"
        )
