"""Directions that are found without interchange: principal components, a linear probe's, and class means; random ones.

All take the node's values at tokens, and give orthonormal directions, the first ones first.
"""

import numpy as np
from jaxtyping import Float, Shaped

RIDGE = 1e-3
"""Of the probe, in the mean variance of the node's numbers."""
RANK = 1e-4
"""A direction counts where its singular value is more than this share of the largest."""

Tokens = Float[np.ndarray, "token d_site"]
Values = Shaped[np.ndarray, "token number"]
Found = Float[np.ndarray, "d_site direction"]


def principal(x: Tokens) -> Found:
    """The principal components, by falling variance.

    Example:
        >>> np.abs(principal(np.array([[0.0, -2.0], [0.0, 2.0], [1.0, 0.0], [-1.0, 0.0]]))).round(6).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    return _left((x - x.mean(0)).T)


def probe(x: Tokens, values: Values) -> Found:
    """The directions that a linear probe reads, by falling weight: ridge regression on which value each number has.

    Example:
        >>> x = np.array([[0.0, 5.0], [0.0, 6.0], [1.0, 5.0], [1.0, 6.0]])
        >>> np.abs(probe(x, np.array([[0], [0], [1], [1]]))).round(6).tolist()
        [[1.0], [0.0]]
    """
    x = x - x.mean(0)
    told = one_hot(values)
    penalty = RIDGE * len(x) * x.var(0).mean() * np.eye(x.shape[1])
    return _left(np.linalg.solve(x.T @ x + penalty, x.T @ (told - told.mean(0))))


def class_means(x: Tokens, values: Values) -> Found:
    """The directions in which the means of tokens differ that have different values, each mean weighted by its tokens
    ("difference of means": Marks and Tegmark 2023)."""
    x, told = x - x.mean(0), one_hot(values)
    return _left(x.T @ told / np.sqrt(told.sum(0)))


def random_directions(width: int, rng: np.random.Generator) -> Found:
    """A rotation, each as likely."""
    return np.linalg.qr(rng.normal(size=(width, width)))[0]


def one_hot(values: Values) -> Float[np.ndarray, "token value"]:
    """Whether each number has each of the values that it takes.

    Example:
        >>> one_hot(np.array([[3], [5], [3]])).tolist()
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """
    return np.concatenate([column[:, None] == np.unique(column)[None] for column in values.T], 1).astype(float)


def _left(matrix: Float[np.ndarray, "d_site other"]) -> Found:
    """The left singular vectors of what is not 0."""
    left, sizes, _ = np.linalg.svd(matrix, full_matrices=False)
    return left[:, sizes > RANK * sizes[0]]
