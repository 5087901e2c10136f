"""A case's own sampler of sources: training, evaluation and what is written of the case take the sources it gives."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import siitjax
from siitjax import UserError
from siitjax.causal.behaviour import behaviour
from siitjax.causal.combine import combine
from siitjax.causal.ground_truth import edge_effects
from siitjax.causal.sources import OneChanged
from siitjax.causal.validate import check_labels
from siitjax.siit.fresh_pairs import list_batches

ANY = replace(siitjax.find_case("left_greater"), n_ctx=6, d_model=6, d_head=2)
LETTERS = (2, 3)
NEAR = replace(ANY, sources=OneChanged(LETTERS, p=1.0))
ITSELF = replace(ANY, sources=lambda base, other, key: base)


def test_one_token_is_changed_into_another_of_those_given():
    base, _ = ANY.draw(300, 60, np.random.default_rng(0))
    keys = jax.random.split(jax.random.key(0), len(base))
    other = jnp.asarray(np.roll(base, 1, 0))
    for p in (0.0, 0.5, 1.0):
        found = np.asarray(jax.vmap(OneChanged((2, 3, 1), p=p))(jnp.asarray(base), other, keys))
        near = (found != base).sum(1) == 1
        assert (near | (found == other).all(1)).all()
        assert near[:, None].mean() >= p - 0.1
    assert (found[:, 0] == 0).all()  # BOS is none of those
    assert {*np.unique(np.argwhere(found != base)[:, 1])} == {1, 2, 3, 4, 5}
    blank = jnp.zeros(6, jnp.int32)
    assert OneChanged(LETTERS, p=1.0)(blank, blank, keys[0]).tolist() == [0] * 6


def test_with_the_base_itself_for_a_source_no_label_changes():
    small = {"samples": 120, "batch_size": 32, "epochs": 1, "progress": False}
    run = siitjax.train(ITSELF, **small)
    assert set(run.metrics.node_changed) == {0}
    assert run.history["loss_base"][0] == pytest.approx(run.history["loss_iit"][0], rel=1e-5)
    assert run.history["loss_base"][0] == pytest.approx(run.history["loss_siit"][0], rel=1e-5)
    found = siitjax.evaluate(run.model, ITSELF, pairs=40)
    assert set(found.metrics.node_changed) == {0}
    assert set(edge_effects(ITSELF).values()) == {0.0}


def test_fresh_pairs_are_the_cases_own():
    ((base, source),) = list_batches(NEAR, 50, seed=0)
    assert ((base != source).sum(1) == 1).all()
    ((same, other),) = list_batches(ANY, 50, seed=0)
    np.testing.assert_array_equal(base, same)
    assert ((base != other).sum(1) > 1).any()


def test_of_several_tasks_each_has_its_own():
    both = combine([NEAR, ANY], width_factor=None)
    base, _ = both.draw(80, 4, np.random.default_rng(0))
    other = np.roll(base, 1, 0)
    found = np.asarray(both.source_of(jnp.asarray(base), jnp.asarray(other), jax.random.key(0)))
    first, same = base[:, 0] == len(both.vocabulary) - 2, base[:, 0] == other[:, 0]
    assert ((found != base).sum(1)[first & same] == 1).all()
    np.testing.assert_array_equal(found[~(first & same)], other[~(first & same)])
    assert combine([ANY, ANY], width_factor=None).sources is None


def test_what_is_said_of_a_case_says_that_it_has_its_own():
    assert "sources" not in ANY.describe()
    assert NEAR.describe()["sources"] == "the case's own"
    assert behaviour(NEAR).computed.change(behaviour(ITSELF).computed) is not None


def test_a_sampler_that_gives_no_sample_is_told_in_one_line():
    with pytest.raises(
        UserError, match=r"^sources gives int32 of shape \(5,\) for a base of 6 tokens; it must give the "
    ):
        replace(ANY, sources=lambda base, other, key: base[1:])
    with pytest.raises(UserError, match=r"^the tokens hold the id 9, but the 4 tokens have the ids 0 to 3$"):
        check_labels(replace(ANY, sources=lambda base, other, key: base + 9))
    with pytest.raises(UserError, match=r"^the tokens are \(2,\); give two at least"):
        OneChanged((2,))
    with pytest.raises(UserError, match=r"^p is 2.0; it must be from 0 to 1$"):
        OneChanged(LETTERS, p=2.0)
