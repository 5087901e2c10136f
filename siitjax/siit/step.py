"""One batch of training: what is swapped, the weighted loss, its gradient, and one or three updates of Adam."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray

from siitjax.model.forms import Form, fastest, mean_over_parts
from siitjax.model.swaps import EdgeSwaps
from siitjax.model.transformer import Transformer
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.edge_sampling import draw_swaps
from siitjax.siit.objective import BASE, IIT, SIIT, TERMS, batch_masks, edge_term_losses, term_losses


def under_strict_promotion(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same where jax_numpy_dtype_promotion is "strict", which optax is not written for: its Adam raises a float
    beta to an integer count."""

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return transformation.update(updates, state, params)

    return optax.GradientTransformation(transformation.init, update)


def optimizer(hyper: Hyperparams, n_updates: int) -> optax.GradientTransformation:
    """Clip by global norm, then Adam, then the linear schedule over `n_updates`; all its numbers may be traced."""
    chain = optax.chain(
        optax.clip_by_global_norm(hyper.clip),
        optax.scale_by_adam(b1=hyper.beta1, b2=hyper.beta2, eps=hyper.eps),
        optax.scale_by_learning_rate(optax.linear_schedule(hyper.lr_start, hyper.lr_end, n_updates)),
    )
    # One long vector instead of a few dozen small arrays, each of which would cost a call or ten.
    return under_strict_promotion(optax.flatten(chain))


@runtime_checkable
class Step(Protocol):
    """Trains on one batch; gives the learner after it, and the three loss terms before it."""

    def __call__(
        self,
        hyper: Hyperparams,
        learner: tuple[Transformer, optax.OptState],
        base: Int[Array, "batch seq"],
        source: Int[Array, "batch seq"],
        key: PRNGKeyArray,
        done: Float[Array, ""] | float = 1.0,
    ) -> tuple[tuple[Transformer, optax.OptState], Float[Array, "3"]]: ...


def make_step(config: TrainConfig, form: Form | None = None) -> Step:
    """The function that trains on one batch: it gives the learner after it, and the three terms before it.

    `done` is the share of the run's batches that lie before this one.
    """
    form = form or fastest()
    turns = ([BASE, IIT, SIIT],) if config.updates == "single" else ([IIT], [SIIT], [BASE])
    n_updates = len(turns) * config.steps_per_epoch * config.epochs
    case, edges = config.case, config.sampling.swaps == "edges"

    def drawn(hyper, key, done):
        """The swaps of a batch."""
        if edges:
            compound = jnp.asarray(done) >= hyper.edges_from
            return draw_swaps(case.circuit, hyper, compound, config.batch_size, case.n_ctx, key=key)
        return batch_masks(case.circuit, config.sampling, hyper.p_circuit, hyper.p_unused, config.batch_size, key=key)

    def losses(hyper, model, base, source, swaps, terms):
        if edges:
            return edge_term_losses(model, case, base, source, swaps, hyper.w_changed, form=form)[terms]
        masks = swaps[..., terms, :]
        return term_losses(model, case, base, source, masks, embedding=config.sampling.embedding, form=form)

    def step(hyper, learner, base, source, key, done: Float[Array, ""] | float = 1.0):
        with jax.named_scope("draw_swaps"):
            swaps = drawn(hyper, key, done)
        weights = jnp.stack([hyper.w_base, hyper.w_iit, hyper.w_siit])
        model, opt_state = learner
        unravel: Callable[[Any], Transformer] = ravel_pytree(model)[1]
        seen = jnp.zeros(3)
        for terms in turns:
            here = np.array(terms)

            def loss(model, base, source, swaps, here=here):
                values = losses(hyper, model, base, source, swaps, here)
                return weights[here] @ values, values

            def part(base, source, own, model=model, loss=loss):
                if isinstance(own, EdgeSwaps):
                    own = own.within(len(base), config.batch_size)
                gradients, values = jax.grad(loss, has_aux=True)(model, base, source, swaps if own is None else own)
                return ravel_pytree(gradients)[0], values  # one array, not dozens, to add up

            own = swaps if isinstance(swaps, EdgeSwaps) or swaps.ndim == 3 else None
            with jax.named_scope("_".join(["loss", *(TERMS[term] for term in terms)])):
                gradients, values = mean_over_parts(part, form.part(len(base)), base, source, own)
            with jax.named_scope("optimizer"):
                updates, opt_state = optimizer(hyper, n_updates).update(gradients, opt_state)
                model = eqx.apply_updates(model, unravel(updates))
            seen = seen.at[here].set(values)
        return (model, opt_state), seen

    return step
