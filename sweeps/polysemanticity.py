"""To how many tasks and variables does each neuron answer?"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import cases
from siitjax.analysis.neuron_report import maps_picture, models_table, picture, widths_picture
from siitjax.analysis.neuron_summary import LEAST, MOST, Model, neuron_rows, summarised
from siitjax.analysis.neurons import Answers, measure_neurons, samples_by_task
from siitjax.base.choice import check_choice
from siitjax.base.command import Command, flag, main
from siitjax.base.errors import UserError
from siitjax.base.jsonl import Row
from siitjax.base.versions import machine
from siitjax.causal.case import Case
from siitjax.io.hub_folder import new_folder
from siitjax.io.trained import Trained, read_converged, read_holding
from siitjax.model.transformer import Transformer, random_like
from siitjax.model.weights import weights_digest
from siitjax.questions.report import Verdict
from siitjax.sweep.placement import use_compilation_cache

MOST_MODELS = 2 / 3
"""The share of the combined models in which neurons have to be shared; fixed before the first run."""
QUICK = ("0", "1", "0+1", "1+2")


@dataclass(frozen=True)
class Polysemanticity(Command):
    """To how many tasks and variables does each MLP neuron of the shipped models answer?

    Each neuron is held at its mean over a task's samples, one mean a position, in backgrounds in which from none to all
    of its MLP are held as well (its Shapley value). It matters to a task whose mean loss rises by 0.01 nats a token or
    more, where the 95% interval (Student's t, over the backgrounds) lies above 0. It answers to a variable of whose
    entropy it tells a tenth or more (mutual information by position, on samples of the variable's task), and more than
    95% of the live neurons of the same layer do in random transformers.

    The rule: a combined model is polysemantic where the share of its live neurons that matter to two tasks or more lies
    above 10%, and above the 95% interval (Wilson) of that share in transformers of the same shape with random weights.
    Supported: two thirds of the combined models are. Contradicted: a third or fewer are. Undecided: between, or fewer
    than three combined models. A model with several seeds (--members) is one model: it is polysemantic where two thirds
    of its seeds are.

    The thresholds were fixed before the first run; the backgrounds were not. Held alone, no neuron of the two models of
    a first trial raised any loss by 1e-5, nor did more than 20 of 512 in six models take 0.1 nats off a task's
    log-odds, while whole MLPs raise the loss by nats. Random halves, tried next, still missed some MLPs. What is lost
    when a neuron is held alone is in every row.
    """

    title = "Are the neurons of the shipped models polysemantic?"

    models: tuple[str, ...] = flag(cases.MODELS, "the shipped models to measure, by number")
    members: tuple[str, ...] = flag(
        (), "results folders of python -m sweeps.table --swaps=edges, whose members that hold are further seeds"
    )
    strings: int = flag(500, "strings a task on which the information in each neuron is measured", least=20)
    ablated: int = flag(50, "of these strings, those on which neurons are held at their mean", least=2)
    backgrounds: int = flag(24, "random sets of other neurons of the MLP, held with each neuron", least=2)
    controls: int = flag(1, "transformers of the same shape with random weights, measured beside each model", least=1)
    seed: int = flag(3_000_000, "decides the strings and the random weights", least=0)
    capacity: tuple[str, ...] = flag(
        (), "also measure what converged (or holds) in these results folders of python -m sweeps.capacity"
    )
    quick: bool = flag(False, f"measure the models {', '.join(QUICK)} alone")
    out: str = flag("results/polysemanticity", "folder of the results")

    def run(self) -> int:
        names = QUICK if self.quick else self.models
        for name in names:
            check_choice("the model", name, cases.MODELS)
        shipped = {name: cases.load(name) for name in names} | self._seeds()
        by_width: dict[str, Trained] = {}
        for folder in self.capacity:
            by_width |= read_converged(Path(folder), cases.described)
        config: dict[str, Any] = {
            "strings": self.strings,
            "ablated": self.ablated,
            "backgrounds": self.backgrounds,
            "controls": self.controls,
            "seed": self.seed,
        }
        config["weights"] = {name: weights_digest(one.model) for name, one in (shipped | by_width).items()}
        screen = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)
        if (finished := self._finished(config)) is not None:
            screen.print(f"{finished}\n{self.out} was finished before; nothing was changed.")
            return 0
        use_compilation_cache()
        # Opened first: a folder that cannot be written is told before anything is measured.
        with new_folder(Path(self.out)) as folder:
            found = [self._measured(name, trained) for name, trained in _tracked(shipped)]
            scaled = [self._alone(name, trained) for name, trained in _tracked(by_width)]
            rows = [asdict(model) | {"by_width": False} for _, model in found]
            rows += [asdict(model) | {"by_width": True} for _, model in scaled]
            widths = _models(rows, by_width=True)
            verdict = self.verdict(rows)
            said = "\n".join([str(verdict), *([starts(widths)] if widths else [])])
            neurons = [row for answers, model in [*found, *scaled] for row in neuron_rows(answers, model)]
            for name, lines in (("rows", rows), ("neurons", neurons)):
                (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            for kind in ("png", "pdf"):
                self.picture(rows, verdict, folder / f"figure.{kind}")
                maps_picture(found, folder / f"map.{kind}")
                if widths:
                    widths_picture(widths, "Shared neurons by width", folder / f"width.{kind}")
            ran_on = {**machine(), "jax": version("jax")}
            summary = {"question": self.title, "config": config, "verdict": asdict(verdict), "said": said}
            (folder / "summary.json").write_text(json.dumps(summary | {"ran_on": ran_on}, indent=1) + "\n")
        for table in self.tables(rows):
            screen.print(table)
        screen.print(f"{said}\nResults and pictures: {self.out}")
        return 0

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        """What the models say, a row each."""
        return decide(_models(rows))

    def tables(self, rows: Sequence[Row]) -> Sequence[Table]:
        """A line a model; those of a sweep by width in a table of their own."""
        tables = [models_table(_models(rows), self.title)]
        if widths := _models(rows, by_width=True):
            tables.append(models_table(widths, "By width"))
        return tables

    def picture(self, rows: Sequence[Row], verdict: Verdict, path: Path) -> None:
        """Draws the picture, a png or a pdf as the path says."""
        picture(_models(rows), f"{self.title}\n{verdict.kind.capitalize()}", path)

    def _finished(self, config: dict[str, Any]) -> str | None:
        """What the same run said before; None where there is no folder."""
        path = Path(self.out)
        if not path.exists():
            return None
        try:
            summary = json.loads((path / "summary.json").read_text())
            question, kept, said = (summary[name] for name in ("question", "config", "said"))
        except (OSError, ValueError, KeyError, TypeError):
            question, kept, said = None, {}, ""
        if question != self.title:
            raise UserError(f"{path} exists, and is no folder of this question; choose another --out")
        if differ := [name for name in config if kept.get(name) != config[name]]:
            raise UserError(f"{path} holds another run, with other {' and '.join(differ)}; choose another --out")
        return said

    def _seeds(self) -> dict[str, Trained]:
        """The members of the folders that are asked for, as "0+1, seed 1"."""
        found: dict[str, Trained] = {}
        for folder in self.members:
            for (setting, seed), trained in read_holding(Path(folder), cases.described).items():
                check_choice("the model", model := setting.split(",")[0], cases.MODELS)
                if (name := f"{model}, seed {seed}") in found:
                    raise UserError(f"--members give {name} twice; give each once")
                found[name] = trained
        return found

    def _measured(self, name: str, trained: Trained) -> tuple[Answers, Model]:
        """One model, beside random transformers of its shape."""
        answers = self._answers(trained.model, trained.case)
        key = jax.random.fold_in(jax.random.key(self.seed), cases.MODELS.index(name.split(",")[0]))
        keys = jax.random.split(key, self.controls)
        controls = [self._answers(random_like(trained.model, key=key), trained.case) for key in keys]
        return answers, summarised(name, answers, controls, self.seed)

    def _alone(self, name: str, trained: Trained) -> tuple[Answers, Model]:
        answers = self._answers(trained.model, trained.case)
        return answers, summarised(name, answers, [], self.seed)

    def _answers(self, model: Transformer, case: Case) -> Answers:
        rng = np.random.default_rng(self.seed)
        strings = samples_by_task(case, self.strings, rng)
        return measure_neurons(model, case, strings, rng, ablated=self.ablated, backgrounds=self.backgrounds)


def _models(rows: Sequence[Row], by_width: bool = False) -> list[Model]:
    """The shipped models of the rows, or those of a sweep by width."""
    return [Model.from_row(row) for row in rows if row["by_width"] == by_width]


def decide(models: Sequence[Model]) -> Verdict:
    """The verdict; see `Polysemanticity` for its rule."""
    combined: dict[str, list[Model]] = {}
    for model in models:
        if model.tasks > 1:
            combined.setdefault(model.name.split(",")[0], []).append(model)
    if len(combined) < 3:
        return Verdict("undecided", f"the rule needs three combined models, and {len(combined)} were measured.")
    most = lambda seeds, holds: sum(map(holds, seeds)) >= MOST_MODELS * len(seeds)
    good = sum(most(seeds, lambda model: model.is_polysemantic) for seeds in combined.values())
    fewer = sum(most(seeds, lambda model: model.shared < model.chance_low) for seeds in combined.values())
    share = good / len(combined)
    kind = "supported" if share >= MOST_MODELS else "contradicted" if share <= 1 - MOST_MODELS else "undecided"
    every = [model for seeds in combined.values() for model in seeds]
    low, high = (100 * f(model.share for model in every) for f in (min, max))
    control = 100 * max(model.control_high or 0.0 for model in every)
    seeds = (
        "" if len(every) == len(combined) else f" ({len(every)} seeds of them, each judged by two thirds of its own)"
    )
    return Verdict(
        kind,
        f"in {good} of {len(combined)} combined models{seeds} more than {100 * LEAST:.0f}% of the live neurons, and "
        f"more than in random transformers, matter to two tasks or more: {low:.0f}-{high:.0f}% do (random: at most "
        f"{control:.1f}%, the upper end of the widest 95% interval); in {fewer} of the {len(combined)} fewer are "
        "shared than if each task's neurons lay anywhere in their MLP.",
    )


def starts(models: Sequence[Model]) -> str:
    """Up to which width the MLPs beneath the answer's share most of their live neurons, by number of tasks."""
    widths = {}
    for model in models:
        widths.setdefault(model.tasks, {}).setdefault(model.width, []).append(model.share_beneath)
    said = []
    for tasks, shares in sorted(widths.items()):
        if tasks > 1:
            sharing = [width for width, _ in takewhile(lambda at: np.mean(at[1]) > MOST, sorted(shares.items()))]
            where = f"at {sharing[-1]} neurons an MLP or fewer" if sharing else "not even at the narrowest"
            said.append(f"{tasks} tasks {where} (of {', '.join(map(str, sorted(shares)))})")
    return f"Most live neurons beneath the answer's MLP are shared: {'; '.join(said) or 'nothing converged'}."


def _tracked(models: dict[str, Trained]) -> Iterable[tuple[str, Trained]]:
    """The models, with a bar on the screen."""
    return track(models.items(), "measuring", console=Console(stderr=True), disable=not models)


if __name__ == "__main__":
    main(Polysemanticity)
