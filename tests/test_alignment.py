"""Alignments beside a loop that patches with NumPy; methods on a transformer made by hand, in which two variables lie
in known directions of one MLP."""

import doctest
import re
from dataclasses import replace
from importlib import import_module
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cases
from siitjax.analysis.alignment import directions
from siitjax.analysis.alignment.alignments import Flow, Projection
from siitjax.analysis.alignment.exam import prepare_exam, site_of, values_of, variables_at, wrong_variable
from siitjax.analysis.alignment.learn import Lanes, NonLinear, Training, orthonormal
from siitjax.analysis.alignment.methods import METHODS, sizes_of
from siitjax.analysis.alignment.score import score
from siitjax.analysis.alignment.study import UNTRAINED, WRONG, Plan, study
from siitjax.analysis.discovery.pairs import Pairs, draw_pairs
from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp
from siitjax.model.transformer import init_transformer


def low(tokens):
    """Whether the letter is b or d."""
    return (tokens == 3) | (tokens == 5)


def high(tokens):
    """Whether the letter is c or d."""
    return tokens >= 4


def number(low, high):
    return 2 * high.astype(jnp.int32) + low.astype(jnp.int32)


CASE = Case(
    name="bits",
    vocabulary=("BOS", "PAD", "a", "b", "c", "d"),
    variables=(
        Variable("low", ("tokens",), low, mlp(0)),
        Variable("high", ("tokens",), high, mlp(0)),
        Variable("number", ("low", "high"), number, mlp(1)),
    ),
    strata=(Uniform((2, 3, 4, 5)),),
    n_layers=2,
    d_model=8,
    d_head=4,
    d_mlp=4,
    n_outputs=4,
    n_ctx=5,
    layer_norm=False,
)
LETTERS = {2: (0, 0), 3: (1, 0), 4: (0, 1), 5: (1, 1)}
SLANTED = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0]]) / np.sqrt(2)
STRAIGHT = np.eye(4)[[2, 0]]
TRAINING = Training(steps=150, batch_size=16, lr=0.1)


def by_hand(planted):
    """MLP0 holds low and high along two directions, around (2, 2, 2, 2); the logits read both. Nothing else writes."""
    blank = jax.tree.map(jnp.zeros_like, init_transformer(CASE.config, key=jax.random.key(0)))
    bits = np.array([(0, 0), (0, 0), *LETTERS.values()], float)
    signs = np.array([[2 * (i % 2) - 1, 2 * (i // 2) - 1] for i in range(4)], float)
    weights = {
        lambda m: m.embed.W_E: np.eye(6, 8),
        lambda m: m.blocks[0].mlp.W_in: np.pad(bits @ planted, ((0, 2), (0, 0))),
        lambda m: m.blocks[0].mlp.b_in: np.full(4, 2.0),
        lambda m: m.blocks[0].mlp.W_out: np.pad(planted.T, ((0, 0), (6, 0))),
        lambda m: m.unembed.W_U: np.pad(4 * signs.T, ((6, 0), (0, 0))),
        lambda m: m.unembed.b_U: -4 * signs @ (planted @ np.full(4, 2.0) + 0.5),
    }
    for where, value in weights.items():
        blank = eqx.tree_at(where, blank, jnp.asarray(value, jnp.float32))
    return blank


def exam_of(model, seed=0, n=60):
    return prepare_exam(model, CASE, mlp(0), variables_at(CASE, mlp(0)), draw_pairs(CASE, n, seed))


def lanes(variables, size, seeds=None):
    """Lanes of one size."""
    each = np.array(variables), np.full(len(variables), size), np.array(seeds or [0] * len(variables))
    return Lanes(*(jnp.asarray(x, jnp.int32) for x in each))


def one_by_one(model, node, matrix, pairs):
    """Right and counted tokens, of all, caused and isolated, by variable: the node is patched in NumPy."""
    run = jax.jit(lambda tokens: model(tokens))
    under = jax.jit(
        lambda tokens, activations: model(tokens, (jnp.asarray(CASE.config.nodes.mask([node])), activations))
    )
    found = np.zeros((2, 3, 2), int)
    place = lambda x: x.z if node.head is not None else x.post
    at = (node.layer, slice(None)) + ((node.head,) if node.head is not None else ())
    for base, source in zip(pairs.base, pairs.source, strict=True):
        here, there = run(jnp.asarray(base))[1], run(jnp.asarray(source))[1]
        values = np.array(place(here))
        values[at] += (np.array(place(there))[at] - values[at]) @ matrix
        answered = np.asarray(under(jnp.asarray(base), eqx.tree_at(place, here, jnp.asarray(values)))[0]).argmax(-1)
        for position in range(1, len(base)):
            own, other = LETTERS[base[position]], LETTERS[source[position]]
            for variable in range(2):
                mixed = [other[i] if i == variable else own[i] for i in range(2)]
                right = answered[position] == 2 * mixed[1] + mixed[0]
                caused = own[variable] != other[variable]
                isolated = not caused and own[1 - variable] != other[1 - variable]
                for group, counts in enumerate((True, caused, isolated)):
                    found[variable, group] += (right and counts, counts)
    return found


def test_a_subspace_scores_what_patching_with_numpy_does():
    """BOS, whose label is 0 in both models, counts too; the loop leaves it out, and it is added by hand."""
    model = init_transformer(replace(CASE.config, init_gain=1.5), key=jax.random.key(1))
    pairs = draw_pairs(CASE, 12, 3)
    counted = replace(CASE, counted=lambda tokens: tokens >= 2)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 2)))[0]
    exam = prepare_exam(model, counted, mlp(0), variables_at(counted, mlp(0)), pairs)
    for matrix in (basis @ basis.T, np.eye(4), np.zeros((4, 4))):
        stacked = Projection(jnp.asarray(np.stack([matrix, matrix]), jnp.float32))
        scores = score(exam, stacked, jnp.array([0, 1]))
        tallies = (scores.every, scores.caused, scores.isolated)
        found = np.stack([np.stack([tally.right, tally.of], -1) for tally in tallies], 1)
        np.testing.assert_array_equal(found, one_by_one(model, mlp(0), matrix, pairs))
        shares = found[:, 1:, 0] / found[:, 1:, 1]
        np.testing.assert_allclose(scores.balanced, shares.mean(1), atol=1e-6)


@pytest.mark.parametrize("module", ["alignments", "directions", "exam", "learn", "methods", "score"])
def test_the_examples_are_true(module):
    said = doctest.testmod(import_module(f"siitjax.analysis.alignment.{module}"))
    assert said.attempted
    assert not said.failed


def test_a_head_is_patched_too():
    moved = [replace(v, node=head(0, 1)) if v.nodes == (mlp(0),) else v for v in CASE.variables]
    case = replace(CASE, variables=tuple(moved), counted=lambda tokens: tokens >= 2)
    model = init_transformer(replace(CASE.config, init_gain=1.5), key=jax.random.key(2))
    pairs = draw_pairs(case, 8, 4)
    exam = prepare_exam(model, case, head(0, 1), variables_at(case, head(0, 1)), pairs)
    matrix = np.diag([1.0, 0.0, 1.0, 0.0])
    every = score(exam, Projection(jnp.asarray(matrix[None], jnp.float32)), jnp.array([0])).every
    assert [int(every.right[0]), int(every.of[0])] == one_by_one(model, head(0, 1), matrix, pairs)[0, 0].tolist()


@pytest.mark.parametrize("method", ["DAS", "class means", "probe"])
def test_variables_are_found_in_the_directions_that_they_were_planted_in(method):
    model = by_hand(SLANTED)
    found: Any = METHODS[method](exam_of(model), lanes([0, 1], 1), replace(TRAINING, steps=400))
    for matrix, planted in zip(np.asarray(found.matrix), SLANTED, strict=True):
        assert planted @ matrix @ planted > 0.9  # the two are less than 19 degrees apart
    np.testing.assert_array_equal(score(exam_of(model, seed=1), found, jnp.array([0, 1])).balanced, 1)


def test_a_mask_finds_the_neurons_that_they_were_planted_in():
    model = by_hand(STRAIGHT)
    found: Any = METHODS["neuron mask"](exam_of(model), lanes([0, 1], 1), TRAINING)
    np.testing.assert_array_equal(found.chosen, STRAIGHT)
    np.testing.assert_array_equal(score(exam_of(model, seed=1), found, jnp.array([0, 1])).balanced, 1)
    slanted = exam_of(by_hand(SLANTED))
    one = METHODS["neuron mask"](slanted, lanes([0, 1], 1), TRAINING)
    assert float(score(slanted, one, jnp.array([0, 1])).balanced.max()) < 0.9  # no neuron holds one of them alone


def test_the_whole_node_swaps_both_variables_and_nothing_swaps_none():
    exam = exam_of(by_hand(SLANTED))
    whole = score(exam, METHODS["full vector"](exam, lanes([0, 1], 4), TRAINING), jnp.array([0, 1]))
    assert whole.isolated.right.tolist() == [0, 0]
    alone = np.asarray(exam.caused) & ~np.asarray(exam.caused)[::-1]  # where the other one is as it was
    assert whole.caused.right.tolist() == alone.sum((1, 2)).tolist()
    none = score(exam, Projection(jnp.zeros((1, 4, 4))), jnp.array([0]))
    assert (none.caused.right.tolist(), none.balanced.tolist()) == ([0], [0.5])
    assert none.isolated.right.tolist() == none.isolated.of.tolist()


def test_two_random_directions_of_two_seeds_are_others_and_each_is_orthonormal():
    exam = exam_of(by_hand(SLANTED))
    found: Any = METHODS["random"](exam, lanes([0, 0], 2, [0, 1]), TRAINING)
    one, other = np.asarray(found.matrix)
    assert np.abs(one - other).max() > 0.1
    for matrix in (one, other):
        np.testing.assert_allclose(matrix @ matrix, matrix, atol=1e-6)
        assert np.trace(matrix) == pytest.approx(2, abs=1e-6)


def test_columns_are_made_orthonormal_and_the_first_ones_do_not_depend_on_the_others():
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(40, 12)), jnp.float32)
    columns = np.asarray(orthonormal(matrix))
    np.testing.assert_allclose(columns.T @ columns, np.eye(12), atol=1e-5)
    np.testing.assert_allclose(np.abs(columns), np.abs(np.linalg.qr(np.asarray(matrix))[0]), atol=1e-5)
    np.testing.assert_allclose(columns[:, :5], orthonormal(matrix[:, :5]), atol=1e-6)


def test_the_non_linear_map_is_a_bijection_and_all_of_it_is_the_source():
    weights = NonLinear().begin(5, jax.random.key(0))
    weights = (weights[0], weights[1] + 0.1, 10 * weights[2])  # which moves much
    here, there = jax.random.normal(jax.random.key(1), (2, 3, 7, 5))
    flow = lambda size: Flow(*weights, jnp.asarray(size))
    assert float(jnp.abs(flow(2).forward(here) - here).max()) > 0.5
    np.testing.assert_allclose(flow(2).backward(flow(2).forward(here)), here, atol=1e-5)
    np.testing.assert_allclose(flow(0)(here, there), here, atol=1e-5)
    np.testing.assert_allclose(flow(5)(here, there), there, atol=1e-5)


def test_directions_of_class_means_are_those_of_the_means():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (200, 1))
    x = rng.normal(size=(200, 3))
    apart = x[values[:, 0] == 1].mean(0) - x[values[:, 0] == 0].mean(0)
    found = directions.class_means(x, values)
    assert found.shape == (3, 1)  # two means differ in one direction
    np.testing.assert_allclose(np.abs(found[:, 0]), np.abs(apart) / np.linalg.norm(apart), atol=1e-9)


def test_the_probe_is_ridge_regression_of_each_value():
    rng = np.random.default_rng(1)
    x, values = rng.normal(size=(50, 3)), rng.integers(0, 3, (50, 1))
    centred = x - x.mean(0)
    penalty = directions.RIDGE * 50 * x.var(0).mean()
    weights = []
    for value in range(3):
        told = (values[:, 0] == value) - (values == value).mean()
        rows = np.concatenate([centred, np.sqrt(penalty) * np.eye(3)])
        weights.append(np.linalg.lstsq(rows, np.append(told, np.zeros(3)), rcond=None)[0])
    found = directions.probe(x, values)
    assert found.shape == (3, 2)  # the three sum to 0
    np.testing.assert_allclose(found @ found.T @ np.array(weights).T, np.array(weights).T, atol=1e-9)


def test_values_of_a_vector_are_its_numbers():
    case = cases.find("paren_checker")
    (checks,) = (v for v in case.variables if v.name == "checks")
    assert values_of(case, checks, case.tokens("())")[None]).tolist() == [[1, 1], [0, 1], [1, 1], [0, 0]]


def test_weights_of_tokens_give_each_group_the_same():
    exam = exam_of(by_hand(SLANTED), n=10)
    weights = np.asarray(exam.weights())
    rest = exam.counted[None] & ~exam.caused & ~exam.isolated
    for group in (exam.caused, exam.isolated, rest):
        np.testing.assert_allclose((weights * np.asarray(group)).sum((1, 2)), 10 / 3, rtol=1e-5)


def test_a_wrong_variable_is_one_whose_swap_is_not_that_of_the_node():
    pairs = draw_pairs(CASE, 50)
    assert wrong_variable(CASE, mlp(0), pairs) is None  # a swap of number is that of both low and high
    both = cases.load("1+2").case
    wrong = wrong_variable(both, mlp(0), draw_pairs(both, 50))
    assert wrong is not None
    assert wrong.name == "task"


def test_a_node_is_studied_with_its_controls():
    plan = Plan(("full vector", "PCA"), sizes=(1, 2), pairs=20, held_out=20, training=Training(2, 4, 0.1))
    rows = [*study(by_hand(SLANTED), CASE, mlp(0), ["high"], plan)]
    found = [(row["control"], row["method"], row["size"]) for row in rows]
    assert found == [("", "full vector", 4), ("", "PCA", 1), ("", "PCA", 2), (UNTRAINED, "full vector", 4)]
    assert {row["variable"] for row in rows} == {"high"}
    assert rows[0]["isolated"] == 0
    assert rows[0]["balanced"] == pytest.approx(rows[0]["caused"] / 2)
    assert WRONG not in {row["control"] for row in rows}


def test_sizes_are_powers_of_two_below_the_width():
    assert Plan().sizes_at(CASE, mlp(0)) == (1, 2)
    assert Plan().sizes_at(cases.find("left_greater"), mlp(0)) == (1, 2, 4, 8, 16, 32)
    assert (sizes_of("full vector", 48, (1, 2)), sizes_of("non-linear", 48, (1,)), sizes_of("PCA", 48, (1,))) == (
        (48,),
        (24,),
        (1,),
    )


ATTENTION = replace(CASE, variables=(Variable("low", ("tokens",), low, head(0, 0)),), attn_only=True)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            lambda: site_of(CASE, mlp(7)),
            'the node is "MLP7"; did you mean "MLP1"? Of bits, these hold a variable: MLP0, MLP1',
        ),
        (lambda: site_of(CASE, head(0, 0)), 'the node is "L0H0"; did you mean'),
        (lambda: site_of(ATTENTION, head(0, 0)), "the transformer of bits has no MLPs; variables are looked for in"),
        (lambda: variables_at(CASE, mlp(0), ["number"]), 'the variable on MLP0 is "number"; did you mean'),
        (lambda: Plan(sizes=(2, 5)).sizes_at(CASE, mlp(0)), "a size is 5, but MLP0 of bits holds 4 numbers a token"),
        (lambda: Plan(sizes=(0,)), "a size is 0; it must be at least 1"),
        (lambda: Plan(held_out=0), "held_out is 0; it must be at least 1"),
        (lambda: Plan(("DASS",)), 'the method is "DASS"; did you mean "DAS"?'),
        (lambda: Plan(pairs=8), "a batch has 16 pairs, but there are 8; lower it, or take more"),
        (lambda: Training(lr=0.0), "lr is 0.0; it must be greater than 0"),
        (
            lambda: prepare_exam(by_hand(SLANTED), CASE, mlp(0), CASE.variables, Pairs(*[np.full((2, 5), 2)] * 2)),
            'a swap of the variable "low" changes no label of 2 pairs, so it cannot be looked for; choose another',
        ),
    ],
)
def test_what_does_not_fit_is_told(wrong, words):
    with pytest.raises(UserError, match=re.escape(words)):
        wrong()
