"""Which methods find the variable at a node, where several tasks' variables share it?"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

import cases
from siitjax.analysis.alignment.exam import variables_at
from siitjax.analysis.alignment.learn import Training
from siitjax.analysis.alignment.methods import METHODS
from siitjax.analysis.alignment.report import (
    AT_NODES,
    by_model,
    chosen,
    kinds,
    lead,
    methods_table,
    name_of,
    over_models,
    picture,
    shared,
    words,
)
from siitjax.analysis.alignment.study import UNTRAINED, WRONG, Plan, study
from siitjax.base.command import Command, flag, main
from siitjax.base.jsonl import Row
from siitjax.causal.case import Case
from siitjax.io.trained import Trained
from siitjax.model.nodes import Node
from siitjax.model.weights import weights_digest
from siitjax.questions.measured import begin, conclude
from siitjax.questions.report import Verdict
from siitjax.questions.statistics.ranks import LEAST
from siitjax.sweep.placement import use_compilation_cache

CASES = ("0+1", "0+2", "0+3", "1+2", "1+3", "2+3", "0+1+2+3", "1", "2")
QUICK = ("1", "1+2")
FOUND = 0.95
"""Balanced accuracy at which a variable is found. Fixed before the first full run."""
TUNED_ON = "1+2"
"""The model on which the settings of what is learned were chosen, so that it is no evidence."""
DAS = ("DAS", "")


@dataclass(frozen=True)
class Alignment(Command):
    """Which methods find the variable at a node, and do they separate the variables of tasks that share an MLP?

    Each method names a part of a node's values, a subspace for one, that is to be a variable: this part alone takes
    the source run's values, and the transformer is to answer as the causal model does with that variable alone
    swapped. Of each size there are: distributed alignment search (DAS, a learned rotation); learned masks over neurons
    and over an autoencoder's latents; the first principal components, a linear probe's directions, class means and
    random directions. Beside them stands the whole node. All are found on one set of pairs of strings. Another decides
    the size (the smallest within a point of the best) and the seed, and a third scores. Balanced accuracy is the mean
    of two shares of tokens that are answered so: of those whose label the swap of the variable changes, and of those
    whose label it leaves and a swap of the node's other variables changes. What does nothing, or swaps the whole of a
    shared node, has 50%.

    The rule: a model's figure is the mean, over its nodes that hold variables of several tasks, and over these
    variables. The models whose edges are true are counted, combined ones alone, but for 1+2, on which the methods'
    settings were chosen. Supported: the whole 95% interval of
    DAS (Wilcoxon's signed ranks over models) lies above 95%, and so does that of its lead, above 0, over DAS on an
    untrained transformer and over DAS for a variable that lives elsewhere. Contradicted: the first lies below 95%, or
    one of the others below 0. Undecided: neither, or fewer than 6 combined models.

    Beside it, and deciding nothing: the other methods; DAS's lead over them; models trained under swaps of single
    nodes alone (--case=1+2@nodes); and a non-linear bijection, which is trained in the same way and fits transformers
    that were never trained.
    """

    title = "Which methods find the variable at a node that several tasks share?"

    case: tuple[str, ...] = flag(CASES, "the shipped models, by number or name; 1+2@nodes holds at nodes alone")
    nodes: tuple[str, ...] = flag((), "nodes, such as MLP0; none: the MLPs that tasks share, and all of a single task")
    variables: tuple[str, ...] = flag((), "variables that live on each of these nodes; none: all")
    methods: tuple[str, ...] = flag(tuple(METHODS), "the methods, by name")
    sizes: tuple[int, ...] = flag((), "sizes of the subspaces; none: 1, 2, 4, ..., 64, below the node's width", least=1)
    seeds: int = flag(1, "first weights, or draws, of each size", least=1)
    pairs: int = flag(1_000, "pairs of strings to find subspaces on", least=1)
    held_out: int = flag(300, "pairs to choose on, and as many others to score on", least=1)
    steps: int = flag(150, "updates of what is learned; of the non-linear map, six times as many", least=1)
    batch_size: int = flag(16, "pairs an update", least=1)
    lr: float = flag(0.03, "Adam's learning rate; of the non-linear map, a tenth")
    seed: int = flag(6_000_000, "decides the pairs, and the untrained transformers", least=0)
    quick: bool = flag(False, f"the cases {', '.join(QUICK)} alone")
    out: str = flag("results/alignment", "folder of the results; what it holds already is not measured again")

    def run(self) -> int:
        plan = self.plan()
        subjects = {name: cases.load(name) for name in (QUICK if self.quick else self.case)}
        jobs = [(name, node) for name, trained in subjects.items() for node in self.nodes_of(trained.case)]
        for name, node in jobs:  # which says what is wrong, before anything is measured
            plan.sizes_at(subjects[name].case, node)
            variables_at(subjects[name].case, node, self.variables)
        screen = Console(width=None if sys.stdout.isatty() else 200, highlight=False, soft_wrap=True)
        flags = {name: value for name, value in asdict(self).items() if name not in ("case", "nodes", "quick", "out")}
        weights = {name: weights_digest(trained.model) for name, trained in subjects.items()}
        folder = Path(self.out)
        file = begin(folder, {"question": self.title, **flags}, weights, lambda row: row["last"])
        use_compilation_cache()
        done = {(row["model"], row["node"]) for row in file.read()}
        bar = Console(stderr=True)
        for name, node in track(jobs, "measuring", console=bar, disable=not bar.is_terminal):
            if (name, str(node)) not in done:
                file.append(*self._measured(name, subjects[name], node, plan))
        rows = file.read()
        verdict = self.verdict(rows)
        conclude(folder, self.title, verdict, lambda path: self.picture(rows, verdict, path))
        for table in self.tables(rows):
            screen.print(table)
        screen.print(f"{verdict}\nResults and picture: {self.out}")
        return 0

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        return decide(rows)

    def tables(self, rows: Sequence[Row]) -> Sequence[Table]:
        return [methods_table(rows, self.title)]

    def picture(self, rows: Sequence[Row], verdict: Verdict, path: Path) -> None:
        picture(rows, f"{self.title}\n{verdict.kind.capitalize()}", path)

    def plan(self) -> Plan:
        """What is measured at every node."""
        training = Training(self.steps, self.batch_size, self.lr)
        return Plan(self.methods, self.sizes, self.seeds, self.pairs, self.held_out, self.seed, training)

    def nodes_of(self, case: Case) -> list[Node]:
        """The nodes of a case that are looked at."""
        if self.nodes:
            return [Node.parse(name) for name in self.nodes]
        mlps = [node for node in case.circuit.nodes if node.layer is not None and node.head is None]
        return [node for node in mlps if (is_shared(case, node) if case.tasks else case.circuit.at(node))]

    def _measured(self, name: str, trained: Trained, node: Node, plan: Plan) -> list[Row]:
        """The rows of one node."""
        place = {"model": name, "node": str(node), "shared": is_shared(trained.case, node)}
        rows = [place | row for row in study(trained.model, trained.case, node, self.variables, plan)]
        return [row | {"last": row is rows[-1]} for row in rows]


def is_shared(case: Case, node: Node) -> bool:
    """Whether a node holds variables of several tasks."""
    return len({case.task_of(variable.name) for variable in case.circuit.at(node)}) > 1


def decide(rows: Sequence[Row]) -> Verdict:
    """The verdict; see `Alignment` for its rule."""
    taken = chosen(shared(rows))
    at_edges = [row for row in taken if not row["model"].endswith(AT_NODES) and row["model"] != TUNED_ON]
    models = by_model(at_edges, DAS)
    if not models:
        where = "no node that several tasks share, of a model whose edges are true"
        return Verdict("undecided", f"DAS was measured at {where}.")
    figure, kind = over_models(at_edges, DAS).interval(), "undecided"
    leads = {control: lead(at_edges, DAS, ("DAS", control)) for control in (UNTRAINED, WRONG)}
    intervals = [each.interval() for each in leads.values()]
    if figure is not None and all(each is not None for each in intervals):
        lows, highs = ([each[i] for each in intervals if each is not None] for i in (0, 1))
        if figure[1] < FOUND or min(highs) < 0:
            kind = "contradicted"
        elif figure[0] > FOUND and min(lows) > 0:
            kind = "supported"
    said = [f"DAS has a balanced accuracy of {words(over_models(at_edges, DAS))}%, in points"]
    said[0] += "".join(
        f" {words(each, '+')} over DAS on {'an' if control == UNTRAINED else 'a'} "
        f"{'untrained transformer' if control == UNTRAINED else control},"
        for control, each in leads.items()
    )
    others = [other for other in kinds(at_edges) if not other[1] and other != DAS]
    if others:
        best = max(others, key=lambda other: sum(by_model(at_edges, other).values()))
        said.append(
            f"of the others {name_of(best)} comes nearest, DAS leads it by {words(lead(at_edges, DAS, best), '+')}"
        )
    if len(models) < LEAST:
        said.append(f"an interval takes {LEAST} combined models")
    return Verdict(kind, f"{'; '.join(words.rstrip(',') for words in said)}.")


if __name__ == "__main__":
    main(Alignment)
