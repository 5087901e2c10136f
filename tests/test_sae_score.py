"""Sites, what is known of them, and the scores: against plain Python, and on a transformer made by hand."""

import re
import warnings
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cases
from siitjax.analysis.sae.dictionary import neurons
from siitjax.analysis.sae.exam import Half, prepare_exam
from siitjax.analysis.sae.known import held, known_values, swappable, task_named
from siitjax.analysis.sae.score import FOUND, find, interchange_latents, probe, score
from siitjax.analysis.sae.site import Site, all_sites, find_sites
from siitjax.analysis.sae.value_directions import mean_correlation, uniqueness, value_directions
from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Uniform
from siitjax.model.nodes import head, mlp
from siitjax.model.transformer import init_transformer
from tests.parity import random_model

A, B = 2, 3


def letter(tokens):
    """1 for a, 0 for all else."""
    return (tokens == A).astype(jnp.int32)


def answer(letter):
    return 1 * letter


CASE = Case(
    name="letters",
    vocabulary=("BOS", "PAD", "a", "b"),
    variables=(Variable("letter", ("tokens",), letter, mlp(0)), Variable("answer", ("letter",), answer)),
    strata=(Uniform((A, B)),),
    n_layers=1,
    d_model=8,
    d_head=4,
    d_mlp=3,
    n_outputs=2,
    n_ctx=6,
)
"""Whether the token is an a, at MLP0: what the transformer below computes, by construction."""
SAMPLES = np.pad(np.indices((2,) * 5).reshape(5, -1).T + A, ((0, 0), (1, 0)))[np.random.default_rng(0).permutation(32)]


def by_hand():
    """Neuron 0 is active at a, neuron 1 at everything else, neuron 2 never; no head writes anything."""
    zero = jax.tree.map(jnp.zeros_like, init_transformer(CASE.config, key=jax.random.key(0)))
    W_in = jnp.zeros((8, 3)).at[A, 0].set(1.0).at[jnp.array([0, 1, B]), 1].set(1.0)
    W_out = jnp.zeros((3, 8)).at[0, 6].set(9.0).at[1, 7].set(9.0)
    weights = {
        "embed.W_E": jnp.eye(4, 8),
        "blocks.0.mlp.W_in": W_in,
        "blocks.0.mlp.W_out": W_out,
        "unembed.W_U": jnp.zeros((8, 2)).at[6, 1].set(1.0).at[7, 0].set(1.0),
    }

    def weight(path, own):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        layer_norm = name.split(".")[-2].startswith("ln") and name.endswith(".w")
        return weights.get(name, jnp.ones_like(own) if layer_norm else own)

    return jax.tree_util.tree_map_with_path(weight, zero)


MODEL = by_hand()
POST = Site("hook_post", 0)


SITES = Site("hook_mlp_out", 1), Site("hook_z", 2, 3), Site("hook_resid_post", 0), Site("hook_post", 3)
scored, told_by, interchanged = jax.jit(score), jax.jit(find), jax.jit(interchange_latents)


@cache
def exam(site=POST):
    return prepare_exam(MODEL, CASE, site, SAMPLES, 16, 0)


def test_neurons_that_are_the_values_score_one_everywhere():
    truth = exam()
    assert truth.known.names == ("letter = 0", "letter = 1")
    assert truth.swapped == ("letter",)
    scores = scored(truth.ground, neurons(np.asarray(truth.ground.choose.x)))
    np.testing.assert_array_equal(scores.found.f1, [1, 1])
    np.testing.assert_array_equal(scores.found.auroc, [1, 1])
    np.testing.assert_array_equal(scores.found.latent, [1, 0])
    assert float(scores.found.purity) == 1
    assert float(scores.found.split) == float(scores.found.absorbed) == 0
    assert float(scores.explained) == pytest.approx(1, abs=1e-5)
    assert (float(scores.l0), int(scores.live)) == (1, 2)
    assert (scores.base.share, scores.node.share) == (1, 1)
    assert (scores.variable.shares, scores.changed.shares) == ((1,), (1,))
    assert int(scores.changed.of[0]) > 10


def test_only_the_matched_latents_are_interchanged():
    truth = exam()
    basis = neurons(np.asarray(truth.ground.choose.x))
    swap = lambda *matched: interchanged(truth.ground, basis, jnp.array([matched]))
    tokens, changed = swap(False, False, False)
    assert changed.shares == (0,)
    assert tokens.of.tolist() == [SAMPLES[:16].size]
    assert tokens.right[0] == tokens.of[0] - changed.of[0]
    assert swap(True, True, False)[1].shares == (1,)
    assert swap(False, False, True)[1].shares == (0,)  # neuron 2 says nothing


@pytest.mark.parametrize("hook", ["hook_mlp_out", "hook_resid_post"])
def test_a_dictionary_that_rebuilds_all_interchanges_the_variable_at_every_site(hook):
    truth = exam(Site(hook, 0))
    basis = neurons(np.asarray(truth.ground.choose.x))
    everything = jnp.ones((len(truth.swapped), len(basis.W_dec)), bool)
    tokens, changed = interchanged(truth.ground, basis, everything)
    assert set(tokens.shares) == set(changed.shares) == {1}


def test_a_dictionary_that_rebuilds_nothing_loses_the_answers():
    truth = exam()
    basis = neurons(np.asarray(truth.ground.choose.x))
    empty = jax.tree.map(jnp.zeros_like, basis)
    scores = scored(truth.ground, empty)
    assert float(scores.explained) < 0.1
    assert (int(scores.live), float(scores.found.purity)) == (0, 0)
    assert scores.base.share < 0.8
    assert scores.changed.shares == (0,)


def test_the_probe_finds_what_is_there():
    found = probe(exam())
    np.testing.assert_array_equal(found.f1, [1, 1])
    np.testing.assert_allclose(found.auroc, [1, 1], atol=1e-6)


# --- how well latents tell values ---


def half(holds, counted=None) -> Half:
    holds = np.asarray(holds, np.float32)
    counted = np.ones_like(holds) if counted is None else np.asarray(counted, np.float32)
    return Half(jnp.zeros((len(holds), 1)), jnp.asarray(holds * counted), jnp.asarray(counted))


def plain_f1(yes, holds, counted) -> float:
    hits = sum(1 for y, h, c in zip(yes, holds, counted, strict=True) if y and h and c)
    wrong = sum(1 for y, h, c in zip(yes, holds, counted, strict=True) if y and not h and c)
    missed = sum(1 for y, h, c in zip(yes, holds, counted, strict=True) if not y and h and c)
    return 2 * hits / max(2 * hits + wrong + missed, 1)


def plain_area(shares, holds, counted) -> float:
    """The chance that a token with the value lies above one without it, a tie being a half."""
    pairs = [(a, b) for a, h, c in zip(shares, holds, counted, strict=True) if h and c
             for b, g, d in zip(shares, holds, counted, strict=True) if not g and d]  # fmt: skip
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def test_f1_and_area_are_those_of_plain_python():
    rng = np.random.default_rng(4)
    n, n_latents, n_values = 60, 5, 4
    # Tenths, and 1 in every latent, so that the curve through the fractions is the whole curve.
    make = lambda: np.vstack([np.ones(n_latents), rng.integers(0, 11, (n - 1, n_latents)) / 10]) * (rng.random() + 1)
    latents = [np.where(rng.random((n, n_latents)) < 0.4, 0, x).astype(np.float32) for x in (make(), make())]
    for x in latents:
        x[0] = x.max()
    latents[1] *= latents[0].max() / latents[1].max()
    truth = [(rng.random((n, n_values)) < 0.4, rng.random((n, n_values)) < 0.8) for _ in range(2)]
    halves = [half(*both) for both in truth]
    found = told_by(jnp.asarray(latents[0]), halves[0], jnp.asarray(latents[1]), halves[1])
    top = latents[0].max(0)
    for value in range(n_values):
        at = lambda side, value=value: (truth[side][0][:, value], truth[side][1][:, value])
        says = lambda side, i, f: latents[side][:, i] > np.float32(f / 10) * top[i]
        settings = [(plain_f1(says(0, i, f), *at(0)), -f, -i, i, f) for f in range(10) for i in range(n_latents)]
        *_, best, fraction = max(settings)
        assert int(found.latent[value]) == best
        assert float(found.f1[value]) == pytest.approx(plain_f1(says(1, best, fraction), *at(1)), abs=1e-6)
        tenths = [np.ceil(np.round(x / top[None] * 10, 3)) for x in latents]
        areas = [plain_area(tenths[0][:, i], *at(0)) for i in range(n_latents)]
        expected = plain_area(tenths[1][:, int(np.argmax(areas))], *at(1))
        assert float(found.auroc[value]) == pytest.approx(expected, abs=1e-5)


def told(*columns):
    return jnp.asarray(np.array(columns, np.float32).T)


def test_a_value_in_parts_is_split_and_a_latent_with_holes_absorbed():
    value = np.tile([1, 1, 1, 1, 1, 0, 0, 0, 0, 0], 8)
    place = np.tile(np.arange(10), 8)
    parts = told(*(place == i for i in range(5)), place == 7)
    both = half(value[:, None])
    found = told_by(parts, both, parts, both)
    # Four latents together are all that is tried: 4 of 5 parts are an F1 of 8/9.
    assert float(found.f1[0]) == pytest.approx(1 / 3)
    assert (float(found.split), float(found.absorbed)) == (0, 0)
    thirds = told(place < 2, (place == 2) | (place == 3), place == 4, place == 7)
    found = told_by(thirds, both, thirds, both)
    assert (float(found.split), float(found.absorbed)) == (1, 0)
    holes = told(place < 4, place == 4, place == 7)
    found = told_by(holes, both, holes, both)
    assert float(found.f1[0]) == pytest.approx(8 / 9)
    assert (float(found.split), float(found.absorbed)) == (0, 1)
    assert float(found.purity) == 0


def test_purity_is_of_the_latents_that_are_active():
    value = np.tile([1, 0, 0, 0], 10)[:, None]
    latents = told(value[:, 0], 1 - value[:, 0] * 0, value[:, 0] * 0)
    found = told_by(latents, half(value), latents, half(value))
    assert float(found.f1[0]) == 1 >= FOUND
    assert float(found.purity) == 0.5


def test_what_is_chosen_on_one_half_is_measured_on_the_other():
    value = np.tile([1, 0, 0, 0], 10)
    lucky = told(value, 0 * value + np.tile([1, 1, 0, 0], 10))
    unlucky = told(1 - value, np.tile([1, 1, 0, 0], 10))
    found = told_by(lucky, half(value[:, None]), unlucky, half(value[:, None]))
    assert int(found.latent[0]) == 0
    assert (float(found.f1[0]), float(found.auroc[0])) == (0, 0)


# --- what is known ---


def test_values_are_those_of_plain_python_at_a_tasks_own_tokens():
    case = cases.build("1+2")
    samples = case.draw(30, 4, np.random.default_rng(0))[0]
    variables = [v for v in case.variables if v.node is not None]
    known = known_values(case, variables, samples)
    expected: dict[str, list] = {"task": [], "left_greater.counts[0]": [], "paren_checker.elevation": []}
    for sample, task in zip(samples.tolist(), task_named(case, samples).tolist(), strict=True):
        lefts = rights = 0
        for token in sample:
            word = case.vocabulary[token]
            lefts, rights = lefts + (word == "("), rights + (word == ")")
            if word == "PAD" or word.endswith(":"):
                continue
            expected["task"].append(task)
            expected["left_greater.counts[0]"].append(lefts if task == 0 else None)
            expected["paren_checker.elevation"].append(lefts - rights if task == 1 else None)
    for name, values in expected.items():
        seen = {value for value in values if value is not None}
        ours = {n.partition(" = ")[2]: i for i, n in enumerate(known.names) if n.startswith(f"{name} = ")}
        assert {*ours} == {str(value) for value in seen}
        for value in seen:
            column = ours[str(value)]
            np.testing.assert_array_equal(known.holds[:, column], [v == value for v in values])
            np.testing.assert_array_equal(known.counted[:, column], [v is not None for v in values])
            assert known.variables[column] == name.partition("[")[0]


def test_what_a_site_holds_and_what_can_be_swapped_there():
    case = cases.build("1+2")
    named = lambda found: sorted(v.name for v in found)
    assert named(held(case, Site("hook_z", 0, 3))) == ["paren_checker.counts"]
    assert named(held(case, Site("hook_mlp_out", 0))) == ["left_greater.left_greater", "paren_checker.elevation"]
    below = named(held(case, Site("hook_resid_post", 0)))
    assert below == sorted(
        ["task", "left_greater.counts", "paren_checker.counts", *named(held(case, Site("hook_post", 0)))]
    )
    # counts are read at MLP0, before the site: to swap them there changes nothing.
    ready = ["left_greater.left_greater", "paren_checker.elevation", "task"]
    assert named(swappable(case, Site("hook_resid_post", 0))) == ready
    assert named(swappable(case, Site("hook_resid_post", 3))) == ["answer"]


# --- sites ---

WIDE = cases.build("1+2")
RANDOM = random_model(WIDE.config)
TWO = WIDE.draw(40, 4, np.random.default_rng(5))[0][:2]


@pytest.mark.parametrize("site", [*SITES, Site("hook_resid_post", 3)], ids=str)
def test_what_is_read_is_what_is_replaced(site):
    mask = jnp.asarray(WIDE.circuit.nodes.mask([] if site.node is None else [site.node]))

    @jax.jit
    def runs(base, source):
        (logits, activations), (answer, source_run) = RANDOM(base), RANDOM(source)
        own, other = site.read(RANDOM, activations), site.read(RANDOM, source_run)
        put = partial(site.replaced, RANDOM, base, activations)
        # The residual stream is all that the rest of the run takes.
        swapped = answer if site.node is None else RANDOM(base, (mask, source_run))[0]
        return own, logits, put(own), swapped, put(other)

    own, logits, same, swapped, other = runs(*map(jnp.asarray, TWO))
    assert own.shape == (WIDE.n_ctx, site.width(WIDE.config))
    np.testing.assert_allclose(same, logits, atol=1e-5)
    np.testing.assert_allclose(other, swapped, atol=1e-5)
    assert np.abs(other - same).max() > 1e-3


@pytest.mark.parametrize("site", [Site("hook_z", 0, 1), Site("hook_post", 1)], ids=str)
def test_later_nodes_are_swapped_again_after_a_replacement(site):
    mask = jnp.asarray(WIDE.circuit.nodes.mask([mlp(0), head(2, 3), mlp(1)]))

    @jax.jit
    def runs(base, source):
        source_run = RANDOM(source)[1]
        logits, activations = RANDOM(base, (mask, source_run))
        value = site.read(RANDOM, activations)
        return logits, site.replaced(RANDOM, base, activations, value, (mask, source_run))

    logits, again = runs(*map(jnp.asarray, TWO))
    np.testing.assert_allclose(again, logits, atol=1e-5)


def test_sites_are_found_by_name_and_unknown_ones_told():
    assert find_sites(WIDE, ["blocks.2.attn.hook_z[0]"]) == (Site("hook_z", 2, 0),)
    assert [str(site) for site in find_sites(WIDE, ["hook_z"])] == [
        "blocks.0.attn.hook_z[0]",
        "blocks.0.attn.hook_z[1]",
        "blocks.0.attn.hook_z[3]",
        "blocks.2.attn.hook_z[3]",
    ]
    assert len(find_sites(WIDE, ["hook_post", "hook_resid_post"])) == 8
    assert len(all_sites(WIDE.config)) == 4 * (4 + 3)
    for name, words in (
        ("hook_psot", 'site is "hook_psot"; did you mean "hook_post"?'),
        ("blocks.9.mlp.hook_post", 'has no site "blocks.9.mlp.hook_post"; its sites are blocks.0.attn.hook_z[0], '),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            find_sites(WIDE, [name])


def test_a_site_without_frequent_values_is_told():
    with pytest.raises(ValueError, match="holds no value that 20 tokens have; choose another site"):
        prepare_exam(MODEL, CASE, POST, SAMPLES[:4], 4, 0)


def test_directions_of_values_are_the_means_of_plain_python():
    x = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0], [9.0, 9.0]])
    holds = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    counted = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    # (1 + 3) / 2 less (0, 4); (0, 4) less (1 + 3 + 9) / 3 and 9 / 3.
    np.testing.assert_allclose(value_directions(x, holds, counted), [[2.0, -4.0], [-13 / 3, 1.0]])


def test_mcc_and_uniqueness_are_those_of_saelens():
    with warnings.catch_warnings():
        # SAELens 6 imports names of TransformerLens that are to go in its version 4.
        warnings.simplefilter("ignore", DeprecationWarning)
        synthetic = pytest.importorskip("sae_lens.synthetic")
    import torch

    rng = np.random.default_rng(0)
    for latents in (3, 5, 40):
        directions, values = (rng.normal(size=(n, 6)).astype(np.float32) for n in (latents, 5))
        given = torch.tensor(directions), torch.tensor(values)
        ours = mean_correlation(directions, values), uniqueness(directions, values)
        theirs = synthetic.mean_correlation_coefficient(*given), synthetic.feature_uniqueness(*given)
        assert ours == pytest.approx(theirs, abs=1e-5)
