"""To how many tasks and variables does each neuron answer?"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import binomtest

import cases
from siitjax.case import Case
from siitjax.choice import check_choice
from siitjax.combine import combine
from siitjax.command import Command, flag, main
from siitjax.export import state_dict
from siitjax.folder import new_folder
from siitjax.neurons import Answers, measure_neurons, participation_ratio, samples_by_task, shared_by_chance
from siitjax.policy import use_compilation_cache
from siitjax.report import COLOURS, Verdict
from siitjax.trained import Trained, read_trained
from siitjax.transformer import Transformer, init_transformer

MATTERS = 0.01
"""Nats a token: a neuron matters to the tasks whose mean loss rises by as much or more without it."""
LEAST = 0.1
"""The least share of the live neurons that has to be shared; and of a variable's entropy that has to be told."""
MOST_MODELS = 2 / 3
"""The share of the combined models in which neurons have to be shared. All three were fixed before the first run."""
CONTROL_GAIN = 1.0
"""Of the random weights: at 0.18, with which training began, an MLP writes next to nothing, and no control would err."""
QUICK = ("0", "1", "0+1", "1+2")
DRAWS = 1_000


@dataclass(frozen=True)
class Polysemanticity(Command):
    """To how many tasks and variables does each MLP neuron of the shipped models answer?

    Each neuron is held at its mean over a task's samples, one mean a position: it matters to the tasks whose loss rises
    by 0.01 nats a token or more. And it answers to the variables of whose entropy it tells a tenth or more (mutual
    information by position, on samples of the variable's task), and more than 95% of the live neurons of the same
    layer do in random transformers.

    The rule, fixed before the first run: a combined model is polysemantic where the share of its live neurons that
    matter to two tasks or more lies above 10%, and above the 95% interval (Wilson) of that share in transformers of the
    same shape with random weights. Supported: two thirds of the combined models are. Contradicted: a third or fewer
    are. Undecided: between, or fewer than three combined models.
    """

    title: ClassVar[str] = "Are the neurons of the shipped models polysemantic?"

    models: tuple[str, ...] = flag(cases.MODELS, "the shipped models to measure, by number")
    strings: int = flag(500, "strings a task on which information is measured", least=20)
    ablated: int = flag(200, "how many of those neurons are held at their mean on", least=2)
    controls: int = flag(3, "transformers with random weights beside each model", least=1)
    seed: int = flag(3_000_000, "decides the strings and the random weights", least=0)
    capacity: str = flag("", "also measure what converged in this results folder of python -m sweeps.capacity")
    quick: bool = flag(False, f"the models {', '.join(QUICK)} alone")
    out: str = flag("results/polysemanticity", "folder of the results")

    def run(self) -> int:
        names = QUICK if self.quick else self.models
        for name in names:
            check_choice("the model", name, cases.MODELS)
        shipped = {name: cases.load(name) for name in names}
        by_width = read_capacity(Path(self.capacity)) if self.capacity else {}
        config = {"strings": self.strings, "ablated": self.ablated, "controls": self.controls, "seed": self.seed}
        config["weights"] = {name: _digest(trained.model) for name, trained in (shipped | by_width).items()}
        screen = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)
        if (finished := self._finished(config)) is not None:
            screen.print(f"{finished}\n{self.out} was finished before; nothing was changed.")
            return 0
        use_compilation_cache()
        log = Console(stderr=True)
        found = [self._measured(n, trained) for n, trained in track(shipped.items(), "measuring", console=log)]
        scaled = [self._alone(n, trained) for n, trained in track(by_width.items(), "by width", console=log)]
        verdict = decide([model for _, model in found])
        said = [str(verdict), *([starts([model for _, model in scaled])] if scaled else [])]
        with new_folder(Path(self.out)) as folder:
            rows = [row for answers, model in [*found, *scaled] for row in neuron_rows(answers, model)]
            (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            for kind in ("png", "pdf"):
                picture(found, f"{self.title}\n{verdict}", folder / f"figure.{kind}")
            ran_on = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "jax": version("jax")}
            summary = {"question": self.title, "config": config, "verdict": asdict(verdict), "said": "\n".join(said)}
            summary |= {name: [asdict(m) for _, m in which] for name, which in (("models", found), ("width", scaled))}
            (folder / "summary.json").write_text(json.dumps({**summary, "ran_on": ran_on}, indent=1) + "\n")
        screen.print(models_table([model for _, model in found], self.title))
        if scaled:
            screen.print(models_table([model for _, model in scaled], "By width"))
        screen.print("\n".join([*said, f"Results and picture: {self.out}"]))
        return 0

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
            raise ValueError(f"{path} exists, and is no folder of this question; choose another --out")
        if differ := [name for name in config if kept.get(name) != config[name]]:
            raise ValueError(f"{path} holds another run, with other {' and '.join(differ)}; choose another --out")
        return said

    def _measured(self, name: str, trained: Trained) -> "tuple[Answers, Model]":
        """One model, beside random transformers of its shape."""
        answers = self._answers(trained.model, trained.case)
        key = jax.random.fold_in(jax.random.key(self.seed), cases.MODELS.index(name))
        keys = jax.random.split(key, self.controls)
        controls = [self._answers(random_model(trained.model, key), trained.case) for key in keys]
        return answers, summarised(name, answers, controls, self.seed)

    def _alone(self, name: str, trained: Trained) -> "tuple[Answers, Model]":
        answers = self._answers(trained.model, trained.case)
        return answers, summarised(name, answers, [], self.seed)

    def _answers(self, model: Transformer, case: Case) -> Answers:
        rng = np.random.default_rng(self.seed)
        strings = samples_by_task(case, self.strings, rng)
        return measure_neurons(model, case, strings, rng, ablated=self.ablated)


@dataclass(frozen=True)
class Model:
    """What the neurons of one model answer to.

    Attributes:
        neurons, live: how many there are, and whose activation varies.
        matter, shared: of the live, those that matter to a task, and to two or more.
        control, control_low, control_high: share of the live neurons that are shared in random transformers, and its
            95% interval (Wilson); None without any.
        chance_low, chance_high: how many would be shared, in 95% of draws, were each task's dealt anew in their layer.
        layers: shared and live neurons by layer.
        participation: over how many tasks the effects of a neuron that matters are spread, the median.
        answered: variables that a live neuron answers to, the mean.
        of_two: share of the live neurons that answer to variables of two tasks or more.
        told: the least share of its entropy told that counts, by layer and variable.
    """

    name: str
    tasks: int
    neurons: int
    live: int
    matter: int
    shared: int
    control: float | None
    control_low: float | None
    control_high: float | None
    chance_low: float
    chance_high: float
    layers: list[tuple[int, int]]
    participation: float
    answered: float
    of_two: float
    told: list[list[float]]

    @property
    def share(self) -> float:
        return self.shared / max(self.live, 1)

    @property
    def is_polysemantic(self) -> bool:
        return self.share > max(LEAST, self.control_high or 0.0)


def matters(answers: Answers) -> Any:
    """Whether each live neuron matters to each task: (layer, neuron, task)."""
    return (answers.loss >= MATTERS) & answers.live[..., None]


def summarised(name: str, answers: Answers, controls: Sequence[Answers], seed: int) -> Model:
    """The summary of a model, beside random transformers of its shape."""
    to = matters(answers)
    shared, live = to.sum(-1) >= 2, int(answers.live.sum())
    random_shared = sum(int((matters(c).sum(-1) >= 2).sum()) for c in controls)
    random_live = sum(int(c.live.sum()) for c in controls)
    interval = binomtest(random_shared, random_live).proportion_ci(0.95, method="wilson") if random_live else None
    told = least_told(answers, controls)
    heard = (answers.information >= told[:, None]) & answers.live[..., None]
    of = np.array([-1 if task is None else task for task in answers.task_of])
    tasks_heard = np.stack([heard[..., of == task].any(-1) for task in range(len(answers.tasks))], -1).sum(-1)
    chance = np.percentile(shared_by_chance(to, np.random.default_rng(seed), DRAWS), (2.5, 97.5))
    spread = participation_ratio(answers.loss)[to.any(-1)]
    return Model(
        name=name,
        tasks=len(answers.tasks),
        neurons=answers.live.size,
        live=live,
        matter=int(to.any(-1).sum()),
        shared=int(shared.sum()),
        control=random_shared / random_live if random_live else None,
        control_low=float(interval.low) if interval else None,
        control_high=float(interval.high) if interval else None,
        chance_low=float(chance[0]),
        chance_high=float(chance[1]),
        layers=[(int(s.sum()), int(l.sum())) for s, l in zip(shared, answers.live, strict=True)],
        participation=float(np.median(spread)) if len(spread) else 0.0,
        answered=float(heard.sum() / max(live, 1)),
        of_two=float((tasks_heard >= 2).sum() / max(live, 1)),
        told=told.tolist(),
    )


def least_told(answers: Answers, controls: Sequence[Answers]) -> Any:
    """The share of each variable's entropy that a neuron of each layer has to tell: (layer, variable)."""
    least = np.full((len(answers.live), len(answers.variables)), LEAST)
    for layer in range(len(least)) if controls else ():
        random = np.concatenate([c.information[layer][c.live[layer]] for c in controls])
        if len(random):
            least[layer] = np.maximum(least[layer], np.percentile(random, 95, axis=0))
    return least


def random_model(model: Transformer, key: Any) -> Transformer:
    """A transformer of the same shape with random weights; it shares the compiled programs of the model."""
    weights = init_transformer(replace(model.config, init_gain=CONTROL_GAIN), key=key)
    return jax.tree.unflatten(jax.tree.structure(model), jax.tree.leaves(weights))


def decide(models: Sequence[Model]) -> Verdict:
    """The verdict; see `Polysemanticity` for its rule."""
    combined = [model for model in models if model.tasks > 1]
    if len(combined) < 3:
        return Verdict("undecided", f"the rule needs three combined models, and {len(combined)} were measured.")
    good = [model for model in combined if model.is_polysemantic]
    share = len(good) / len(combined)
    kind = "supported" if share >= MOST_MODELS else "contradicted" if share <= 1 - MOST_MODELS else "undecided"
    low, high = (100 * f(model.share for model in combined) for f in (min, max))
    control = 100 * max(model.control_high or 0.0 for model in combined)
    return Verdict(
        kind,
        f"in {len(good)} of {len(combined)} combined models more than {100 * LEAST:.0f}% of the live neurons, and more "
        f"than in random transformers, matter to two tasks or more: {low:.0f}-{high:.0f}% do (random: at most "
        f"{control:.1f}%, the upper end of the widest 95% interval).",
    )
