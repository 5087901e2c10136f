"""Does a trained transformer hold its circuit? Measured again from nothing: `python -m siitjax evaluate`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import binomtest

from siitjax.base.command import Command, argument, flag
from siitjax.base.share import percent
from siitjax.causal.case import Case
from siitjax.io.trained import Trained, load
from siitjax.model.transformer import Transformer
from siitjax.siit.edge_metrics import count_edges, edge_tables, holding
from siitjax.siit.evaluate import count
from siitjax.siit.metrics import EdgeMetrics, Metrics, Shares, Tally, shares

BATCH = 5_000
"""Pairs measured by one call."""
EVERY = 2**17
"""A task of no more strings than this is measured on each of them."""
FEW = 100
"""Strings of a task that are drawn at least, though fewer be taken."""
MILLION = 1_000_000
MARGIN, CONFIDENCE = Fraction("0.0005"), 0.9999
"""A stored figure fails when the whole interval of this confidence lies more than the margin below it."""

EDGE_PAIRS = 5_000
"""Pairs on which swaps of edges are measured at most: there are hundreds of swaps."""

Batch = tuple[Int[np.ndarray, "pair seq"], Int[np.ndarray, "pair seq"]]
Figure = tuple[str, Fraction | None, Tally]


@dataclass(frozen=True)
class Evaluate(Command):
    """Measures a trained transformer again, on fresh strings: accuracy, IIA and SIIA, beside the stored figures.

    With --edges also under swaps of every kind: two nodes, one edge, random ones with sources of their own, and so on,
    on 5,000 of the pairs at most. A model holds when under each swap 99.9% of all tokens are right, and 99.5% of those
    whose label the swap changes; it holds at nodes when that is so of single nodes, and of all unused nodes.

    Exits with 1 when a stored figure does not hold: when the whole 99.99% interval (Wilson) of the new one lies more
    than 0.05 points below it.
    """

    model: str = argument("a shipped model (0+1 or left_greater), a .safetensors file, or a folder that holds one")
    nodes: bool = flag(False, "a line for each node")
    edges: bool = flag(False, "swaps of every kind, and a line for each edge of the circuit")
    exhaustive: bool = flag(False, "every string of the tasks that have few enough, and a million random pairs")
    pairs: int = flag(20_000, "random pairs of a base and a source", least=2)
    seed: int = flag(1_000_000, "decides the strings and their pairs; training's are those of small numbers", least=0)

    def run(self) -> int:
        trained = load(self.model)
        screen = Console(width=None if Console().is_terminal else 120, highlight=False)
        batches = list_batches(trained.case, self.pairs, self.seed, exhaustive=self.exhaustive)
        n = sum(len(base) for base, _ in batches)
        metrics = total(trained, batches, self.seed, screen if self.exhaustive else None)
        config, member = trained.case.config, trained.about["member"]
        screen.print(f"{trained.case.name}: {config.n_layers} layers, d_model {config.d_model}, seed {member['seed']}")
        screen.print(_summary(trained, metrics, n))
        if self.nodes:
            screen.print(_nodes(trained, metrics))
        if self.edges:
            found = edges_again(trained, min(self.pairs, EDGE_PAIRS), self.seed)
            for table in edge_tables(trained.case, found):
                screen.print(table)
            screen.print(f"{trained.case.name} {holding(trained.case, found)}.")
        if trained.metrics is None:
            screen.print("The file stores no figures to compare these with.")
            return 0
        if trained.metrics.counts is None:
            screen.print("The stored figures are shares in float32, of an older version; their counts were not kept.")
        failed = failures(trained.case, trained.metrics, metrics)
        for words in failed:
            screen.print(f"Does not hold: {words}")
        screen.print(f"{len(failed)} stored figures do not hold." if failed else "All stored figures hold.")
        return 1 if failed else 0


def measured_again(trained: Trained, pairs: int, seed: int) -> Metrics:
    """The metrics on fresh pairs."""
    return total(trained, list_batches(trained.case, pairs, seed), seed)


def edges_again(trained: Trained, pairs: int, seed: int) -> EdgeMetrics:
    """The metrics under swaps of every kind, on fresh pairs."""
    (batch,) = list_batches(trained.case, pairs, seed)
    base, source = map(jnp.asarray, batch)
    return jax.device_get(_count_edges(trained.case, trained.model, base, source, jax.random.key(seed)))


def list_batches(case: Case, pairs: int, seed: int, *, exhaustive: bool = False) -> list[Batch]:
    """Pairs of bases and sources, in batches.

    Args:
        pairs: random ones; at least a million where it is exhaustive, which takes every string as a base first.
    """
    rng = np.random.default_rng(seed)
    every = case.every(EVERY) if exhaustive else None
    bases = [] if every is None else np.array_split(every, range(BATCH, len(every), BATCH))
    batches = [(base, _strings(case, len(base), rng)) for base in bases]
    left = max(pairs, MILLION) if exhaustive else pairs
    return batches + list(_random(case, left, rng))


def _random(case: Case, pairs: int, rng: np.random.Generator) -> Iterator[Batch]:
    for start in range(0, pairs, BATCH):
        base = _strings(case, min(BATCH, pairs - start), rng)
        yield base, rng.permutation(base)


def _strings(case: Case, n: int, rng: np.random.Generator) -> Int[np.ndarray, "n seq"]:
    # One string more than is wanted, since a case divides what it draws in two; and not few, as each of its strata
    # gives some.
    tasks = max(len(case.tasks), 1)
    whole, _ = case.draw(max(n, FEW * tasks), tasks, rng)
    return whole[:n]


def total(trained: Trained, batches: list[Batch], seed: int, screen: Console | None = None) -> Metrics:
    """The metrics over all batches, in 64 bits, with a bar on the screen that is given."""
    shown = track(batches, "measuring", console=screen, transient=True) if screen else batches
    root = jax.random.key(seed)
    found = None
    for i, (base, source) in enumerate(shown):
        counts = _count(
            trained.case, trained.model, jnp.asarray(base), jnp.asarray(source), jax.random.fold_in(root, i)
        )
        counts = jax.tree.map(lambda x: np.asarray(x, np.int64), counts)  # waited for, so that the bar is true
        found = counts if found is None else jax.tree.map(np.add, found, counts)
    assert found is not None
    return found


@partial(jax.jit, static_argnums=0)
def _count(case: Case, model: Transformer, base, source, key) -> Metrics:
    return count(model, case, base, source, key=key)


@partial(jax.jit, static_argnums=0)
def _count_edges(case: Case, model: Transformer, base, source, key) -> EdgeMetrics:
    return count_edges(model, case, base, source, key=key)


def failures(case: Case, stored: Shares, found: Metrics) -> list[str]:
    """The stored figures that the found ones contradict, in words."""
    circuit, unused = _named(case)
    figures = [
        ("accuracy", stored.accuracy, found.base),
        ("joint_siia", stored.joint_siia, found.joint),
        ("subset_siia", stored.subset_siia, found.subset),
        *_each("IIA of", circuit, stored.node_iia, found.node),
        *_each("changed IIA of", circuit, stored.node_changed_iia, found.changed),
        *_each("SIIA of", unused, stored.node_siia, found.unused),
    ]
    return [f"{name} is {percent(new.share)} (stored {percent(old)})" for name, old, new in figures if _below(new, old)]


def _each(what: str, nodes: list[str], stored: Sequence[Fraction | None], found: Tally) -> Iterator[Figure]:
    for i, (node, old) in enumerate(zip(nodes, stored, strict=True)):
        yield f"{what} {node}", old, found.at(i)


def _below(found: Tally, stored: Fraction | None) -> bool:
    if stored is None or not found.of:
        return False
    interval = binomtest(int(found.right), int(found.of)).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.high) < stored - MARGIN


def _named(case: Case) -> tuple[list[str], list[str]]:
    """The circuit's nodes, and the unused ones."""
    circuit = case.circuit
    names = lambda mask: [str(node) for node in circuit.nodes.named(mask)]
    return names(circuit.circuit_mask), names(circuit.unused_mask)


def _summary(trained: Trained, metrics: Metrics, pairs: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(f"% of tokens, {pairs} pairs")
    for column in ("measured", "stored") if trained.metrics is not None else ("measured",):
        table.add_column(column, justify="right")
    names = {"iia": "IIA", "changed_iia": "changed IIA", "worst_changed_iia": "changed IIA, worst node", "siia": "SIIA"}
    names |= {"joint_siia": "joint SIIA", "subset_siia": "subset SIIA"}
    for name, words in ({"accuracy": "accuracy"} | names).items():
        sides = (shares(metrics),) if trained.metrics is None else (shares(metrics), trained.metrics)
        table.add_row(words, *(percent(getattr(side, name)) for side in sides))
    return table


def _nodes(trained: Trained, metrics: Metrics) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("node")
    table.add_column("variables")
    for column in ("right under swap", "changed labels", "right of those"):
        table.add_column(column, justify="right")
    case = trained.case
    circuit, unused = _named(case)
    held = {str(v.node): [] for v in case.variables}
    for v in case.variables:
        held[str(v.node)].append(v.name)
    rows = zip(circuit, metrics.node.shares, metrics.changed.of, metrics.changed.shares, strict=True)
    for node, right, changed, right_changed in rows:
        table.add_row(node, ", ".join(held[node]), percent(right), f"{int(changed)}", percent(right_changed))
    for node, right in zip(unused, metrics.unused.shares, strict=True):
        table.add_row(node, "", percent(right), "0", "-")
    table.add_section()
    table.add_row("unused", "all together", percent(metrics.joint.share), "0", "-")
    table.add_row("unused", "a random subset", percent(metrics.subset.share), "0", "-")
    return table
