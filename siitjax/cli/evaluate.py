"""Does a trained transformer hold its circuit? Measured again from nothing: `python -m siitjax evaluate`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from rich.console import Console

from siitjax.base.command import Command, argument, flag
from siitjax.base.share import percent
from siitjax.causal import registry
from siitjax.causal.case import Case
from siitjax.io.trained import Trained, load
from siitjax.siit.edge_metrics import edge_tables, holding
from siitjax.siit.fresh_pairs import list_batches, measure, measure_edges, node_names, node_table, summary_table
from siitjax.siit.metrics import Metrics, Shares, Tally

MARGIN, CONFIDENCE = Fraction("0.0005"), 0.9999
"""A stored figure fails when the whole interval of this confidence lies more than the margin below it."""

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
    case: str = flag("", "where the model's case is, if not in cases/: package.module:CASE or path/to/file.py:CASE")
    nodes: bool = flag(False, "print a line for each node")
    edges: bool = flag(False, "measure under swaps of every kind too, and print a line for each edge of the circuit")
    exhaustive: bool = flag(
        False,
        "take each string of a task as a base where they are few enough, and a million random pairs",
    )
    pairs: int = flag(20_000, "random pairs of a base and a source", least=2)
    seed: int = flag(1_000_000, "decides the strings and their pairs; training draws its own from small seeds", least=0)

    def run(self) -> int:
        if self.case:
            registry.find(self.case)
        trained = load(self.model)
        screen = Console(width=None if Console().is_terminal else 120, highlight=False)
        batches = list_batches(trained.case, self.pairs, self.seed, exhaustive=self.exhaustive)
        n = sum(len(base) for base, _ in batches)
        metrics = measure(trained.case, trained.model, batches, self.seed, screen if self.exhaustive else None)
        config, member = trained.case.config, trained.about["member"]
        screen.print(f"{trained.case.name}: {config.n_layers} layers, d_model {config.d_model}, seed {member['seed']}")
        screen.print(summary_table(trained.case, metrics, n, trained.metrics))
        if self.nodes:
            screen.print(node_table(trained.case, metrics))
        if self.edges:
            found = measure_edges(trained.case, trained.model, self.pairs, self.seed)
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
    return measure(trained.case, trained.model, list_batches(trained.case, pairs, seed), seed)


def failures(case: Case, stored: Shares, found: Metrics) -> list[str]:
    """The stored figures that the found ones contradict, in words."""
    circuit, unused = node_names(case)
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
    from scipy.stats import binomtest  # which takes as long to import as all that measures

    interval = binomtest(int(found.right), int(found.of)).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.high) < stored - MARGIN
