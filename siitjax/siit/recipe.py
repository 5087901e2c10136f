"""Recipes: whole sets of choices by which a case is trained, each named."""

from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, get_args

from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError
from siitjax.base.precision import MatmulPrecision
from siitjax.causal.case import Case
from siitjax.siit.config import Hyperparams, TrainConfig, Updates
from siitjax.siit.objective import Sampling


@dataclass(frozen=True)
class Recipe:
    """How a case is trained: every choice that a training run needs beside the case and the seed.

    `Recipe()` is the recipe that makes all 15 models of the four tasks converge (`python -m sweeps.table`): small first
    weights, the swapped nodes drawn for every example, and a learning rate that falls from 1e-3 to 1e-5.

    Attributes:
        init_gain: gain of the Xavier normal first weights. It takes the place of the case's own.
        epochs: passes over the training strings at most; the learning rate reaches its end with the last.
        samples: strings a task, of which four fifths are trained on and one fifth validated on.
        batch_size: pairs of a base and a source a batch.
        updates: "single", one update a batch, or "three", one for each loss term (Gupta et al. 2024, Algorithm 1).
        sampling: which nodes or edges are swapped, and how they are drawn.
        hyper: learning rates, Adam's numbers, the weights of the loss terms, probabilities.
        matmul_precision: how exactly GPUs and TPUs multiply; see `siitjax.base.precision`.

    Raises:
        UserError: a number is out of its range, or a word is unknown.

    Example:
        >>> import siitjax
        >>> siitjax.Recipe().epochs, siitjax.Recipe().sampling.drawn_per
        (60, 'example')
        >>> siitjax.Recipe.published().changed(epochs=7, beta2=0.999).hyper.beta2
        0.999
    """

    init_gain: float = 0.18
    epochs: int = 60
    samples: int = 10_000
    batch_size: int = 256
    updates: Updates = "single"
    sampling: Sampling = field(default_factory=lambda: Sampling(drawn_per="example"))
    hyper: Hyperparams = field(default_factory=lambda: Hyperparams(p_unused=0.8, lr_end=1e-5))
    matmul_precision: MatmulPrecision = "highest"

    def __post_init__(self):
        if not 0 <= self.init_gain < float("inf"):
            raise UserError(f"init_gain is {self.init_gain}; it must be at least 0, and finite")
        for name in ("epochs", "samples", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        check_choice("updates", self.updates, get_args(Updates))
        check_choice("matmul_precision", self.matmul_precision, get_args(MatmulPrecision))

    @classmethod
    def published(cls) -> "Recipe":
        """That of Anders & Garriga-Alonso 2024: first weights of gain 1, nodes drawn once a batch, rates 1e-3 to 2e-4.

        Example:
            >>> import siitjax
            >>> siitjax.Recipe.published().init_gain
            1.0
        """
        return cls(init_gain=1.0, epochs=100, sampling=Sampling(), hyper=Hyperparams())

    @classmethod
    def edges(cls) -> "Recipe":
        """The second stage: 20 epochs under swaps of edges and every other kind (`siitjax.siit.edge_sampling`).

        It goes on from weights that hold their circuit at nodes, so `siitjax.train` needs them as `start`. Small
        batches give four times the updates in the same time. Most examples are swapped at random positions: there
        strings of several tasks are mixed, which nothing else teaches.

        Example:
            >>> import siitjax
            >>> siitjax.Recipe.edges().sampling.swaps
            'edges'
        """
        hyper = Hyperparams(
            **{"p_unused": 0.8, "lr_end": 1e-5, "edges_from": 0.0, "w_changed": 1.0},
            **{"p_edge": 0.2, "p_nodes": 0.3, "p_edges": 0.4, "p_outside": 0.6},
            **{"p_own": 0.7, "p_base": 0.5, "p_positions": 0.8},
        )
        sampling = Sampling(drawn_per="example", swaps="edges")
        return cls(epochs=20, batch_size=64, sampling=sampling, hyper=hyper)

    @property
    def needs_start(self) -> bool:
        """Whether it swaps edges from its first batch, which works only from weights that hold at nodes."""
        return self.sampling.swaps == "edges" and bool(self.hyper.edges_from == 0)

    def changed(self, **settings: Any) -> "Recipe":
        """The recipe with some choices changed, by name: its own, and those of `Sampling` and `Hyperparams`.

        Raises:
            UserError: there is no such choice (the message names the nearest), or a value cannot be used.

        Example:
            >>> import siitjax
            >>> siitjax.Recipe().changed(epochs=5, lr_start=0.01, drawn_per="batch").sampling.drawn_per
            'batch'
            >>> siitjax.Recipe().changed(beta_2=0.9)
            Traceback (most recent call last):
            siitjax.base.errors.UserError: the setting is "beta_2"; did you mean "beta2"? See help(siitjax.Recipe)
        """
        own, sampling, hyper = {}, {}, {}
        for name, value in settings.items():
            check_choice("the setting", name, SETTINGS, "See help(siitjax.Recipe)")
            if name in _HYPER:
                hyper[name] = float(_number(name, value, Real))
            elif name in _SAMPLING:
                sampling[name] = value
            elif name in ("epochs", "samples", "batch_size"):
                own[name] = int(_number(name, value, Integral))
            else:
                own[name] = float(_number(name, value, Real)) if name == "init_gain" else value
        parts = {"sampling": replace(self.sampling, **sampling), "hyper": replace(self.hyper, **hyper)}
        return replace(self, **{**parts, **own})

    def config(self, case: Case) -> TrainConfig:
        """What is compiled to train a case so: as many strings for each of its tasks, and first weights of this gain.

        Raises:
            UserError: a batch is larger than the training set.

        Example:
            >>> import siitjax
            >>> siitjax.Recipe().config(siitjax.find_case("1+2")).samples
            20000
        """
        return TrainConfig(
            replace(case, init_gain=self.init_gain),
            self.epochs,
            self.batch_size,
            self.samples * max(len(case.tasks), 1),
            self.updates,
            self.sampling,
            self.matmul_precision,
        )


_SAMPLING = tuple(f.name for f in fields(Sampling))
_HYPER = tuple(f.name for f in fields(Hyperparams))
SETTINGS = (*(f.name for f in fields(Recipe)), *_SAMPLING, *_HYPER)
"""Every choice that `Recipe.changed` takes."""


def _number(name: str, value: Any, kind: type) -> Any:
    """The value. Raises UserError where it is no number of that kind."""
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    hint = "; siitjax.sweep takes several" if isinstance(value, tuple | list) else ""
    raise UserError(f"{name} is {value!r}; it must be a {'whole ' if kind is Integral else ''}number{hint}")
