"""Puts trained members into the package: `python -m siitjax ship RESULTS`, for those who maintain it."""

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from rich.console import Console

from siitjax.base.command import Command, argument, flag
from siitjax.base.errors import UserError
from siitjax.base.share import percent
from siitjax.causal import registry
from siitjax.cli.evaluate import measured_again
from siitjax.io.trained import Trained, read_trained, save_trained
from siitjax.siit.edge_metrics import holding, rows
from siitjax.siit.fresh_pairs import measure_edges
from siitjax.siit.metrics import shares


@dataclass(frozen=True)
class Ship(Command):
    """Ships the best member of each model that is found: of the 15, and of further tasks; with figures measured on
    fresh pairs.

    The best is the one that holds under the most kinds of swap, then the one with the highest changed IIA of its worst
    node, then IIA, SIIA and joint SIIA. A model that is shipped already is replaced only by a better one. Members that
    were trained under swaps of nodes alone are shipped as NAME@nodes.
    """

    results: str = argument("folders of results or of models, with commas between")
    pairs: int = flag(20_000, "random pairs that each is measured on", least=1)
    edge_pairs: int = flag(2_000, "pairs on which each is measured under swaps of edges", least=1)
    seed: int = flag(2_000_000, "decides the strings and their pairs", least=0)

    def run(self) -> int:
        screen, own = Console(highlight=False, soft_wrap=True), registry.own_tasks()
        own.models.mkdir(exist_ok=True)
        found: dict[str, list[Trained]] = {}
        for folder in self.results.split(","):
            for path in sorted(Path(folder.strip()).glob("**/*.safetensors")):
                trained = read_trained(path, registry.described)
                number = registry.model_name(trained.case.name)
                if number and trained.case.counterfactual == "causal":
                    at_nodes = trained.about["member"]["training"].get("swaps", "nodes") == "nodes"
                    name = number + (registry.AT_NODES if at_nodes else "")
                    found.setdefault(name, []).append(self._measured(trained))
                    screen.print(f"{path} is measured as {name}: {_words(found[name][-1])}")
        if not found:
            raise UserError(
                f"{self.results} holds no member of the models {', '.join(own.subsets)}, or of a further task"
            )
        for name, candidates in found.items():
            path = own.models / f"{name}.safetensors"
            shipped = [read_trained(path, registry.described)] if path.exists() else []
            best = max([*shipped, *candidates], key=_quality)
            save_trained(path, best)
            screen.print(f"{name}: seed {best.about['member']['seed']}, {_words(best)}")
        return 0

    def _measured(self, trained: Trained) -> Trained:
        edges = measure_edges(trained.case, trained.model, self.edge_pairs, self.seed)
        metrics = shares(replace(measured_again(trained, self.pairs, self.seed), edges=edges))
        measured_on = {"pairs": self.pairs, "edge_pairs": self.edge_pairs, "seed": self.seed}
        about = {**trained.about, "measured_on": measured_on}
        return Trained(trained.case, trained.model, metrics, about)


NAMES = ("accuracy", "iia", "worst_changed_iia", "siia", "joint_siia")


def _quality(trained: Trained) -> tuple[Fraction, ...]:
    # A figure of nothing, as where no swap changes a label, is the least.
    accuracy, iia, worst, siia, joint = (getattr(trained.metrics, name) or Fraction(0) for name in NAMES)
    assert trained.metrics is not None
    counts = trained.metrics.counts
    edges = None if counts is None else counts.edges
    kinds = 0 if edges is None else sum(row.holds for row in rows(trained.case, edges))
    return Fraction(kinds), min(accuracy, siia), worst, iia, joint


def _words(trained: Trained) -> str:
    said = ", ".join(f"{name} {percent(getattr(trained.metrics, name))}" for name in NAMES)
    edges = trained.metrics.counts.edges if trained.metrics and trained.metrics.counts else None
    return said if edges is None else f"{said}; it {holding(trained.case, edges)}"
