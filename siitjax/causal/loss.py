"""The two kinds of loss a case can declare: what a token costs, and when it counts as right."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from siitjax.base.errors import UserError


@runtime_checkable
class Loss(Protocol):
    """A kind of loss. Its methods take one sample's outputs and labels, or any batch of them."""

    @property
    def takes(self) -> str:
        """The kinds of label that it takes, as NumPy's dtypes name them: "i" and "u" integers, "f" floats."""
        ...

    def label_shape(self, n_outputs: int) -> tuple[int, ...]:
        """The shape of one token's label."""
        ...

    def per_token(self, outputs: Float[Array, "*batch seq out"], labels: Array) -> Float[Array, "*batch seq"]:
        """The loss of each token."""
        ...

    def correct(self, outputs: Float[Array, "*batch seq out"], labels: Array) -> Bool[Array, "*batch seq"]:
        """Whether each token counts as right."""
        ...

    def same(self, labels: Array, others: Array) -> Bool[Array, "*batch seq"]:
        """Whether each token has the same label in both: what a swap left unchanged."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Labels are classes; a token is right when its largest logit is the label's. The loss is in nats."""

    @property
    def takes(self) -> str:
        """The kinds of NumPy dtype that labels may have: whole numbers."""
        return "iu"

    def label_shape(self, n_outputs: int) -> tuple[int, ...]:
        """The shape of a token's label: one number."""
        return ()

    def per_token(
        self, outputs: Float[Array, "*batch seq out"], labels: Int[Array, "*batch seq"]
    ) -> Float[Array, "*batch seq"]:
        """The loss of each token, in nats."""
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)

    def correct(
        self, outputs: Float[Array, "*batch seq out"], labels: Int[Array, "*batch seq"]
    ) -> Bool[Array, "*batch seq"]:
        """Whether the class with the largest logit is the label; False where a logit is nan."""
        # The largest of nans would be class 0.
        return (jnp.argmax(outputs, -1) == labels) & ~jnp.isnan(outputs).any(-1)

    def same(self, labels: Int[Array, "*batch seq"], others: Int[Array, "*batch seq"]) -> Bool[Array, "*batch seq"]:
        """Whether two labels of a token are equal."""
        return labels == others


@dataclass(frozen=True)
class SquaredError:
    """Labels are numbers, one or several a token; the loss is the mean of their squared errors.

    Attributes:
        tolerance: how far each number may be off in a token that counts as right, in the label's own unit.

    Raises:
        UserError: the tolerance is negative or not finite.
    """

    tolerance: float = 0.05

    def __post_init__(self):
        if not self.tolerance > 0:
            raise UserError(f"tolerance is {self.tolerance}; it must be greater than 0")

    @property
    def takes(self) -> str:
        """The kinds of NumPy dtype that labels may have: floats."""
        return "f"

    def label_shape(self, n_outputs: int) -> tuple[int, ...]:
        """The shape of a token's label: as many numbers as outputs."""
        return (n_outputs,)

    def per_token(
        self, outputs: Float[Array, "*batch seq out"], labels: Float[Array, "*batch seq out"]
    ) -> Float[Array, "*batch seq"]:
        """The mean squared error of each token, in the square of the label's unit."""
        return jnp.square(outputs - labels).mean(-1)

    def correct(
        self, outputs: Float[Array, "*batch seq out"], labels: Float[Array, "*batch seq out"]
    ) -> Bool[Array, "*batch seq"]:
        """Whether every number of a token is within the tolerance of its label."""
        return (jnp.abs(outputs - labels) <= self.tolerance).all(-1)

    def error(
        self, outputs: Float[Array, "*batch seq out"], labels: Float[Array, "*batch seq out"]
    ) -> Float[Array, "*batch seq"]:
        """The mean absolute error of each token's numbers, in the label's own unit."""
        return jnp.abs(outputs - labels).mean(-1)

    def same(
        self, labels: Float[Array, "*batch seq out"], others: Float[Array, "*batch seq out"]
    ) -> Bool[Array, "*batch seq"]:
        """Whether two labels of a token are equal in every number."""
        return (labels == others).all(-1)
