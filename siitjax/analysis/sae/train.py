"""SAEs in batches: those of one shape are lanes of one program, over seeds, sparsity, models and sites."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from siitjax.analysis.sae.kinds import KINDS, SAE, init_sae, select_latents
from siitjax.analysis.sae.spread import compile_spread
from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError
from siitjax.siit.step import under_strict_promotion
from siitjax.sweep.lanes import Batching

WARM_UP = 0.1
"""Share of the steps over which the sparsity term grows to its weight."""
DECAY = 0.2
"""Share of the steps, the last ones, over which the learning rate falls to 0."""
DEAD_AFTER = 100
"""Steps without activity after which a latent is dead."""
RESAMPLE_EVERY, RESAMPLE_UNTIL = 250, 0.6
"""Dead latents are resampled after so many steps each time, in this first share of the training."""
RESAMPLED_NORM = 0.2
"""Of a resampled latent's encoder, in that of the live ones (Bricken et al. 2023)."""
MEDIAN_STEPS = 50


@dataclass(frozen=True)
class SAEConfig:
    """What SAEs share that are lanes of one program.

    Attributes:
        kind: one of `siitjax.analysis.sae.kinds.KINDS`.
        d_in: width of the site.
        n_latents: directions in the dictionary.
        steps: updates.
        batch_size: tokens an update.
        lr: Adam's learning rate, until it falls.

    Raises:
        UserError: the kind is unknown, or a number is not positive.
    """

    kind: str
    d_in: int
    n_latents: int = 128
    steps: int = 2_000
    batch_size: int = 128
    lr: float = 2e-3

    def __post_init__(self):
        check_choice("kind", self.kind, tuple(KINDS))
        for name in ("d_in", "n_latents", "steps", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be greater than 0")


class Activity(eqx.Module):
    """Activations to train on, in random order, scaled so that their variance over all dimensions together is 1.

    Attributes:
        centre: their geometric median, scaled too.
        scale: what they were multiplied by.
    """

    tokens: Float[Array, "token d_in"]
    centre: Float[Array, " d_in"]
    scale: Float[Array, ""]


class Lane(eqx.Module):
    """One SAE to be trained, or several.

    Attributes:
        data: which of the program's activities it is trained on.
        seed: decides its first weights and its batches.
        sparsity: see `siitjax.analysis.sae.kinds.SAE`.
    """

    data: Int[Array, "*lane"]
    seed: Int[Array, "*lane"]
    sparsity: Float[Array, "*lane"]


def prepare(tokens: Float[np.ndarray, "token d_in"]) -> Activity:
    """Scales activations, and finds their geometric median (Bricken et al. 2023) by Weiszfeld's iteration.

    Raises:
        UserError: they do not vary, so there is nothing to rebuild.
    """
    variance = float(np.square(tokens - tokens.mean(0)).sum(1).mean())
    if not variance > 0:
        raise UserError("the activations are the same for every token; choose another site")
    scaled = tokens / np.sqrt(variance)
    centre = scaled.mean(0)
    for _ in range(MEDIAN_STEPS):
        weights = 1 / np.maximum(np.linalg.norm(scaled - centre, axis=1), 1e-6)
        centre = weights @ scaled / weights.sum()
    return Activity(*(jnp.asarray(x, jnp.float32) for x in (scaled, centre, 1 / np.sqrt(variance))))


def train(
    config: SAEConfig,
    activity: Activity,
    lanes: Lane,
    *,
    batching: Batching | None = None,
    devices: Sequence[Any] | None = None,
) -> Callable[[Lane], SAE]:
    """The compiled training of as many lanes: a function of them, that gives the SAEs with a leading lane axis.

    Args:
        activity: those that the lanes are trained on, stacked; as many tokens of each.
        batching, devices: see `siitjax.analysis.sae.spread`.

    Raises:
        UserError: a batch holds more tokens than there are.
    """
    if config.batch_size > activity.tokens.shape[1]:
        raise UserError(
            f"batch_size is {config.batch_size}, but there are {activity.tokens.shape[1]} tokens; lower batch_size"
        )
    run = compile_spread(partial(_train, config), activity, lanes, batching=batching, devices=devices)
    return partial(run, activity)


def adam(lr: float | optax.Schedule) -> optax.GradientTransformation:
    """Adam, with the usual betas."""
    return under_strict_promotion(optax.adam(lr))


def folded(sae: SAE, scale: Float[Array, ""]) -> SAE:
    """The same SAE for activations that are not scaled."""
    return eqx.tree_at(
        lambda s: (s.W_enc, s.W_dec, s.b_dec), sae, (sae.W_enc * scale, sae.W_dec / scale, sae.b_dec / scale)
    )


def _train(config: SAEConfig, activity: Activity, lane: Lane) -> SAE:
    blocks = activity.tokens.shape[1] // config.batch_size
    root = jax.random.key(lane.seed)
    first = init_sae(
        config.kind, activity.centre[lane.data], config.n_latents, lane.sparsity, key=jax.random.fold_in(root, 0)
    )
    until = int((1 - DECAY) * config.steps)
    optimiser = adam(optax.linear_schedule(config.lr, 0.0, config.steps - until, until))
    tokens_of = jax.random.fold_in(root, 1)

    def step(state, count):
        sae, opt_state, silent = state
        key = jax.random.fold_in(tokens_of, count)
        # Whole blocks of what lies in random order: no token has to be fetched by itself.
        start = jax.random.randint(key, (), 0, blocks) * config.batch_size
        x = jax.lax.dynamic_slice(
            activity.tokens, (lane.data, start, 0), (1, config.batch_size, activity.tokens.shape[2])
        )[0]
        warmth = jnp.minimum(1.0, count.astype(jnp.float32) / (WARM_UP * config.steps))
        loss = lambda sae: sae.loss(x, silent > DEAD_AFTER, warmth)
        gradient, latents = jax.grad(loss, has_aux=True)(sae)
        updates, opt_state = optimiser.update(_along_sphere(gradient, sae), opt_state)
        sae = _unit_decoder(jax.tree.map(jnp.add, sae, updates))
        silent = jnp.where((latents > 0).any(0), 0, silent + 1)
        if not sae.resampled:
            return (sae, opt_state, silent), None
        due = ((count + 1) % RESAMPLE_EVERY == 0) & (count < int(RESAMPLE_UNTIL * config.steps))
        dead = due & (silent > DEAD_AFTER)
        revive = lambda: _resampled(sae, opt_state, first, x, dead, jax.random.fold_in(key, 1))
        sae, opt_state = jax.lax.cond(dead.any(), revive, lambda: (sae, opt_state))
        return (sae, opt_state, jnp.where(dead, 0, silent)), None

    weights: Any = first  # a PyTree, which optax's types do not know
    start = first, optimiser.init(weights), jnp.zeros(config.n_latents, jnp.int32)
    return jax.lax.scan(step, start, jnp.arange(config.steps))[0][0]


def _along_sphere(gradient: SAE, sae: SAE) -> SAE:
    """The gradient without what would only make the decoder's directions longer or shorter (Bricken et al. 2023)."""
    along = (gradient.W_dec * sae.W_dec).sum(1, keepdims=True)
    return eqx.tree_at(lambda g: g.W_dec, gradient, gradient.W_dec - along * sae.W_dec)


def _unit_decoder(sae: SAE) -> SAE:
    return eqx.tree_at(lambda s: s.W_dec, sae, sae.W_dec / jnp.linalg.norm(sae.W_dec, axis=1, keepdims=True))


def _resampled(sae: SAE, opt_state: Any, first: SAE, x: Float[Array, "token d_in"], dead: Bool[Array, " latent"], key):
    """Dead latents pointed at tokens that are rebuilt badly, and Adam's memory of them wiped (Bricken et al. 2023)."""
    error = jnp.square(x - sae.decode(sae.encode(x))).sum(1)
    chosen = jax.random.categorical(key, 2 * jnp.log(error + 1e-12), shape=dead.shape)
    directions = x[chosen] - sae.b_dec[None]
    directions = directions / jnp.maximum(jnp.linalg.norm(directions, axis=1, keepdims=True), 1e-6)
    norms = jnp.linalg.norm(sae.W_enc, axis=0)
    norm = jnp.where(dead, 0.0, norms).sum() / jnp.maximum((~dead).sum(), 1).astype(norms.dtype)
    pointed = eqx.tree_at(lambda s: (s.W_enc, s.W_dec), first, (RESAMPLED_NORM * norm * directions.T, directions))
    adam, *rest = opt_state
    blank = jax.tree.map(jnp.zeros_like, sae)
    adam = adam._replace(mu=select_latents(dead, blank, adam.mu), nu=select_latents(dead, blank, adam.nu))
    return select_latents(dead, pointed, sae), (adam, *rest)
