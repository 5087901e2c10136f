"""One training run: Adam, clipping and the schedule against arithmetic in plain Python; where and why a run stops;
and that nothing but its seed decides a member's result, wherever it was resumed.

The runs are on a case whose label is always class 1, which a few updates teach or, at a tiny learning rate, never do.
"""

import math
import re
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.objective import Sampling
from siitjax.siit.step import optimizer
from siitjax.siit.train import Stop, draw_data, make_train
from tests.tiny import CASE

TOLERANCE = 1e-5
"""Rounding of a few float32 updates, relative."""

ADAM_TOLERANCE = 2**-23 / (1 - 0.999)
"""The same where Adam divides by 1 - beta^t, of which float32 keeps that much: 1.2e-4 at beta 0.999."""

EPOCHS, STEPS = 3, 5

CONFIG = TrainConfig(CASE, epochs=EPOCHS, batch_size=32, samples=200, sampling=Sampling("subset", "subset"))
TRAIN = make_train(CONFIG)
init, advance, measure = jax.jit(TRAIN.init), jax.jit(TRAIN.advance), jax.jit(TRAIN.measure)

LEARNS = Hyperparams(lr_start=0.05, lr_end=0.05).traced()
STAYS = Hyperparams(lr_start=1e-30, lr_end=0.0, p_circuit=1.0, p_unused=1.0).traced()
STUBBORN = 1
"""A seed whose first weights do not always answer class 1."""


@pytest.fixture(scope="module")
def data():
    return draw_data(CONFIG, STUBBORN)


@pytest.fixture(scope="module")
def start():
    return init(STAYS, jax.random.key(STUBBORN))


def clipped_adam_by_hand(gradients, n_updates, *, lr_start, lr_end, beta1, beta2, eps, clip):
    """The change of each number at each update: Kingma & Ba 2015, Algorithm 1, on gradients cut to norm `clip`."""
    m, v, changes = [0.0] * 3, [0.0] * 3, []
    for t, gradient in enumerate(gradients, start=1):
        norm = math.sqrt(sum(g * g for g in gradient))
        gradient = [g * clip / norm if norm > clip else g for g in gradient]
        rate = lr_start + (lr_end - lr_start) * (t - 1) / n_updates
        m = [beta1 * a + (1 - beta1) * g for a, g in zip(m, gradient, strict=True)]
        v = [beta2 * a + (1 - beta2) * g * g for a, g in zip(v, gradient, strict=True)]
        hats = [(a / (1 - beta1**t), b / (1 - beta2**t)) for a, b in zip(m, v, strict=True)]
        changes.append([-rate * a / (math.sqrt(b) + eps) for a, b in hats])
    return changes


SETTINGS = [
    {"lr_start": 1e-3, "lr_end": 2e-4, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "clip": 1.0},
    {"lr_start": 1e-3, "lr_end": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "clip": 100.0},
    {"lr_start": 1e-2, "lr_end": 0.0, "beta1": 0.0, "beta2": 0.5, "eps": 0.1, "clip": 0.01},
    {"lr_start": 1e-4, "lr_end": 1e-1, "beta1": 0.95, "beta2": 0.0, "eps": 1e-3, "clip": 4.0},
]


def test_updates_are_clipped_adam_on_a_linear_schedule_compiled_once_for_all_settings():
    gradients = [[3.0, -4.0, 0.5], [0.1, 0.0, -0.2], [-5.0, 1.0, 2.0], [0.3, 0.3, 0.3], [-1.0, 2.0, -2.0]]
    as_tree = lambda gradient: {"a": jnp.float32(gradient[0]), "b": jnp.array(gradient[1:], jnp.float32)}

    @jax.jit
    @chex.assert_max_traces(n=1)
    def changes(hyper, gradients):
        with jax.numpy_dtype_promotion("standard"):
            opt = optimizer(hyper, len(gradients))
            state, seen = opt.init(gradients[0]), []
            for gradient in gradients:
                change, state = opt.update(gradient, state)
                seen.append(change)
        return seen

    for setting in SETTINGS:
        got = changes(Hyperparams(**setting).traced(), list(map(as_tree, gradients)))
        wanted = clipped_adam_by_hand(gradients, len(gradients), **setting)
        for change, numbers in zip(got, wanted, strict=True):
            atol = ADAM_TOLERANCE * max(map(abs, numbers))
            np.testing.assert_allclose([change["a"], *change["b"]], numbers, rtol=0, atol=atol)


def test_the_learning_rate_is_lr_start_at_the_first_update_and_lr_end_once_the_last_is_done():
    """Without memory, Adam's change is the learning rate and the gradient's sign."""
    hyper = Hyperparams(lr_start=0.5, lr_end=0.1, beta1=0.0, beta2=0.0, eps=1e-12)
    opt = optimizer(hyper.traced(), 4)
    state, rates = opt.init(jnp.float32(0)), []
    for _ in range(6):
        with jax.numpy_dtype_promotion("standard"):
            change, state = opt.update(jnp.float32(-0.7), state)
        rates.append(change)
    np.testing.assert_allclose(rates, [0.5, 0.4, 0.3, 0.2, 0.1, 0.1], rtol=TOLERANCE)


@pytest.mark.parametrize("until", [2, EPOCHS], ids=["running", "stopped"])
def test_the_judge_counts_at_the_end_what_measure_does_and_changes_nothing(until, data, start):
    state = advance(STAYS, data, start, until)
    after, metrics = jax.jit(TRAIN.judge)(data, state, True)
    chex.assert_trees_all_equal(metrics, measure(data, state))
    chex.assert_trees_all_equal(after, state)


def test_a_run_that_never_is_perfect_runs_all_epochs_of_all_updates(data, start):
    state = advance(STAYS, data, start, EPOCHS)
    assert (Stop(int(state.stop)), int(state.epoch)) == (Stop.EXHAUSTED, EPOCHS)
    assert all(int(n) == EPOCHS * STEPS for _, n in optax.tree_utils.tree_get_all_with_path(state.opt_state, "count"))
    assert state.history.loss.shape == (EPOCHS, 3)
    assert np.isfinite(state.history.loss).all()
    metrics = state.history.metrics
    one = measure(data, state)
    for counted, of_one in zip(jax.tree.leaves(metrics), jax.tree.leaves(one), strict=True):
        assert counted.shape == (EPOCHS, *of_one.shape)
    assert not metrics.perfect.any()
    assert (metrics.base.right < metrics.base.of).all()
    # These weights did not change, so what each epoch saw is what the end sees.
    np.testing.assert_array_equal(metrics.base.right, jnp.broadcast_to(one.base.right, EPOCHS))


def test_a_run_stops_after_the_first_epoch_in_which_it_is_perfect(data, start):
    assert not measure(data, start).perfect
    state = advance(LEARNS, data, start, EPOCHS)
    epochs = int(state.epoch)
    assert Stop(int(state.stop)) is Stop.CONVERGED
    assert state.history.metrics.perfect[:epochs].tolist() == [i == epochs - 1 for i in range(epochs)]
    assert epochs < EPOCHS
    assert np.isnan(state.history.loss[epochs:]).all()
    assert not any(counted[epochs:].any() for counted in jax.tree.leaves(state.history.metrics))
    chex.assert_trees_all_equal(advance(LEARNS, data, state, EPOCHS), state)


BAD = {
    "a learning rate that overflows": {"lr_start": 1e38, "lr_end": 1e38},
    "a weight that overflows": {"w_iit": 1e38, "w_base": 3e38, "clip": 1e38},
    "a clip that is no number": {"clip": jnp.float32(jnp.nan)},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_that_diverges_keeps_the_weights_and_history_of_the_last_finite_epoch(data, start, epochs, bad):
    healthy = advance(STAYS, data, start, epochs)
    state = advance(replace(STAYS, **bad).traced(), data, healthy, EPOCHS)
    assert (Stop(int(state.stop)), int(state.epoch)) == (Stop.DIVERGED, epochs)
    chex.assert_trees_all_equal(replace(state, stop=healthy.stop), healthy)
    assert np.isfinite(state.history.loss).all(1).tolist() == [i < epochs for i in range(EPOCHS)]
    chex.assert_trees_all_equal(measure(data, state), measure(data, healthy))


def test_the_seed_alone_decides_a_result():
    def run(seed, data_seed=0):
        state = advance(LEARNS, draw_data(CONFIG, data_seed), init(LEARNS, jax.random.key(seed)), 1)
        return state.model.blocks[0].mlp.W_in, draw_data(CONFIG, seed).train

    first, other = run(0), run(1)
    chex.assert_trees_all_equal(first, run(0))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_run_stopped_and_resumed_is_the_run_that_was_not_bit_for_bit(data, start):
    hyper = Hyperparams(lr_start=1e-4, lr_end=1e-5).traced()
    through = advance(hyper, data, start, EPOCHS)
    assert int(through.epoch) == EPOCHS
    state = start
    for until in range(1, EPOCHS + 1):
        state = advance(hyper, data, state, until)
        assert int(state.epoch) == until
    chex.assert_trees_all_equal(state, through)


def test_pairs_are_drawn_anew_each_epoch_of_which_each_takes_every_sample_once(data, start):
    """The weights stay and every node is swapped, so a loss can move only with the pairs. Each base counts once an
    epoch, in whatever order: the base loss stays. Whose source stands beside it is new: the others move."""
    base, iit, siit = np.asarray(advance(STAYS, data, start, EPOCHS).history.loss).T
    np.testing.assert_allclose(base, base[0], rtol=TOLERANCE)
    for losses in (iit, siit):
        assert np.abs(np.diff([*losses, losses[0]])).min() > 100 * TOLERANCE * losses[0]


def test_masks_are_drawn_anew_each_batch(data, start):
    """On the pairs of the run above, where every batch swapped all nodes. Swapped with probability 1/2, a node that
    always has one fate gives the loss of that run or the base loss; a node of many fates neither."""
    base, iit, siit = np.asarray(advance(STAYS, data, start, EPOCHS).history.loss).T
    halves = replace(STAYS, p_circuit=jnp.float32(0.5), p_unused=jnp.float32(0.5))
    base_again, *halved = np.asarray(advance(halves, data, start, EPOCHS).history.loss).T
    np.testing.assert_array_equal(base_again, base)
    for all_swapped, some_swapped in zip((iit, siit), halved, strict=True):
        for same in (base, all_swapped):
            assert np.abs(some_swapped - same).max() > 100 * TOLERANCE * base[0]


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        *((name, (-0.1, 1.0, math.nan), "at least 0 and less than 1") for name in ("beta1", "beta2")),
        *((name, (-0.1, 1.1, math.nan), "from 0 to 1") for name in ("p_circuit", "p_unused")),
        *((name, (0, -1.0, math.inf, math.nan), "greater than 0, and finite") for name in ("lr_start", "eps", "clip")),
        *(
            (name, (-1.0, math.inf, math.nan), "at least 0, and finite")
            for name in ("lr_end", "w_base", "w_iit", "w_siit")
        ),
    ],
)
def test_a_hyperparameter_out_of_range_is_refused_with_the_range(name, values, words):
    for value in values:
        with pytest.raises(ValueError, match=re.escape(f"{name} is {value}; it must be {words}")):
            Hyperparams(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("beta1", 1 - 1e-9), ("beta2", 1 - 1e-9), ("lr_start", 1e39), ("eps", 1e-50), ("clip", 1e-50)]
)
def test_a_hyperparameter_is_judged_as_the_float32_that_it_becomes(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value}; it must be")):
        Hyperparams(**{name: value})


def test_the_ends_of_the_ranges_are_accepted():
    Hyperparams(beta1=0.0, beta2=0.0, p_circuit=0.0, p_unused=1.0, lr_end=0.0, w_base=0.0, w_iit=0.0, w_siit=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"samples": -5}, "samples is -5; it must be at least 1"),
        ({"batch_size": 161}, "batch_size is 161, but 200 samples leave 160 to train on; lower batch_size or raise"),
        ({"samples": 2, "batch_size": 1}, "2 samples leave none to validate on; use at least 3"),
        ({"updates": "tree"}, 'updates is "tree"; did you mean "three"? It must be one of single, three'),
    ],
)
def test_a_config_that_cannot_be_run_is_refused_in_words(monkeypatch, changed, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(CONFIG, **changed)


def test_an_incomplete_last_batch_is_left_out():
    assert TrainConfig(CASE, samples=10, batch_size=8).steps_per_epoch == 1
    assert TrainConfig(CASE, samples=10, batch_size=5).steps_per_epoch == 1
    assert TrainConfig(CASE, samples=3, batch_size=2).n_train == 2
