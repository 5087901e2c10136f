"""Discovery methods beside a loop over single swaps of the model's own, finite differences, and a transformer made by
hand whose edges are known; the scores beside every pair, threshold and order of ties."""

import re
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import left_greater
from siitjax.analysis.discovery.acdc import acdc
from siitjax.analysis.discovery.attribution import eap, eap_ig_activations, eap_ig_inputs, node_scores
from siitjax.analysis.discovery.budgets import grown, mib_auroc
from siitjax.analysis.discovery.faithfulness import SHARES, faithfulness
from siitjax.analysis.discovery.information_flow import importances, information_flow, routes
from siitjax.analysis.discovery.known import Known, known_edges, known_nodes
from siitjax.analysis.discovery.methods import CONTROLS, METHODS
from siitjax.analysis.discovery.pairs import Pairs, draw_pairs
from siitjax.analysis.discovery.patching import activation_patching, edge_indices, path_patching
from siitjax.analysis.discovery.relaxed import relaxed
from siitjax.analysis.discovery.runs import run_pairs
from siitjax.analysis.discovery.score import at_size, auroc, average_precision, examine, score
from siitjax.base.errors import UserError
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.causal.loss import SquaredError
from siitjax.model.nodes import EMBED, LOGITS, edge_name, head
from siitjax.model.transformer import init_transformer

TOLERANCE = 2e-5
"""Rounding in float32, of effects between 0.01 and 10."""


def more_twos(tokens):
    """Whether more twos than threes came so far."""
    return (jnp.cumsum(tokens == 2) > jnp.cumsum(tokens == 3)).astype(jnp.int32)


CASE = replace(
    left_greater.CASE,
    name="more_twos",
    variables=(Variable("answer", ("tokens",), more_twos, head(0, 0)),),
    strata=(Uniform((2, 3)),),
    n_ctx=6,
    d_model=8,
    d_head=4,
    n_outputs=2,
    attn_only=True,
    layer_norm=False,
)
DEEP = replace(CASE, n_layers=2, attn_only=False, layer_norm=True, act_fn="gelu", d_mlp=6, mlp_parts=(2, 4))


@pytest.fixture(scope="module")
def deep():
    """Two layers of random weights, whose MLPs are cut into parts, and pairs of random strings."""
    model = init_transformer(replace(DEEP.config, init_gain=1.5), key=jax.random.key(0))
    return model, Pairs(*np.random.default_rng(0).integers(2, 4, (2, 5, 6)).astype(np.int32))


@pytest.fixture(scope="module")
def by_hand():
    """Head 0 takes the mean of +1 for a two and -1 for a three, and alone writes what the logits read."""
    blank = jax.tree.map(jnp.zeros_like, init_transformer(CASE.config, key=jax.random.key(0)))
    at = lambda where, index, value: lambda m: eqx.tree_at(where, m, where(m).at[index].set(value))
    for change in (
        at(lambda m: m.embed.W_E, (2, 0), 1.0),
        at(lambda m: m.embed.W_E, (3, 0), -1.0),
        at(lambda m: m.blocks[0].attn.W_V, (0, 0, 0), 1.0),
        at(lambda m: m.blocks[0].attn.W_O, (0, 0, 4), 1.0),
        at(lambda m: m.blocks[0].attn.W_V, (1, 0, 1), 1.0),
        at(lambda m: m.blocks[0].attn.W_O, (1, 1, 5), 3.0),  # head 1 writes more, where nobody reads
        at(lambda m: m.unembed.W_U, (4, 1), 10.0),
        at(lambda m: m.unembed.b_U, 0, 0.1),
    ):
        blank = change(blank)
    return blank


def numpy_metrics(logits, clean):
    """KL and log-odds lost by position, in float64."""
    logits, clean = np.float64(logits), np.float64(clean)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (clean, logits))
    answer = clean.argmax(-1)
    own = lambda x: np.take_along_axis(x, answer[:, None], 1)[:, 0]
    return {"kl": (p * np.log(p / q)).sum(-1), "log_odds": np.log(own(p) / (1 - own(p)) * (1 - own(q)) / own(q))}


def one_by_one(model, case, pairs, masks, ablation):
    """Each mask's effect in the model's own call, a pair after another."""
    run = jax.jit(jax.vmap(lambda tokens, mask, there: model(tokens, (mask, there))[0], (None, 0, None)))
    alone = jax.jit(lambda tokens: model(tokens))
    sources = [alone(jnp.asarray(source))[1] for source in pairs.source]
    if ablation == "mean":
        sources = [jax.tree.map(lambda *x: sum(x) / len(x), *sources)] * len(sources)
    elif ablation == "zero":
        sources = [jax.tree.map(jnp.zeros_like, sources[0])] * len(sources)
    found, n = {name: np.zeros(len(masks)) for name in ("kl", "log_odds")}, 0
    for base, there in zip(pairs.base, sources, strict=True):
        counted = np.asarray(case.counted_mask(jnp.asarray(base)))
        clean, n = alone(jnp.asarray(base))[0], n + counted.sum()
        for name in found:
            logits = run(jnp.asarray(base), jnp.asarray(np.stack(masks)), there)
            found[name] += np.array([numpy_metrics(each, clean)[name][counted].sum() for each in logits])
    return {name: total / n for name, total in found.items()}


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_patching_is_what_single_swaps_do_one_by_one(deep, ablation):
    model, pairs = deep
    nodes = model.config.nodes
    edges = one_by_one(model, DEEP, pairs, [nodes.edge_mask([edge]) for edge in nodes.possible_edges], ablation)
    alone = one_by_one(model, DEEP, pairs, [nodes.mask([node]) for node in nodes if node != EMBED], ablation)
    for metric in ("kl", "log_odds"):
        how = {"metric": metric, "ablation": ablation}
        assert np.abs(edges[metric]).max() > 0.05
        np.testing.assert_allclose(path_patching(model, DEEP, pairs, **how), edges[metric], atol=TOLERANCE)
        np.testing.assert_allclose(activation_patching(model, DEEP, pairs, **how), alone[metric], atol=TOLERANCE)


def test_weights_of_0_and_1_are_the_models_own_swap(deep):
    model, pairs = deep
    runs, nodes = run_pairs(model, DEEP, pairs), model.config.nodes
    possible = nodes.edge_mask(nodes.possible_edges)
    mask = possible & (np.random.default_rng(1).random(possible.shape) < 0.5)
    own = lambda base, source: model(base, (jnp.asarray(mask), model(source)[1]))[0]
    mine = lambda base, there: relaxed(model, base, jnp.asarray(mask, jnp.float32), there)[0]
    wanted = jax.jit(jax.vmap(own))(*map(jnp.asarray, pairs))
    np.testing.assert_allclose(jax.jit(jax.vmap(mine))(runs.base, runs.there), wanted, atol=TOLERANCE)


def test_eap_is_the_slope_at_the_base_run(deep):
    model, pairs = deep
    runs = run_pairs(model, DEEP, pairs)
    own, n, step = np.asarray(runs.counted), len(model.config.nodes), 1e-2
    run = jax.jit(jax.vmap(lambda base, there, weights: relaxed(model, base, weights, there)[0], (0, 0, None)))

    def lost(weights):
        logits = run(runs.base, runs.there, jnp.asarray(weights, jnp.float32))
        each = [numpy_metrics(*x)["log_odds"] for x in zip(logits, runs.logits, strict=True)]
        return np.stack(each)[own].mean()

    slopes = []
    for reader, sender in zip(*edge_indices(model.config.nodes), strict=True):
        edge = np.zeros((n, n))
        edge[reader, sender] = step
        slopes.append((lost(edge) - lost(-edge)) / (2 * step))
    assert np.abs(slopes).max() > 0.1
    np.testing.assert_allclose(eap(model, DEEP, pairs), slopes, atol=2e-3 * np.abs(slopes).max())


def test_eap_ig_shares_out_the_whole_effect_of_the_embedding(deep):
    """The integral of a gradient along a path is the difference at its ends."""
    model, pairs = deep
    scores = eap_ig_inputs(model, DEEP, pairs, steps=100)
    from_embed = [edge[0] == EMBED for edge in model.config.nodes.possible_edges]
    runs = run_pairs(model, DEEP, pairs)
    source = jax.jit(jax.vmap(lambda tokens: model(tokens)[0]))(jnp.asarray(pairs.source))
    lost = [numpy_metrics(*x)["log_odds"] for x in zip(source, runs.logits, strict=True)]
    whole = np.stack(lost)[np.asarray(runs.counted)].mean()
    assert abs(whole) > 0.1
    assert scores[from_embed].sum() == pytest.approx(whole, rel=0.03)


def test_eap_ig_of_one_step_is_eap(deep):
    model, pairs = deep
    plain = eap(model, DEEP, pairs)
    for method in (eap_ig_inputs, eap_ig_activations):
        np.testing.assert_allclose(method(model, DEEP, pairs, steps=1), plain, rtol=1e-5, atol=1e-6)


def test_a_nodes_score_is_that_of_the_edges_that_leave_it(deep):
    model, _ = deep
    nodes = model.config.nodes
    scores = np.arange(len(nodes.possible_edges), dtype=float)
    found = dict(zip([node for node in nodes if node != EMBED], node_scores(model, scores), strict=True))
    wanted = sum(score for (sender, _), score in zip(nodes.possible_edges, scores, strict=True) if sender == head(1, 0))
    assert found[head(1, 0)] == wanted


@pytest.mark.parametrize("name", [name for name in METHODS if name not in CONTROLS])
def test_methods_find_the_edges_made_by_hand(by_hand, name):
    found, scores = examine(METHODS[name], by_hand, CASE, draw_pairs(CASE, 40))
    assert (found.auroc, found.average_precision, found.at_size) == (1, 1, 1)
    assert (found.true, found.counted) == (2, 5)
    if name in ("EAP", "path patching KL"):
        assert (scores[~known_edges(CASE).true] == 0).all()


def test_the_control_by_magnitude_prefers_who_writes_most(by_hand):
    found, scores = examine(METHODS["magnitude"], by_hand, CASE, draw_pairs(CASE, 40))
    assert found.average_precision < 1
    edges = CASE.config.nodes.possible_edges
    assert edges[int(scores.argmax())][0] in (EMBED, head(0, 1))


def numpy_importance(parts, whole):
    """The importance of each part to the whole, with what they lack as one part more; in plain Python."""
    rest = [whole[d] - sum(part[d] for part in parts) for d in range(len(whole))]
    near = [
        max(sum(abs(w) for w in whole) - sum(abs(p - w) for p, w in zip(part, whole, strict=True)), 0)
        for part in [*parts, rest]
    ]
    return [each / sum(near) if sum(near) else 0.0 for each in near[:-1]]


def parts_and_whole(model, here, reader, i):
    """What the senders of one sample add to what a reader reads at position i, and what that is; of a head, what it
    writes, split through its attention pattern, a position and a sender after another."""
    nodes, node = model.config.nodes, model.config.nodes.readers[reader]
    senders = [s for s, sender in enumerate(nodes) if sender.depth < node.depth]
    x = here[0] + np.float64(model.pos_embed.W_pos) + here[senders[1:]].sum(0)
    for layer, block in enumerate(model.blocks):
        x = x + np.float64(block.attn.b_O) * (2 * layer + 1 < node.depth)
        x = x + np.float64(block.mlp.b_out) * (2 * layer + 2 < node.depth)
    if node.head is None:
        return [here[s][i] for s in senders], x[i]
    ln, attn, h = *jax.tree.map(np.float64, (model.blocks[node.layer].ln1, model.blocks[node.layer].attn)), node.head
    scale = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    read = (x - x.mean(-1, keepdims=True)) / scale * ln.w + ln.b
    near = (read[: i + 1] @ attn.W_K[h] + attn.b_K[h]) @ (read[i] @ attn.W_Q[h] + attn.b_Q[h])
    pattern = np.exp(near / 2) / np.exp(near / 2).sum()  # d_head is 4

    def through_the_head(sender):
        seen = (here[sender] - here[sender].mean(-1, keepdims=True)) / scale * ln.w
        return sum(pattern[j] * (seen[j] @ attn.W_V[h] @ attn.W_O[h]) for j in range(i + 1))

    return [through_the_head(s) for s in senders], here[nodes.index(node)][i]


def test_importances_are_those_of_the_papers_formula_token_by_token(deep):
    model, pairs = deep
    runs, nodes = run_pairs(model, DEEP, pairs), model.config.nodes
    total, counted = np.zeros((len(nodes), len(nodes))), np.argwhere(runs.counted)
    for pair, i in counted:
        for reader in range(len(nodes)):
            found = numpy_importance(*parts_and_whole(model, np.float64(runs.here[pair]), reader, i))
            total[reader, : len(found)] += found
    assert total.max() / len(counted) > 0.2
    np.testing.assert_allclose(importances(model, runs), total / len(counted), atol=1e-5)


def test_routes_are_what_the_logits_reach_at_each_threshold(deep):
    model, pairs = deep
    nodes = model.config.nodes
    weights = np.random.default_rng(2).random(len(nodes.possible_edges))
    wanted = np.zeros(len(weights))
    for threshold in sorted(weights):
        strong = [edge for edge, weight in zip(nodes.possible_edges, weights, strict=True) if weight >= threshold]
        reached, before = {LOGITS}, set()
        while reached != before:
            before, reached = reached, reached | {sender for sender, reader in strong if reader in reached}
        followed = [edge in strong and edge[1] in reached for edge in nodes.possible_edges]
        wanted[followed] = threshold
    np.testing.assert_array_equal(routes(nodes, weights), wanted)
    assert information_flow(model, DEEP, pairs).shape == weights.shape


def test_mibs_area_is_that_of_circuits_that_grow_from_the_logits():
    edges = CASE.config.nodes.possible_edges  # embed to both heads and the logits; both heads to the logits
    true, every = np.array([True, False, False, True, False]), np.ones(5, bool)
    scores = np.array([5.0, -4.0, 1.0, 3.0, 2.0])
    # embed->L0H0 scores most, but waits for L0H0->logits; so embed->L0H1 waits for L0H1->logits.
    assert grown(edges, scores) == [3, 0, 4, 1, 2]
    # Circuits of 1, 3 and 5 edges: half of the true ones and no other, both and a third of the others, all.
    assert mib_auroc(edges, scores, true, every) == pytest.approx(1 / 3 * 3 / 4 + 2 / 3)
    # A silent edge may be taken and counts as neither: both true ones and none of two others, then all.
    counted = np.array([True, True, True, True, False])
    assert mib_auroc(edges, scores, true, counted) == pytest.approx(1)
    # From worst to best: of 1 edge one of the others, of 3 the others all, of 5 all.
    assert mib_auroc(edges, np.array([1.0, 4, 5, 2, 3]), true, every) == pytest.approx(0)


def test_acdc_keeps_fewer_edges_at_higher_thresholds(by_hand):
    kept = [acdc(by_hand, CASE, draw_pairs(CASE, 16), thresholds=(limit,)).sum() for limit in (1e-4, 100.0)]
    assert kept == [2, 0]


def test_faithfulness_is_that_of_the_edges_kept(by_hand):
    runs = run_pairs(by_hand, CASE, draw_pairs(CASE, 20))
    perfect = faithfulness(by_hand, runs, known_edges(CASE).true.astype(float))
    # Of 5 edges none is kept up to a fifth, then 1, which alone carries nothing, then 2, and all.
    np.testing.assert_allclose(perfect.faithfulness, [0] * 8 + [1, 1], atol=1e-5)
    assert perfect.cpr == pytest.approx(0.3 / 2 + 0.5, abs=1e-5)
    assert perfect.cmd == pytest.approx(0.2 - 0.001 + 0.3 / 2, abs=1e-5)
    assert len(SHARES) == 10


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=6))
def test_scores_are_those_of_every_pair_threshold_and_order(drawn):
    size, true = np.array([x for x, _ in drawn], float), np.array([y for _, y in drawn])
    if true.all() or not true.any():
        return
    pairs = [(a > b) + (a == b) / 2 for a in size[true] for b in size[~true]]
    assert auroc(size, true) == pytest.approx(np.mean(pairs))
    area, recall = 0.0, 0.0
    for threshold in sorted({*size}, reverse=True):
        above = size >= threshold
        now = true[above].sum() / true.sum()
        area, recall = area + (now - recall) * true[above].mean(), now
    assert average_precision(size, true) == pytest.approx(area)
    n = int(true.sum())
    orders = [order for order in permutations(range(len(size))) if (np.diff(size[list(order)]) <= 0).all()]
    assert at_size(size, true) == pytest.approx(np.mean([true[list(order[:n])].mean() for order in orders]))


def test_silent_edges_count_as_neither():
    none = Variable("none", ("tokens",), lambda tokens: 0 * tokens, head(0, 1))
    label = Variable("label", ("answer", "none"), lambda answer, none: answer)
    known = known_edges(replace(CASE, name="with_silent", variables=(none, *CASE.variables, label)))
    edges = CASE.config.nodes.possible_edges
    silent = {edge_name(edge) for edge, counted in zip(edges, known.counted, strict=True) if not counted}
    assert silent == {"embed->L0H1", "L0H1->logits"}
    assert known.true.sum() == 2


def test_true_nodes_are_those_that_true_edges_leave():
    known = known_nodes(CASE)
    assert [*map(str, known.names)] == ["L0H0", "L0H1"]
    assert known.true.tolist() == [True, False]


def test_bad_input_is_told_in_one_line(by_hand, types_unchecked):
    wrong: Any = ("kll", "means")
    pairs = draw_pairs(CASE, 4)
    constant = Variable("answer", ("tokens",), lambda tokens: 0 * tokens, head(0, 0))
    numbers = Variable("answer", ("tokens",), lambda tokens: tokens[:, None] / 2, head(0, 0))
    silent = replace(CASE, name="silent", variables=(constant,))
    regression = replace(CASE, name="numbers", variables=(numbers,), loss=SquaredError(), n_outputs=1)
    n = np.array([1, 2, 3, 4, np.nan])
    for call, words in (
        (lambda: examine(lambda *_: n, by_hand, CASE, pairs, "mine"), "mine gives nan for L0H1->logits; scores must"),
        (
            lambda: examine(lambda *_: n[:3], by_hand, CASE, pairs),
            "the method gives scores of shape (3,); it must give",
        ),
        (lambda: examine(eap, by_hand, silent, pairs), "the case silent has no edge whose swap changes a label"),
        (lambda: eap(by_hand, regression, pairs), "the labels of numbers are numbers"),
        (lambda: eap(by_hand, DEEP, pairs), "the transformer does not fit the case more_twos"),
        (lambda: path_patching(by_hand, CASE, pairs, metric=wrong[0]), 'the metric is "kll"; did you mean "kl"?'),
        (lambda: eap(by_hand, CASE, pairs, ablation=wrong[1]), 'the ablation is "means"; did you mean "mean"?'),
    ):
        with pytest.raises(UserError) as told:
            call()
        assert words in str(told.value)
        assert "\n" not in str(told.value)


def test_scores_of_the_wrong_edges_are_not_taken():
    known = Known((head(0, 0), head(0, 1)), np.array([True, False]), np.array([True, True]))
    with pytest.raises(UserError, match="gives inf for L0H1"):
        score(np.array([0.0, np.inf]), known)


def test_the_method_that_the_readme_shows_runs():
    text = (Path(__file__).parents[1] / "sweeps" / "README.md").read_text()
    (shown,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "examine(" in block]
    names = {}
    exec(compile(shown, "README.md", "exec"), names)
    assert names["found"].auroc == 1
