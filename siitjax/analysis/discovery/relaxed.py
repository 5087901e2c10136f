"""The transformer with a weight on each edge: between 0, where the reader sees what the sender wrote in this run, and
1, where it sees what the sender is replaced by.

At 0 and 1 it is the model's own run under a swap of edges. It is a smooth function of the weights, and of nudges to
what each reader sees, so that methods can take gradients.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from siitjax.base.precision import matmul_precision
from siitjax.model.nodes import block_of
from siitjax.model.transformer import Transformer, normalised

Writes = Float[Array, "sender seq d_model"]
"""What each node adds to the residual stream, biases apart."""
EdgeWeights = Float[Array, "reader sender"]


def site_depths(model: Transformer) -> tuple[int, ...]:
    """The depths of the nodes that read the residual stream and write to it: each layer's heads, and its MLP."""
    last = 2 * model.config.n_layers
    return tuple(range(1, last + 1, 2 if model.config.attn_only else 1))


def site_writes(
    model: Transformer, depth: int, x: Float[Array, "seq d_model"] | Float[Array, "reader seq d_model"]
) -> Float[Array, "reader seq d_model"]:
    """What the nodes at a depth write where they see the stream x, all alike or each its own."""
    layer, is_mlp = block_of(depth)
    block = model.blocks[layer]
    if not is_mlp:
        return jnp.einsum("shd,hdm->hsm", block.attn.z(normalised(block.ln1, x)), block.attn.W_O)
    assert block.mlp is not None
    return block.mlp.writes(block.mlp.post(normalised(block.ln2, x)))


def with_writes(
    model: Transformer, depth: int, x: Float[Array, "seq d_model"], writes: Float[Array, "reader seq d_model"]
) -> Float[Array, "seq d_model"]:
    """The residual stream after the nodes at a depth wrote to it."""
    layer, is_mlp = block_of(depth)
    block = model.blocks[layer]
    bias = block.mlp.b_out if is_mlp and block.mlp is not None else block.attn.b_O
    return x + writes.sum(0) + bias[None]


def answers(model: Transformer, x: Float[Array, "seq d_model"]) -> Float[Array, "seq out"]:
    """The logits where they see the stream x."""
    return normalised(model.ln_final, x) @ model.unembed.W_U + model.unembed.b_U[None]


@matmul_precision()
def relaxed(
    model: Transformer,
    tokens: Int[Array, " seq"],
    weights: EdgeWeights,
    there: Writes,
    nudges: Float[Array, "reader seq d_model"] | None = None,
) -> tuple[Float[Array, "seq out"], Writes]:
    """Logits, and what each node wrote, of one sample.

    Args:
        weights: of each edge; those of pairs that are no edge are not looked at.
        there: what each sender is replaced by.
        nudges: added to what each reader sees.

    Example:
        >>> import jax.numpy as jnp, siitjax
        >>> trained = siitjax.load("left_greater")
        >>> tokens, n = trained.case.tokens("(()"), len(trained.model.config.nodes)
        >>> _, own = relaxed(trained.model, tokens, jnp.zeros((n, n)), jnp.zeros((n, 4, 12)))
        >>> own.shape
        (6, 4, 12)
    """
    own = model.embed.W_E[tokens][None]
    x = own[0] + model.pos_embed.W_pos[: len(tokens)]

    def seen(x, own, first, n):
        here = weights[first : first + n, : len(own)]
        inputs = x[None] + jnp.einsum("rs,std->rtd", here, there[: len(own)] - own)
        return inputs if nudges is None else inputs + nudges[first : first + n]

    for depth in site_depths(model):
        n = len(model.config.nodes.at_depth(depth))
        wrote = site_writes(model, depth, seen(x, own, len(own) - 1, n))
        own, x = jnp.concatenate([own, wrote]), with_writes(model, depth, x, wrote)
    return answers(model, seen(x, own, len(own) - 1, 1)[0]), own


def run_on(model: Transformer, depth: int, x: Float[Array, "seq d_model"]) -> Float[Array, "seq out"]:
    """The logits of a run that goes on from the residual stream x, before the nodes at a depth."""
    for site in site_depths(model):
        if site >= depth:
            with jax.named_scope(f"depth.{site}"):
                x = with_writes(model, site, x, site_writes(model, site, x))
    return answers(model, x)
