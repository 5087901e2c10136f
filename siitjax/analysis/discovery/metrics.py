"""How much a patch moves the answer at a token. Tasks answer at every position, so every counted token has its own."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Metric = Literal["log_odds", "kl"]
"""Gradients are taken of "log_odds": that of "kl" is zero where nothing is patched."""
PerToken = Callable[[Float[Array, "*batch seq out"], Float[Array, "*batch seq out"]], Float[Array, "*batch seq"]]


def log_odds_lost(
    logits: Float[Array, "*batch seq out"], clean: Float[Array, "*batch seq out"]
) -> Float[Array, "*batch seq"]:
    """By how much the log-odds of the base run's answer fell: of two classes, the logit difference.

    The log-odds are the answer's logit less the log of the sum of exp of all others.

    Args:
        clean: the base run's logits.
    """
    answer = jax.nn.one_hot(clean.argmax(-1), clean.shape[-1], dtype=clean.dtype)

    def log_odds(logits):
        others = jax.nn.logsumexp(jnp.where(answer > 0, -jnp.inf, logits), -1)
        return (logits * answer).sum(-1) - others

    return log_odds(clean) - log_odds(logits)


def kl(logits: Float[Array, "*batch seq out"], clean: Float[Array, "*batch seq out"]) -> Float[Array, "*batch seq"]:
    """The Kullback-Leibler divergence of the patched distribution from the base run's, in nats.

    Args:
        clean: the base run's logits.
    """
    log_p, log_q = jax.nn.log_softmax(clean), jax.nn.log_softmax(logits)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


METRICS: dict[Metric, PerToken] = {"log_odds": log_odds_lost, "kl": kl}
