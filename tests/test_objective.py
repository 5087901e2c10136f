"""The objective: which nodes a mask may hold and how often, what a term costs, and that a weight acts as itself.

Nodes are drawn many times over and counted; the terms are added up again in plain Python; the gradients and updates
of the public step are compared with those of each term on its own, put together by optax and Python floats.
"""

import math
from dataclasses import dataclass, replace

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from cases import duplicate_remover, left_greater, paren_checker
from siitjax.causal.case import Case
from siitjax.causal.loss import CrossEntropy
from siitjax.model.nodes import EMBED
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.objective import BASE, IIT, SIIT, Sampling, batch_masks, draw_masks, term_losses
from siitjax.siit.step import make_step, optimizer
from tests.test_interchange import labels_by_hand, model_of, run_transformer

DRAWS = 20_000
SIGMAS = 5
"""A count may be this many standard deviations off its mean: by chance, one count in two million is."""

TOLERANCE = 1e-5
"""Rounding of losses and of relative gradients in float32."""

CIRCUIT = paren_checker.CASE.circuit
HALF = jnp.float32(0.5)
CASE = replace(left_greater.CASE, n_ctx=6, d_model=6, d_head=2)
"""Small: the unused nodes are the two heads L0H0 and L0H2."""


def assert_count(count, draws, p):
    assert abs(count - draws * p) <= SIGMAS * math.sqrt(draws * p * (1 - p)), f"{count} of {draws}, expected {p}"


def drawn(sampling: Sampling) -> np.ndarray:
    """Masks of many draws: (draw, 3, node)."""
    draw = jax.vmap(lambda key: draw_masks(CIRCUIT, sampling, HALF, HALF, key=key))
    return np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(0), DRAWS)))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling("one", "subset"),
        Sampling("subset", "one", embedding=True),
        Sampling("subset", "all"),
        Sampling("one", "all", embedding=True),
    ],
    ids=str,
)
def test_each_term_swaps_its_own_nodes_alone_and_any_of_them(sampling):
    masks = drawn(sampling)
    assert not masks[:, BASE].any()
    circuit = {str(v.node) for v in paren_checker.CASE.variables} | ({"embed"} if sampling.embedding else set())
    names = [str(node) for node in CIRCUIT.nodes]
    assert {names[i] for i in np.flatnonzero(masks[:, IIT].any(0))} == circuit
    assert {names[i] for i in np.flatnonzero(masks[:, SIIT].any(0))} == set(names) - circuit - {"embed"}


@pytest.mark.parametrize("embedding", [False, True])
def test_one_is_one_node_each_as_often(embedding):
    masks = drawn(Sampling("one", "one", embedding=embedding))
    for term, nodes in ((IIT, 5 + embedding), (SIIT, 16 - 1 - 5)):
        assert (masks[:, term].sum(1) == 1).all()
        counts = masks[:, term].sum(0)
        for count in counts[counts > 0]:
            assert_count(count, DRAWS, 1 / nodes)
    together = np.einsum("di,dj->ij", masks[:, IIT].astype(int), masks[:, SIIT].astype(int))
    for count in together[together > 0]:
        assert_count(count, DRAWS, 1 / (5 + embedding) / 10)


def test_a_subset_holds_each_node_with_its_own_traced_probability_and_independently():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def draw(keys, p_circuit, p_unused):
        sampling = Sampling("subset", "subset")
        return jax.vmap(lambda key: draw_masks(CIRCUIT, sampling, p_circuit, p_unused, key=key))(keys)

    keys = jax.random.split(jax.random.key(1), DRAWS)
    for p in ((0.3, 0.8), (0.0, 1.0), (1.0, 0.0)):
        masks = np.asarray(draw(keys, *map(jnp.float32, p)))
        subsets = [masks[:, IIT, CIRCUIT.circuit_mask], masks[:, SIIT, CIRCUIT.unused_mask]]
        for subset, p_node in zip(subsets, p, strict=True):
            for i, column in enumerate(subset.T):
                assert_count(column.sum(), DRAWS, p_node)
                for other in subset.T[:i]:
                    assert_count((column & other).sum(), DRAWS, p_node**2)
        assert_count((subsets[0][:, 0] & subsets[1][:, 0]).sum(), DRAWS, p[0] * p[1])


def test_all_is_every_unused_node_each_time():
    assert (drawn(Sampling(unused_nodes="all"))[:, SIIT] == CIRCUIT.unused_mask).all()


@pytest.mark.parametrize("unused_nodes", ["subset", "one", "all"])
def test_a_circuit_that_fills_the_transformer_leaves_nothing_to_draw(unused_nodes):
    case = replace(
        duplicate_remover.CASE, n_layers=1, d_model=4, d_head=4, variables=duplicate_remover.CASE.variables[:2]
    )
    assert case.circuit.unused_mask.sum() == 0
    masks = draw_masks(case.circuit, Sampling(unused_nodes=unused_nodes), HALF, HALF, key=jax.random.key(0))
    assert not masks[SIIT].any()


def test_masks_are_drawn_once_a_batch_or_for_every_example():
    draw = lambda sampling: np.asarray(batch_masks(CIRCUIT, sampling, HALF, HALF, DRAWS, key=jax.random.key(2)))
    assert draw(Sampling("one", "subset", "batch")).shape == (3, 16)
    masks = draw(Sampling("one", "subset", "example"))
    assert masks.shape == (DRAWS, 3, 16)
    assert not masks[:, BASE].any()
    for node in range(16):
        assert_count(masks[:, IIT, node].sum(), DRAWS, 1 / 5 if CIRCUIT.circuit_mask[node] else 0)
        assert_count(masks[:, SIIT, node].sum(), DRAWS, 1 / 2 if CIRCUIT.unused_mask[node] else 0)
    # One example's draw says nothing of the next one's.
    assert_count((masks[1:, SIIT, 1] & masks[:-1, SIIT, 1]).sum(), DRAWS - 1, 1 / 4)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("name", "word", "near"),
    [("circuit_nodes", "onne", "one"), ("unused_nodes", "al", "all"), ("drawn_per", "", "batch")],
)
def test_an_unknown_way_to_draw_is_refused_with_the_nearest(name, word, near):
    with pytest.raises(ValueError, match=rf'^{name} is "{word}"; .*{near}'):
        Sampling(**{name: word})


def pairs_of(case: Case, n: int) -> tuple[jax.Array, jax.Array]:
    """Bases and sources of different lengths, PAD after their own tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, len(case.vocabulary), (2, n, case.n_ctx)).astype(np.int32)
    tokens[:, :, 0] = 0
    tokens[np.arange(case.n_ctx) >= rng.integers(2, case.n_ctx + 1, (2, n, 1))] = 1
    return jnp.asarray(tokens[0]), jnp.asarray(tokens[1])


losses = eqx.filter_jit(term_losses)


@pytest.mark.parametrize(("drawn_per", "embedding"), [("batch", False), ("example", True)])
def test_a_term_is_the_mean_over_a_samples_own_tokens_then_over_the_batch(drawn_per, embedding):
    model, (bases, sources) = model_of(CASE), pairs_of(CASE, 5)
    rng = np.random.default_rng(1)
    masks = rng.random(((5,) if drawn_per == "example" else ()) + (4, len(CASE.config.nodes))) < 0.5
    got = losses(model, CASE, bases, sources, jnp.asarray(masks), embedding=embedding)

    per_mask = [0.0] * 4
    for i in range(5):
        for j in range(4):
            mask = masks[i, j] if drawn_per == "example" else masks[j]
            swapped = [node for node in CASE.config.nodes.named(mask) if embedding or node != EMBED]
            logits, _ = run_transformer(model, bases[i], swapped, run_transformer(model, sources[i])[1])
            labels = labels_by_hand(CASE, bases[i], sources[i], swapped)
            costs = []
            for token, row, label in zip(bases[i].tolist(), logits.tolist(), labels.tolist(), strict=True):
                if token != 1:
                    costs.append(math.log(sum(map(math.exp, row))) - row[label])
            per_mask[j] += sum(costs) / len(costs) / 5
    np.testing.assert_allclose(got, per_mask, rtol=TOLERANCE)


@dataclass(frozen=True)
class NanAtTheEnd(CrossEntropy):
    def per_token(self, outputs, labels):
        return super().per_token(outputs, labels).at[..., -1].set(jnp.nan)


def test_a_pad_costs_nothing_even_where_its_loss_is_nan():
    model, (bases, sources) = model_of(CASE), pairs_of(CASE, 5)
    broken, masks = replace(CASE, loss=NanAtTheEnd()), jnp.zeros((1, len(CASE.config.nodes)), bool)
    assert np.isnan(losses(model, broken, bases.at[:, -1].set(2), sources, masks)).all()
    padded = bases.at[:, -1].set(1)
    with_nan, without = (losses(model, case, padded, sources, masks) for case in (broken, CASE))
    np.testing.assert_array_equal(with_nan, without)


# With every node of a kind drawn for certain, the masks of a step are known without its key.
CERTAIN = Sampling("subset", "all")
BATCH = 8


def config_of(updates) -> TrainConfig:
    return TrainConfig(CASE, epochs=2, batch_size=BATCH, samples=30, updates=updates, sampling=CERTAIN)


single_step = jax.jit(make_step(config_of("single")))


def hyper_of(**changed) -> Hyperparams:
    """An eps that does not blow rounding up to whole updates where a gradient is exactly 0 (a bias of the keys)."""
    return Hyperparams(**{"eps": 1e-3, "p_circuit": 1.0, **changed})


def learner_of(hyper):
    return jax.jit(lambda model: (model, optimizer(hyper.traced(), 1).init(model)))(model_of(CASE))


@jax.jit
def term_gradient(model, base, source, term):
    """The loss and gradient of one term alone."""
    nodes = CASE.circuit.circuit_mask, CASE.circuit.unused_mask
    masks = jnp.asarray(np.stack([np.zeros_like(nodes[0]), *nodes]))
    loss = lambda model: term_losses(model, CASE, base, source, masks[term][None])[0]
    return jax.value_and_grad(loss)(model)


def assert_same_tree(got, wanted):
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(jax.device_get(wanted)))
    chex.assert_trees_all_close(got, wanted, atol=TOLERANCE * scale)


@pytest.mark.parametrize("weights", [(0.4, 1.0, 0.4), (0.4, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.4)], ids=str)
def test_a_weight_of_04_acts_as_04(weights):
    hyper = hyper_of(**dict(zip(("w_base", "w_iit", "w_siit"), weights, strict=True)), beta1=0.0, clip=1e30)
    learner, pairs = learner_of(hyper), pairs_of(CASE, BATCH)
    (_, opt_state), seen = single_step(hyper.traced(), learner, *pairs, jax.random.key(3))
    # Adam's first moment is the gradient itself where beta1 is 0.
    gradient = optax.tree_utils.tree_get(opt_state, "mu")
    terms = [term_gradient(learner[0], *pairs, term) for term in (BASE, IIT, SIIT)]
    wanted = jax.tree.map(lambda *g: sum(w * leaf for w, leaf in zip(weights, g, strict=True)), *(g for _, g in terms))
    assert_same_tree(gradient, ravel_pytree(wanted)[0])
    np.testing.assert_allclose(seen, [loss for loss, _ in terms], rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("updates", "turns"),
    [("single", [(BASE, IIT, SIIT)]), ("three", [(IIT,), (SIIT,), (BASE,)])],
    ids=["single", "three"],
)
def test_a_step_is_one_update_on_the_sum_or_one_a_term_on_a_shared_adam_state(updates, turns):
    """Two epochs of three batches, so that the learning rate's whole way is walked, against optax with floats."""
    config = config_of(updates)
    hyper = hyper_of(w_base=0.4, w_iit=1.3, w_siit=0.2, lr_start=1e-2, lr_end=1e-3, beta1=0.8, beta2=0.95, clip=0.5)
    weights = {BASE: 0.4, IIT: 1.3, SIIT: 0.2}
    n_updates = 2 * 3 * len(turns)
    step = single_step if updates == "single" else jax.jit(make_step(config))
    by_hand = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adam(optax.linear_schedule(1e-2, 1e-3, n_updates), b1=0.8, b2=0.95, eps=1e-3),
    )
    learner = learner_of(hyper)
    model, state = learner[0], by_hand.init(learner[0])
    pairs = [jnp.split(x, 6) for x in pairs_of(CASE, 6 * BATCH)]

    @jax.jit
    def update(model, gradients, state):
        with jax.numpy_dtype_promotion("standard"):
            changes, state = by_hand.update(gradients, state)
        return optax.apply_updates(model, changes), state

    for i, (base, source) in enumerate(zip(*pairs, strict=True), start=1):
        learner, seen = step(hyper.traced(), learner, base, source, jax.random.key(i))
        terms_by_hand = {}
        for terms in turns:
            parts = {term: term_gradient(model, base, source, term) for term in terms}
            terms_by_hand |= {term: float(loss) for term, (loss, _) in parts.items()}
            total = jax.tree.map(
                lambda *g, terms=terms: sum(weights[t] * leaf for t, leaf in zip(terms, g, strict=True)),
                *(g for _, g in parts.values()),
            )
            model, state = update(model, total, state)
        np.testing.assert_allclose(seen, [terms_by_hand[term] for term in (BASE, IIT, SIIT)], rtol=TOLERANCE)
        assert_same_tree(learner[0], model)
        counts = optax.tree_utils.tree_get_all_with_path(learner[1], "count")
        assert [int(count) for _, count in counts] == [i * len(turns)] * 2
