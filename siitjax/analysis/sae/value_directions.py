"""Do a dictionary's directions lie along those of the known values? SAELens' metrics of synthetic data, at a site.

SAELens knows the features that its synthetic activations are made of. Here a value's direction stands for one: the
mean of the tokens that have the value, less the mean of those that have another.
"""

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment


def value_directions(
    x: Float[np.ndarray, "token d_in"],
    holds: Float[np.ndarray, "token value"],
    counted: Float[np.ndarray, "token value"],
) -> Float[np.ndarray, "value d_in"]:
    """Of each value, the mean of the tokens that have it less that of the others that count.

    Args:
        holds, counted: 0 or 1, as `siitjax.analysis.sae.exam.Half` has them; each value is had by some tokens that
            count, and not by others.
    """
    mean = lambda which: which.T @ x / which.sum(0)[:, None]
    return mean(holds) - mean(counted - holds)


def mean_correlation(directions: Float[np.ndarray, "latent d_in"], values: Float[np.ndarray, "value d_in"]) -> float:
    """The mean correlation coefficient (MCC): values and latents matched one to one, so that the mean of the absolute
    cosines is largest (Song et al. 2025, as SAELens' `mean_correlation_coefficient`).

        >>> mean_correlation(np.eye(3), np.array([[0.0, 2.0, 0.0], [-1.0, 0.0, 0.0]]))
        1.0
    """
    cosines = _cosines(directions, values)
    return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean())


def uniqueness(directions: Float[np.ndarray, "latent d_in"], values: Float[np.ndarray, "value d_in"]) -> float:
    """How many values are the nearest one of some latent, as a share of the latents (SAELens' `feature_uniqueness`).

    >>> uniqueness(np.eye(2), np.array([[1.0, 0.1], [1.0, 0.5]]))
    1.0
    """
    return len(np.unique(_cosines(directions, values).argmax(1))) / len(directions)


def _cosines(
    directions: Float[np.ndarray, "latent d_in"], values: Float[np.ndarray, "value d_in"]
) -> Float[np.ndarray, "latent value"]:
    """Absolute cosines; 0 where one of the two is 0."""
    unit = lambda rows: rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.abs(unit(directions) @ unit(values).T)
