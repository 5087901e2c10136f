"""Swaps of edges over a batch: one object says what each reader sees, and drives both models.

For every reader and sender it says whether the reader sees the sender's value of a source run, at which of the
sender's positions, and of which source run. A swap of nodes is the case in which all readers of a sender see it.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from siitjax.base.errors import UserError


class EdgeSwaps(eqx.Module):
    """Several swaps of each example of a batch.

    Attributes:
        edges: whether the reader sees the sender's source value.
        positions: at which positions of the sender; None for all.
        sources: which source run each sender's value is of, counted over the batch of sources; None for the run with
            the example's own number.
    """

    edges: Bool[Array | np.ndarray, "batch mask reader sender"]
    positions: Bool[Array | np.ndarray, "batch mask sender seq"] | None = None
    sources: Int[Array, "batch mask sender"] | None = None

    @staticmethod
    def of_all(masks: Bool[np.ndarray, "mask reader sender"], batch: int) -> "EdgeSwaps":
        """The same masks for every example, each with its own source."""
        return EdgeSwaps(jnp.broadcast_to(masks, (batch, *masks.shape)))

    def at_positions(self) -> Bool[Array | np.ndarray, "batch mask reader sender *seq"]:
        """Whether the reader sees the source's value, at each position where positions matter."""
        if self.positions is None:
            return self.edges
        return self.edges[..., None] & self.positions[:, :, None]

    def within(self, size: int, batch: int) -> "EdgeSwaps":
        """The swaps of one of the equal parts, of `size`, that a batch is taken in: sources are counted in the part.

        Runs that are numbered from `batch` on, the bases, come after the part's sources.
        """
        if self.sources is None:
            return self
        return eqx.tree_at(lambda s: s.sources, self, self.sources % size + self.sources // batch * size)

    def check(self, n_nodes: int, base: tuple[int, ...], source: tuple[int, ...]) -> None:
        """Whether these are swaps of such samples: a wrong axis would be broadcast, a wrong number clamped, in silence.

        Args:
            base, source: how many samples, and tokens in each.

        Raises:
            UserError: an axis has another length, or there is no such source run (which, where it is traced, goes
                unchecked).
        """
        (batch, seq), (runs, there) = base, source
        if there != seq:
            raise UserError(f"the sources have {there} tokens, the bases {seq}; a swap needs the same of both")
        masks = self.edges.shape[1]
        for name, given, needed in (
            ("edges", self.edges, (batch, masks, n_nodes, n_nodes)),
            ("positions", self.positions, (batch, masks, n_nodes, seq)),
            ("sources", self.sources, (batch, masks, n_nodes)),
        ):
            if given is not None and given.shape != needed:
                raise UserError(
                    f"the swaps' {name} have shape {given.shape}, but {batch} samples of {seq} tokens "
                    f"on {n_nodes} nodes take {needed}"
                )
        if self.sources is None:
            if runs != batch:
                raise UserError(f"there are {runs} sources of {batch} samples; give one for each, or number them")
        elif not isinstance(self.sources, jax.core.Tracer):
            numbers = np.asarray(self.sources)
            if (wrong := numbers[(numbers < 0) | (numbers >= runs)]).size:
                raise UserError(
                    f"the swaps take a sender from source run {wrong[0]}, but there are {runs}, counted from 0"
                )


def of_source(
    values: Shaped[Array, "source ..."], sources: Int[Array, "batch mask"] | None
) -> Shaped[Array, "_ _ ..."]:
    """What a sender holds in the source run of each example and mask: (batch, mask, ...).

    Without numbers each example's source run is that of its own number; the mask axis is 1 long then.
    """
    return values[:, None] if sources is None else values[sources]


def joined(runs: Sequence[Any]) -> Any:
    """Several runs' activations, whose first axes are those of their samples, as one run's."""
    return jax.tree.map(lambda *x: jnp.concatenate(x), *runs)
