"""The forms in which a transformer runs over a batch: all give the same, and the backend decides the fastest."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from siitjax.model.config import part_slices
from siitjax.model.cpu.edges import by_reader
from siitjax.model.cpu.transformer import batch_last
from siitjax.model.nodes import Masks, Sites, block_of
from siitjax.model.rolled import rolled, rolled_edges
from siitjax.model.swaps import EdgeSwaps, joined
from siitjax.model.transformer import Activations, Transformer


@runtime_checkable
class Run(Protocol):
    """`Transformer.__call__` of every sample of a batch under every mask: its logits, and the run's activations.

    The activations, which have the fields of `Activations`, are what a swap and a resume take; only the form that
    made them can read them. Without a swap there is one mask, of nothing. Masks of two axes are all samples' alike.
    Resumed at the depth of a site (see `Node.depth`), nothing that lies before that site is swapped.
    """

    def __call__(
        self,
        model: Transformer,
        tokens: Int[Array, "batch seq"],
        swap: tuple[Masks, Any] | None = None,
        *,
        resume: tuple[int, Any] | None = None,
    ) -> tuple[Float[Array, "batch mask seq out"], Any]: ...


@runtime_checkable
class RunEdges(Protocol):
    """`Transformer.__call__` of every sample of a batch under swaps of edges: its logits.

    `sources` are what the same form's `Run` gave of the source runs, which are counted over all of them.
    """

    def __call__(
        self, model: Transformer, tokens: Int[Array, "batch seq"], swaps: EdgeSwaps, *sources: Any
    ) -> Float[Array, "batch mask seq out"]: ...


class Form(NamedTuple):
    """A form of the transformer.

    Attributes:
        run: computes it, perhaps under swaps of nodes.
        run_edges: computes it under swaps of edges.
        at_once: how many samples it is best given at once; None for as many as there are.
        resumes: whether a run that is resumed costs less; otherwise runs are best done together, whole.
    """

    run: Run
    run_edges: RunEdges
    at_once: int | None
    resumes: bool = True

    def part(self, n: int) -> int:
        """The size of the equal parts that n samples are best cut into; n where they cannot be cut well."""
        sizes = range(self.at_once or 0, (self.at_once or 0) // 2, -1)
        return next((size for size in sizes if n % size == 0), n)


def as_written(
    model: Transformer,
    tokens: Int[Array, "batch seq"],
    swap: tuple[Masks, Activations] | None = None,
    *,
    resume: tuple[int, Activations] | None = None,
) -> tuple[Float[Array, "batch mask seq out"], Activations]:
    """The model's own call, under vmap."""
    first, held = (0, None) if resume is None else (block_of(resume[0])[0], resume[1])

    def run(tokens, held, swap):
        return model(tokens, swap, resume=None if held is None else (first, held.stream[first]))

    if swap is None:
        logits, activations = jax.vmap(partial(run, swap=None))(tokens, held)
        return logits[:, None], activations
    masks, source = swap
    sample = lambda tokens, held, masks, source: jax.vmap(lambda mask: run(tokens, held, (mask, source)))(masks)
    return jax.vmap(sample, (0, 0, 0 if masks.ndim == 3 else None, 0))(tokens, held, masks, source)


def edges_as_written(
    model: Transformer, tokens: Int[Array, "batch seq"], swaps: EdgeSwaps, *sources: Activations
) -> Float[Array, "batch mask seq out"]:
    """The model's own call under swaps of edges, under vmap."""
    nodes, source = model.config.nodes, joined(sources)

    def run(tokens, mask, own, sources):
        there = own if sources is None else _taken(source, nodes.sites(sources), model.config.part_sizes)
        return model(tokens, (mask, there))[0]

    own = source if swaps.sources is None else None
    over_masks = jax.vmap(run, (None, 0, None, 0))
    return jax.vmap(over_masks)(tokens, swaps.at_positions(), own, swaps.sources)


def _taken(activations: Activations, sources: Sites, part_sizes: tuple[int, ...]) -> Activations:
    """The activations in which each node's are of an example of its own; `activations` have a batch axis."""
    assert activations.embed is not None
    assert activations.z is not None
    n_layers, n_heads = sources.z.shape
    layers, heads = np.arange(n_layers), np.arange(n_heads)
    z = jnp.moveaxis(activations.z, 3, 2)[sources.z, layers[:, None], heads[None]]
    post = None
    if (posts := activations.post) is not None and sources.post is not None:
        parts = enumerate(part_slices(part_sizes))
        post = jnp.concatenate([posts[..., part][sources.post[:, i], layers] for i, part in parts], -1)
    return Activations(activations.embed[sources.embed], jnp.moveaxis(z, 1, 2), post)


PLAIN = Form(as_written, edges_as_written, None)
"""What the other forms are tested against."""

BATCH_LAST = Form(batch_last, by_reader, 40)
"""Of 40 samples under a few masks, most arrays fit a core's second-level cache."""

ROLLED = Form(rolled, rolled_edges, None, resumes=False)
"""A GPU runs all masks of a few hundred samples at once, and its compiler takes minutes for blocks one by one."""

UNROLLED = ROLLED._replace(run=partial(rolled, unroll=True), run_edges=partial(rolled_edges, unroll=True))
"""The same with its blocks written out. XLA counts what is in a loop once, so this is what it is asked to count."""


def fastest() -> Form:
    """The form that suits the backend that this process runs on."""
    return BATCH_LAST if jax.default_backend() == "cpu" else ROLLED


def mean_over_parts(function: Callable[..., Any], size: int, *arrays: Any) -> Any:
    """The mean of what `function` gives of each part, `size` long, of the arrays' first axes."""
    if all(len(x) == size for x in jax.tree.leaves(arrays)):
        return function(*arrays)
    parts = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), arrays)
    return jax.tree.map(lambda x: x.mean(0), jax.lax.map(lambda part: function(*part), parts))


def summed_over_chunks(
    count: Callable[..., Any],
    size: int,
    *arrays: Array,
    going: Callable[[Any], Array] | None = None,
    enough: Int[Array, ""] | int = 0,
) -> Any:
    """The sum of what `count` gives of all chunks of the samples, `size` long at most.

    They are of one length where that can be had without making them short: a last one of another length is another
    program, which takes as long to compile.

    Args:
        going: whether the chunks after `enough` samples are counted too, given the sum so far; by default all are.
    """
    count = jax.jit(count)  # traced once, for its shapes and where it is called
    n = len(arrays[0])
    size = next((even for even in range(min(size, n), size // 4, -1) if n % even == 0), min(size, n))
    whole, rest = divmod(n, size)
    chunks = [x[: n - rest].reshape(whole, -1, *x.shape[1:]) for x in arrays]
    last = lambda total: jax.tree.map(jnp.add, total, count(*(x[n - rest :] for x in arrays)))
    if going is None:
        total = jax.tree.map(lambda x: x.sum(0), jax.lax.map(lambda chunk: count(*chunk), chunks))
        return last(total) if rest else total
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(count, *(x[0] for x in chunks)))
    goes_on = lambda i, total: (i * size < enough) | going(total)

    def another(state):
        i, total = state
        return i + 1, jax.tree.map(jnp.add, total, count(*(x[i] for x in chunks)))

    i, total = jax.lax.while_loop(lambda state: (state[0] < whole) & goes_on(*state), another, (jnp.int32(0), blank))
    return jax.lax.cond(goes_on(i, total), last, lambda total: total, total) if rest else total
