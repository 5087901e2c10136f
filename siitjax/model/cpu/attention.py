"""Attention for XLA's CPU backend, several times faster than einsum where heads are small.

Heads 4 or 5 wide and sequences 15 long are too small for matrix products. Here the batch is the last axis, so that
every operation is one long vector operation over it, and sums over d_head and over keys are written out. Queries
come in blocks, each with the keys up to its last query alone: little of the upper triangle is computed, and the
program stays short. Where attention is bidirectional, there is one block, of all. The gradient is written by hand, of
the same kernels.

Arrays are (head, d_head, seq, batch); a pattern is one (head, query, key, batch) array a block.
"""

import operator
from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

Heads = Float[Array, "head d_head seq batch"]
Pattern = list[Float[Array, "head _ _ batch"]]

BLOCKS = 3
"""Blocks of queries at most: more compute less of the upper triangle, and take longer to compile."""
ENOUGH = 8
"""Queries that one block may hold without being cut: at 16, three blocks took as long as two."""


def _blocks(seq: int, causal: bool) -> list[tuple[int, int]]:
    """The first query of each block, and the one after its last, which is also the one after its last key."""
    size = -(-seq // min(BLOCKS, -(-seq // ENOUGH))) if causal else seq
    return [(start, min(start + size, seq)) for start in range(0, seq, size)]


def _scores(x: Heads, y: Heads, causal: bool) -> Pattern:
    """<x[i], y[j]>, for each query i and key j of a block."""
    _, d_head, seq, _ = x.shape
    blocks = _blocks(seq, causal)
    return [_sum(x[:, d, start:end, None] * y[:, d, None, :end] for d in range(d_head)) for start, end in blocks]


def _softmax(scores: Pattern, seq: int, scale: float, causal: bool) -> Pattern:
    pattern = []
    for (start, end), block in zip(_blocks(seq, causal), scores, strict=True):
        block = block * scale
        if causal:
            past = np.arange(start, end)[:, None] >= np.arange(end)[None]
            block = jnp.where(past[None, :, :, None], block, -jnp.inf)
        e = jnp.exp(block - block.max(2, keepdims=True))
        pattern.append(e / _over_keys(operator.add, e))
    return pattern


def _softmax_backward(pattern: Pattern, gradient: Pattern, scale: float) -> Pattern:
    return [p * (dp - _over_keys(operator.add, p * dp)) * scale for p, dp in zip(pattern, gradient, strict=True)]


def _mix(pattern: Pattern, x: Heads, causal: bool) -> Heads:
    """For each query i, the sum over keys j of pattern[i, j] x[j]."""
    blocks = zip(_blocks(x.shape[2], causal), pattern, strict=True)
    return jnp.concatenate([_sum(p[:, None, :, j] * x[:, :, None, j] for j in range(end)) for (_, end), p in blocks], 2)


def _mix_transposed(pattern: Pattern, x: Heads, causal: bool) -> Heads:
    """For each key j, the sum over queries i of pattern[i, j] x[i]."""
    blocks = _blocks(x.shape[2], causal)
    parts = [
        _sum(p[:, None, i - start] * x[:, :, i, None] for i in range(start, end))
        for (start, end), p in zip(blocks, pattern, strict=True)
    ]
    later = lambda block: parts[block:]
    return jnp.concatenate(
        [_sum(part[:, :, start:end] for part in later(b)) for b, (start, end) in enumerate(blocks)], 2
    )


def _sum(terms: Iterable[Array]) -> Array:
    return reduce(operator.add, terms)


def _over_keys(combine: Callable[[Array, Array], Array], block: Array) -> Array:
    """The keys' values combined. Written out, since jax's reductions are slower here."""
    return reduce(combine, (block[:, :, j, None] for j in range(block.shape[2])))


def walled(stage: Callable[..., Any], *arrays: Any) -> Any:
    """`stage(*arrays)`, which the CPU backend's fuser can neither look into nor merge with its neighbours.

    The fuser would compute a stage again inside each reader of it. An optimization barrier would say so, but this
    backend drops it. A branch stays, as long as the compiler does not see that its condition always holds.
    """
    first = jax.tree.leaves(arrays)[0].ravel()[0]
    bits = jax.lax.bitcast_convert_type(first, f"int{8 * first.dtype.itemsize}")
    always = (bits >= 0) | (bits < 1)
    shapes = jax.eval_shape(stage, *arrays)
    otherwise = lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.cond(always, stage, otherwise, *arrays)


def _merging(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays (head, ...), under any number of vmaps: a lane's heads are just more heads."""
    merging = custom_vmap(jax.jit(function))

    @merging.def_vmap
    def _(size, batched, *arrays):
        spread = lambda x, is_batched: x if is_batched else jnp.broadcast_to(x[None], (size, *x.shape))
        whole = [spread(*pair) for pair in zip(arrays, batched, strict=True)]
        out = merging(*(x.reshape(-1, *x.shape[2:]) for x in whole))
        return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out), jax.tree.map(lambda _: True, out)

    return merging


def _pattern(q: Heads, k: Heads, causal: bool) -> Pattern:
    softmax = partial(_softmax, seq=q.shape[2], scale=q.shape[1] ** -0.5, causal=causal)
    return walled(softmax, walled(partial(_scores, causal=causal), q, k))


def _forward(q: Heads, k: Heads, v: Heads, causal: bool) -> Heads:
    return walled(partial(_mix, causal=causal), _pattern(q, k, causal), v)


def _backward(q: Heads, k: Heads, v: Heads, dz: Heads, causal: bool) -> tuple[Heads, Heads, Heads]:
    # The pattern is computed again: that costs less than to keep it.
    p = _pattern(q, k, causal)
    scores, mix, transposed = (partial(stage, causal=causal) for stage in (_scores, _mix, _mix_transposed))
    softmax_backward = partial(_softmax_backward, scale=q.shape[1] ** -0.5)
    ds = walled(softmax_backward, p, walled(scores, dz, v))
    return walled(mix, ds, k), walled(transposed, ds, q), walled(transposed, p, dz)


def _differentiable(causal: bool) -> Callable[[Heads, Heads, Heads], Heads]:
    forward, backward = (_merging(partial(function, causal=causal)) for function in (_forward, _backward))
    attention = jax.custom_vjp(lambda q, k, v: forward(q, k, v))
    attention.defvjp(lambda q, k, v: (attention(q, k, v), (q, k, v)), lambda saved, dz: backward(*saved, dz))
    return attention


_ATTENTION = {causal: _differentiable(causal) for causal in (True, False)}


def unrolled_attention(
    q: Float[Array, "head d_head seq batch"],
    k: Float[Array, "head d_head seq batch"],
    v: Float[Array, "head d_head seq batch"],
    causal: bool = True,
) -> Float[Array, "head d_head seq batch"]:
    """Every position mixes the values at and before it (of all, not causal), by softmax(q k / sqrt(d_head)); see
    `plain_attention`."""
    return _ATTENTION[causal](q, k, v)
