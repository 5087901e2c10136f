"""To how many tasks and variables does each neuron answer?"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
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
"""Of the random weights: at 0.18, with which training began, an MLP writes next to nothing: no control at all."""
QUICK = ("0", "1", "0+1", "1+2")
DRAWS = 1_000


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
    than three combined models.

    The thresholds were fixed before the first run; the backgrounds were not. Held alone, no neuron of the two models of
    a first trial raised any loss by 1e-5, nor did more than 20 of 512 in six models take 0.1 nats off a task's
    log-odds, while whole MLPs raise the loss by nats. Random halves, tried next, still missed some MLPs. What is lost
    when a neuron is held alone is in every row.
    """

    title: ClassVar[str] = "Are the neurons of the shipped models polysemantic?"

    models: tuple[str, ...] = flag(cases.MODELS, "the shipped models to measure, by number")
    strings: int = flag(500, "strings a task on which information is measured", least=20)
    ablated: int = flag(50, "how many of those neurons are held at their mean on", least=2)
    backgrounds: int = flag(24, "random sets of an MLP's neurons beside which each is held", least=2)
    controls: int = flag(1, "transformers with random weights beside each model", least=1)
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
        config: dict[str, Any] = {
            "strings": self.strings,
            "ablated": self.ablated,
            "backgrounds": self.backgrounds,
            "controls": self.controls,
            "seed": self.seed,
        }
        config["weights"] = {name: _digest(trained.model) for name, trained in (shipped | by_width).items()}
        screen = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)
        if (finished := self._finished(config)) is not None:
            screen.print(f"{finished}\n{self.out} was finished before; nothing was changed.")
            return 0
        use_compilation_cache()
        # Opened first: a folder that cannot be written is told before anything is measured.
        with new_folder(Path(self.out)) as folder:
            found = [self._measured(name, trained) for name, trained in _tracked(shipped)]
            scaled = [self._alone(name, trained) for name, trained in _tracked(by_width)]
            models, widths = ([model for _, model in which] for which in (found, scaled))
            verdict = decide(models)
            said = "\n".join([str(verdict), *([starts(widths)] if widths else [])])
            rows = [row for answers, model in [*found, *scaled] for row in neuron_rows(answers, model)]
            (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            for kind in ("png", "pdf"):
                picture(found, f"{self.title}\n{verdict}", folder / f"figure.{kind}")
            ran_on = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "jax": version("jax")}
            summary = {"question": self.title, "config": config, "verdict": asdict(verdict), "said": said}
            summary |= {"models": [*map(asdict, models)], "width": [*map(asdict, widths)], "ran_on": ran_on}
            (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        screen.print(models_table(models, self.title))
        if widths:
            screen.print(models_table(widths, "By width"))
        screen.print(f"{said}\nResults and picture: {self.out}")
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
        return measure_neurons(model, case, strings, rng, ablated=self.ablated, backgrounds=self.backgrounds)


@dataclass(frozen=True)
class Model:
    """What the neurons of one model answer to.

    Attributes:
        neurons, live: how many there are, and whose activation varies.
        matter, shared: of the live, those that matter to a task, and to two or more.
        alone: those whose loss rises as much when no other neuron is held.
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
    alone: int
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
    return (answers.loss >= MATTERS) & (answers.low > 0) & answers.live[..., None]


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
        alone=int((answers.alone >= MATTERS).any(-1).sum()),
        control=random_shared / random_live if random_live else None,
        control_low=float(interval.low) if interval else None,
        control_high=float(interval.high) if interval else None,
        chance_low=float(chance[0]),
        chance_high=float(chance[1]),
        layers=[(int(both.sum()), int(alive.sum())) for both, alive in zip(shared, answers.live, strict=True)],
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
    fewer = sum(model.shared < model.chance_low for model in combined)
    return Verdict(
        kind,
        f"in {len(good)} of {len(combined)} combined models more than {100 * LEAST:.0f}% of the live neurons, and more "
        f"than in random transformers, matter to two tasks or more: {low:.0f}-{high:.0f}% do (random: at most "
        f"{control:.1f}%, the upper end of the widest 95% interval); in {fewer} of the {len(combined)} fewer are "
        "shared than if each task's neurons lay anywhere in their MLP.",
    )


def starts(models: Sequence[Model]) -> str:
    """From which width on the MLPs beneath the answer's share most of their live neurons, by number of tasks."""
    widths = {}
    for model in models:
        shared, live = map(sum, zip(*model.layers[:-1], strict=True)) if len(model.layers) > 1 else (0, 0)
        kept = widths.setdefault(model.tasks, {}).setdefault(model.neurons // len(model.layers), [])
        kept.append(shared / max(live, 1))
    said = []
    for tasks, shares in sorted(widths.items()):
        if tasks > 1:
            narrow = max((width for width, found in shares.items() if np.mean(found) > 0.5), default=None)
            where = "at no width" if narrow is None else f"at {narrow} neurons an MLP or fewer"
            said.append(f"{tasks} tasks {where} (of {', '.join(map(str, sorted(shares)))})")
    return f"Most live neurons beneath the answer's MLP are shared: {'; '.join(said) or 'nothing converged'}."


def read_capacity(folder: Path) -> dict[str, Trained]:
    """The members that converged in a results folder of `sweeps.capacity`.

    Raises:
        ValueError: it is no such folder.
    """
    try:
        rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
        converged = [(row["setting"], row["seed"], row["member"]) for row in rows if row["stop"] == "converged"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} is not a results folder of python -m sweeps.capacity ({' '.join(str(error).split())}); "
            "give --capacity one"
        ) from None
    path = lambda member: folder / "members" / f"{member:04d}.safetensors"
    return {f"{setting}, seed {seed}": read_trained(path(i), _copies) for setting, seed, i in sorted(converged)}


def _copies(description: dict[str, Any]) -> Case:
    """The case of a member of `sweeps.capacity`: any number of parts, and copies of one."""
    parts = [
        cases.build(name.split("#")[0], init_gain=description["init_gain"]) for name in description["name"].split("+")
    ]
    width_factor = description["d_model"] / max(part.d_model for part in parts)
    sizes = {name: description[name] for name in ("d_head", "d_mlp", "counterfactual")}
    case = combine(parts, width_factor=width_factor, **sizes)
    if case.describe() != description:
        raise ValueError(f"{description['name']} is not put together as python -m sweeps.capacity does; see --capacity")
    return case


def neuron_rows(answers: Answers, model: Model) -> list[dict[str, Any]]:
    """What rows.jsonl holds: one row a neuron."""
    to, spread = matters(answers), participation_ratio(answers.loss)
    rounded = lambda names, values: {n: round(float(v), 6) for n, v in zip(names, values, strict=True)}
    rows = []
    for layer, neuron in np.ndindex(answers.live.shape):
        told = answers.information[layer, neuron]
        live = bool(answers.live[layer, neuron])
        heard = [
            v for v, share, least in zip(answers.variables, told, model.told[layer], strict=True) if share >= least
        ]
        row = {
            "model": model.name,
            "layer": layer,
            "neuron": neuron,
            "live": live,
            "loss": rounded(answers.tasks, answers.loss[layer, neuron]),
            "loss_alone": rounded(answers.tasks, answers.alone[layer, neuron]),
            "accuracy_alone": rounded(answers.tasks, answers.accuracy[layer, neuron]),
            "matters_to": [task for task, m in zip(answers.tasks, to[layer, neuron], strict=True) if m],
            "participation": round(float(spread[layer, neuron]), 4),
            "information": rounded(answers.variables, told),
            "answers_to": heard if live else [],
        }
        rows.append(row)
    return rows


def models_table(models: Sequence[Model], title: str) -> Table:
    """One row a model."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    columns = (
        "live",
        "alone",
        "matter",
        "shared",
        "of live",
        "random",
        "by chance",
        "by layer",
        "spread",
        "answer to",
        "of two",
    )
    for column in ("model", "neurons", *columns):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for m in models:
        random = "-" if m.control_low is None else f"{100 * m.control_low:.1f}-{100 * (m.control_high or 0):.1f}%"
        table.add_row(
            m.name,
            *(f"{n}" for n in (m.neurons, m.live, m.alone, m.matter, m.shared)),
            f"{100 * m.share:.1f}%",
            random,
            f"{m.chance_low:.0f}-{m.chance_high:.0f}",
            " ".join(f"{shared}/{live}" for shared, live in m.layers),
            f"{m.participation:.2f}",
            f"{m.answered:.1f}",
            f"{100 * m.of_two:.0f}%",
        )
    table.caption = (
        "neurons: live; that a task misses alone; that matter to a task; to two or more (shared), their share of the "
        "live, its 95% interval in random transformers, how many by chance, shared/live by layer; spread: over how "
        "many tasks, by participation ratio, the median; answer to: variables a live neuron, the mean; of two: answer "
        "to variables of two tasks"
    )
    table.caption_justify = "left"
    return table


def picture(found: Sequence[tuple[Answers, Model]], title: str, path: Path) -> None:
    """Shared neurons and their spread by model; then a map of live neurons by task for each combined model's MLPs."""
    maps = [(answers, model) for answers, model in found if model.tasks > 1]
    tall = sum(0.14 * model.tasks + 0.2 for _, model in maps)
    style: dict[Any, Any] = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(11, 4.6 + tall), layout="constrained")
        figure.suptitle(title, fontsize=9, x=0.01, ha="left", wrap=True)
        above, beneath = figure.subfigures(2, 1, height_ratios=(3.2, tall + 1), squeeze=False).flat
        left, right = above.subplots(1, 2)
        _shares(left, [model for _, model in found])
        _spreads(right, found)
        if maps:
            layers = max(len(model.layers) for _, model in maps)
            ratios = [0.14 * model.tasks + 0.2 for _, model in maps]
            axes = beneath.subplots(len(maps), layers, squeeze=False, height_ratios=ratios)
            most = max(answers.loss.max() for answers, _ in maps)
            norm = LogNorm(MATTERS / 10, max(most, MATTERS))
            drawn = None
            for line, (answers, model) in zip(axes, maps, strict=True):
                for layer, axis in enumerate(line):
                    axis.set_axis_off()
                    if layer < len(model.layers):
                        drawn = _map(axis, answers, layer, model.name if layer == 0 else "", norm) or drawn
            for layer, axis in enumerate(axes[0]):
                axis.set_title(f"MLP{layer}", fontsize=8)
            if drawn is not None:
                label = "rise of a task's loss without the neuron, nats a token (a column a live neuron, a line a task)"
                bar: dict[str, Any] = {"location": "bottom", "extend": "min", "fraction": 0.02, "aspect": 60}
                beneath.colorbar(drawn, ax=axes.ravel().tolist(), label=label, **bar)
        figure.savefig(path, dpi=150)


def _shares(axis: Axes, models: Sequence[Model]) -> None:
    """Shares of the live neurons, a place a model: shared, beside random transformers' interval."""
    places = np.arange(len(models))
    axis.bar(places, [m.matter / max(m.live, 1) for m in models], color="#dddddd", label="matter to a task")
    axis.bar(places, [m.share for m in models], color=COLOURS[0], label="matter to two or more")
    for place, m in enumerate(models):
        if m.control_low is not None and m.control_high is not None:
            label = "" if place else "random transformers, two or more"
            axis.vlines(place, m.control_low, m.control_high, color=COLOURS[1], linewidth=5, label=label)
    axis.axhline(LEAST, color="black", linewidth=0.8, linestyle=":")
    axis.set_xticks(places, [m.name for m in models], rotation=45, ha="right")
    axis.set(ylabel="share of live neurons", ylim=(0, 1))
    axis.legend(frameon=False, fontsize=7)


def _spreads(axis: Axes, found: Sequence[tuple[Answers, Model]]) -> None:
    """The distribution of the participation ratio over the neurons that matter, a place a model."""
    spreads = [participation_ratio(answers.loss)[matters(answers).any(-1)] for answers, _ in found]
    axis.boxplot(spreads, positions=range(len(found)), sym=".", flierprops={"markersize": 2}, widths=0.6)
    axis.set_xticks(range(len(found)), [model.name for _, model in found], rotation=45, ha="right")
    axis.set(ylabel="tasks a neuron, by participation ratio")


def _map(axis: Axes, answers: Answers, layer: int, name: str, norm: LogNorm) -> Any:
    """Effects by task and live neuron of one MLP, the neurons of the same chief task beside each other."""
    effects = answers.loss[layer][answers.live[layer]]
    if not len(effects):
        return None
    chief = np.where(effects.max(1) >= MATTERS, effects.argmax(1), effects.shape[1])
    order = np.lexsort((-effects.max(1), chief))
    axis.set_axis_on()
    axis.set_xticks([])
    numbers = [cases.number(task.split("#")[0]) for task in answers.tasks]
    axis.set_yticks(range(len(numbers)), numbers, fontsize=6)
    axis.set_ylabel(name, rotation=0, ha="right", va="center")
    return axis.imshow(
        effects[order].T.clip(min=norm.vmin), norm=norm, cmap="viridis", aspect="auto", interpolation="nearest"
    )


def _tracked(models: dict[str, Trained]) -> Iterable[tuple[str, Trained]]:
    """The models, with a bar on the screen."""
    return track(models.items(), "measuring", console=Console(stderr=True), disable=not models)


def _digest(model: Transformer) -> str:
    """Names a model's weights."""
    weights = state_dict(model)
    return hashlib.sha256(b"".join(weights[name].tobytes() for name in sorted(weights))).hexdigest()[:16]


if __name__ == "__main__":
    main(Polysemanticity)
