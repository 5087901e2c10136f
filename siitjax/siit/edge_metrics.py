"""Does a transformer hold its circuit under every kind of swap, not only under those of single nodes?

A kind is a row of the table: swaps of two nodes, of one edge, of random nodes with sources of their own, of all edges
outside the circuit, and so on. Each is counted twice: over all tokens, and over those whose label the swap changed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped
from rich import box
from rich.table import Table

from siitjax.base.share import percent
from siitjax.causal.case import Case
from siitjax.causal.circuit import Circuit, edge_labels, edge_unit_name, unit_name
from siitjax.model.forms import Form, fastest, summed_over_chunks
from siitjax.model.swaps import EdgeSwaps
from siitjax.model.transformer import Transformer
from siitjax.siit.metrics import EdgeMetrics, Tally

AT_ONCE = 40
"""Samples evaluated together at most."""
TOGETHER = 4
"""Masks evaluated together: bounds the memory, not the result."""
LEAST, LEAST_CHANGED = Fraction("0.999"), Fraction("0.995")
"""Shares of all tokens, and of those whose label it changed, with which a swap holds; fixed before the first run."""

ONE_NODE, ONE_EDGE, ALL_UNUSED = "one node", "one edge of the circuit", "all unused nodes"
AT_NODES = (ONE_NODE, ALL_UNUSED)
"""The kinds that a model which holds at nodes holds under."""

PAIR, OWN, BASE = range(3)
"""Where a sender's source value comes from: the pair's source, a source of its own, the base run itself."""


@dataclass(frozen=True)
class Kind:
    """One kind of swap: fixed swaps, each counted on every pair, or one that is drawn anew for every pair.

    Attributes:
        words: what the tables call it.
        names: what each fixed swap is called; one word where it is drawn.
        masks: the fixed swaps, or what a drawn one is drawn from: each edge, or node, with probability `p`.
        sources: PAIR, OWN or BASE, of each sender.
        p: the probability with which a drawn swap swaps each sender, or each edge; None where nothing is drawn.
        by_edge: draw edges, not senders.
        fixed_too: edges that a drawn swap always swaps.
        positions: swap each sender at random positions, each with probability 1/2.
    """

    words: str
    names: tuple[str, ...]
    masks: Bool[np.ndarray, "mask reader sender"]
    sources: Int[np.ndarray, "mask sender"]
    p: float | None = None
    by_edge: bool = False
    fixed_too: Bool[np.ndarray, "reader sender"] | None = None
    positions: bool = False


@dataclass(frozen=True)
class Row:
    """What one kind comes to.

    Attributes:
        words: what the tables call the kind.
        mean: the share of tokens that are right, over all its swaps.
        worst, worst_swap: the least of a swap's shares, and that swap's name.
        changed: the share on changed labels, over all its swaps; None where none changes any.
        worst_changed, worst_changed_swap: the least of a swap's on changed labels.
        holds: whether each swap holds.
    """

    words: str
    mean: Fraction
    worst: Fraction
    worst_swap: str
    changed: Fraction | None
    worst_changed: Fraction | None
    worst_changed_swap: str
    holds: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON has it: shares in float64, null where there is none."""
        return {k: float(v) if isinstance(v, Fraction) else v for k, v in vars(self).items()}


@cache
def kinds(case: Case) -> tuple[Kind, ...]:
    """The kinds of swap that a case's transformer is measured under."""
    circuit, nodes = case.circuit, case.circuit.nodes
    n = len(nodes)
    held = circuit.units
    column = lambda *which: nodes.as_edges(nodes.mask(which)) & ~circuit.within_mask
    stack = lambda masks: np.stack(masks) if len(masks) else np.zeros((0, n, n), bool)
    from_ = lambda masks, where: np.full((len(masks), n), where)
    unused, inside, outside = nodes.as_edges(circuit.unused_mask), circuit.edge_mask, circuit.outside_mask
    everything = inside | outside
    alone = lambda units: [nodes.edge_mask(unit) for unit in units]
    others = [(edge,) for edge in nodes.edges_in(outside)]
    flat = lambda units: [node for unit in units for node in unit]

    def fixed(words, names, masks, where=PAIR):
        return Kind(words, tuple(names), stack(masks), from_(masks, where))

    def drawn(words, mask, where=PAIR, p: float = 0.5, **how):
        return Kind(words, ("drawn",), mask[None], from_([mask], where), p, **how)

    pairs = [*combinations(held, 2)]
    one = fixed(ONE_NODE, map(unit_name, held), [column(*unit) for unit in held])
    beside = Kind(
        "one node, unused ones held at the base's",
        one.names,
        one.masks | unused,
        np.where(circuit.unused_mask, BASE, PAIR)[None].repeat(len(held), 0),
    )
    all_nodes = column(*flat(held))
    return tuple(
        kind
        for kind in (
            one,
            fixed(
                "two nodes",
                (f"{unit_name(a)}, {unit_name(b)}" for a, b in pairs),
                [column(*flat(pair)) for pair in pairs],
            ),
            drawn("random nodes, own sources", all_nodes, OWN),
            fixed("all nodes but the last, own sources", ("all",), [column(*flat(held[:-1]))], OWN),
            drawn("random nodes at random positions, own sources", all_nodes, OWN, positions=True),
            beside,
            fixed(ALL_UNUSED, ("all",), [unused]),
            fixed(ONE_EDGE, map(edge_unit_name, circuit.edge_units), alone(circuit.edge_units)),
            fixed("one edge outside", map(edge_unit_name, others), alone(others)),
            drawn("random edges outside", outside, by_edge=True),
            fixed("all edges outside", ("all",), [outside]),
            drawn("random edges, all outside too, own sources", inside, OWN, by_edge=True, fixed_too=outside),
            drawn("random edges at random positions, own sources", everything, OWN, by_edge=True, positions=True),
        )
        if kind.masks.any()
    )


def rows(case: Case, metrics: EdgeMetrics) -> tuple[Row, ...]:
    """What the metrics come to, kind by kind."""
    found, first = [], 0
    for kind in kinds(case):
        here = slice(first, first := first + len(kind.names))
        tokens, changed = metrics.tokens.at(here), metrics.changed.at(here)
        worst, worst_swap = _least(tokens, kind)
        worst_changed, worst_changed_swap = _least(changed, kind)
        assert worst is not None
        found.append(
            Row(
                kind.words,
                tokens.share,
                worst,
                worst_swap,
                None if worst_changed is None else changed.share,
                worst_changed,
                worst_changed_swap,
                worst >= LEAST and (worst_changed is None or worst_changed >= LEAST_CHANGED),
            )
        )
    return tuple(found)


def _least(tally: Tally, kind: Kind) -> tuple[Fraction | None, str]:
    """The least share of a kind's swaps, and that swap's name; None where there was nothing to count."""
    known = [(share, name) for share, name in zip(tally.shares, kind.names, strict=True) if share is not None]
    return min(known, key=lambda found: found[0], default=(None, ""))


def count_edges(
    model: Transformer,
    case: Case,
    base: Int[Array, "sample seq"],
    source: Int[Array, "sample seq"],
    *,
    key: PRNGKeyArray,
    each: bool = True,
    form: Form | None = None,
) -> EdgeMetrics:
    """Counts what is right under swaps of every kind.

    Args:
        each: count every fixed swap on every pair; otherwise, one of each kind's is drawn for a pair, and the counts
            are of kinds.
    """
    form = form or fastest()
    circuit = case.circuit
    use = kinds(case)
    size = min(form.at_once or AT_ONCE, len(base))

    def chunk(base, source, keys):
        swaps = _swaps(case, use, base.shape, each, keys[0])
        total = swaps.edges.shape[1]
        groups = -(-total // TOGETHER)
        padded = jax.tree.map(
            lambda x: jnp.pad(x, [(0, 0), (0, groups * TOGETHER - total)] + [(0, 0)] * (x.ndim - 2)), swaps
        )
        by_group = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(len(base), groups, TOGETHER, *x.shape[2:]), 1, 0), padded
        )
        sources = jnp.concatenate([source, base])
        _, there = form.run(model, sources)
        own = case.counted_mask(base)[:, None]
        unswapped = jax.vmap(lambda tokens: circuit(tokens)[0])(base)[:, None]

        def group(swaps):
            labels = edge_labels(circuit, base, sources, swaps)
            right = case.loss.correct(form.run_edges(model, base, swaps, there), labels) & own
            changed = ~case.loss.same(labels, jnp.broadcast_to(unswapped, labels.shape)) & own
            whole = jnp.broadcast_to(own, right.shape)
            return jax.tree.map(lambda x: x.sum((0, 2)), (right, whole, right & changed, changed))

        counts = jax.tree.map(lambda x: x.reshape(-1)[:total], jax.lax.map(group, by_group))
        return EdgeMetrics(Tally(*counts[:2]), Tally(*counts[2:]))

    keys = jax.random.split(key, len(base))
    return summed_over_chunks(chunk, size, base, source, keys)


def _swaps(case: Case, use: tuple[Kind, ...], shape: tuple[int, ...], each: bool, key: PRNGKeyArray) -> EdgeSwaps:
    """The swaps of a few pairs, kind after kind; source runs are the pairs' sources, then their bases."""
    batch, seq = shape
    n = len(case.circuit.nodes)
    number = jnp.arange(batch, dtype=jnp.int32)[:, None, None]
    edges, positions, sources = [], [], []
    # Each kind has keys of its own, but what several draw is drawn in one go: a draw is long to compile.
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3))(jnp.arange(len(use)))
    sizes = jnp.array([len(kind.masks) for kind in use], jnp.int32)
    one_of = jax.vmap(lambda key, size: jax.random.randint(key, (batch,), 0, size))(keys[:, 0], sizes)
    others = jax.vmap(lambda key: jax.random.randint(key, (batch, 1, n), 0, batch, jnp.int32))(keys[:, 2])
    for kind, (which, where, _), drawn, own in zip(use, keys, one_of, others, strict=True):
        masks, origin = jnp.asarray(kind.masks), jnp.asarray(kind.sources, jnp.int32)
        if kind.p is not None:
            kept = jax.random.bernoulli(which, kind.p, (batch, 1, n if kind.by_edge else 1, n))
            if case.circuit.joint:
                kept = _kept_together(case.circuit, kept)
            masks = kept & masks[None] | (False if kind.fixed_too is None else kind.fixed_too[None, None])
            origin = origin[None]
        elif each:
            masks, origin = masks[None], origin[None]
        else:
            masks, origin = masks[drawn][:, None], origin[drawn][:, None]
        m = masks.shape[1]
        edges.append(jnp.broadcast_to(masks, (batch, m, n, n)))
        there = jax.random.bernoulli(where, 0.5, (batch, m, n, seq)) if kind.positions else True
        positions.append(_together(case.circuit, jnp.broadcast_to(there, (batch, m, n, seq))))
        chosen = jnp.where(origin == OWN, own, jnp.where(origin == BASE, number + batch, number))
        chosen = _together(case.circuit, jnp.broadcast_to(chosen, (batch, m, n)))
        sources.append(chosen)
    join = lambda parts: jnp.concatenate(parts, 1)
    return EdgeSwaps(join(edges), join(positions), join(sources))


def _together(
    circuit: Circuit, drawn: Shaped[Array, "batch mask node *rest"]
) -> Shaped[Array, "batch mask node *rest"]:
    """What is drawn of each node, in which those that hold a variable together have the same."""
    return drawn[:, :, circuit.first_of_unit] if circuit.joint else drawn


def _kept_together(
    circuit: Circuit, kept: Bool[Array, "batch 1 reader_or_1 sender"]
) -> Bool[Array, "batch 1 reader_or_1 sender"]:
    """What is drawn of nodes or edges, in which those that are swapped together are drawn together."""
    if kept.shape[2] == 1:
        return kept[..., circuit.first_of_unit]
    return kept.reshape(*kept.shape[:2], -1)[..., circuit.first_of_edge_unit].reshape(kept.shape)


def holding(case: Case, metrics: EdgeMetrics) -> str:
    """Whether a model holds its circuit, in words."""
    found = rows(case, metrics)
    if all(row.holds for row in found):
        return "holds its circuit under every kind of swap"
    short = ", ".join(row.words for row in found if not row.holds)
    at_nodes = all(row.holds for row in found if row.words in AT_NODES)
    return f"holds at nodes, and not under {short}" if at_nodes else f"does not hold its circuit under {short}"


def edge_tables(case: Case, metrics: EdgeMetrics) -> tuple[Table, Table]:
    """A line for each kind of swap, and one for each edge of the circuit."""
    table = Table(box=box.SIMPLE_HEAD, title="Swaps of every kind", title_justify="left")
    for column in (f"% of {case.counts} (of those whose label changes)", "mean", "worst", "worst swap", "holds"):
        table.add_column(column, justify="right" if column in ("mean", "worst") else "left")
    for row in rows(case, metrics):
        swap = row.worst_changed_swap or row.worst_swap
        several = swap not in ("all", "drawn")
        worst = shown(row.worst, row.worst_changed) if several else ""
        holds = "yes" if row.holds else "no"
        table.add_row(row.words, shown(row.mean, row.changed), worst, swap if several else "", holds)
    edges = Table(box=box.SIMPLE_HEAD, title="Each edge of the circuit", title_justify="left")
    for column in ("edge", "right under swap", "changed labels", "right of those"):
        edges.add_column(column, justify="left" if column == "edge" else "right")
    for name, tokens, changed in by_edge(case, metrics):
        silent = "" if int(changed.of) else "silent"
        share = changed.share if int(changed.of) else None
        edges.add_row(name, percent(tokens.share), silent or f"{int(changed.of)}", percent(share))
    return table, edges


def shown(share: Fraction | None, changed: Fraction | None) -> str:
    """A share in percent, and in brackets that on changed labels, where there are any."""
    return percent(share) + ("" if changed is None else f" ({percent(changed)})")


def by_edge(case: Case, metrics: EdgeMetrics) -> Iterator[tuple[str, Tally, Tally]]:
    """Each edge of the circuit (or those that are swapped together), with what was right when it alone was swapped: of
    all tokens, of changed ones."""
    first = 0
    for kind in kinds(case):
        for i, name in enumerate(kind.names, start=first):
            if kind.words == ONE_EDGE:
                yield name, metrics.tokens.at(i), metrics.changed.at(i)
        first += len(kind.names)
