"""Alignments: which part of a node's values is taken from the source run. Each is a function of both runs' values."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Values = Float[Array, "*batch d_site"]


class Alignment(eqx.Module):
    """What of a node is swapped; see above. Several have a leading lane axis, and are called by `jax.vmap`."""

    @abstractmethod
    def __call__(self, here: Values, there: Values) -> Values:
        """The node's values where its part is taken from the source run.

        Args:
            here: the base run's values.
            there: the source run's.
        """


class Projection(Alignment):
    """A linear subspace: here + (there - here) Q Q^T, where the columns of Q are orthonormal (Geiger et al. 2024).

    Attributes:
        matrix: Q Q^T; the identity for the whole node.

    Example:
        >>> import jax.numpy as jnp
        >>> along = onto(jnp.array([[1.0], [0.0]]))
        >>> along(jnp.array([1.0, 2.0]), jnp.array([5.0, 6.0])).tolist()
        [5.0, 2.0]
    """

    matrix: Float[Array, "*lane d_site d_site"]

    def __call__(self, here: Values, there: Values) -> Values:
        return here + (there - here) @ self.matrix


def onto(directions: Float[Array, "d_site k"]) -> Projection:
    """The subspace of orthonormal directions; columns of zeros add nothing."""
    return Projection(directions @ directions.T)


class Chosen(Alignment):
    """Some features of a dictionary: what they are decoded to changes from the base's to the source's.

    Attributes:
        features: has `encode`, of tokens' values, and `W_dec` (feature, d_site).
        chosen: of each feature, from 0, not swapped, to 1.
    """

    features: Any
    chosen: Float[Array, "*lane feature"]

    def __call__(self, here: Values, there: Values) -> Values:
        tokens = lambda x: x.reshape(-1, x.shape[-1])
        change = self.features.encode(tokens(there)) - self.features.encode(tokens(here))
        chosen = self.chosen[None]
        return here + (change * chosen @ self.features.W_dec).reshape(here.shape)


class Directions(eqx.Module):
    """Orthonormal directions as features: the neurons, or principal components.

    Attributes:
        W_dec: a direction a row.
    """

    W_dec: Float[Array, "feature d_site"]

    def encode(self, x: Float[Array, "token d_site"]) -> Float[Array, "token feature"]:
        """How far each token's values lie along each direction."""
        return x @ self.W_dec.T


class Flow(Alignment):
    """A non-linear bijection phi of the node's values, whose first `size` numbers are swapped: phi^-1(phi(here) with
    those of phi(there)).

    Additive coupling layers, as in the reversible networks of Sutter et al. 2025 ("The non-linear representation
    dilemma"), who show that such maps fit networks that were never trained.

    Attributes:
        W_in, b_in, W_out: of each layer's own small network, which reads every other number and moves the rest.
        size: how many numbers are swapped.
    """

    W_in: Float[Array, "*lane layer d_site hidden"]
    b_in: Float[Array, "*lane layer hidden"]
    W_out: Float[Array, "*lane layer hidden d_site"]
    size: Int[Array, "*lane"]

    def __call__(self, here: Values, there: Values) -> Values:
        swapped = jnp.arange(here.shape[-1]) < self.size
        swapped = swapped.reshape((1,) * (here.ndim - 1) + swapped.shape)
        return self.backward(jnp.where(swapped, self.forward(there), self.forward(here)))

    def forward(self, x: Values) -> Values:
        """phi."""
        for layer in range(len(self.W_in)):
            x = x + self._move(layer, x)
        return x

    def backward(self, x: Values) -> Values:
        """phi^-1."""
        for layer in reversed(range(len(self.W_in))):
            x = x - self._move(layer, x)
        return x

    def _move(self, layer: int, x: Values) -> Values:
        reads = ((jnp.arange(x.shape[-1]) + layer) % 2).astype(x.dtype)
        reads = reads.reshape((1,) * (x.ndim - 1) + reads.shape)
        bias = self.b_in[layer].reshape((1,) * (x.ndim - 1) + self.b_in[layer].shape)
        return (1 - reads) * (jax.nn.gelu((reads * x) @ self.W_in[layer] + bias) @ self.W_out[layer])
