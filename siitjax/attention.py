"""Causal attention behind one function: `causal_attention`, in the form that is fastest on the backend."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from siitjax.unrolled import unrolled_attention

CausalAttention = Callable[..., Array]
"""A form of attention: q, k and v, each (seq, head, d_head), to z of the same shape."""


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


def causal_attention(
    q: Float[Array, "seq head d_head"], k: Float[Array, "seq head d_head"], v: Float[Array, "seq head d_head"]
) -> Float[Array, "seq head d_head"]:
    """What `plain_attention` gives, computed as suits the backend that this process runs on."""
    form = unrolled_attention if jax.default_backend() == "cpu" else plain_attention
    return form(q, k, v)
