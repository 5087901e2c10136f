"""Edge pruning by learned masks (Bhaskar et al. 2024): gates on all edges, trained to patch as many as they can.

A gate is hard concrete (Louizos et al. 2018): a stretched sigmoid of a logit and of noise, which is often exactly 0 or
1. The loss is the Kullback-Leibler divergence from the base run, and a price for each gate that is open. The score of
an edge is how likely its gate is open.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float
from scipy.special import expit

from siitjax.analysis.discovery.masked import effect_of_sample
from siitjax.analysis.discovery.pairs import Pairs
from siitjax.analysis.discovery.patching import edge_indices, of_edges
from siitjax.analysis.discovery.runs import Ablation, Runs, run_pairs
from siitjax.causal.case import Case
from siitjax.model.transformer import Transformer
from siitjax.siit.step import under_strict_promotion

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
"""Of hard concrete gates, as in Louizos et al. 2018."""
SHIFT = TEMPERATURE * math.log(-LOW / HIGH)
"""Of the logit at which a gate is open, that is not 0, in half of all cases."""
OPEN = 2.0
"""The first logit of every gate: nearly all are open."""


def edge_pruning(
    model: Transformer,
    case: Case,
    pairs: Pairs,
    *,
    ablation: Ablation = "resample",
    price: float = 0.01,
    steps: int = 200,
    batch_size: int = 16,
    lr: float = 0.1,
    seed: int = 0,
) -> Float[np.ndarray, " edge"]:
    """How likely each edge's gate is open after training.

    Args:
        price: of an open gate, in nats a token.
        steps, batch_size, lr: of Adam; each batch is drawn from the pairs.
        seed: decides batches and noise.

    Raises:
        UserError: these do not fit each other.
    """
    runs = run_pairs(model, case, pairs, ablation)
    readers, senders = edge_indices(model.config.nodes)
    possible = np.zeros((len(model.config.nodes),) * 2, bool)
    possible[readers, senders] = True
    key = jax.random.key(seed)
    logits = of_edges(model.config.nodes, _train(model, runs, jnp.asarray(possible), key, price, lr, steps, batch_size))
    return expit(logits.astype(float) - SHIFT)


@partial(jax.jit, static_argnums=(6, 7))
def _train(model, runs: Runs, possible, key, price, lr, steps, batch_size):
    adam = under_strict_promotion(optax.adam(lr))
    size = min(batch_size, len(runs.base))

    def loss(logits, key):
        noise_key, batch_key = jax.random.split(key)
        chosen = jax.random.permutation(batch_key, len(runs.base))[:size]
        batch = jax.tree.map(lambda x: x[chosen], runs)
        uniform = jax.random.uniform(noise_key, (size, *logits.shape), minval=1e-6, maxval=1 - 1e-6)
        noise = jnp.log(uniform) - jnp.log1p(-uniform)
        soft = jax.nn.sigmoid((noise + logits[None]) / TEMPERATURE) * (HIGH - LOW) + LOW
        patched = 1 - jnp.clip(soft, 0, 1)
        each = lambda base, counted, clean, there, weights: effect_of_sample(
            model, base, counted, clean, there, weights, metric="kl"
        )
        lost = jax.vmap(each)(batch.base, batch.counted, batch.logits, batch.there, patched).sum()
        is_open = jax.nn.sigmoid(logits - SHIFT)
        return lost / batch.counted.astype(lost.dtype).sum() + price * (is_open * possible.astype(is_open.dtype)).sum()

    def step(state, key):
        logits, adam_state = state
        updates, adam_state = adam.update(jax.grad(loss)(logits, key), adam_state)
        return (optax.apply_updates(logits, updates), adam_state), None

    start = jnp.full(possible.shape, OPEN)
    (logits, _), _ = jax.lax.scan(step, (start, adam.init(start)), jax.random.split(key, steps))
    return logits
