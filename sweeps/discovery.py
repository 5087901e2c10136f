"""Which discovery methods find circuits that are known?"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import cases
from siitjax.analysis.discovery.attribution import node_scores
from siitjax.analysis.discovery.faithfulness import faithfulness
from siitjax.analysis.discovery.known import known_nodes
from siitjax.analysis.discovery.methods import METHODS
from siitjax.analysis.discovery.pairs import SEED, Pairs, draw_pairs
from siitjax.analysis.discovery.patching import activation_patching
from siitjax.analysis.discovery.report import (
    AT_EDGES,
    AT_NODES,
    approximate,
    methods_table,
    models_table,
    over_models,
    picture,
    seeds_table,
    sharing,
    span,
    truth,
    words,
)
from siitjax.analysis.discovery.runs import run_pairs
from siitjax.analysis.discovery.score import examine, score
from siitjax.base.choice import check_choice
from siitjax.base.command import Command, flag, main
from siitjax.base.errors import UserError
from siitjax.base.jsonl import Row
from siitjax.io.trained import Trained, read_holding
from siitjax.model.weights import weights_digest
from siitjax.questions.measured import begin, conclude
from siitjax.questions.report import Verdict
from siitjax.questions.statistics.ranks import LEAST
from siitjax.sweep.placement import use_compilation_cache

CURVE_PAIRS = 32
"""Of the pairs, those that faithfulness is measured on."""
QUICK = ("0", "1", "0+1")
DIGITS = 5
"""Of an edge's score that its row keeps."""
Kinds = Literal["edges", "nodes", "both"]


class Subject(NamedTuple):
    """A transformer that methods are tried on.

    Attributes:
        model: its name.
        at: whether it holds at edges, or at nodes alone.
        seed: of its training; None of the shipped one.
    """

    model: str
    at: str
    seed: int | None

    def __str__(self) -> str:
        return f"{self.model} {self.at}" + ("" if self.seed is None else f" seed {self.seed}")


@dataclass(frozen=True)
class Discovery(Command):
    """Which discovery methods find circuits that are known, and is it harder where tasks share MLPs?

    Scores every edge of the shipped models by each method, and compares the scores with the edges that are known: those
    of the circuit whose swap changes a label, against those outside it. Silent edges count as neither. A patched edge
    carries its sender's value of the source run. Effects are the log-odds that the base run's answer loses, a token; of
    path patching KL, ACDC and edge pruning, they are the Kullback-Leibler divergence from the base run.

    The rule: a model's figure is the average precision above chance, (AP - share of true edges) / (1 - that share),
    mean over the methods that neither patch every edge nor are controls (EAP, EAP-IG on inputs and on activations,
    ACDC, edge pruning); where a model has several seeds, they are averaged first, since intervals are over models. Each
    combined model is compared with the mean of its tasks' own models. Supported: the whole 95% interval of the
    differences (Wilcoxon's signed ranks over the combined models) lies above 0, so sharing makes it harder.
    Contradicted: it lies below 0. Undecided: neither, or fewer than 6 combined models. The models are the numbered ones
    alone.

    Beside it, and deciding nothing: the same difference between models whose edges are true and those of the same cases
    that hold at nodes alone (--kinds=both), where what is called a true edge need not be one; how far seeds of a model
    differ (--members); and the models of further tasks (--models).
    """

    title = "Which discovery methods find circuits that are known?"

    models: tuple[str, ...] = flag(cases.MODELS, "the shipped models, by number or name")
    members: tuple[str, ...] = flag(
        (), "results folders of python -m sweeps.table --swaps=edges, whose members that hold are further seeds"
    )
    kinds: Kinds = flag("both", "edges: models whose edges are true; nodes: those that hold at nodes alone; or both")
    methods: tuple[str, ...] = flag(tuple(METHODS), "the methods, by name")
    pairs: int = flag(128, "pairs of strings that every method is given", least=2)
    seed: int = flag(SEED, "decides the strings", least=0)
    quick: bool = flag(False, f"the models {', '.join(QUICK)} alone")
    out: str = flag("results/discovery", "folder of the results; what it holds already is not measured again")

    def run(self) -> int:
        check_choice("kinds", self.kinds, get_args(Kinds))
        for method in self.methods:
            check_choice("the method", method, tuple(METHODS))
        subjects: dict[Subject, Trained] = {}
        for subject, trained in (*self._shipped(), *self._members()):
            if subject in subjects:
                raise UserError(f"--models and --members give {subject} twice; give each once")
            subjects[subject] = trained
        screen = Console(width=None if sys.stdout.isatty() else 260, highlight=False, soft_wrap=True)
        weights = {f"{subject}": weights_digest(trained.model) for subject, trained in subjects.items()}
        folder = Path(self.out)
        # The digits stand for what a row holds: rows of an earlier version, without scores, are not gone on from.
        asked = {"question": self.title, "pairs": self.pairs, "seed": self.seed, "methods": self.methods}
        asked["digits"] = DIGITS
        file = begin(folder, asked, weights)
        use_compilation_cache()
        done = {(row["model"], row["at"], row["seed"], row["method"]) for row in file.read()}
        compiled: set[Any] = set()
        bar = Console(stderr=True)
        for subject, trained in track(subjects.items(), "measuring", console=bar, disable=not bar.is_terminal):
            pairs = draw_pairs(trained.case, self.pairs, self.seed)
            for method in self.methods:
                if (*subject, method) not in done:
                    key = (trained.model.config, method)
                    file.append(self._measured(subject, trained, pairs, method) | {"compiled": key in compiled})
                    compiled.add(key)
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
        """Of the numbered models, of their seeds where there are several, and of further tasks."""
        numbered, others = numbered_and_others(rows)
        seeds = seeds_table(numbered, "Seeds of one model, and models")
        return [
            *([methods_table(numbered, self.title)] if numbered else []),
            *([seeds] if seeds is not None else []),
            *([models_table(others, "Further tasks")] if others else []),
        ]

    def picture(self, rows: Sequence[Row], verdict: Verdict, path: Path) -> None:
        numbered, others = numbered_and_others(rows)
        picture(numbered or others, f"{self.title}\n{verdict.kind.capitalize()}", path)

    def _shipped(self) -> Iterator[tuple[Subject, Trained]]:
        """The shipped models that are asked for. Of a further task none holds at nodes alone."""
        numbered, accepted = cases.MODELS, [name for name in cases.TABLE.shipped if "@" not in name]
        names = QUICK if self.quick else self.models
        for name in names:
            check_choice("the model", name, accepted)
        kinds = (AT_EDGES, AT_NODES) if self.kinds == "both" else (self.kinds,)
        for name in names:
            for at in kinds:
                if at == AT_EDGES or name in numbered:
                    yield Subject(name, at, None), cases.load(name + f"@{at}" * (at == AT_NODES))

    def _members(self) -> Iterator[tuple[Subject, Trained]]:
        """The members of the folders that are asked for."""
        for folder in self.members:
            for (setting, seed), trained in read_holding(Path(folder), cases.described).items():
                yield Subject(setting.split(",")[0], AT_EDGES, seed), trained

    def _measured(self, subject: Subject, trained: Trained, pairs: Pairs, method: str) -> Row:
        """One method on one model."""
        model, case = trained.model, trained.case
        start = time.perf_counter()
        found, scores = examine(METHODS[method], model, case, pairs, method)
        seconds = time.perf_counter() - start
        few = Pairs(pairs.base[:CURVE_PAIRS], pairs.source[:CURVE_PAIRS])
        curve = faithfulness(model, run_pairs(model, case, few), scores)
        nodes = self._nodes(trained, pairs, method, scores)
        of_nodes = None if nodes is None else score(nodes, known_nodes(case), method)
        chance = found.true / found.counted
        return {
            **subject._asdict(),
            "tasks": len(subject.model.split("+")),
            "method": method,
            **asdict(found),
            "above_chance": (found.average_precision - chance) / (1 - chance),
            "cpr": curve.cpr,
            "cmd": curve.cmd,
            "faithfulness": curve.faithfulness.tolist(),
            "node_auroc": of_nodes and of_nodes.auroc,
            "node_average_precision": of_nodes and of_nodes.average_precision,
            "seconds": seconds,
            "scores": [float(f"{score:.{DIGITS}g}") for score in scores],
        }

    def _nodes(self, trained: Trained, pairs: Pairs, method: str, scores: np.ndarray) -> np.ndarray | None:
        """The same method's scores of nodes; None where it has none."""
        if method.startswith("path patching"):
            metric = "kl" if method.endswith("KL") else "log_odds"
            return activation_patching(trained.model, trained.case, pairs, metric=metric)
        return node_scores(trained.model, scores) if method.startswith("EAP") else None


def numbered_and_others(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of the numbered models, which the rule is about, and those of further tasks."""
    is_numbered = [row["model"] in cases.MODELS for row in rows]
    own = [row for row, numbered in zip(rows, is_numbered, strict=True) if numbered]
    return own, [row for row, numbered in zip(rows, is_numbered, strict=True) if not numbered]


def decide(rows: Sequence[Row]) -> Verdict:
    """The verdict; see `Discovery` for its rule."""
    rows, _ = numbered_and_others(rows)
    wanted = approximate(rows)
    if not wanted:
        return Verdict("undecided", "no method was measured that the rule is about.")
    harder, truer, kind = sharing(rows), truth(rows), "undecided"
    if (interval := harder.interval()) is not None:
        kind = "supported" if interval[0] > 0 else "contradicted" if interval[1] < 0 else kind
    at_edges = lambda method: over_models(
        [row for row in rows if (row["method"], row["at"]) == (method, AT_EDGES)], "average_precision"
    )
    said = [f"{method} has an average precision of {span(at_edges(method))}" for method in wanted if at_edges(method)]
    said.append(f"above chance, the tasks' own models lie over those that share MLPs by {words(harder)}")
    if len(truer):
        said.append(f"and models whose edges are true over those that hold at nodes alone by {words(truer)}")
    if len(harder) < LEAST:
        said.append(f"an interval takes {LEAST} combined models")
    return Verdict(kind, f"{'; '.join(said)}.")


if __name__ == "__main__":
    main(Discovery)
