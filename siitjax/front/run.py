"""A finished training run, and what is heard of one that goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from siitjax.base.files import make_folder
from siitjax.base.share import percent
from siitjax.causal.case import Case
from siitjax.io.trained import Trained, save_trained
from siitjax.model.transformer import Transformer
from siitjax.siit.metrics import Shares, shares
from siitjax.siit.train import Stop
from siitjax.sweep.engine import Outcome
from siitjax.sweep.results import CURVES

LOSSES: tuple[str, ...] = ("loss_base", "loss_iit", "loss_siit")


@dataclass(frozen=True)
class Epoch:
    """What `on_epoch` is told after each epoch, measured on the validation pairs.

    Attributes:
        number: epochs run.
        of: epochs at most.
        losses: the mean of "loss_base", "loss_iit" and "loss_siit", as `Run.history` has them.
        metrics: everything that was measured, exact shares from 0 to 1.
        seconds: wall time in s since the training began, compilation not counted.
    """

    number: int
    of: int
    losses: Mapping[str, float]
    metrics: Shares
    seconds: float

    @property
    def accuracy(self) -> Fraction:
        """The share of tokens that are right with nothing swapped."""
        return self.metrics.accuracy

    @property
    def iia(self) -> Fraction:
        """The same when one node of the circuit is swapped, mean over nodes."""
        return self.metrics.iia

    @property
    def siia(self) -> Fraction:
        """The same when one unused node is swapped, mean over nodes."""
        return self.metrics.siia

    def numbers(self) -> dict[str, float]:
        """One number for each curve of `Run.history`, and "seconds"; without those that there was nothing to count for.

        Example:
            >>> import siitjax
            >>> heard = []
            >>> small = {"epochs": 2, "samples": 400, "batch_size": 64, "progress": False}
            >>> run = siitjax.train("left_greater", on_epoch=heard.append, **small)
            >>> [epoch.numbers()["siia"] for epoch in heard] == [*run.history["siia"]]
            True
        """
        seen = {name: getattr(self.metrics, name) for name in CURVES}
        shown = {name: float(share) for name, share in seen.items() if share is not None}
        return {**self.losses, **shown, "seconds": self.seconds}


@dataclass(frozen=True, repr=False)
class Run:
    """A finished training run.

    Attributes:
        case: what it was trained on, with the recipe's gain of the first weights.
        model: the trained transformer.
        metrics: accuracy, IIA, SIIA and so on, exact shares from 0 to 1, on validation pairs drawn after the end.
        history: a curve for each of "epoch", "loss_base", "loss_iit", "loss_siit" (mean loss in the unit of the case's
            loss, nats for classes), "accuracy", "iia", "changed_iia", "sequence_iia", "siia", "joint_siia" and
            "subset_siia" (from 0 to 1; nan where there was nothing to count); one number an epoch, as
            `pandas.DataFrame(run.history)` takes it.
        stop: why it ended: Stop.CONVERGED, DIVERGED or EXHAUSTED.
        epochs: passes over the training strings that it ran.
        seconds: wall time in s, compilation not counted.
        about: seed, hyperparameters, training and versions, as its file says them.

    Example:
        >>> import siitjax
        >>> run = siitjax.train("left_greater", epochs=2, samples=400, batch_size=64, progress=False)
        >>> run.stop.name, run.epochs, len(run.history["siia"])
        ('EXHAUSTED', 2, 2)
        >>> print(run)  # doctest: +ELLIPSIS
        left_greater, seed 0: exhausted after 2 epochs, ... s; accuracy ..., IIA ..., changed IIA ..., SIIA ...
    """

    case: Case
    model: Transformer
    metrics: Shares
    history: Mapping[str, Float[np.ndarray, " epoch"]]
    stop: Stop
    epochs: int
    seconds: float
    about: Mapping[str, Any] = field(repr=False)

    @property
    def seed(self) -> int:
        """What decided its data, its first weights and every draw."""
        return self.about["member"]["seed"]

    @property
    def converged(self) -> bool:
        """Whether accuracy, IIA and SIIA were 100% on the validation pairs."""
        return self.stop is Stop.CONVERGED

    def save(self, path: str | Path) -> Path:
        """Writes the weights with everything that is known of them, whole or not at all; `siitjax.load` reads it.

        Raises:
            OSError: it cannot be written there.

        Example:
            >>> import siitjax, tempfile
            >>> run = siitjax.train("left_greater", epochs=2, samples=400, batch_size=64, progress=False)
            >>> path = run.save(f"{tempfile.mkdtemp()}/mine.safetensors")
            >>> siitjax.load(path).metrics.siia == run.metrics.siia
            True
        """
        path = Path(path)
        make_folder(path.parent)
        save_trained(path, Trained(self.case, self.model, self.metrics, dict(self.about)))
        return path

    def __str__(self) -> str:
        known = {"accuracy": "accuracy", "iia": "IIA", "changed_iia": "changed IIA", "siia": "SIIA"}
        said = ", ".join(f"{words} {percent(getattr(self.metrics, name))}" for name, words in known.items())
        if self.metrics.mean_error is not None:
            said += f", mean absolute error {self.metrics.mean_error:.3g}"
        end = f"{self.stop.name.lower()} after {self.epochs} epochs, {self.seconds:.1f} s"
        return f"{self.case.name}, seed {self.seed}: {end}; {said}"

    __repr__ = __str__


def run_of(case: Case, outcome: Outcome, about: Mapping[str, Any]) -> Run:
    """The run that a member's outcome is."""
    seen = [shares(outcome.history.metrics.at(epoch)) for epoch in range(outcome.epochs)]
    number = lambda share: nan if share is None else float(share)
    curves = {name: np.array([number(getattr(now, name)) for now in seen], float) for name in CURVES}
    losses = {name: np.asarray(outcome.history.loss[:, i], float) for i, name in enumerate(LOSSES)}
    history = {"epoch": np.arange(1.0, outcome.epochs + 1), **losses, **curves}
    metrics = shares(outcome.metrics)
    return Run(case, outcome.model, metrics, history, outcome.stop, outcome.epochs, outcome.seconds, about)
