"""The transformer over a batch for XLA's CPU backend: what `Transformer.__call__` gives, with the batch as last axis.

Widths here are 3 to 128: few, where tokens are thousands. So arrays are (feature, seq, mask, batch): what is done to
every token is one long vector operation or one matrix product, heads are slices, and nothing is turned over between
the tokens and the logits, forward or backward. For the latter, products and LayerNorm have gradients by hand.
"""

import operator
from functools import reduce
from itertools import starmap
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from siitjax.model.config import ACTIVATION_FUNCTIONS, part_slices
from siitjax.model.cpu.attention import unrolled_attention
from siitjax.model.nodes import Masks, block_of
from siitjax.model.transformer import LN_EPS, MLP, Attention, LayerNorm, Transformer

Columns = Float[Array, "_ seq _ batch"]
Heads = Float[Array, "head d_head seq _ batch"]
"""(feature, seq, mask, batch), and with the features by head; the mask axis is 1 long before any mask."""


class Columnar(eqx.Module):
    """What the sites hold in one run, and the residual stream before each block, by layer; see `Activations`."""

    embed: Columns | None
    z: tuple[Heads, ...]
    post: tuple[Columns, ...]
    stream: tuple[Columns, ...]


def batch_last(
    model: Transformer,
    tokens: Int[Array, "batch seq"],
    swap: tuple[Masks, Columnar] | None = None,
    *,
    resume: tuple[int, Columnar] | None = None,
) -> tuple[Float[Array, "batch mask seq out"], Columnar]:
    """Logits and activations; see `siitjax.model.forms.Run`. Where an MLP is swapped, its `post` is the one before
    that."""
    sites, source = (None, None) if swap is None else (_sites(model, swap[0]), swap[1])
    # Where a run is resumed at an MLP, nothing is swapped, and nothing computed again, before its `post`.
    first, at_mlp = (0, False) if resume is None else block_of(resume[0])
    embed = None
    if resume is None:
        with jax.named_scope("embed"):
            # A lookup's gradient would be a scatter, which is slow here, and vocabularies are small.
            embed = _product(model.embed.W_E, jax.nn.one_hot(tokens.T, model.config.d_vocab, axis=0)[:, :, None])
            if sites is not None and source is not None and source.embed is not None:
                embed = jnp.where(sites.embed[None, None], source.embed, embed)
            x = embed + model.pos_embed.W_pos[: tokens.shape[1]].T[:, :, None, None]
    else:
        x = resume[1].stream[first]

    zs, posts, streams = [], [], []
    for i, block in enumerate(model.blocks[first:], start=first):
        streams.append(x)
        known = resume[1] if resume is not None and i == first else None
        with jax.named_scope(f"blocks.{i}.attn"):
            z = _z(block.attn, block.ln1, x) if known is None else known.z[i]
            if sites is not None and source is not None and not (known and at_mlp) and _swaps(sites.z[i]):
                z = jnp.where(sites.z[i][:, None, None], source.z[i], z)
            zs.append(z)
            x = x + _affine(block.attn.W_O.reshape(-1, len(x)), block.attn.b_O, z.reshape(-1, *z.shape[2:]))
        if (mlp := block.mlp) is not None:
            with jax.named_scope(f"blocks.{i}.mlp"):
                post = known.post[i] if known and at_mlp else _post(mlp, block.ln2, x)
                posts.append(post)
                if sites is not None and source is not None and _swaps(sites.post[i]):
                    x = x + _written(mlp, sites.post[i], source.post[i], post)
                else:
                    x = x + _affine(mlp.W_out, mlp.b_out, post)

    with jax.named_scope("unembed"):
        logits = _affine(model.unembed.W_U, model.unembed.b_U, _standardised(model.ln_final, x), model.ln_final)
    return logits.transpose(3, 2, 1, 0), Columnar(embed, tuple(zs), tuple(posts), tuple(streams))


def _sites(model: Transformer, masks: Masks) -> Any:
    """The masks by site kind, each (..., mask, batch); the batch is 1 long where all samples share them."""
    rows = masks[None] if masks.ndim == 2 else masks
    return model.config.nodes.sites(rows.transpose(2, 1, 0))


def _swaps(mask: Bool[Array | np.ndarray, "..."]) -> bool:
    """Whether anything is swapped, as far as is known."""
    return not isinstance(mask, np.ndarray) or bool(mask.any())


def _written(mlp: MLP, mask: Bool[Array | np.ndarray, "part _ _"], source: Columns, post: Columns) -> Columns:
    """What an MLP writes whose masked parts are a source run's.

    A part is swapped as a whole, so that what it writes can be instead, which is narrower.
    """

    def part(i: int, neurons: slice) -> Columns:
        # The bias is added once, with the first part.
        write = _product if i else lambda w, x: _affine(w, mlp.b_out, x)
        own = write(mlp.W_out[neurons], post[neurons])
        if not _swaps(mask[i]):
            return own
        return jnp.where(mask[i][None, None], write(mlp.W_out[neurons], source[neurons]), own)

    return reduce(operator.add, starmap(part, enumerate(part_slices(mlp.sizes))))


@jax.jit  # traced once for all layers
def _z(attn: Attention, ln: LayerNorm | None, x: Columns) -> Heads:
    """What each head read: the site `hook_z`."""
    read, heads = _standardised(ln, x), attn.b_Q.shape
    q, k, v = (
        _affine(w.transpose(1, 0, 2).reshape(len(x), -1), b.ravel(), read, ln).reshape(*heads, x.shape[1], -1)
        for w, b in ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V))
    )
    return unrolled_attention(q, k, v, attn.causal).reshape(*heads, *x.shape[1:])


@jax.jit
def _post(mlp: MLP, ln: LayerNorm | None, x: Columns) -> Columns:
    """What the neurons of an MLP hold: the site `hook_post`."""
    return ACTIVATION_FUNCTIONS[mlp.act_fn](_affine(mlp.W_in, mlp.b_in, _standardised(ln, x), ln))


def _affine(w: Float[Array, "read feature"], b: Float[Array, " feature"], x: Columns, ln: LayerNorm | None = None):
    """w^T x + b, where the weight and bias of the LayerNorm that x comes from are made part of w and b."""
    if ln is not None:
        w, b = ln.w[:, None] * w, ln.b @ w + b
    return _product(w, x) + b[:, None, None, None]


@jax.custom_vjp
def _product(w: Float[Array, "read feature"], x: Float[Array, "read *columns"]) -> Float[Array, "feature *columns"]:
    """w^T x. The gradient that jax derives has the features last, and is turned over."""
    return jnp.tensordot(w, x, ((0,), (0,)))


def _product_forward(w: Array, x: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(w, x), (w, x)


def _product_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    w, x = saved
    columns = tuple(range(1, x.ndim))
    return jnp.tensordot(x, dy, (columns, columns)), jnp.tensordot(w, dy, 1)


_product.defvjp(_product_forward, _product_backward)


def _standardised(ln: LayerNorm | None, x: Columns) -> Columns:
    """Each token's features with mean 0 and variance 1, where there is a LayerNorm; its weights are `_affine`'s."""
    return x if ln is None else _standardise(x)


@jax.custom_vjp
def _standardise(x: Columns) -> Columns:
    return _standardise_forward(x)[0]


def _standardise_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    centred = _centred(x)
    scale = jax.lax.rsqrt(_mean(centred * centred) + LN_EPS)
    y = centred * scale
    return y, (y, scale)


def _standardise_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array]:
    y, scale = saved
    return (_centred((dy - y * _mean(dy * y)) * scale),)


_standardise.defvjp(_standardise_forward, _standardise_backward)


# Over the first axis a product is faster than a sum.


def _centred(x: Columns) -> Columns:
    return jnp.tensordot(jnp.eye(len(x)) - 1 / len(x), x, 1)


def _mean(x: Columns) -> Float[Array, "1 seq mask batch"]:
    return jnp.tensordot(jnp.full((1, len(x)), 1 / len(x)), x, 1)
