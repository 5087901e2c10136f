"""The low-level model: a decoder-only transformer, numerically TransformerLens' HookedTransformer.

`model(tokens, swap)` is pure and unbatched. It returns its logits and its activations at the named sites; given
a swap of nodes, each masked node takes the source run's value, by a `where` at its site; given one of edges, each
reader sees the residual stream with what its masked senders wrote in the source run. The path of a weight in the
PyTree is its TransformerLens key ("blocks.0.attn.W_Q"), so exporting weights is flattening a tree. Its layers are
called so in a profile too: "embed", "blocks.0.attn" (with the LayerNorm before it), "blocks.0.mlp", "unembed".
"""

import math
import zlib
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from siitjax.base.errors import UserError
from siitjax.base.precision import matmul_precision
from siitjax.model.checks import check_mask, check_positions, check_source, check_tokens
from siitjax.model.config import ACTIVATION_FUNCTIONS, TransformerConfig, part_slices

LN_EPS = 1e-5
TOGETHER = 2**16
"""Weights of so many numbers at most are drawn in one call: one by one they take nearly twice as long to compile."""


class Activations(eqx.Module):
    """What the sites hold in one run. In a swap's source a site may be None: then it is not swapped.

    Attributes:
        stream: the residual stream before each block (`hook_resid_pre`): no node, so never swapped.
    """

    embed: Float[Array, "seq d_model"] | None
    z: Float[Array, "layer seq head d_head"] | None
    post: Float[Array, "layer seq d_mlp"] | None
    stream: Float[Array, "layer seq d_model"] | None = None


Mask = Bool[Array, " node"] | Bool[Array, "reader sender"] | Bool[Array, "reader sender seq"]
Swap = tuple[Mask, Activations]
"""Which nodes are swapped, which edges, or which edges at which of the sender's positions; and the source run."""
Resume = tuple[int, Float[Array, "seq d_model"]]
"""The block to go on from, and the residual stream before it."""


class LayerNorm(eqx.Module):
    """Layer normalisation with a gain and a bias, over `d_model`; its epsilon is `LN_EPS`."""

    w: Float[Array, " d_model"]
    b: Float[Array, " d_model"]

    def __call__(self, x: Float[Array, " d_model"]) -> Float[Array, " d_model"]:
        x = x - x.mean()
        return x * jax.lax.rsqrt((x * x).mean() + LN_EPS) * self.w + self.b


class Embed(eqx.Module):
    """What each token of the vocabulary adds to the residual stream."""

    W_E: Float[Array, "vocab d_model"]


class PosEmbed(eqx.Module):
    """What each position adds to the residual stream."""

    W_pos: Float[Array, "n_ctx d_model"]


class Unembed(eqx.Module):
    """The linear map from the residual stream to the outputs."""

    W_U: Float[Array, "d_model vocab_out"]
    b_U: Float[Array, " vocab_out"]


def plain_attention(
    q: Float[Array, "seq head d_head"],
    k: Float[Array, "seq head d_head"],
    v: Float[Array, "seq head d_head"],
    causal: bool = True,
) -> Float[Array, "seq head d_head"]:
    """Every position mixes the values at and before it (of all, not causal), by softmax(q k / sqrt(d_head)); unbatched.

    `siitjax.model.cpu.attention` computes the same for a batch, faster on a CPU.

    Source: TransformerLens, `AbstractAttention.forward` (whose output, before W_O, is `hook_z`).
    """
    seq, _, d_head = q.shape
    scores = jnp.einsum("qhd,khd->hqk", q, k) / d_head**0.5
    if causal:
        past = jnp.tril(jnp.ones((seq, seq), bool))
        scores = jnp.where(past[None], scores, -jnp.inf)
    pattern = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("hqk,khd->qhd", pattern, v)


class Attention(eqx.Module):
    """The heads of a layer; a head's `z` is where it is swapped."""

    W_Q: Float[Array, "head d_model d_head"]
    W_K: Float[Array, "head d_model d_head"]
    W_V: Float[Array, "head d_model d_head"]
    W_O: Float[Array, "head d_head d_model"]
    b_Q: Float[Array, "head d_head"]
    b_K: Float[Array, "head d_head"]
    b_V: Float[Array, "head d_head"]
    b_O: Float[Array, " d_model"]
    causal: bool = eqx.field(static=True, default=True)

    def z(self, x: Float[Array, "seq d_model"] | Float[Array, "head seq d_model"]) -> Float[Array, "seq head d_head"]:
        """What each head read, before W_O: the site `hook_z`. Heads may see the stream alike, or each its own."""
        q, k, v = (
            jnp.einsum("sm,hmd->shd" if x.ndim == 2 else "hsm,hmd->shd", x, w) + b[None]
            for w, b in ((self.W_Q, self.b_Q), (self.W_K, self.b_K), (self.W_V, self.b_V))
        )
        return plain_attention(q, k, v, self.causal)

    def out(self, z: Float[Array, "seq head d_head"]) -> Float[Array, "seq d_model"]:
        """What the heads together write to the residual stream."""
        return jnp.einsum("shd,hdm->sm", z, self.W_O) + self.b_O[None]


class MLP(eqx.Module):
    """The MLP of a layer; its `post`, the activations of its neurons, is where it, or a part of it, is swapped."""

    W_in: Float[Array, "d_model d_mlp"]
    b_in: Float[Array, " d_mlp"]
    W_out: Float[Array, "d_mlp d_model"]
    b_out: Float[Array, " d_model"]
    act_fn: str = eqx.field(static=True)
    sizes: tuple[int, ...] = eqx.field(static=True)
    """Neurons of each part."""

    def post(self, x: Float[Array, "seq d_model"] | Float[Array, "part seq d_model"]) -> Float[Array, "seq d_mlp"]:
        """The hidden layer after its activation function: the site `hook_post`. Parts may see the stream alike, or each
        its own."""
        if x.ndim == 2:
            return ACTIVATION_FUNCTIONS[self.act_fn](x @ self.W_in + self.b_in[None])
        parts = enumerate(part_slices(self.sizes))
        read = jnp.concatenate([x[i] @ self.W_in[:, part] + self.b_in[part][None] for i, part in parts], -1)
        return ACTIVATION_FUNCTIONS[self.act_fn](read)

    def swapped(
        self,
        mask: Bool[Array | np.ndarray, " part"],
        source: Float[Array, "seq d_mlp"],
        post: Float[Array, "seq d_mlp"],
    ) -> Float[Array, "seq d_mlp"]:
        """The hidden layer in which the masked parts are a source run's."""
        neurons = jnp.concatenate([jnp.broadcast_to(mask[i], (1, n)) for i, n in enumerate(self.sizes)], 1)
        return jnp.where(neurons, source, post)

    def writes(self, post: Float[Array, "seq d_mlp"]) -> Float[Array, "part seq d_model"]:
        """What each part writes to the residual stream, the bias apart."""
        return jnp.concatenate([(post[:, part] @ self.W_out[part])[None] for part in part_slices(self.sizes)])

    def out(self, post: Float[Array, "seq d_mlp"]) -> Float[Array, "seq d_model"]:
        """What the MLP writes to the residual stream."""
        return post @ self.W_out + self.b_out[None]


class Block(eqx.Module):
    """One layer: attention and then the MLP, each on the normalised residual stream where there is a LayerNorm."""

    ln1: LayerNorm | None
    attn: Attention
    ln2: LayerNorm | None
    mlp: MLP | None


class Transformer(eqx.Module):
    """The low-level model: a causal transformer whose nodes and edges can be swapped for those of another run.

    Called with the tokens of one sample it gives logits and activations; `jax.vmap` makes a batch of it. Weights have
    the names and shapes of TransformerLens' HookedTransformer, the source of the architecture.

    Attributes:
        embed, pos_embed: what tokens and positions add to the residual stream.
        blocks: one a layer.
        unembed: the map from the residual stream to the outputs.
        ln_final: the LayerNorm before the outputs; None where the config has none.
        config: its shape.

    Example:
        >>> import jax, jax.numpy as jnp, siitjax
        >>> config = siitjax.TransformerConfig(n_layers=1, d_model=8, d_head=4, d_vocab=5, d_vocab_out=2, n_ctx=6)
        >>> model = init_transformer(config, key=jax.random.key(0))
        >>> logits, activations = model(jnp.array([0, 2, 3]))
        >>> logits.shape, activations.z.shape, activations.post.shape
        ((3, 2), (1, 3, 2, 4), (1, 3, 32))
        >>> other = jax.tree.map(jnp.zeros_like, activations)
        >>> mask = jnp.asarray(config.nodes.mask([siitjax.mlp(0)]))
        >>> swapped, _ = model(jnp.array([0, 2, 3]), (mask, other))
        >>> bool((swapped == logits).all())
        False
    """

    embed: Embed
    pos_embed: PosEmbed
    blocks: tuple[Block, ...]
    ln_final: LayerNorm | None
    unembed: Unembed
    config: TransformerConfig = eqx.field(static=True)

    @matmul_precision()
    def __call__(
        self,
        tokens: Int[Array, " seq"],
        swap: Swap | None = None,
        *,
        resume: Resume | None = None,
    ) -> tuple[Float[Array, "seq vocab_out"], Activations]:
        """Logits and activations; the masked nodes take the values of the swap's source activations.

        The activations returned are those after the swap: what the rest of the transformer saw; under a swap of
        edges, a node's own, since each of its readers may see another.

        Args:
            swap: a mask of nodes, of edges, or of edges at positions, with the source run's activations. What a
                sender writes is data there: no gradient flows into it.
            resume: run from a block on, given the residual stream before it; the activations returned are of
                those blocks alone.

        Raises:
            UserError: the tokens, the mask or the source are not this transformer's (see `siitjax.model.checks`), or a
                swap of edges is resumed, or lacks a site in its source.
        """
        self._check(tokens, swap)
        mask, source = (None, Activations(None, None, None)) if swap is None else swap
        if mask is not None and mask.ndim > 1:
            if resume is not None:
                raise UserError("a run under a swap of edges cannot be resumed; run it whole, without resume")
            return self._by_reader(tokens, mask, source)
        sites = None if mask is None else self.config.nodes.sites(mask)
        first, x, embed = 0, None, None
        if resume is None:
            with jax.named_scope("embed"):
                embed = self.embed.W_E[tokens]
                if sites is not None and source.embed is not None:
                    embed = jnp.where(sites.embed, source.embed, embed)
                x = embed + self.pos_embed.W_pos[: len(tokens)]
        else:
            first, x = resume

        zs, posts, streams = [], [], []
        for i, block in enumerate(self.blocks[first:], start=first):
            streams.append(x)
            with jax.named_scope(f"blocks.{i}.attn"):
                z = block.attn.z(normalised(block.ln1, x))
                if sites is not None and source.z is not None:
                    z = jnp.where(sites.z[i][None, :, None], source.z[i], z)
                x = x + block.attn.out(z)
            zs.append(z)
            if block.mlp is not None:
                with jax.named_scope(f"blocks.{i}.mlp"):
                    post = block.mlp.post(normalised(block.ln2, x))
                    if sites is not None and source.post is not None and sites.post is not None:
                        post = block.mlp.swapped(sites.post[i], source.post[i], post)
                    x = x + block.mlp.out(post)
                posts.append(post)

        with jax.named_scope("unembed"):
            logits = normalised(self.ln_final, x) @ self.unembed.W_U + self.unembed.b_U[None]
        return logits, Activations(embed, jnp.stack(zs), jnp.stack(posts) if posts else None, jnp.stack(streams))

    def _check(self, tokens: Int[Array, " seq"], swap: Swap | None) -> None:
        c = self.config
        check_tokens(tokens, c.d_vocab, c.n_ctx)
        if swap is None:
            return
        mask, source = swap
        check_mask(mask, range(mask.ndim)[:2], len(c.nodes))
        check_positions(mask, n := len(tokens))
        needed = {"embed": (n,), "z": (c.n_layers, n, c.n_heads), "post": (c.n_layers, n)}
        check_source(vars(source), needed)

    def writes(self, activations: Activations) -> Float[Array, "sender seq d_model"]:
        """What each node added to the residual stream in a run, biases apart.

        Raises:
            UserError: the activations lack the embedding's or the heads'.
        """
        if activations.embed is None or activations.z is None:
            raise UserError("a swap of edges takes a source run with all its sites; embed or z is None")
        written = [activations.embed[None]]
        for i, block in enumerate(self.blocks):
            written.append(jnp.einsum("shd,hdm->hsm", activations.z[i], block.attn.W_O))
            if block.mlp is not None and activations.post is not None:
                written.append(block.mlp.writes(activations.post[i]))
        return jnp.concatenate(written)

    def _by_reader(
        self, tokens: Int[Array, " seq"], mask: Bool[Array, "reader sender *seq"], source: Activations
    ) -> tuple[Float[Array, "seq vocab_out"], Activations]:
        """A run in which each reader sees what its masked senders wrote in the source run (Wang et al. 2023)."""
        with jax.named_scope("source_writes"):
            there = jax.lax.stop_gradient(self.writes(source))
        swapped = (mask if mask.ndim == 3 else mask[..., None]).astype(there.dtype)
        with jax.named_scope("embed"):
            x = self.embed.W_E[tokens]
            own = x[None]
            x = x + self.pos_embed.W_pos[: len(tokens)]

        def seen(x, own, first, n):
            """The stream as each of n readers sees it, from reader `first` on."""
            here = swapped[first : first + n, : len(own)]
            return x[None] + (here[..., None] * (there[: len(own)] - own)[None]).sum(1)

        embed, zs, posts, streams, reader = own[0], [], [], [], 0
        for i, block in enumerate(self.blocks):
            streams.append(x)
            with jax.named_scope(f"blocks.{i}.attn"):
                z = block.attn.z(normalised(block.ln1, seen(x, own, reader, self.config.n_heads)))
                own = jnp.concatenate([own, jnp.einsum("shd,hdm->hsm", z, block.attn.W_O)])
                x, reader = x + block.attn.out(z), reader + self.config.n_heads
            zs.append(z)
            if block.mlp is not None:
                with jax.named_scope(f"blocks.{i}.mlp"):
                    post = block.mlp.post(normalised(block.ln2, seen(x, own, reader, self.config.n_parts)))
                    own = jnp.concatenate([own, block.mlp.writes(post)])
                    x, reader = x + block.mlp.out(post), reader + self.config.n_parts
                posts.append(post)
        with jax.named_scope("unembed"):
            logits = normalised(self.ln_final, seen(x, own, reader, 1)[0]) @ self.unembed.W_U + self.unembed.b_U[None]
        return logits, Activations(embed, jnp.stack(zs), jnp.stack(posts) if posts else None, jnp.stack(streams))


def normalised(ln: LayerNorm | None, x: Float[Array, "*rest d_model"]) -> Float[Array, "*rest d_model"]:
    """What a LayerNorm, if there is one, makes of each position."""
    return x if ln is None else jnp.vectorize(ln, signature="(m)->(m)")(x)


def init_transformer(config: TransformerConfig, *, key: PRNGKeyArray) -> Transformer:
    """A transformer with Xavier normal weights of gain `config.init_gain`, zero biases, LayerNorm weights one.

    The fans of a head's matrices are TransformerLens' (`calc_fan_in_and_fan_out`): of a (head, a, b) weight,
    a in and head * b out.
    """
    drawn = _drawn(_shapes(config), config.init_gain, key)

    def layer_norm() -> LayerNorm | None:
        return LayerNorm(jnp.ones(config.d_model), jnp.zeros(config.d_model)) if config.layer_norm else None

    def block(i: int) -> Block:
        W_Q, W_K, W_V, W_O = (drawn[f"blocks.{i}.attn.{name}"] for name in ("W_Q", "W_K", "W_V", "W_O"))
        b_Q, b_K, b_V = (jnp.zeros((config.n_heads, config.d_head)) for _ in range(3))
        attn = Attention(W_Q, W_K, W_V, W_O, b_Q, b_K, b_V, jnp.zeros(config.d_model), config.causal)
        if config.attn_only:
            return Block(layer_norm(), attn, None, None)
        mlp = MLP(
            drawn[f"blocks.{i}.mlp.W_in"],
            jnp.zeros(config.mlp_width),
            drawn[f"blocks.{i}.mlp.W_out"],
            jnp.zeros(config.d_model),
            config.act_fn,
            config.part_sizes,
        )
        return Block(layer_norm(), attn, layer_norm(), mlp)

    return Transformer(
        Embed(drawn["embed.W_E"]),
        PosEmbed(drawn["pos_embed.W_pos"]),
        tuple(block(i) for i in range(config.n_layers)),
        layer_norm(),
        Unembed(drawn["unembed.W_U"], jnp.zeros(config.d_vocab_out)),
        config,
    )


def _shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Of the weights that are drawn, by their TransformerLens keys."""
    d_model, d_head, n_heads = config.d_model, config.d_head, config.n_heads
    block = {f"attn.W_{name}": (n_heads, d_model, d_head) for name in "QKV"}
    block["attn.W_O"] = (n_heads, d_head, d_model)
    if not config.attn_only:
        block |= {"mlp.W_in": (d_model, config.mlp_width), "mlp.W_out": (config.mlp_width, d_model)}
    return {
        "embed.W_E": (config.d_vocab, d_model),
        "pos_embed.W_pos": (config.n_ctx, d_model),
        "unembed.W_U": (d_model, config.d_vocab_out),
        **{f"blocks.{i}.{name}": shape for i in range(config.n_layers) for name, shape in block.items()},
    }


def _drawn(shapes: dict[str, tuple[int, ...]], gain: float, key: PRNGKeyArray) -> dict[str, Array]:
    """Xavier normal weights, each from a key of its name: adding one leaves the others as they were."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    small = [name for name, size in sizes.items() if size <= TOGETHER]
    found: dict[str, Array] = {}
    for names in (small, *([name] for name in sizes if name not in small)):
        # All as long as the longest, and cut.
        longest = max((sizes[name] for name in names), default=0)
        draw = lambda crc, longest=longest: jax.random.normal(jax.random.fold_in(key, crc), (longest,))
        crcs = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)
        for name, row in zip(names, jax.vmap(draw)(crcs), strict=True):
            shape = shapes[name]
            fans = sum(shape) if len(shape) == 2 else shape[1] + shape[0] * shape[2]
            found[name] = gain * (2 / fans) ** 0.5 * row[: sizes[name]].reshape(shape)
    return found


def random_like(model: Transformer, *, key: PRNGKeyArray) -> Transformer:
    """A control: a transformer of the same shape with random weights.

    Their gain is 1, whatever the model began with: at 0.18 an MLP writes next to nothing, which is no control at all.
    It is in the structure of the model, whose compiled programs it then shares.
    """
    weights = init_transformer(replace(model.config, init_gain=1.0), key=key)
    return jax.tree.unflatten(jax.tree.structure(model), jax.tree.leaves(weights))
