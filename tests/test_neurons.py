"""What neurons answer to: information from hand-made tables, and ablations run again in numpy."""

import math
from collections import Counter
from dataclasses import replace
from itertools import product
from statistics import fmean, stdev

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import duplicate_remover
from siitjax.analysis.neurons import (
    ablation_effects,
    binned,
    coded,
    draw_backgrounds,
    entropy,
    information_share,
    measure_neurons,
    mutual_information,
    participation_ratio,
    samples_by_task,
    shared_by_chance,
)
from siitjax.causal.circuit import Variable
from siitjax.causal.combine import combine
from siitjax.model.nodes import mlp
from tests.test_interchange import model_of, run_transformer

TOLERANCE = 1e-4
"""Rounding of a mean loss of some nats in float32, through a few layers."""
WIDTH = 3
CASE = replace(duplicate_remover.CASE, n_ctx=5, d_mlp=WIDTH)
RNG = lambda: np.random.default_rng(0)


@pytest.mark.parametrize(
    ("table", "bits"),
    [
        ([[4, 0], [0, 4]], 1.0),
        ([[3, 1], [3, 1]], 0.0),
        ([[2, 0], [1, 1]], 0.3112781244591328),  # 1 + H(3/4) - 3/2
        ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], 2.0),
    ],
)
def test_mutual_information_is_that_of_the_table(table, bits):
    cells = [(a, b) for a, row in enumerate(table) for b, n in enumerate(row) for _ in range(n)]
    codes, values = np.array(cells).T
    assert mutual_information(codes[:, None], values).item() == pytest.approx(bits, abs=1e-12)
    assert mutual_information(values[:, None], codes).item() == pytest.approx(bits, abs=1e-12)


def test_mutual_information_of_many_neurons_is_counted_neuron_by_neuron():
    codes, values = RNG().integers(0, 4, (60, 5)), RNG().integers(0, 3, 60)
    found = mutual_information(codes, values)
    for neuron, bits in enumerate(found.tolist()):
        pairs = list(zip(codes[:, neuron].tolist(), values.tolist(), strict=True))
        joint, ones, others = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
        terms = [n / 60 * math.log2(60 * n / (ones[a] * others[b])) for (a, b), n in joint.items()]
        assert bits == pytest.approx(sum(terms), abs=1e-12)
    assert entropy(values) == pytest.approx(mutual_information(values[:, None], values).item(), abs=1e-12)


def test_bins_are_of_as_many_samples_as_ties_allow():
    activations = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    assert binned(activations, 4).tolist() == [0, 0, 0, 0, 2, 2, 3, 3]
    assert binned(RNG().permutation(np.arange(8.0)), 8).tolist() == RNG().permutation(np.arange(8)).tolist()
    assert binned(np.zeros((8, 2)), 4).tolist() == [[0, 0]] * 8
    by_neuron = RNG().standard_normal((20, 3, 2))
    assert (binned(by_neuron, 4)[:, 2, 1] == binned(by_neuron[:, 2, 1], 4)).all()


def test_values_are_numbered_whatever_their_shape():
    assert coded(np.array([True, False, True])).tolist() == [1, 0, 1]
    assert coded(np.array([[1, 2], [1, 3], [0, 9], [1, 2]])).tolist() == [1, 2, 0, 1]


def test_the_share_of_information_is_1_of_what_is_told_0_of_noise_and_its_own_position_s():
    rng = RNG()
    values = rng.integers(0, 2, (2_000, 3))
    values[:, 0] = 1  # nothing to tell
    noise = rng.integers(0, 2, (2_000, 3))
    told = information_share(np.stack([values, 1 - values, noise, np.roll(values, 1, 1)], -1), values, rng)
    assert told == pytest.approx([1, 1, 0, 0], abs=0.01)
    assert information_share(noise[..., None], np.ones((2_000, 3), int), rng).tolist() == [0]


def test_the_participation_ratio_counts_the_tasks():
    effects = np.array([[1.0, 0, 0, 0], [2, 2, 0, 0], [1, 1, 1, 1], [3, 1, 0, 0], [5, -5, 0, 0], [0, -1, 0, 0]])
    assert participation_ratio(effects).tolist() == pytest.approx([1, 2, 4, 16 / 10, 1, 0])
    assert participation_ratio(effects[None]).shape == (1, 6)


def test_shared_neurons_by_chance_are_dealt_within_each_layer_and_task():
    everywhere = np.ones((2, 3, 2), bool)
    nowhere = everywhere & np.array([[[True, False]]])
    assert shared_by_chance(everywhere, RNG(), 3).tolist() == [6, 6, 6]
    assert shared_by_chance(nowhere, RNG(), 3).tolist() == [0, 0, 0]
    apart = np.zeros((2, 4, 2), bool)
    apart[0, 0, 0] = apart[0, 1, 1] = True
    # One neuron of four for each of two tasks: one in four draws puts them together. 5 standard deviations:
    assert shared_by_chance(apart, RNG(), 2_000).mean() == pytest.approx(1 / 4, abs=0.05)
    other_layers = np.zeros((2, 4, 2), bool)
    other_layers[0, 0, 0] = other_layers[1, 0, 1] = True
    assert shared_by_chance(other_layers, RNG(), 50).max() == 0


def test_backgrounds_rise_from_none_to_all():
    held = draw_backgrounds(2, 3_000, 4, RNG())
    assert held.mean(2) == pytest.approx(np.tile([1 / 8, 3 / 8, 5 / 8, 7 / 8], (2, 1)), abs=0.05)


SAMPLES = jnp.asarray([[0, 2, 2, 3, 4], [0, 3, 3, 3, 1], [0, 4, 2, 1, 1]])
BACKGROUNDS = [m for m in product((False, True), repeat=WIDTH) for _ in range(3 if sum(m) in (0, WIDTH) else 1)]
"""3 times none and all, once each set between: of these twelve the mean rise is the Shapley value of 3 neurons."""


def scores_by_hand(model, layer, held) -> tuple[float, float]:
    """Mean loss and share right, token by token, when these neurons take their mean at each position."""
    posts = np.array([run_transformer(model, tokens)[1][mlp(layer)] for tokens in SAMPLES])
    posts[:, :, held] = posts.mean(0)[:, held]
    losses, right = [], []
    for tokens, post in zip(np.asarray(SAMPLES), posts, strict=True):
        logits, _ = run_transformer(model, tokens, [mlp(layer)], {mlp(layer): post})
        labels = [1 if i and token == tokens[i - 1] else token for i, token in enumerate(tokens)]
        for token, label, scores in zip(tokens, labels, logits, strict=True):
            if token != 1:
                losses.append(math.log(sum(np.exp(scores))) - scores[label])
                right.append(int(np.argmax(scores)) == label)
    return fmean(losses), fmean(right)


@pytest.fixture(scope="module")
def model():
    """Random, but that in MLP1 neuron 1 is neuron 0 again, and neuron 2 writes nothing. With this seed the others
    are missed in loss, and some in accuracy."""
    random = jax.tree.map(lambda leaf: 3 * leaf, model_of(CASE, 3))
    block = random.blocks[1].mlp
    again = replace(
        block,
        W_in=block.W_in.at[:, 1].set(block.W_in[:, 0]),
        b_in=block.b_in.at[1].set(block.b_in[0]),
        W_out=block.W_out.at[1].set(block.W_out[0]).at[2].set(0.0),
    )
    return replace(random, blocks=(random.blocks[0], replace(random.blocks[1], mlp=again)))


@pytest.fixture(scope="module")
def effects(model):
    return ablation_effects(model, CASE, SAMPLES, jnp.asarray([BACKGROUNDS] * 2))


def test_effects_are_those_of_holding_neurons_one_by_one_in_numpy(model, effects):
    sets = list(product((False, True), repeat=WIDTH))
    for layer in range(2):
        scores = {held: scores_by_hand(model, layer, list(held)) for held in sets}
        for neuron in range(WIDTH):
            but = lambda held, own, neuron=neuron: (*held[:neuron], own, *held[neuron + 1 :])
            rises = [scores[but(held, True)][0] - scores[but(held, False)][0] for held in BACKGROUNDS]
            low = fmean(rises) - 2.2009851600916384 * stdev(rises) / math.sqrt(12)  # t of 11 degrees of freedom
            none = (False,) * WIDTH
            alone, clean = scores[but(none, True)], scores[none]
            at = lambda name, layer=layer, neuron=neuron: float(getattr(effects, name)[layer, neuron])
            assert at("alone") == pytest.approx(alone[0] - clean[0], abs=TOLERANCE)
            assert at("accuracy") == pytest.approx(clean[1] - alone[1], abs=TOLERANCE)
            assert at("loss") == pytest.approx(fmean(rises), abs=TOLERANCE)
            assert at("low") == pytest.approx(low, abs=TOLERANCE)
    assert np.abs(np.asarray(effects.accuracy)).max() > 0


def test_shapley_values_add_up_to_what_is_lost_without_the_mlp(model, effects):
    for layer in range(2):
        lost = scores_by_hand(model, layer, [True] * 3)[0] - scores_by_hand(model, layer, [False] * 3)[0]
        assert abs(lost) > 0.01
        assert float(effects.loss[layer].sum()) == pytest.approx(lost, abs=TOLERANCE)


def test_equal_neurons_have_equal_effects_and_one_that_writes_nothing_has_none(effects):
    for x in (effects.loss, effects.alone):
        first, again, silent = map(float, x[1])
        assert first == pytest.approx(again, abs=TOLERANCE)
        assert abs(first) > 0.01
        assert silent == pytest.approx(0, abs=TOLERANCE)


def is_b(tokens):
    return tokens == 3


def test_a_part_s_variable_is_read_where_its_token_stands():
    """Without attention and positions an activation is that of its own token, so a neuron tells all of what the token
    is, and nothing of the next one's, which it would be compared with a position off."""
    part = replace(
        CASE,
        variables=(Variable("is_b", ("tokens",), is_b, mlp(0)), CASE.variables[0], *CASE.variables[1:]),
    )
    case = combine([part, part], d_mlp=8, selection=False)
    random = model_of(case)
    blocks = tuple(replace(b, attn=replace(b.attn, W_O=0 * b.attn.W_O, b_O=0 * b.attn.b_O)) for b in random.blocks)
    still = replace(random, blocks=blocks, pos_embed=replace(random.pos_embed, W_pos=0 * random.pos_embed.W_pos))
    rng = RNG()
    samples = samples_by_task(case, 60, rng)
    assert [set(own[:, 0].tolist()) for own in samples] == [{8}, {9}]
    answers = measure_neurons(still, case, samples, rng, ablated=2, backgrounds=2)
    assert answers.tasks == ("duplicate_remover", "duplicate_remover#2")
    assert answers.loss.shape == (2, 8, 2)
    assert answers.live.any()
    of = dict(zip(answers.variables, answers.task_of, strict=True))
    assert of["task"] is None
    for task, name in enumerate(answers.tasks):
        variable = f"{name}.is_b"
        assert of[variable] == task
        told = answers.information[..., answers.variables.index(variable)][answers.live]
        assert told.max() > 0.9
    told = answers.information[..., answers.variables.index("task")]
    assert told[answers.live].max() > 0.5  # the copies have letters of their own
