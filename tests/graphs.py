"""Causal models under swaps of edges in plain Python: lists and dicts, walked with a view for each reader.

Tokens are numbers: 0 BOS, 1 PAD, 2 (, 3 ). In the graph of both tasks of parentheses, 4 and 5 name the task.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

LEFT, RIGHT = 2, 3


class Plain(NamedTuple):
    """A variable: where it lives, what it reads, and its value at each position."""

    node: str | None
    reads: tuple[str, ...]
    compute: Callable[..., list]


Graph = dict[str, Plain]
"""The variables by name; the last one is the label."""


class Swap(NamedTuple):
    """What one run swaps.

    Attributes:
        swapped: whether a reader sees a sender's source value at a position: (sender, reader, position).
        source: the tokens of a sender's source run.
    """

    swapped: Callable[[str, str, int], bool]
    source: Callable[[str], Sequence[int]]


def seen(graph: Graph, name: str, reader: str, tokens: Sequence[int], swap: Swap | None = None) -> list[Any]:
    """What `reader` sees of a variable, or of "tokens", at each position.

    A variable that no node holds is computed from what the reader sees; one that a node holds, from what that node
    sees. Of the latter the reader may see the source run's value, in which nothing is swapped.
    """
    node = "embed" if name == "tokens" else graph[name].node
    viewer = reader if node is None else node
    own = (
        list(tokens)
        if name == "tokens"
        else graph[name].compute(*(seen(graph, read, viewer, tokens, swap) for read in graph[name].reads))
    )
    if swap is None or node is None or node == reader:
        return own
    there = seen(graph, name, node, swap.source(node))
    return [b if swap.swapped(node, reader, i) else a for i, (a, b) in enumerate(zip(own, there, strict=True))]


def label(graph: Graph, tokens: Sequence[int], swap: Swap | None = None) -> list[int]:
    """The label of each token: what the logits see of the last variable."""
    return seen(graph, list(graph)[-1], "logits", tokens, swap)


def swap_of(nodes: Sequence[str], edges: Any, positions: Any, sources: Any) -> Swap:
    """The swap that masks say.

    Args:
        nodes: their names in mask order; the readers are all but the first, and the logits.
        edges: (reader, sender) of bools.
        positions: (sender, seq) of bools; None for all positions.
        sources: the tokens of each sender's source run.
    """
    readers = [*nodes[1:], "logits"]

    def swapped(sender, reader, position):
        i = nodes.index(sender)
        return bool(edges[readers.index(reader)][i]) and (positions is None or bool(positions[i][position]))

    return Swap(swapped, lambda sender: list(map(int, sources[nodes.index(sender)])))


def counts(tokens: list) -> list:
    return [(tokens[: i + 1].count(LEFT), tokens[: i + 1].count(RIGHT)) for i in range(len(tokens))]


def horizon(checks: list) -> list:
    return [all(up for _, up in checks[: i + 1]) for i in range(len(checks))]


def balanced(checks: list, horizon: list) -> list:
    return [2, *(int(zero and up) for (zero, _), up in zip(checks[1:], horizon[1:], strict=True))]


LEFT_GREATER: Graph = {
    "counts": Plain("L0H1", ("tokens",), counts),
    "left_greater": Plain("MLP0", ("counts",), lambda counts: [a > b for a, b in counts]),
    "answer": Plain(None, ("left_greater",), lambda more: [2, *map(int, more[1:])]),
}

PAREN_CHECKER: Graph = {
    "counts": Plain("L0H3", ("tokens",), counts),
    "elevation": Plain("MLP0", ("counts",), lambda counts: [a - b for a, b in counts]),
    "checks": Plain("MLP1", ("elevation",), lambda elevation: [(e == 0, e >= 0) for e in elevation]),
    "horizon": Plain("L2H3", ("checks",), horizon),
    "balanced": Plain("MLP2", ("checks", "horizon"), balanced),
}


def lead(one: int, other: int) -> Callable[[list], list]:
    return lambda tokens: [tokens[: i + 1].count(one) - tokens[: i + 1].count(other) for i in range(len(tokens))]


def ahead(lead: list) -> list:
    return [x > 0 for x in lead]


TWO_MAJORITIES: Graph = {
    "a_lead": Plain("L0H0", ("tokens",), lead(2, 3)),
    "c_lead": Plain("L0H1", ("tokens",), lead(4, 5)),
    "a_ahead": Plain("MLP0.0", ("a_lead",), ahead),
    "c_ahead": Plain("MLP0.1", ("c_lead",), ahead),
    "answer": Plain(None, ("a_ahead", "c_ahead"), lambda a, c: [x + 2 * y for x, y in zip(a, c, strict=True)]),
}
"""Its tokens are 2 a, 3 b, 4 c, 5 d; two of its variables live on the halves of one MLP."""


def task(tokens: list) -> list:
    return [tokens[0] - 4] * len(tokens)


def without_task(tokens: list) -> list:
    """The sample as each task sees it: what names a task is a "(" where a swap brings it, and a pad at the first."""
    return [1, *(LEFT if token > RIGHT else token for token in tokens[1:])]


def behind_the_task(v: Plain) -> Plain:
    """A task's own variable, whose sample begins at the second position, and goes round to the first."""
    turned = lambda *values: v.compute(*(value[1:] + value[:1] for value in values))
    return v._replace(compute=lambda *values: turned(*values)[-1:] + turned(*values)[:-1])


def answer(task: list, *labels: list) -> list:
    return [0, *(labels[which][i] for i, which in list(enumerate(task))[1:])]


def of_task(name: str, graph: Graph) -> Graph:
    """The variables of one task of several, under names and with tokens of its own."""
    own = {f"{name}.tokens": Plain(None, ("tokens",), without_task)}
    for variable, v in graph.items():
        own[f"{name}.{variable}"] = behind_the_task(v)._replace(reads=tuple(f"{name}.{read}" for read in v.reads))
    return own


BOTH: Graph = {
    "task": Plain("L0H0", ("tokens",), task),
    **of_task("left_greater", LEFT_GREATER),
    **of_task("paren_checker", PAREN_CHECKER),
    "answer": Plain("MLP3", ("task", "left_greater.answer", "paren_checker.balanced"), answer),
}
"""left_greater and paren_checker in one transformer."""
