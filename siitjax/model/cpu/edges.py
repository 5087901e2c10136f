"""The transformer under swaps of edges, over a batch, for XLA's CPU backend: see `batch_last`, whose layout it shares.

Here every reader has an input of its own: the residual stream plus, for each sender, what the source run wrote there
less what this run wrote, where the mask says so. Arrays are (feature, seq, n), n running over masks and batch; heads
come first. LayerNorm takes a mean away that no reader sees, so whatever is written is centred once, in the weights.
"""

import operator
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from siitjax.model.config import ACTIVATION_FUNCTIONS, part_slices
from siitjax.model.cpu.attention import unrolled_attention, walled
from siitjax.model.cpu.transformer import Columnar, _product
from siitjax.model.swaps import EdgeSwaps
from siitjax.model.transformer import LN_EPS, Attention, LayerNorm, Transformer

Stream = Float[Array, "d_model seq n"]
Streams = Float[Array, "reader d_model seq n"]
Everything = Float[Array, "sender d_model seq n"]


def by_reader(
    model: Transformer, tokens: Int[Array, "batch seq"], swaps: EdgeSwaps, *sources: Columnar
) -> Float[Array, "batch mask seq out"]:
    """Logits under each swap; `sources` are what `batch_last` gave of the source runs."""
    batch, masks = swaps.edges.shape[:2]
    config = model.config
    centre = _centre(config.d_model, config.layer_norm)
    columns = lambda x: jnp.moveaxis(x, (0, 1), (-1, -2)).reshape(*x.shape[2:], masks * batch)
    with jax.named_scope("source_writes"):
        there = _written_there(model, sources, swaps, centre)
    mask = columns(swaps.edges).astype(there.dtype)
    positions = None if swaps.positions is None else columns(swaps.positions).astype(there.dtype)[:, None]

    with jax.named_scope("embed"):
        one_hot = jax.nn.one_hot(jnp.tile(tokens.T, (1, masks)), config.d_vocab, axis=0)
        embed = _product(model.embed.W_E @ centre, one_hot)[None]
        x = (model.pos_embed.W_pos[: tokens.shape[1]] @ centre).T[:, :, None]
        x = jnp.broadcast_to(x, embed.shape[1:])
    reader, deltas = 0, ()

    def write(x, own, bias):
        nonlocal deltas
        first = sum(map(len, deltas))
        these = slice(first, first + len(own))
        x, delta = _written(x, bias @ centre, own, there[these], None if positions is None else positions[these])
        deltas = (*deltas, delta)
        return x

    def see(x, n):
        nonlocal reader
        reader += n
        ends = np.cumsum([*map(len, deltas)])
        return _seen(x, deltas, tuple(jnp.split(mask[reader - n : reader, : ends[-1]], ends[:-1], 1)))

    with jax.named_scope("embed"):
        x = write(x, embed, jnp.zeros(config.d_model))
    for i, block in enumerate(model.blocks):
        attn = block.attn
        with jax.named_scope(f"blocks.{i}.attn"):
            z = _z(attn, block.ln1, see(x, config.n_heads))
            x = write(x, jax.vmap(_product)(attn.W_O @ centre, z), attn.b_O)
        if (mlp := block.mlp) is not None:
            with jax.named_scope(f"blocks.{i}.mlp"):
                seen, own, W_out = see(x, config.n_parts), [], mlp.W_out @ centre
                for j, part in enumerate(part_slices(mlp.sizes)):
                    read = _affine(mlp.W_in[:, part], mlp.b_in[part], _scaled(seen[j], block.ln2), block.ln2)
                    own.append(_product(W_out[part], ACTIVATION_FUNCTIONS[mlp.act_fn](read))[None])
                x = write(x, jnp.concatenate(own), mlp.b_out)
    with jax.named_scope("unembed"):
        logits = _affine(model.unembed.W_U, model.unembed.b_U, _scaled(see(x, 1)[0], model.ln_final), model.ln_final)
    return logits.reshape(*logits.shape[:2], masks, batch).transpose(3, 2, 1, 0)


def _centre(d_model: int, layer_norm: bool) -> Float[Array, "d_model d_model"]:
    return jnp.eye(d_model) - (1 / d_model if layer_norm else 0.0)


def _written_there(model: Transformer, runs: Sequence[Columnar], swaps: EdgeSwaps, centre: Array) -> Everything:
    """What each sender wrote in the source run of each n: data, through which no gradient flows."""
    masks, chosen, senders = swaps.edges.shape[1], None, 0
    if swaps.sources is not None:
        numbers = swaps.sources.transpose(2, 1, 0).reshape(swaps.sources.shape[2], -1)
        chosen = jax.nn.one_hot(numbers, sum(run.z[0].shape[-1] for run in runs), axis=1)  # (sender, run, n)

    def of_source(*values: Float[Array, "sender feature seq _"]) -> Float[Array, "sender feature seq n"]:
        """Of the next senders, in the order of the nodes, given what they hold in the runs."""
        nonlocal senders
        x = jnp.concatenate(values, -1)
        senders += len(x)
        if chosen is None:
            return jnp.tile(x, masks)
        # A product with ones and zeros: a gather is slower here.
        return jnp.einsum("afsb,abn->afsn", x, chosen[senders - len(x) : senders])

    # What is chosen, and joined before that, is the narrower: a head's z, but what an MLP writes.
    written = [
        of_source(*(jnp.tensordot(centre, run.embed[..., 0, :], 1)[None] for run in runs if run.embed is not None))
    ]
    for i, block in enumerate(model.blocks):
        z = of_source(*(run.z[i][..., 0, :] for run in runs))
        written.append(jax.vmap(_product)(block.attn.W_O @ centre, z))
        if (mlp := block.mlp) is not None:
            W_out, parts = mlp.W_out @ centre, part_slices(mlp.sizes)
            wrote = lambda post, W_out=W_out, parts=parts: [_product(W_out[p], post[p, :, 0]) for p in parts]
            written.append(of_source(*(jnp.stack(wrote(run.post[i])) for run in runs)))
    return jax.lax.stop_gradient(jnp.concatenate(written))


def _sum(terms: Iterable[Array]) -> Array:
    return reduce(operator.add, terms)


# What jax derives of the next two is slow here: sums over first axes, and stages computed again in all their readers.


@jax.custom_vjp
def _written(
    x: Stream, bias: Float[Array, " d_model"], own: Streams, there: Streams, at: Float[Array, "sender 1 seq n"] | None
) -> tuple[Stream, Streams]:
    """The stream after some senders wrote to it, and what else a reader may see of each: source less own, where `at`
    says so."""

    def stage(x, bias, own, there, at):
        return _sum([x + bias[:, None, None], *own]), _where(at, there - own)

    return walled(stage, x, bias, own, there, at)


def _where(at: Array | None, x: Array) -> Array:
    return x if at is None else x * at


def _written_forward(x: Array, bias: Array, own: Array, there: Array, at: Array | None) -> tuple[Any, Array | None]:
    return _written(x, bias, own, there, at), at


def _written_backward(at: Array | None, gradients: tuple[Array, Array]) -> tuple[Array, Array, Array, None, None]:
    dx, d_delta = gradients
    d_own = walled(lambda dx, d_delta, at: dx[None] - _where(at, d_delta), dx, d_delta, at)
    return dx, dx.sum((1, 2)), d_own, None, None


_written.defvjp(_written_forward, _written_backward)


@jax.custom_vjp
def _seen(
    x: Stream, deltas: tuple[Float[Array, "_ d_model seq n"], ...], masks: tuple[Float[Array, "reader _ n"], ...]
) -> Streams:
    """The stream as each reader sees it, given what it may see of the senders so far and whether, group by group."""

    def stage(x, deltas, masks):
        pairs = ((m[:, i, None, None], d[i][None]) for m, d in zip(masks, deltas, strict=True) for i in range(len(d)))
        return _sum([x[None], *(mask * delta for mask, delta in pairs)])

    return walled(stage, x, deltas, masks)


def _seen_forward(x: Array, deltas: tuple[Array, ...], masks: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
    return _seen(x, deltas, masks), masks


def _seen_backward(masks: tuple[Array, ...], dy: Array) -> tuple[Array, tuple[Array, ...], None]:
    of = lambda mask, dy: _sum(m[:, None, None] * d[None] for m, d in zip(mask, dy, strict=True))
    return *walled(lambda masks, dy: (_sum(dy), tuple(of(mask, dy) for mask in masks)), masks, dy), None


_seen.defvjp(_seen_forward, _seen_backward)


def _z(attn: Attention, ln: LayerNorm | None, x: Streams) -> Float[Array, "head d_head seq n"]:
    """What each head read of its own view of the stream: the site `hook_z`."""
    w = jnp.concatenate([attn.W_Q, attn.W_K, attn.W_V], -1)
    b = jnp.concatenate([attn.b_Q, attn.b_K, attn.b_V], -1)
    q, k, v = jnp.split(jax.vmap(lambda w, b, x: _affine(w, b, x, ln))(w, b, _scaled_heads(x, ln)), 3, 1)
    return unrolled_attention(q, k, v, attn.causal)


def _affine(w: Float[Array, "read feature"], b: Float[Array, " feature"], x: Stream, ln: LayerNorm | None) -> Array:
    if ln is not None:
        w, b = ln.w[:, None] * w, ln.b @ w + b
    return _product(w, x) + b[:, None, None]


def _scaled(x: Stream, ln: LayerNorm | None) -> Stream:
    return x if ln is None else _unit(x)


def _scaled_heads(x: Streams, ln: LayerNorm | None) -> Streams:
    return x if ln is None else jax.vmap(_unit)(x)


@jax.custom_vjp
def _unit(x: Stream) -> Stream:
    """Each token's features, which are centred, with variance 1."""
    return _unit_forward(x)[0]


def _unit_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    scale = jax.lax.rsqrt(_mean(x * x) + LN_EPS)
    y = x * scale
    return y, (y, scale)


def _unit_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array]:
    y, scale = saved
    return ((dy - y * _mean(dy * y)) * scale,)


_unit.defvjp(_unit_forward, _unit_backward)


def _mean(x: Stream) -> Float[Array, "1 seq n"]:
    return jnp.tensordot(jnp.full((1, len(x)), 1 / len(x)), x, 1)
