"""Causal attention as it is written down; `siitjax.unrolled` computes the same for a batch, faster on a CPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def plain_attention(
    q: Float[Array, "seq head d_head"], k: Float[Array, "seq head d_head"], v: Float[Array, "seq head d_head"]
) -> Float[Array, "seq head d_head"]:
    """Every position mixes the values at and before it, by softmax(q k / sqrt(d_head)); unbatched.

    Source: TransformerLens, `AbstractAttention.forward` (whose output, before W_O, is `hook_z`).
    """
    seq, _, d_head = q.shape
    scores = jnp.einsum("qhd,khd->hqk", q, k) / d_head**0.5
    past = jnp.tril(jnp.ones((seq, seq), bool))
    pattern = jax.nn.softmax(jnp.where(past[None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("hqk,khd->qhd", pattern, v)
