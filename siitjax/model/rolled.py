"""The transformer over a batch with its blocks in one loop: what XLA compiles fast for a GPU or a TPU.

As it is written, a transformer of four blocks is four programs one after the other, each with fusions to choose and
kernels to tune, and under swaps of edges each larger than the last. Here the blocks' weights are stacked, and one block
is compiled, which a `scan` runs over the layers. What the senders wrote lies in one buffer, to which each block adds.
A profile therefore names `blocks.attn` and `blocks.mlp`, of all layers together.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from siitjax.base.precision import matmul_precision
from siitjax.model.nodes import Masks
from siitjax.model.swaps import EdgeSwaps, joined, of_source
from siitjax.model.transformer import MLP, Activations, Block, Mask, Transformer, normalised

Written = Float[Array, "sender seq d_model"]


def stacked(blocks: tuple[Block, ...]) -> Block:
    """The blocks as one, each weight with a leading layer axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


@matmul_precision()
def rolled(
    model: Transformer,
    tokens: Int[Array, "batch seq"],
    swap: tuple[Masks, Activations] | None = None,
    *,
    resume: tuple[int, Activations] | None = None,
    unroll: bool = False,
) -> tuple[Float[Array, "batch mask seq out"], Activations]:
    """`Transformer.__call__` of every sample under every mask of nodes. A resume is run from the first block all the
    same: what lies before it comes out as it was. `unroll` writes the blocks out, one after the other."""
    blocks = stacked(model.blocks)
    run = partial(_under_nodes, model, blocks, unroll)
    if swap is None:
        logits, activations = jax.vmap(run)(tokens)
        return logits[:, None], activations
    masks, source = swap
    over_masks = jax.vmap(run, (None, 0, None))
    return jax.vmap(over_masks, (0, 0 if masks.ndim == 3 else None, 0))(tokens, jnp.asarray(masks), source)


def _under_nodes(
    model: Transformer,
    blocks: Block,
    unroll: bool,
    tokens: Int[Array, " seq"],
    mask: Bool[Array, " node"] | None = None,
    source: Activations | None = None,
) -> tuple[Float[Array, "seq out"], Activations]:
    sites = None if mask is None else model.config.nodes.sites(mask)
    given = lambda mask, source, own: own if mask is None or source is None else jnp.where(mask, source, own)
    there = Activations(None, None, None) if source is None else source
    with jax.named_scope("embed"):
        embed = given(None if sites is None else sites.embed, there.embed, model.embed.W_E[tokens])
        x = embed + model.pos_embed.W_pos[: len(tokens)]

    def body(x, now):
        block, sites, held_z, held_post = now
        with jax.named_scope("blocks.attn"):
            z = given(None if sites is None else sites.z[None, :, None], held_z, block.attn.z(normalised(block.ln1, x)))
            after, post = x + block.attn.out(z), None
        if block.mlp is not None:
            with jax.named_scope("blocks.mlp"):
                post = block.mlp.post(normalised(block.ln2, after))
                if sites is not None and held_post is not None:
                    post = block.mlp.swapped(sites.post, held_post, post)
                after = after + block.mlp.out(post)
        return after, (z, post, x)

    layers = None if sites is None else sites._replace(embed=None)
    x, (z, post, stream) = jax.lax.scan(body, x, (blocks, layers, there.z, there.post), unroll=unroll)
    with jax.named_scope("unembed"):
        logits = normalised(model.ln_final, x) @ model.unembed.W_U + model.unembed.b_U[None]
    return logits, Activations(embed, z, post, stream)


@matmul_precision()
def rolled_edges(
    model: Transformer, tokens: Int[Array, "batch seq"], swaps: EdgeSwaps, *sources: Activations, unroll: bool = False
) -> Float[Array, "batch mask seq out"]:
    """Logits of every sample under each of its swaps of edges; `sources` are what `rolled` gave of the source runs."""
    blocks, nodes = stacked(model.blocks), model.config.nodes
    with jax.named_scope("source_writes"):
        there = jax.lax.stop_gradient(jax.vmap(partial(_writes, blocks))(joined(sources)))
    index = None if swaps.sources is None else jnp.moveaxis(swaps.sources, -1, 0)
    held = jax.vmap(of_source, (1, None if index is None else 0), 2)(there, index)
    held = jnp.broadcast_to(held, (*swaps.edges.shape[:2], len(nodes), *held.shape[3:]))
    over_masks = jax.vmap(partial(_under_edges, model, blocks, unroll), (None, 0, 0))
    return jax.vmap(over_masks)(tokens, jnp.asarray(swaps.at_positions()), held)


def _writes(blocks: Block, activations: Activations) -> Written:
    """What each node added to the residual stream in a run, biases apart."""
    assert activations.embed is not None
    assert activations.z is not None
    written = jnp.einsum("lshd,lhdm->lhsm", activations.z, blocks.attn.W_O)
    if blocks.mlp is not None:
        assert activations.post is not None
        written = jnp.concatenate([written, jax.vmap(MLP.writes)(blocks.mlp, activations.post)], 1)
    return jnp.concatenate([activations.embed[None], written.reshape(-1, *written.shape[2:])])


def _under_edges(
    model: Transformer, blocks: Block, unroll: bool, tokens: Int[Array, " seq"], mask: Mask, there: Written
) -> Float[Array, "seq out"]:
    config, seq = model.config, len(tokens)
    n, heads = len(config.nodes), config.n_heads
    per_block = (n - 1) // config.n_layers
    swapped = jnp.broadcast_to(mask if mask.ndim == 3 else mask[..., None], (n, n, seq)).astype(there.dtype)
    by_block = lambda x: x[: n - 1].reshape(config.n_layers, per_block, *x.shape[1:])

    def seen(x, other, readers):
        """The stream as each of the readers sees it. A sender that has not written yet is 0 in `other`."""
        return x[None] + jnp.einsum("rsp,spm->rpm", readers, other)

    def body(carry, now):
        x, other = carry
        block, readers, held, first = now

        def wrote(other, own, at):
            """The buffer after some senders wrote: what each wrote in the source run, less what it writes here."""
            return jax.lax.dynamic_update_slice_in_dim(other, held[at : at + len(own)] - own, first + at, 0)

        with jax.named_scope("blocks.attn"):
            z = block.attn.z(normalised(block.ln1, seen(x, other, readers[:heads])))
            other = wrote(other, jnp.einsum("shd,hdm->hsm", z, block.attn.W_O), 0)
            x = x + block.attn.out(z)
        if block.mlp is not None:
            with jax.named_scope("blocks.mlp"):
                post = block.mlp.post(normalised(block.ln2, seen(x, other, readers[heads:])))
                other = wrote(other, block.mlp.writes(post), heads)
                x = x + block.mlp.out(post)
        return (x, other), None

    with jax.named_scope("embed"):
        embed = model.embed.W_E[tokens]
        other = jnp.concatenate([(there[0] - embed)[None], jnp.zeros_like(there[1:])])
        x = embed + model.pos_embed.W_pos[:seq]
    held = there[1:].reshape(config.n_layers, per_block, *there.shape[1:])
    firsts = 1 + per_block * jnp.arange(config.n_layers, dtype=jnp.int32)
    (x, other), _ = jax.lax.scan(body, (x, other), (blocks, by_block(swapped), held, firsts), unroll=unroll)
    with jax.named_scope("unembed"):
        last = normalised(model.ln_final, seen(x, other, swapped[n - 1 :])[0])
        return last @ model.unembed.W_U + model.unembed.b_U[None]
