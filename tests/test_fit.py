"""What does not belong together is refused where it meets: JAX would clamp an index or broadcast an axis in silence."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cases
from siitjax.analysis.ablation import zero_ablation
from siitjax.base.errors import UserError
from siitjax.causal.combine import combine
from siitjax.causal.data import Arrangements, Those, Uniform
from siitjax.io.trained import read_trained
from siitjax.model.nodes import mlp
from siitjax.siit.evaluate import count, evaluate
from siitjax.siit.interchange import interchange
from siitjax.siit.objective import term_losses

pytestmark = pytest.mark.usefixtures("types_unchecked")  # as users have it; the tests' types would see some of it
KEY = jax.random.key(0)
TRAINED = cases.load("left_greater")
CASE, MODEL = TRAINED.case, TRAINED.model
BASE = CASE.tokens("(())")
OTHER = cases.find("paren_checker")
NODES = jnp.asarray(CASE.config.nodes.mask([mlp(0)]))


def test_a_transformer_is_measured_on_its_own_case_alone():
    samples, _ = OTHER.draw(20, 5, np.random.default_rng(0))
    base = jnp.asarray(samples)
    words = "does not fit the case paren_checker: it has n_layers 1, not 3; give the case that it was trained on"
    masks = jnp.asarray(OTHER.circuit.circuit_mask[None])
    for measured in (
        lambda: evaluate(MODEL, OTHER, base, key=KEY),
        lambda: count(MODEL, OTHER, base, base, key=KEY),
        lambda: term_losses(MODEL, OTHER, base, base, masks),
        lambda: zero_ablation(MODEL, OTHER, base),
        lambda: jax.eval_shape(lambda samples: evaluate(MODEL, OTHER, samples, key=KEY), base),
    ):
        with pytest.raises(UserError, match=words):
            measured()
    with pytest.raises(UserError, match=r"circuit is on the nodes embed, L0H0, .* but the transformer has embed, L0H0"):
        interchange(MODEL, OTHER.circuit, base, base, masks)
    longer = CASE.with_context(20)
    with pytest.raises(UserError, match="it has n_ctx 15, less than 20"):
        evaluate(MODEL, longer, jnp.zeros((2, 20), jnp.int32), key=KEY)


def test_a_file_is_read_with_the_case_that_it_was_trained_on():
    path = cases.SHIPPED / "1.safetensors"
    with pytest.raises(
        UserError, match=r'1.safetensors was trained on another case: its name is "left_greater", not "pa'
    ):
        read_trained(path, lambda _: OTHER)
    wider = replace(CASE, d_mlp=7)
    with pytest.raises(UserError, match=r"1.safetensors was trained on another case: its d_mlp is null, not 7"):
        read_trained(path, lambda _: wider)


@pytest.mark.parametrize("wrong", [77, -1])
def test_an_id_that_no_token_has_is_refused(wrong):
    tokens = jnp.asarray([[0, 2, 3], [0, 2, wrong]], jnp.int32)
    words = f"the tokens hold the id {wrong}, but the 4 tokens have the ids 0 to 3"
    for run in (
        lambda: MODEL(tokens[1]),
        lambda: jax.vmap(MODEL)(tokens),
        lambda: evaluate(MODEL, CASE, tokens, key=KEY),
        lambda: interchange(MODEL, CASE.circuit, tokens, tokens, np.asarray(NODES)[None]),
    ):
        with pytest.raises(UserError, match=words):
            run()


def test_a_sample_longer_than_the_context_is_refused():
    with pytest.raises(UserError, match=r'"\( .* \(" has 15 tokens; left_greater takes 14 at most, and BOS'):
        CASE.tokens("(" * 15)
    assert len(CASE.tokens("(" * 14)) == 15
    both = cases.load("1+2").case
    with pytest.raises(UserError, match=r"has 16 tokens; left_greater.paren_checker takes 15 at most"):
        both.tokens(["left_greater:", *"(" * 15])
    assert len(both.tokens(["left_greater:", *"(" * 14])) == both.n_ctx
    with pytest.raises(UserError, match="a sample has 16 tokens, but n_ctx is 15, BOS included; shorten it"):
        jax.eval_shape(MODEL, jnp.zeros(16, jnp.int32))


@pytest.mark.parametrize("source", ["", "(", "((((("])
def test_a_source_of_another_length_than_the_base_is_refused(source):
    tokens = CASE.tokens(source)
    n = len(tokens)
    _, activations = MODEL(tokens)
    with pytest.raises(UserError, match=rf"source run's embed has shape \({n}, 12\), but the base run's begins \(5,\)"):
        MODEL(BASE, (NODES, activations))
    _, values = CASE.circuit(tokens)
    with pytest.raises(
        UserError, match=rf"the source run's tokens has shape \({n},\), but the base run's begins \(5,\)"
    ):
        CASE.circuit(BASE, (NODES, values))
    with pytest.raises(
        UserError, match=rf"the bases have shape \(1, 5\), the sources \(1, {n}\); a swap needs the same"
    ):
        interchange(MODEL, CASE.circuit, BASE[None], tokens[None], np.asarray(NODES)[None])


def test_a_mask_or_source_of_another_transformer_is_refused():
    other = cases.load("2")
    _, activations = other.model(BASE)
    _, values = other.case.circuit(BASE)
    mask = jnp.asarray(other.case.config.nodes.mask([]))
    with pytest.raises(UserError, match="the mask has 16 places, but the transformer has 6 nodes; give it one a node"):
        CASE.circuit(BASE, (mask, CASE.circuit(BASE)[1]))
    with pytest.raises(UserError, match="the mask has 16 places"):
        MODEL(BASE, (mask, MODEL(BASE)[1]))
    with pytest.raises(
        UserError, match=r"the source run's z has shape \(3, 5, 4, 5\), but the base run's begins \(1, 5, 4\)"
    ):
        MODEL(BASE, (NODES, activations))
    with pytest.raises(
        UserError, match="the source has 6 values, but the circuit 4: tokens, counts, left_greater, answer"
    ):
        CASE.circuit(BASE, (NODES, values))


def test_a_stratum_that_draws_what_is_no_token_is_refused():
    rng = np.random.default_rng(0)
    for token in (9, -1, 4):
        wrong = replace(CASE, strata=(Uniform((2, 3)), Uniform((2, token))))
        with pytest.raises(
            UserError, match=rf"stratum Uniform\(.*\) drew the token {token}; tokens are 0 to 3, as the v"
        ):
            wrong.draw(80, 20, rng)
    for gives, what in (
        (lambda rng, n, length: np.zeros((n, length + 1), np.int32), r"int32 of shape \(1000, 15\)"),
        (lambda rng, n, length: np.zeros((n, length)), r"float64 of shape \(1000, 14\)"),
        (lambda rng, n, length: np.zeros((0, length), np.int32), r"int32 of shape \(0, 14\)"),
    ):
        with pytest.raises(UserError, match=f"<lambda> gave an array of {what} for 1000 strings of 14 tokens; it must"):
            replace(CASE, strata=(gives,)).draw(80, 20, rng)


def test_too_few_samples_for_the_strata_are_told_from_strata_of_one_string():
    with pytest.raises(
        UserError, match=r"1 strings to train on and 1 to validate on are too few for 15 strata.* 30 or more"
    ):
        CASE.draw(1, 1, np.random.default_rng(0))
    with pytest.raises(UserError, match="the strata hold one string each"):
        replace(CASE, strata=(Uniform((2,)),)).draw(8, 2, np.random.default_rng(0))


def test_a_combined_case_in_another_context_draws_and_lists_samples_of_that_length():
    both = combine([cases.find(name) for name in ("left_greater", "duplicate_remover")]).with_context(6)
    assert (both.n_ctx, both.config.n_ctx) == (6, 6)
    train, validation = both.draw(80, 20, np.random.default_rng(0))
    assert (train.shape, validation.shape) == ((80, 6), (20, 6))
    tasks = [both.vocabulary.index(task) for task in both.tasks]
    every = both.every(10**4)
    assert every is not None
    assert [int((every[:, 0] == task).sum()) for task in tasks] == [2**4, 3**4]
    assert (every != 1).all()  # no sample is padded
    string = ["duplicate_remover:", "a", "a", "b", "c"]
    labels, _ = both.circuit(both.tokens(string))
    assert [cases.find("duplicate_remover").vocabulary[i] for i in labels[2:].tolist()] == ["a", "PAD", "b", "c"]
    assert cases.described(both.describe()).drawn == both.drawn


def test_every_string_is_one_that_the_task_draws():
    """Strings that end in 3, of which few begin with 3: by brute force in Python."""
    ends_right = Those(Uniform((2, 3)), lambda strings: strings[:, -1] == 3)
    few = replace(CASE, strata=(ends_right, Arrangements(2, 3, 0), Arrangements(3, 2, 1))).with_context(4)
    every = few.every(8)
    assert every is not None
    strings = [(a, b, c) for a in (2, 3) for b in (2, 3) for c in (2, 3)]
    drawn = [s for s in strings if s[-1] == 3 or s.count(3) in (1, 3)]
    assert [tuple(row) for row in every.tolist()] == [(0, *s) for s in drawn]
    assert few.every(7) is None  # of the eight of which the first stratum keeps some
    unlisted = replace(CASE, strata=(lambda rng, n, length: rng.integers(2, 4, (n, length), np.int32),))
    with pytest.raises(UserError, match="<lambda> does not say which strings it draws"):
        unlisted.every(10**6)
