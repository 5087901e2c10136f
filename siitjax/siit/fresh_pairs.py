"""A transformer measured again from nothing, on pairs of strings that are drawn anew; and the tables of that."""

from collections.abc import Callable, Iterator
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from siitjax.base.compilation import quick_to_compile
from siitjax.base.share import percent
from siitjax.causal.case import Case
from siitjax.causal.circuit import unit_name
from siitjax.model.transformer import Transformer
from siitjax.siit.edge_metrics import count_edges
from siitjax.siit.evaluate import count
from siitjax.siit.metrics import EdgeMetrics, Metrics, Shares, shares

BATCH = 5_000
"""Pairs measured by one call."""
EVERY = 2**17
"""A task of no more strings than this is measured on each of them."""
FEW = 100
"""Strings of a task that are drawn at least, though fewer be taken."""
MILLION = 1_000_000

Batch = tuple[Int[np.ndarray, "pair seq"], Int[np.ndarray, "pair seq"]]


def list_batches(case: Case, pairs: int, seed: int, *, exhaustive: bool = False) -> list[Batch]:
    """Pairs of bases and sources, in batches.

    Args:
        pairs: random ones; at least a million where it is exhaustive, which takes every string as a base first.
    """
    rng = np.random.default_rng(seed)
    every = case.every(EVERY) if exhaustive else None
    bases = [] if every is None else np.array_split(every, range(BATCH, len(every), BATCH))
    batches = [(base, _sources(case, base, _strings(case, len(base), rng), rng)) for base in bases]
    left = max(pairs, MILLION) if exhaustive else pairs
    return batches + list(_random(case, left, rng))


def _random(case: Case, pairs: int, rng: np.random.Generator) -> Iterator[Batch]:
    for start in range(0, pairs, BATCH):
        base = _strings(case, min(BATCH, pairs - start), rng)
        yield base, _sources(case, base, rng.permutation(base), rng)


def _sources(
    case: Case, base: Int[np.ndarray, "n seq"], other: Int[np.ndarray, "n seq"], rng: np.random.Generator
) -> Int[np.ndarray, "n seq"]:
    if case.sources is None:
        return other
    key = jax.random.key(int(rng.integers(2**31)))
    return np.asarray(case.source_of(jnp.asarray(base), jnp.asarray(other), key))


def _strings(case: Case, n: int, rng: np.random.Generator) -> Int[np.ndarray, "n seq"]:
    # One string more than is wanted, since a case divides what it draws in two; and not few, as each of its strata
    # gives some.
    tasks = max(len(case.tasks), 1)
    whole, _ = case.draw(max(n, FEW * tasks), tasks, rng)
    return whole[:n]


def measure(case: Case, model: Transformer, batches: list[Batch], seed: int, screen: Console | None = None) -> Metrics:
    """The metrics over all batches, in 64 bits, with a bar on the screen that is given."""
    shown = track(batches, "measuring", console=screen, transient=True) if screen else batches
    root = jax.random.key(seed)
    found = None
    for i, (base, source) in enumerate(shown):
        counts = _count(case, model, jnp.asarray(base), jnp.asarray(source), jax.random.fold_in(root, i))
        wide = lambda x: np.asarray(x, np.float64 if x.dtype.kind == "f" else np.int64)
        counts = jax.tree.map(wide, counts)  # waited for, so that the bar is true
        found = counts if found is None else jax.tree.map(np.add, found, counts)
    assert found is not None
    return found


def measure_edges(case: Case, model: Transformer, pairs: int, seed: int) -> EdgeMetrics:
    """The metrics under swaps of every kind, on as many fresh pairs, `BATCH` at most."""
    base, source = map(jnp.asarray, list_batches(case, min(pairs, BATCH), seed)[0])
    return jax.device_get(_counting_edges()(case, model, base, source, jax.random.key(seed)))


@partial(jax.jit, static_argnums=0)
def _count(case: Case, model: Transformer, base, source, key) -> Metrics:
    return count(model, case, base, source, key=key)


@cache
def _counting_edges() -> Callable[..., EdgeMetrics]:
    def counted(case: Case, model: Transformer, base, source, key) -> EdgeMetrics:
        return count_edges(model, case, base, source, key=key)

    return jax.jit(counted, static_argnums=0, compiler_options=quick_to_compile())


def node_names(case: Case) -> tuple[list[str], list[str]]:
    """The circuit's nodes, those that are swapped together under one name, and the unused ones."""
    circuit = case.circuit
    return [*map(unit_name, circuit.units)], [*map(str, circuit.nodes.named(circuit.unused_mask))]


def held_by_node(case: Case) -> dict[str, list[str]]:
    """The names of the variables that each node of the circuit holds."""
    on = lambda unit: [v.name for v in case.variables if {*v.nodes} & {*unit}]
    return {unit_name(unit): on(unit) for unit in case.circuit.units}


def summary_table(case: Case, metrics: Metrics, pairs: int, stored: Shares | None = None) -> Table:
    """What was measured, a line a metric, beside the figures that are stored."""
    table = Table(box=box.SIMPLE_HEAD)
    tolerance = getattr(case.loss, "tolerance", None)
    within = "" if tolerance is None else f", right within {tolerance:g}"
    table.add_column(f"% of {case.counts}, {pairs} pairs{within}")
    for column in ("measured", "stored") if stored is not None else ("measured",):
        table.add_column(column, justify="right")
    names = {"iia": "IIA", "changed_iia": "changed IIA", "worst_changed_iia": "changed IIA, worst node", "siia": "SIIA"}
    names |= {"joint_siia": "joint SIIA", "subset_siia": "subset SIIA"}
    sides = (shares(metrics),) if stored is None else (shares(metrics), stored)
    for name, words in ({"accuracy": "accuracy"} | names).items():
        table.add_row(words, *(percent(getattr(side, name)) for side in sides))
    if metrics.errors is not None:
        table.add_section()
        table.add_row("mean absolute error", *(_unit(side.mean_error) for side in sides))
        worst = (max(side.node_mean_error, default=None) for side in sides)
        table.add_row("the same under a node's swap, worst", *map(_unit, worst))
    return table


def _unit(error: float | None) -> str:
    """A mean absolute error, in the label's unit."""
    return "-" if error is None else f"{error:.3g}"


def node_table(case: Case, metrics: Metrics) -> Table:
    """What was measured when each node was swapped alone, a line a node."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("node")
    table.add_column("variables")
    for column in ("right under swap", "changed labels", "right of those"):
        table.add_column(column, justify="right")
    circuit, unused = node_names(case)
    held = held_by_node(case)
    rows = zip(circuit, metrics.node.shares, metrics.changed.of, metrics.changed.shares, strict=True)
    for node, right, changed, right_changed in rows:
        table.add_row(node, ", ".join(held[node]), percent(right), f"{int(changed)}", percent(right_changed))
    for node, right in zip(unused, metrics.unused.shares, strict=True):
        table.add_row(node, "", percent(right), "0", "-")
    table.add_section()
    table.add_row("unused", "all together", percent(metrics.joint.share), "0", "-")
    table.add_row("unused", "a random subset", percent(metrics.subset.share), "0", "-")
    return table
