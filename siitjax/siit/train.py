"""One training run as pure functions: `make_train(config)` gives init, epoch, judge, advance and measure.

What a sweep may vary without changing a shape is a traced leaf of `Hyperparams`, so that one compilation serves
a whole grid; what changes shapes or control flow is static, in `TrainConfig`. Every function here takes one
member, and can be vmapped over lanes.
"""

from dataclasses import replace
from enum import IntEnum
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from siitjax.base.precision import matmul_precision
from siitjax.model.forms import Form
from siitjax.model.transformer import Transformer, init_transformer
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.edge_metrics import count_edges
from siitjax.siit.evaluate import evaluate
from siitjax.siit.metrics import Metrics
from siitjax.siit.step import Step, make_step, optimizer

EPOCH_SHARE = 8
"""Under swaps of edges, one in so many validation pairs is measured after each epoch; all of them are at the end."""
EPOCH_PAIRS = 500
"""Under swaps of nodes, validation pairs that are measured after each epoch; the others too while none went wrong."""
EDGE_PAIRS = 1_000
"""Pairs on which every swap of edges is measured at the end."""


class Stop(IntEnum):
    """Where a member stands, and why it stopped."""

    RUNNING = 0
    CONVERGED = 1
    """Accuracy, IIA and SIIA were 100% on the validation pairs; under swaps of edges, after the last epoch."""
    DIVERGED = 2
    """The loss stopped being finite; the member keeps the weights and metrics of the epoch before."""
    EXHAUSTED = 3
    """All epochs were run."""


class Purpose(IntEnum):
    """What a random number is for: the first thing folded into a member's root key."""

    DATA = 0
    INIT = 1
    ORDER = 2
    SOURCES = 3
    MASKS = 4
    VALIDATION = 5
    FINAL = 6
    SOURCES_DRAWN = 7
    """What a case's own sampler of sources takes."""


def draw_key(root: PRNGKeyArray, purpose: Purpose, step: int | Int[Array, ""] = 0) -> PRNGKeyArray:
    """The key for one purpose at one step, which nothing but the member's root key decides."""
    return jax.random.fold_in(jax.random.fold_in(root, int(purpose)), step)


class Data(eqx.Module):
    """The samples of one member."""

    train: Int[Array, "train seq"]
    validation: Int[Array, "validation seq"]


def draw_data(config: TrainConfig, seed: int) -> Data:
    """The samples that the member of `seed` trains and validates on."""
    rng = np.random.default_rng([seed, Purpose.DATA])
    train, validation = config.case.draw(config.n_train, config.samples - config.n_train, rng)
    return Data(jnp.asarray(train), jnp.asarray(validation))


class History(eqx.Module):
    """What was seen after each epoch: loss terms and counts of answers; nan and 0 where none was run.

    Under swaps of nodes it is of `EPOCH_PAIRS` validation pairs at least, and of more while none went wrong: all where
    the member converged. Under swaps of edges it is of one in `EPOCH_SHARE` pairs.
    """

    loss: Float[Array, "*epoch 3"]
    metrics: Metrics


class State(eqx.Module):
    """One member in training.

    Attributes:
        root: its root key.
        epoch: epochs run.
        stop: a `Stop`.
    """

    model: Transformer
    opt_state: optax.OptState
    root: PRNGKeyArray
    epoch: Int[Array, ""]
    stop: Int[Array, ""]
    history: History


@runtime_checkable
class Init(Protocol):
    """Makes a member of its hyperparameters and root key: drawn weights, epoch 0."""

    def __call__(self, hyper: Hyperparams, root: PRNGKeyArray) -> State: ...


@runtime_checkable
class Advance(Protocol):
    """Trains a member until `until` epochs are done, or it stops. `Train.epoch` trains for one of them, unjudged."""

    def __call__(self, hyper: Hyperparams, data: Data, state: State, until: Int[Array, ""] | int) -> State: ...


@runtime_checkable
class Judge(Protocol):
    """Counts what a member answers right after an epoch, writes it down, and says whether the member stops.

    `last` counts on the pairs of the end instead, of which the state learns nothing.
    """

    def __call__(self, data: Data, state: State, last: Bool[Array, ""] | bool = False) -> tuple[State, Metrics]: ...


@runtime_checkable
class Measure(Protocol):
    """Counts what a member answers right on validation pairs."""

    def __call__(self, data: Data, state: State) -> Metrics: ...


class Train(NamedTuple):
    """The pure functions of a training run.

    `init(hyper, root)` makes a member; `advance(hyper, data, state, until)` trains it until `until` epochs are
    done or it stops; `measure(data, state)` evaluates it on validation pairs that no epoch has seen, so that the
    figures of a run that stopped at its luckiest pairs are not selected for it.

    `advance` is `epoch` and `judge` in turn. They are compiled one by one where members wait, because `judge` measures
    at the end too: where `measure_is_judge`, it counts the same when it is told that this is the last time. `validate`
    is what it counts after an epoch, and `step` is one batch.
    """

    init: Init
    epoch: Advance
    judge: Judge
    advance: Advance
    validate: Measure
    measure: Measure
    step: Step
    measure_is_judge: bool


def make_train(config: TrainConfig, form: Form | None = None) -> Train:
    """The pure functions of a run, closed over everything static. They are not jitted yet: see `Train`."""
    case, steps, batch = config.case, config.steps_per_epoch, config.batch_size
    step, edges = make_step(config, form), config.sampling.swaps == "edges"

    @jax.named_scope("evaluate")
    def evaluated(model, samples, key, enough=None, each=False):
        metrics = evaluate(model, case, samples, key=key, embedding=config.sampling.embedding, enough=enough, form=form)
        if not edges:
            return metrics
        pairs = samples[:EDGE_PAIRS]
        order_key, edge_key = jax.random.split(jax.random.fold_in(key, 1))
        sources = pairs[jax.random.permutation(order_key, len(pairs))]
        if case.sources is not None:
            sources = case.source_of(pairs, sources, jax.random.fold_in(order_key, 1))
        return replace(metrics, edges=count_edges(model, case, pairs, sources, key=edge_key, each=each, form=form))

    @jax.jit  # traced once, for its shapes and where it is called
    def counted(model, samples, root, epoch, last):
        """After an epoch; under swaps of nodes, where this is the last time, on what `measure` takes."""
        after = draw_key(root, Purpose.VALIDATION, epoch - 1)
        if edges:
            return evaluated(model, samples[: max(len(samples) // EPOCH_SHARE, 1)], after)
        key = jnp.where(last, draw_key(root, Purpose.FINAL), after)
        return evaluated(model, samples, key, jnp.where(last, len(samples), EPOCH_PAIRS))

    def init(hyper, root):
        model = init_transformer(case.config, key=draw_key(root, Purpose.INIT))
        samples = jax.ShapeDtypeStruct((config.samples - config.n_train, case.n_ctx), jnp.int32)
        seen = jax.eval_shape(counted, model, samples, root, jnp.int32(0), jnp.asarray(False))
        blank = History(jnp.full((config.epochs, 3), jnp.nan), jax.tree.map(partial(_blank, config.epochs), seen))
        opt_state = optimizer(hyper, 1).init(eqx.filter(model, eqx.is_array))
        return State(model, opt_state, root, jnp.int32(0), jnp.int32(Stop.RUNNING), blank)

    @jax.named_scope("draw_batches")
    def batches(data, root, purpose, epoch):
        order = jax.random.permutation(draw_key(root, purpose, epoch), len(data.train))
        return order[: steps * batch].reshape(steps, batch)

    def one_epoch(hyper, data, state):
        bases = batches(data, state.root, Purpose.ORDER, state.epoch)
        sources = batches(data, state.root, Purpose.SOURCES, state.epoch)
        counts = state.epoch * steps + jnp.arange(steps)

        def body(learner, now):
            base, source, count = now
            key = draw_key(state.root, Purpose.MASKS, count)
            done = (count / (steps * config.epochs)).astype(jnp.float32)
            bases, sources = data.train[base], data.train[source]
            if case.sources is not None:
                sources = case.source_of(bases, sources, draw_key(state.root, Purpose.SOURCES_DRAWN, count))
            return step(hyper, learner, bases, sources, key, done)

        (model, opt_state), losses = jax.lax.scan(body, (state.model, state.opt_state), (bases, sources, counts))
        finite = jnp.isfinite(losses).all() & jnp.isfinite(ravel_pytree(model)[0]).all()
        loss = state.history.loss.at[state.epoch].set(losses.mean(0))
        after = State(model, opt_state, state.root, state.epoch + 1, state.stop, replace(state.history, loss=loss))
        return jax.lax.cond(finite, lambda: after, lambda: replace(state, stop=jnp.int32(Stop.DIVERGED)))

    def epoch(hyper, data, state, until):
        goes_on = (state.stop == int(Stop.RUNNING)) & (state.epoch < until)
        return jax.lax.cond(goes_on, partial(one_epoch, hyper, data), lambda state: state, state)

    def judge(data, state, last: Bool[Array, ""] | bool = False):
        running = (state.stop == int(Stop.RUNNING)) & ~jnp.asarray(last)
        nothing = jax.tree.map(lambda all: jnp.zeros_like(all[0]), state.history.metrics)
        count = lambda: counted(state.model, data.validation, state.root, state.epoch, jnp.asarray(last))
        metrics = jax.lax.cond(running | last, count, lambda: nothing)
        stop = jnp.where(state.epoch == config.epochs, int(Stop.EXHAUSTED), int(Stop.RUNNING))
        # Swaps of edges are sampled: that none went wrong is no reason to stop before the last epoch.
        may_stop = (state.epoch == config.epochs) | (not edges)
        stop = jnp.where(metrics.perfect & may_stop, int(Stop.CONVERGED), stop)
        row = state.epoch - 1
        write = lambda all, now: all.at[row].set(jnp.where(running, now, all[row]))
        history = replace(state.history, metrics=jax.tree.map(write, state.history.metrics, metrics))
        return replace(state, stop=jnp.where(running, stop, state.stop), history=history), metrics

    def advance(hyper, data, state, until):
        return jax.lax.while_loop(
            lambda state: (state.stop == int(Stop.RUNNING)) & (state.epoch < until),
            lambda state: judge(data, epoch(hyper, data, state, until))[0],
            state,
        )

    def validate(data, state):
        return counted(state.model, data.validation, state.root, state.epoch, jnp.asarray(False))

    def measure(data, state):
        return evaluated(state.model, samples=data.validation, key=draw_key(state.root, Purpose.FINAL), each=True)

    precise = matmul_precision(config.matmul_precision)
    return Train(
        precise(init),
        precise(epoch),
        precise(judge),
        precise(advance),
        precise(validate),
        precise(measure),
        precise(step),
        measure_is_judge=not edges,
    )


def _blank(epochs: int, leaf: jax.ShapeDtypeStruct) -> Array:
    empty = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 0
    return jnp.full((epochs, *leaf.shape), empty, leaf.dtype)
