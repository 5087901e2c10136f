"""Alignments learned by interchange interventions: the transformer is to answer as the causal model under the swap.

Every combination of a variable, a size and a seed is a lane of one program; all lanes see the same batches.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from siitjax.analysis.alignment.alignments import Alignment, Chosen, Flow, Projection, onto
from siitjax.analysis.alignment.exam import Exam
from siitjax.base.errors import UserError
from siitjax.base.precision import matmul_precision
from siitjax.siit.step import under_strict_promotion

Size = Int[Array, ""]
LAYERS, HIDDEN = 4, 128
"""Of the non-linear map."""


class Lanes(NamedTuple):
    """What is looked for side by side.

    Attributes:
        variables: of each lane, by its number in the exam.
        sizes: how many directions or features are swapped.
        seeds: decide first weights, or what is drawn.
    """

    variables: Int[Array, " lane"]
    sizes: Int[Array, " lane"]
    seeds: Int[Array, " lane"]


@dataclass(frozen=True)
class Training:
    """How alignments are learned.

    Attributes:
        steps, batch_size: updates, and pairs an update.
        lr: Adam's learning rate, which falls to 0 along a cosine.

    Raises:
        UserError: a number is not positive.
    """

    steps: int = 150
    batch_size: int = 16
    lr: float = 0.03

    def __post_init__(self):
        for name in ("steps", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be greater than 0")


class Learner(eqx.Module):
    """What is learned, and which alignment it stands for."""

    @abstractmethod
    def begin(self, width: int, key: PRNGKeyArray) -> Any:
        """The first weights.

        Args:
            width: numbers that the node holds a token.
        """

    @abstractmethod
    def during(self, weights: Any, size: Size, progress: Float[Array, ""]) -> Alignment:
        """The alignment in training; `progress` goes from 0 to 1."""

    def after(self, weights: Any, size: Size) -> Alignment:
        """The alignment that comes out."""
        return self.during(weights, size, jnp.ones(()))

    def price(self, weights: Any, size: Size, progress: Float[Array, ""]) -> Float[Array, ""]:
        """What the loss has beside the cross-entropy, in nats."""
        return jnp.zeros(())


class DAS(Learner):
    """Distributed alignment search (Geiger et al. 2024): the first columns of a rotation span the variable's subspace.

    The columns are a matrix's, made orthonormal one after the other. The first ones depend on the matrix's first
    columns alone, so that lanes of every size share a shape.

    Attributes:
        most: the largest size of a lane.
    """

    most: int = eqx.field(static=True)

    def begin(self, width: int, key: PRNGKeyArray) -> Float[Array, "d_site most"]:
        """Random directions, each number of variance 1."""
        return jax.random.normal(key, (width, self.most))

    def during(self, weights: Float[Array, "d_site most"], size: Size, progress: Float[Array, ""]) -> Projection:
        used = (jnp.arange(self.most) < size).astype(weights.dtype)
        return onto(orthonormal(weights) * used[None])


def orthonormal(matrix: Float[Array, "row column"]) -> Float[Array, "row column"]:
    """The columns made orthonormal, one after the other (Gram and Schmidt, twice for float32's sake).

    On a CPU this and its gradient take a quarter of the time of jnp.linalg.qr's, over many small matrices at once.

    Example:
        >>> import jax.numpy as jnp
        >>> orthonormal(jnp.array([[2.0, 1.0], [0.0, 3.0]])).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    def step(done, i):
        column = matrix[:, i]
        for _ in range(2):
            column = column - done @ (done.T @ column)
        return done.at[:, i].set(column / jnp.linalg.norm(column)), None

    return jax.lax.scan(step, jnp.zeros_like(matrix), jnp.arange(matrix.shape[1]))[0]


class Mask(Learner):
    """A desiderata-based mask (De Cao et al. 2020; Davies et al. 2023): a learned choice of features, neurons for one.

    A feature is swapped by the sigmoid of a logit over a temperature that falls; more features than the size cost. In
    the end those with the largest logits are swapped, as many as the size says.

    Attributes:
        features: see `siitjax.analysis.alignment.alignments.Chosen`.
        price_of: nats, of as many features too many as the size is.
        hot, cold: the first and the last temperature.
    """

    features: Any
    price_of: float = eqx.field(static=True, default=1.0)
    hot: float = eqx.field(static=True, default=1.0)
    cold: float = eqx.field(static=True, default=0.1)

    def begin(self, width: int, key: PRNGKeyArray) -> Float[Array, " feature"]:
        """Logits near 0: every feature is swapped by half."""
        return 0.1 * jax.random.normal(key, (len(self.features.W_dec),))

    def _share(self, weights: Float[Array, " feature"], progress: Float[Array, ""]) -> Float[Array, " feature"]:
        return jax.nn.sigmoid(weights / (self.hot * (self.cold / self.hot) ** progress))

    def during(self, weights: Float[Array, " feature"], size: Size, progress: Float[Array, ""]) -> Chosen:
        return Chosen(self.features, self._share(weights, progress))

    def after(self, weights: Float[Array, " feature"], size: Size) -> Chosen:
        rank = jnp.argsort(jnp.argsort(-weights))
        return Chosen(self.features, (rank < size).astype(weights.dtype))

    def price(self, weights: Float[Array, " feature"], size: Size, progress: Float[Array, ""]) -> Float[Array, ""]:
        size = size.astype(weights.dtype)
        return self.price_of * jax.nn.relu(self._share(weights, progress).sum() - size) / size


class NonLinear(Learner):
    """A control: an unrestricted bijection in the place of the rotation (Sutter et al. 2025)."""

    def begin(self, width: int, key: PRNGKeyArray) -> tuple[Array, Array, Array]:
        """Layers that move little at first."""
        one, other = jax.random.split(key)
        first = jax.random.normal(one, (LAYERS, width, HIDDEN)) * (2 / width) ** 0.5
        return first, jnp.zeros((LAYERS, HIDDEN)), 0.1 * jax.random.normal(other, (LAYERS, HIDDEN, width)) / HIDDEN**0.5

    def during(self, weights: tuple[Array, Array, Array], size: Size, progress: Float[Array, ""]) -> Flow:
        return Flow(*weights, size)


@partial(jax.jit, static_argnums=3)
@matmul_precision()
def learn(exam: Exam, learner: Learner, lanes: Lanes, training: Training) -> Alignment:
    """Trains all lanes with Adam, and gives their alignments with a leading lane axis.

    Args:
        exam: the pairs to train on.
    """
    steps, batch_size = training.steps, training.batch_size
    adam = under_strict_promotion(optax.adam(optax.cosine_decay_schedule(training.lr, steps)))
    weights_of, n = exam.weights(), len(exam.base)

    def loss(weights, variable, size, which, progress):
        value = learner.during(weights, size, progress)(exam.here[which], exam.there[which])
        logits = exam.answers(which, value)
        each = exam.case.loss.per_token(logits, exam.labels[variable][which])
        return (each * weights_of[variable][which]).sum() / len(which) + learner.price(weights, size, progress)

    def step(state, count):
        weights, adam_state = state
        which = jax.random.permutation(jax.random.fold_in(jax.random.key(0), count), n)[:batch_size]
        progress = count.astype(exam.here.dtype) / steps
        slope = jax.vmap(jax.grad(loss), (0, 0, 0, None, None))(weights, lanes.variables, lanes.sizes, which, progress)
        updates, adam_state = adam.update(slope, adam_state)
        return (optax.apply_updates(weights, updates), adam_state), None

    start = jax.vmap(lambda seed: learner.begin(exam.width, jax.random.key(seed)))(lanes.seeds)
    (weights, _), _ = jax.lax.scan(step, (start, adam.init(start)), jnp.arange(steps))
    return jax.vmap(learner.after)(weights, lanes.sizes)
