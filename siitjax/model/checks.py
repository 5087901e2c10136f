"""Whether what meets belongs together: tokens and a vocabulary, a base and a source, a mask and its nodes.

Where it does not, JAX clamps an index or broadcasts an axis, and says nothing. Shapes are checked always: a traced
array has one too, so that it costs a compiled program nothing. Values are checked where they are known, outside of
`jax.jit`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.core
import numpy as np
from jaxtyping import Array, Bool, Int

from siitjax.base.errors import UserError


def check_tokens(tokens: Int[Array | np.ndarray, "*batch seq"], d_vocab: int, n_ctx: int) -> None:
    """Raises UserError where samples are longer than n_ctx, or hold an id that none of d_vocab tokens has."""
    if tokens.shape[-1] > n_ctx:
        raise UserError(f"a sample has {tokens.shape[-1]} tokens, but n_ctx is {n_ctx}, BOS included; shorten it")
    ids = _known(tokens)
    if ids is not None and (wrong := ids[(ids < 0) | (ids >= d_vocab)]).size:
        raise UserError(f"the tokens hold the id {wrong[0]}, but the {d_vocab} tokens have the ids 0 to {d_vocab - 1}")


def check_pair(base: Int[Array | np.ndarray, "..."], source: Int[Array | np.ndarray, "..."]) -> None:
    """Raises UserError where bases and sources are not as many, or of other lengths."""
    if base.shape != source.shape:
        raise UserError(f"the bases have shape {base.shape}, the sources {source.shape}; a swap needs the same of both")


def check_mask(mask: Bool[Array | np.ndarray, "..."], axes: Sequence[int], n_nodes: int) -> None:
    """Raises UserError where a mask has not a place for each node on these axes."""
    if wrong := [mask.shape[axis] for axis in axes if mask.shape[axis] != n_nodes]:
        raise UserError(f"the mask has {wrong[0]} places, but the transformer has {n_nodes} nodes; give it one a node")


def check_positions(mask: Bool[Array | np.ndarray, "..."], n_tokens: int) -> None:
    """Raises UserError where a mask of edges at positions has not a place for each token."""
    if mask.ndim == 3 and mask.shape[2] != n_tokens:
        raise UserError(f"the mask has {mask.shape[2]} positions, but the sample {n_tokens} tokens; give it as many")


def check_source(given: Mapping[str, Any], needed: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UserError where what a swap takes from a source run is not of the shape that the base run has.

    Args:
        given: arrays by name, or None of what is not swapped.
        needed: how their shapes begin.
    """
    for name, shape in needed.items():
        value = given[name]
        if value is not None and value.shape[: len(shape)] != shape:
            raise UserError(
                f"the source run's {name} has shape {value.shape}, but the base run's begins {shape}; "
                "take the source from the same transformer and circuit, on as many tokens"
            )


def _known(array: Any) -> np.ndarray | None:
    """The values of an array, also under `jax.vmap`; None where it is traced."""
    while isinstance(array, jax.core.Tracer):
        array = getattr(array, "val", None)  # what vmap wraps
    return np.asarray(array) if isinstance(array, np.ndarray | jax.Array) else None
