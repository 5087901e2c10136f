"""The two kinds of loss in numbers worked out by hand; how tokens are averaged, and that pads are free; and that a
regression case, declared here in full, trains as it stands."""

import io
import json
from dataclasses import fields, replace
from fractions import Fraction
from functools import partial

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from cases import find
from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.causal.loss import CrossEntropy, SquaredError
from siitjax.io.model_card import card
from siitjax.model.nodes import head, mlp
from siitjax.model.transformer import Transformer, init_transformer
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.evaluate import count, evaluate
from siitjax.siit.fresh_pairs import summary_table
from siitjax.siit.metrics import read_shares, shares
from siitjax.siit.objective import term_losses
from siitjax.siit.train import Stop, draw_data, make_train

ROUNDING = 1e-6
"""Relative error that float32 arithmetic on a handful of numbers may have."""
LN2 = float(np.log(2))


# --- cross-entropy


def test_cross_entropy_is_minus_the_log_of_the_labels_probability():
    """Logits ln 1, ln 2, ln 5 are probabilities 1/8, 2/8, 5/8."""
    outputs = jnp.log(jnp.array([[1.0, 2.0, 5.0]] * 3))
    losses = CrossEntropy().per_token(outputs, jnp.array([0, 1, 2]))
    np.testing.assert_allclose(losses, [3 * LN2, 2 * LN2, np.log(8 / 5)], rtol=ROUNDING)


def test_cross_entropy_counts_a_token_right_whose_largest_logit_is_the_labels():
    outputs = jnp.array([[0.1, 0.2, -3.0], [2.0, 1.0, 1.9], [-1.0, -2.0, -0.5]])
    assert CrossEntropy().correct(outputs, jnp.array([1, 0, 2])).tolist() == [True, True, True]
    assert CrossEntropy().correct(outputs, jnp.array([0, 2, 2])).tolist() == [False, False, True]
    assert CrossEntropy().same(jnp.array([1, 0, 2]), jnp.array([0, 0, 2])).tolist() == [False, True, True]


# --- squared error


def test_squared_error_is_the_mean_over_the_numbers_of_a_token():
    outputs = jnp.array([[1.0, 2.0], [0.0, -3.0]])
    labels = jnp.array([[0.5, 2.0], [1.0, 0.0]])
    assert SquaredError().per_token(outputs, labels).tolist() == [0.125, 5.0]


def test_squared_error_counts_a_token_right_when_every_number_is_within_the_tolerance():
    """A quarter is a float32: a token off by just that is right."""
    labels = jnp.array([[1.0, -2.0]] * 4)
    outputs = jnp.array([[1.25, -2.25], [1.25, -2.2501], [0.7499, -2.0], [1.0, -2.0]])
    assert SquaredError(0.25).correct(outputs, labels).tolist() == [True, False, False, True]
    assert SquaredError(1e-5).correct(outputs, labels).tolist() == [False, False, False, True]
    assert SquaredError(1.0).correct(outputs, labels).tolist() == [True, True, True, True]
    assert not SquaredError(1.0).correct(jnp.array([[jnp.nan, -2.0]]), labels[:1]).any()


def test_squared_error_has_the_same_label_where_every_number_is_equal():
    labels, others = jnp.array([[1.0, 2.0], [1.0, 2.0]]), jnp.array([[1.0, 2.0], [1.0, 2.5]])
    assert SquaredError().same(labels, others).tolist() == [True, False]


@pytest.mark.parametrize("tolerance", [0.0, -0.1, float("nan")])
def test_a_tolerance_that_is_not_positive_is_refused(tolerance):
    with pytest.raises(ValueError, match=f"tolerance is {tolerance}; it must be greater than 0"):
        SquaredError(tolerance)


# --- the mean over a sample's own tokens, then over the batch

PARENS = find("left_greater").with_context(6)
MODEL = init_transformer(PARENS.config, key=jax.random.key(0))
losses_under, measure = eqx.filter_jit(term_losses), eqx.filter_jit(evaluate)


def padded(*strings: str) -> jax.Array:
    """Samples of different lengths, each filled up with PAD."""
    return jnp.stack([PARENS.tokens([*s, *["PAD"] * (PARENS.n_ctx - 1 - len(s))]) for s in strings])


def constant(logits: np.ndarray) -> Transformer:
    """A transformer that answers the same everywhere."""
    unembed = lambda model: (model.unembed.W_U, model.unembed.b_U)
    return eqx.tree_at(unembed, MODEL, (jnp.zeros_like(MODEL.unembed.W_U), jnp.asarray(logits, jnp.float32)))


def test_the_loss_is_the_mean_over_a_samples_own_tokens_and_then_over_the_batch():
    """The label of BOS has probability 1/2, any other 1/4: they cost ln 2 and 2 ln 2, whatever is swapped.

    "(" is 2 tokens long, (1 + 2) / 2 = 3/2; "())((" is 6, (1 + 5 * 2) / 6 = 11/6; their mean is 5/3. Over the
    batch's 8 tokens it would be 7/4, and over all 12 places more.
    """
    base, source = padded("(", "())(("), padded(")(", "((")
    masks = jnp.asarray(np.stack([PARENS.circuit.nodes.mask(nodes) for nodes in ([], [head(0, 0), mlp(0)])]))
    losses = losses_under(constant(np.log([1 / 4, 1 / 4, 1 / 2])), PARENS, base, source, masks)
    np.testing.assert_allclose(losses, [5 / 3 * LN2] * 2, rtol=ROUNDING)


def test_metrics_are_shares_of_own_tokens():
    """The answer is always 1. The labels are 2 1, and 2 1 0 0 0 1: 3 of 8 tokens are right, and pads would be."""
    found = shares(measure(constant(np.array([0, 1, 0])), PARENS, padded("(", "())(("), key=jax.random.key(0)))
    assert [found.accuracy, found.siia, found.joint_siia, found.subset_siia] == [Fraction(3, 8)] * 4


class DisturbedAtPads(Transformer):
    """A transformer whose logits at pads are moved by another multiple of `by` each."""

    by: jax.Array

    def __call__(self, tokens, *args, **kwargs):
        logits, activations = super().__call__(tokens, *args, **kwargs)
        return jnp.where((tokens == PAD)[:, None], logits + self.by * jnp.arange(1.0, 4.0)[None], logits), activations


def disturbed(by: float) -> Transformer:
    return DisturbedAtPads(**{f.name: getattr(MODEL, f.name) for f in fields(MODEL)}, by=jnp.array(by))


def relabelled_at_pads() -> Case:
    """The same case, but that the label of a pad is BOS's."""
    *others, answer = PARENS.variables
    compute = lambda tokens, greater: jnp.where(tokens == PAD, 2, answer.compute(greater))
    return replace(PARENS, variables=(*others, replace(answer, reads=("tokens", *answer.reads), compute=compute)))


@eqx.filter_jit
def losses_gradients_metrics(model: Transformer, case: Case):
    """On samples of every length, as bases and as sources, under swaps of each node of the circuit and of the rest."""
    rng, nodes = np.random.default_rng(0), case.circuit.nodes
    base, source = (padded(*("".join(rng.choice(list("()"), n % 6)) for n in range(12))) for _ in range(2))
    masks = [nodes.mask([]), *np.eye(len(nodes), dtype=bool)[case.circuit.circuit_mask], case.circuit.unused_mask]
    losses = lambda model: term_losses(model, case, base, source, jnp.asarray(np.stack(masks)))
    gradients = eqx.filter_grad(lambda model: losses(model).sum())(model)
    return losses(model), jax.tree.leaves(gradients), evaluate(model, case, base, key=jax.random.key(1))


@pytest.mark.parametrize("what", ["logits", "labels", "nan"])
def test_what_stands_at_pads_changes_no_loss_no_gradient_and_no_metric(what):
    """A nan is kept from losses and metrics; a gradient cannot be kept from it."""
    by = {"logits": 100.0, "labels": 0.0, "nan": float("nan")}[what]
    case = relabelled_at_pads() if what == "labels" else PARENS
    losses, gradients, metrics = losses_gradients_metrics(disturbed(0.0), PARENS)
    losses_there, gradients_there, metrics_there = losses_gradients_metrics(disturbed(by), case)
    np.testing.assert_allclose(losses_there, losses, rtol=ROUNDING)
    chex.assert_trees_all_equal(metrics_there, metrics)
    if what != "nan":
        chex.assert_trees_all_close(gradients_there, gradients, rtol=0, atol=ROUNDING)


# --- a regression case, declared here in full


def counts(tokens):
    """How many a, and how many letters, there are up to each position: (seq, 2)."""
    return jnp.cumsum(jnp.stack([tokens == 2, tokens > PAD], -1), 0)


def fraction(counts):
    """The share of a in the letters so far, 0 before the first: (seq, 1)."""
    return (counts[:, :1] / jnp.maximum(counts[:, 1:], 1)).astype(jnp.float32)


FRACTION = Case(
    name="fraction",
    vocabulary=("BOS", "PAD", "a", "b"),
    variables=(
        Variable("counts", ("tokens",), counts, head(0, 1)),
        Variable("fraction", ("counts",), fraction, mlp(0)),
    ),
    strata=(Uniform((2, 3)),),
    n_layers=1,
    d_model=8,
    d_head=4,
    n_outputs=1,
    n_ctx=9,
    loss=SquaredError(tolerance=0.1),
)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [([], [0, 1, 1, 2 / 3]), ([head(0, 1)], [0, 0, 1 / 2, 1 / 3]), ([mlp(0)], [0, 0, 1 / 2, 1 / 3])],
)
def test_counterfactual_labels_of_a_regression_case_are_numbers(nodes, expected):
    """Base "aab" has shares 1, 1, 2/3 of a; source "bab" has 0, 1/2, 1/3."""
    circuit = FRACTION.circuit
    _, source = circuit(FRACTION.tokens("bab"))
    labels, _ = circuit(FRACTION.tokens("aab"), (jnp.asarray(circuit.nodes.mask(nodes)), source))
    np.testing.assert_allclose(labels, np.array(expected)[:, None], rtol=ROUNDING)


def flat(counts):
    """The same numbers without their last axis: (seq,)."""
    return fraction(counts)[:, 0]


@pytest.mark.parametrize(("loss", "label"), [(SquaredError(), flat), (CrossEntropy(), fraction)])
def test_labels_of_a_shape_that_the_loss_does_not_take_are_refused(loss, label):
    """(seq, 1) minus (seq,) would be (seq, seq), and its mean a loss that trains without a word."""
    counted, last = FRACTION.variables
    with pytest.raises(ValueError, match="label"):
        replace(FRACTION, loss=loss, variables=(counted, replace(last, compute=label)))


def test_a_regression_case_trains_as_any_other():
    config = TrainConfig(FRACTION, epochs=10, batch_size=32, samples=320)
    train, hyper = make_train(config), Hyperparams(lr_start=1e-2, lr_end=1e-2).traced()
    start = train.init(hyper, jax.random.key(0))
    state = jax.jit(train.advance)(hyper, draw_data(config, seed=0), start, config.epochs)
    loss, metrics = np.asarray(state.history.loss)[: int(state.epoch)], state.history.metrics
    assert int(state.stop) in (Stop.EXHAUSTED, Stop.CONVERGED)
    assert np.isfinite(loss).all()
    assert (loss[-1] < 0.5 * loss[0]).all()
    assert (np.asarray(metrics.changed.of)[: int(state.epoch)] > 0).all()
    assert int(metrics.base.right[int(state.epoch) - 1]) > int(metrics.base.right[0])


def test_how_far_numbers_are_off_is_told_beside_the_share_right():
    model = init_transformer(FRACTION.config, key=jax.random.key(0))
    base, _ = FRACTION.draw(12, 12, np.random.default_rng(0))
    source, mask = np.roll(base, 1, 0), jnp.asarray(FRACTION.circuit.nodes.mask([mlp(0)]))
    measure = jax.jit(partial(count, key=jax.random.key(0)), static_argnums=1)
    found = measure(model, FRACTION, jnp.asarray(base), jnp.asarray(source))
    swapped = jax.jit(jax.vmap(lambda b, s: model(b, (mask, model(s)[1]))[0]))(jnp.asarray(base), jnp.asarray(source))
    clean = jax.jit(jax.vmap(lambda b: model(b)[0]))(jnp.asarray(base))
    share = lambda tokens: [0.0, *(tokens[1:i].count(2) / (i - 1) for i in range(2, len(tokens) + 1))]
    labels, sources = (np.array([share(row.tolist()) for row in rows]) for rows in (base, source))
    off = lambda answers, labels: np.abs(np.asarray(answers)[..., 0] - labels).mean()
    told = shares(found)
    assert told.mean_error == pytest.approx(off(clean, labels), rel=1e-5)
    assert told.node_mean_error[1] == pytest.approx(off(swapped, sources), rel=1e-5)
    assert read_shares(json.loads(json.dumps(told.to_json()))).mean_error == pytest.approx(told.mean_error)
    text = io.StringIO()
    Console(file=text, width=120).print(summary_table(FRACTION, found, 12))
    assert f"mean absolute error {told.mean_error:.3g}" in " ".join(text.getvalue().split())
    assert "right within 0.1" in text.getvalue()
    assert f"in the label's unit, is {told.mean_error:.3g} with" in card(FRACTION, told, {}, 1, ("BOS",), {})
