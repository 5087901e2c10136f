"""One training run as pure functions: `make_train(config)` gives init, epoch, judge, advance and measure.

What a sweep may vary without changing a shape is a traced leaf of `Hyperparams`, so that one compilation serves
a whole grid; what changes shapes or control flow is static, in `TrainConfig`. Every function here takes one
member, and can be vmapped over lanes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError
from siitjax.base.precision import MatmulPrecision, matmul_precision
from siitjax.causal.case import Case
from siitjax.model.forms import Form, fastest, mean_over_parts
from siitjax.model.swaps import EdgeSwaps
from siitjax.model.transformer import Transformer, init_transformer
from siitjax.siit.edge_metrics import count_edges
from siitjax.siit.edge_sampling import draw_swaps
from siitjax.siit.evaluate import evaluate
from siitjax.siit.metrics import Metrics
from siitjax.siit.objective import BASE, IIT, SIIT, TERMS, Sampling, batch_masks, edge_term_losses, term_losses

EPOCH_SHARE = 8
"""Under swaps of edges, one in so many validation pairs is measured after each epoch; all of them are at the end."""
EPOCH_PAIRS = 500
"""Under swaps of nodes, validation pairs that are measured after each epoch; the others too while none went wrong."""
EDGE_PAIRS = 1_000
"""Pairs on which every swap of edges is measured at the end."""

Updates = Literal["single", "three"]
Scalar = float | int | Float[Array, ""]

PROBABILITIES = (
    *("p_circuit", "p_unused", "edges_from", "p_edge", "p_nodes", "p_edges"),
    *("p_outside", "p_whole", "p_own", "p_base", "p_positions"),
)


class Hyperparams(eqx.Module):
    """What a sweep may vary within one compilation. The defaults are those of Anders & Garriga-Alonso 2024.

    Attributes:
        lr_start, lr_end: learning rate at the first and after the last update, linear between; equal for constant.
        beta1, beta2, eps: Adam's.
        clip: largest global norm of a gradient.
        w_base, w_iit, w_siit: weights of the three loss terms.
        p_circuit, p_unused: probability of a node in a random subset of the circuit's, of the unused nodes.
        edges_from: this and what follows are of `Sampling(swaps="edges")` alone. The share of the run in
            which single nodes are swapped, before every kind is.
        p_edge, p_nodes, p_edges: probability that the IIT term swaps one edge of the circuit, a random subset of its
            nodes, one of its edges; what is left to 1 is that of one node.
        p_outside: probability that the IIT term swaps edges outside the circuit too.
        p_whole: probability that all unused nodes, or all edges outside the circuit, are swapped, not a subset.
        p_own: probability that each sender has a source run of its own.
        p_base: probability that unused nodes which the IIT term swaps are held at the base run's values.
        p_positions: probability that senders are swapped at random positions.
        w_changed: how much more a token weighs whose label the swap changed.

    Raises:
        UserError: a number is out of its range (traced values are not checked).

    Example:
        >>> Hyperparams(lr_start=2e-3).clip
        1.0
        >>> Hyperparams(beta2=1.0)
        Traceback (most recent call last):
        siitjax.base.errors.UserError: beta2 is 1.0; it must be at least 0 and less than 1
    """

    lr_start: Scalar = 1e-3
    lr_end: Scalar = 2e-4
    beta1: Scalar = 0.9
    beta2: Scalar = 0.9
    eps: Scalar = 1e-8
    clip: Scalar = 1.0
    w_base: Scalar = 0.4
    w_iit: Scalar = 1.0
    w_siit: Scalar = 0.4
    p_circuit: Scalar = 0.5
    p_unused: Scalar = 0.5
    edges_from: Scalar = 0.0
    p_edge: Scalar = 0.35
    p_nodes: Scalar = 0.15
    p_edges: Scalar = 0.15
    p_outside: Scalar = 0.5
    p_whole: Scalar = 0.3
    p_own: Scalar = 0.5
    p_base: Scalar = 0.0
    p_positions: Scalar = 0.25
    w_changed: Scalar = 0.0

    def __post_init__(self):
        for names, accepts, words in (
            (("beta1", "beta2"), lambda x: 0 <= x < 1, "at least 0 and less than 1"),
            (PROBABILITIES, lambda x: 0 <= x <= 1, "from 0 to 1"),
            (("lr_start", "eps", "clip"), lambda x: 0 < x < np.inf, "greater than 0, and finite"),
            (("lr_end", "w_base", "w_iit", "w_siit", "w_changed"), lambda x: 0 <= x < np.inf, "at least 0, and finite"),
        ):
            for name in names:
                value = getattr(self, name)
                if isinstance(value, int | float) and not accepts(_as_trained(value)):
                    raise UserError(f"{name} is {value}; it must be {words}")
        known = [p for p in (self.p_edge, self.p_nodes, self.p_edges) if isinstance(p, int | float)]
        if _as_trained(sum(known)) > 1:
            raise UserError(f"p_edge, p_nodes and p_edges come to {sum(known):g} together; they may come to 1 at most")

    def traced(self) -> "Hyperparams":
        """The same numbers as float32 arrays, as the compiled functions take them."""
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self)


def _as_trained(value: float | int) -> np.float32:
    """The number that training uses: 1 - 1e-9 is 1 there, and 1e39 infinite."""
    with np.errstate(over="ignore", under="ignore"):
        return np.float32(value)


@dataclass(frozen=True)
class TrainConfig:
    """What makes another compilation.

    Attributes:
        case: the task.
        epochs: passes over the training set at most; the learning rate reaches its end with the last.
        batch_size: pairs a batch; an incomplete last batch of an epoch is left out.
        samples: strings, of which four fifths are trained on and one fifth validated on.
        updates: "single", one update a batch on the weighted sum, or "three", one for each term in turn
            (Gupta et al. 2024, Algorithm 1), each with its own weight, all on one optimizer state.
        sampling: how nodes are drawn.
        matmul_precision: how exactly GPUs and TPUs multiply; see `siitjax.base.precision`.

    Raises:
        UserError: a number is not positive, `updates` or `matmul_precision` is unknown, or a batch is larger than the
            training set.

    Example:
        >>> import siitjax
        >>> config = TrainConfig(siitjax.find_case("left_greater"), samples=1_000, batch_size=64)
        >>> config.n_train, config.steps_per_epoch
        (800, 12)
    """

    case: Case
    epochs: int = 100
    batch_size: int = 256
    samples: int = 10_000
    updates: Updates = "single"
    sampling: Sampling = field(default_factory=Sampling)
    matmul_precision: MatmulPrecision = "highest"

    def __post_init__(self):
        for name in ("epochs", "batch_size", "samples"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        check_choice("updates", self.updates, get_args(Updates))
        check_choice("matmul_precision", self.matmul_precision, get_args(MatmulPrecision))
        if self.batch_size > self.n_train:
            raise UserError(
                f"batch_size is {self.batch_size}, but {self.samples} samples leave {self.n_train} to train on; "
                "lower batch_size or raise samples"
            )
        if self.samples - self.n_train < 1:
            raise UserError(f"{self.samples} samples leave none to validate on; use at least 3")

    @property
    def n_train(self) -> int:
        """Samples to train on: four fifths."""
        return round(self.samples * 0.8)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches that the training set holds."""
        return self.n_train // self.batch_size


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
    step: "Step"
    measure_is_judge: bool


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
