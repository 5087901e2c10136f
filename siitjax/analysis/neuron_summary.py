"""What the neurons of a whole model answer to: how many matter to several tasks, beside random transformers."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.stats import binomtest

from siitjax.analysis.neurons import Answers, participation_ratio, shared_by_chance
from siitjax.base.jsonl import Row

MATTERS = 0.01
"""Nats a token: a neuron matters to the tasks whose mean loss rises by as much or more without it."""
LEAST = 0.1
"""The least share of the live neurons that has to be shared; and of a variable's entropy that has to be told. Both
thresholds were fixed before the first run."""
MOST = 0.5
"""The share of the live neurons beneath the answer's MLP above which most are said to be shared."""
DRAWS = 1_000
"""Of neurons dealt anew, from which the interval of what is shared by chance is taken."""


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

    @staticmethod
    def from_row(row: Row) -> "Model":
        """As JSON has it."""
        known: dict[str, Any] = {f.name: row[f.name] for f in fields(Model)}
        known["layers"] = [(shared, live) for shared, live in row["layers"]]  # of which JSON makes lists
        return Model(**known)

    @property
    def share(self) -> float:
        """Of the live neurons, the share that matters to two tasks or more; 0 where none is live."""
        return self.shared / max(self.live, 1)

    @property
    def width(self) -> int:
        """Neurons an MLP."""
        return self.neurons // len(self.layers)

    @property
    def share_beneath(self) -> float:
        """The share of the live neurons beneath the last MLP, which holds the answer to all tasks, that is shared."""
        shared, live = (sum(count[i] for count in self.layers[:-1]) for i in (0, 1))
        return shared / max(live, 1)

    @property
    def is_polysemantic(self) -> bool:
        """Whether that share is above a tenth, and above the interval of what chance gives."""
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
