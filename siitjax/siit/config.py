"""What a run is told: `Hyperparams`, which vary within one compilation, and `TrainConfig`, which makes another."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError
from siitjax.base.precision import MatmulPrecision
from siitjax.causal.case import Case
from siitjax.siit.objective import Sampling

Updates = Literal["single", "three"]
Scalar = float | int | Float[Array, ""]

PROBABILITIES = (
    *("p_circuit", "p_unused", "edges_from", "p_edge", "p_nodes", "p_edges"),
    *("p_outside", "p_whole", "p_own", "p_base", "p_positions"),
)


class Hyperparams(eqx.Module):
    """What a sweep may vary within one compilation. The defaults are those of Anders & Garriga-Alonso 2024.

    Attributes:
        lr_start, lr_end: learning rate at the first and after the last update, linear between; equal for constant.
        beta1, beta2, eps: Adam's.
        clip: largest global norm of a gradient.
        w_base, w_iit, w_siit: weights of the three loss terms.
        p_circuit, p_unused: probability of a node in a random subset of the circuit's, of the unused nodes.
        edges_from: this and what follows are of `Sampling(swaps="edges")` alone. The share of the run in
            which single nodes are swapped, before every kind is.
        p_edge, p_nodes, p_edges: probability that the IIT term swaps one edge of the circuit, a random subset of its
            nodes, one of its edges; what is left to 1 is that of one node.
        p_outside: probability that the IIT term swaps edges outside the circuit too.
        p_whole: probability that all unused nodes, or all edges outside the circuit, are swapped, not a subset.
        p_own: probability that each sender has a source run of its own.
        p_base: probability that unused nodes which the IIT term swaps are held at the base run's values.
        p_positions: probability that senders are swapped at random positions.
        w_changed: how much more a token weighs whose label the swap changed.

    Raises:
        UserError: a number is out of its range (traced values are not checked).

    Example:
        >>> Hyperparams(lr_start=2e-3).clip
        1.0
        >>> Hyperparams(beta2=1.0)
        Traceback (most recent call last):
        siitjax.base.errors.UserError: beta2 is 1.0; it must be at least 0 and less than 1
    """

    lr_start: Scalar = 1e-3
    lr_end: Scalar = 2e-4
    beta1: Scalar = 0.9
    beta2: Scalar = 0.9
    eps: Scalar = 1e-8
    clip: Scalar = 1.0
    w_base: Scalar = 0.4
    w_iit: Scalar = 1.0
    w_siit: Scalar = 0.4
    p_circuit: Scalar = 0.5
    p_unused: Scalar = 0.5
    edges_from: Scalar = 0.0
    p_edge: Scalar = 0.35
    p_nodes: Scalar = 0.15
    p_edges: Scalar = 0.15
    p_outside: Scalar = 0.5
    p_whole: Scalar = 0.3
    p_own: Scalar = 0.5
    p_base: Scalar = 0.0
    p_positions: Scalar = 0.25
    w_changed: Scalar = 0.0

    def __post_init__(self):
        for names, accepts, words in (
            (("beta1", "beta2"), lambda x: 0 <= x < 1, "at least 0 and less than 1"),
            (PROBABILITIES, lambda x: 0 <= x <= 1, "from 0 to 1"),
            (("lr_start", "eps", "clip"), lambda x: 0 < x < np.inf, "greater than 0, and finite"),
            (("lr_end", "w_base", "w_iit", "w_siit", "w_changed"), lambda x: 0 <= x < np.inf, "at least 0, and finite"),
        ):
            for name in names:
                value = getattr(self, name)
                if isinstance(value, int | float) and not accepts(_as_trained(value)):
                    raise UserError(f"{name} is {value}; it must be {words}")
        known = [p for p in (self.p_edge, self.p_nodes, self.p_edges) if isinstance(p, int | float)]
        if _as_trained(sum(known)) > 1:
            raise UserError(f"p_edge, p_nodes and p_edges come to {sum(known):g} together; they may come to 1 at most")

    def traced(self) -> "Hyperparams":
        """The same numbers as float32 arrays, as the compiled functions take them."""
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self)


def _as_trained(value: float | int) -> np.float32:
    """The number that training uses: 1 - 1e-9 is 1 there, and 1e39 infinite."""
    with np.errstate(over="ignore", under="ignore"):
        return np.float32(value)


@dataclass(frozen=True)
class TrainConfig:
    """What makes another compilation.

    Attributes:
        case: the task.
        epochs: passes over the training set at most; the learning rate reaches its end with the last.
        batch_size: pairs a batch; an incomplete last batch of an epoch is left out.
        samples: strings, of which four fifths are trained on and one fifth validated on.
        updates: "single", one update a batch on the weighted sum, or "three", one for each term in turn
            (Gupta et al. 2024, Algorithm 1), each with its own weight, all on one optimizer state.
        sampling: how nodes are drawn.
        matmul_precision: how exactly GPUs and TPUs multiply; see `siitjax.base.precision`.

    Raises:
        UserError: a number is not positive, `updates` or `matmul_precision` is unknown, or a batch is larger than the
            training set.

    Example:
        >>> import siitjax
        >>> config = TrainConfig(siitjax.find_case("left_greater"), samples=1_000, batch_size=64)
        >>> config.n_train, config.steps_per_epoch
        (800, 12)
    """

    case: Case
    epochs: int = 100
    batch_size: int = 256
    samples: int = 10_000
    updates: Updates = "single"
    sampling: Sampling = field(default_factory=Sampling)
    matmul_precision: MatmulPrecision = "highest"

    def __post_init__(self):
        for name in ("epochs", "batch_size", "samples"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        check_choice("updates", self.updates, get_args(Updates))
        check_choice("matmul_precision", self.matmul_precision, get_args(MatmulPrecision))
        if self.batch_size > self.n_train:
            raise UserError(
                f"batch_size is {self.batch_size}, but {self.samples} samples leave {self.n_train} to train on; "
                "lower batch_size or raise samples"
            )
        if self.samples - self.n_train < 1:
            raise UserError(f"{self.samples} samples leave none to validate on; use at least 3")

    @property
    def n_train(self) -> int:
        """Samples to train on: four fifths."""
        return round(self.samples * 0.8)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches that the training set holds."""
        return self.n_train // self.batch_size
