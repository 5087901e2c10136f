"""How swaps of edges are drawn: the shares of the kinds, and what none may touch. A step trained on them: its terms are
added up again in plain Python, from labels of a graph walked by hand and logits of TransformerLens under hooks."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import find, left_greater
from siitjax.base.errors import UserError
from siitjax.model.forms import BATCH_LAST, PLAIN
from siitjax.model.swaps import EdgeSwaps
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.edge_sampling import draw_swaps, group_size
from siitjax.siit.objective import BASE, IIT, SIIT, Sampling
from siitjax.siit.step import make_step, optimizer
from siitjax.siit.train import draw_data, make_train
from tests.graphs import LEFT_GREATER, label, swap_of
from tests.hooked import by_reader_twin, path_patched, random_model, written
from tests.test_objective import assert_count

CIRCUIT = find("paren_checker").circuit
NODES = CIRCUIT.nodes
N, SEQ, DRAWS = len(NODES), 3, 2_000
POSSIBLE = NODES.edge_mask(NODES.possible_edges)
HELD, EDGES = int(CIRCUIT.circuit_mask.sum()), len(CIRCUIT.edges)
UNUSED = NODES.as_edges(CIRCUIT.unused_mask)

EDGES_OF_IIT, EDGES_OF_SIIT = 0, 1
OFF = dict.fromkeys(("p_edge", "p_nodes", "p_edges", "p_outside", "p_whole", "p_own", "p_base", "p_positions"), 0.0)
HYPER = Hyperparams(edges_from=0.5)
"""The probabilities of the kinds as they stand."""


@jax.jit
def drawn_by(hyper, compound):
    return draw_swaps(CIRCUIT, hyper, compound, DRAWS, SEQ, key=jax.random.key(0))


def drawn(compound: Any = True, **given: Any) -> Any:
    """Edges (draw, 2, reader, sender), positions (draw, 2, sender, seq), sources (draw, 2, sender), IIT's first."""
    swaps = jax.device_get(drawn_by(replace(HYPER, **given).traced(), jnp.asarray(compound)))
    return swaps.edges, swaps.positions, swaps.sources


def columns(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which senders all readers see the source of, and whether the mask is of such senders alone."""
    senders = np.asarray(edges.any(-2))
    return senders, (edges == (senders[..., None, :] & POSSIBLE)).all((-1, -2))


def test_only_edges_that_there_are_and_siit_none_of_the_circuit():
    edges, positions, sources = drawn(p_whole=0.5, p_outside=0.7)
    assert edges.shape == (DRAWS, 2, N, N)
    assert positions.shape == (DRAWS, 2, N, SEQ)
    assert sources.shape == (DRAWS, 2, N)
    assert not (edges & ~POSSIBLE).any()
    assert not (edges[:, EDGES_OF_SIIT] & CIRCUIT.edge_mask).any()
    assert (edges.any((0, 1)) == POSSIBLE).all(), "every edge is swapped at times"


def test_before_edges_from_one_node_is_swapped_or_unused_ones_from_the_pairs_source_at_all_positions():
    edges, positions, sources = drawn(compound=False, p_edge=0.7, p_whole=1.0, p_own=1.0, p_base=1.0, p_positions=1.0)
    senders, of_nodes = columns(edges)
    assert of_nodes.all()
    assert (senders[:, EDGES_OF_IIT].sum(1) == 1).all()
    for i in np.flatnonzero(CIRCUIT.circuit_mask):
        assert_count(senders[:, EDGES_OF_IIT, i].sum(), DRAWS, 1 / HELD)
    assert not (senders[:, EDGES_OF_SIIT] & ~CIRCUIT.unused_mask).any()
    for i in np.flatnonzero(CIRCUIT.unused_mask):
        assert_count(senders[:, EDGES_OF_SIIT, i].sum(), DRAWS, 0.5)
    assert positions.all()
    assert (sources == np.arange(DRAWS)[:, None, None]).all()


def test_the_kinds_of_the_circuit_have_their_shares():
    """Of a subset each member has the same random probability, so that it has any number of them equally often. The
    last node's swap is that of its one edge: neither is counted where single ones are."""
    p = {"p_edge": 0.3, "p_nodes": 0.25, "p_edges": 0.2}
    edges, *_ = drawn(**{**OFF, **p})
    iit = edges[:, EDGES_OF_IIT]
    senders, of_nodes = columns(iit)
    of_edges = (iit <= CIRCUIT.edge_mask).all((1, 2))
    size = iit.sum((1, 2))
    assert (of_nodes | of_edges).all()
    assert not (senders & ~CIRCUIT.circuit_mask & of_nodes[:, None]).any()
    last = NODES.nodes.index(CIRCUIT.edges[-1][0])
    one_node = of_nodes & (senders.sum(1) == 1) & ~senders[:, last]
    assert_count(one_node.sum(), DRAWS, (0.25 + p["p_nodes"] / (HELD + 1)) * (1 - 1 / HELD))
    one_edge = of_edges & (size == 1) & ~senders[:, last]
    assert_count(one_edge.sum(), DRAWS, (p["p_edge"] + p["p_edges"] / (EDGES + 1)) * (1 - 1 / EDGES))
    assert_count((of_nodes & (senders.sum(1) > 1)).sum(), DRAWS, p["p_nodes"] * (1 - 2 / (HELD + 1)))
    assert_count((of_edges & (size > 1)).sum(), DRAWS, p["p_edges"] * (1 - 2 / (EDGES + 1)))
    assert_count((size == 0).sum(), DRAWS, p["p_nodes"] / (HELD + 1) + p["p_edges"] / (EDGES + 1))


def test_one_edge_is_each_of_the_circuits_as_often():
    edges, *_ = drawn(**{**OFF, "p_edge": 1.0})
    iit = edges[:, EDGES_OF_IIT]
    assert (iit.sum((1, 2)) == 1).all()
    for reader, sender in np.argwhere(CIRCUIT.edge_mask):
        assert_count(iit[:, reader, sender].sum(), DRAWS, 1 / EDGES)


def test_edges_outside_come_with_the_circuits_as_often_as_said():
    edges, *_ = drawn(**{**OFF, "p_edge": 1.0, "p_outside": 0.4, "p_whole": 0.5})
    iit = edges[:, EDGES_OF_IIT]
    assert ((iit & CIRCUIT.edge_mask).sum((1, 2)) == 1).all()
    outside = iit & ~CIRCUIT.edge_mask
    assert_count(outside.any((1, 2)).sum(), DRAWS, 0.4)
    assert_count((outside == CIRCUIT.outside_mask).all((1, 2)).sum(), DRAWS, 0.4 * 0.5 / 2)
    assert_count((outside == UNUSED).all((1, 2)).sum(), DRAWS, 0.4 * 0.5 / 2)


def test_siit_swaps_unused_nodes_or_edges_outside_some_or_all():
    edges, *_ = drawn(**{**OFF, "p_whole": 0.4, "p_unused": 0.3})
    siit = edges[:, EDGES_OF_SIIT]
    assert_count((siit == CIRCUIT.outside_mask).all((1, 2)).sum(), DRAWS, 0.2)
    whole = (siit == UNUSED).all((1, 2))
    assert_count(whole.sum(), DRAWS, 0.2)
    senders, of_nodes = columns(siit)
    assert not (senders & ~CIRCUIT.unused_mask)[of_nodes].any()
    some = of_nodes & ~whole
    assert_count(some.sum(), DRAWS, 0.3)
    by_edge = ~of_nodes & ~(siit == CIRCUIT.outside_mask).all((1, 2))
    assert_count(by_edge.sum(), DRAWS, 0.3)
    for of, drawn_of, members in (
        (senders[some], some.sum(), CIRCUIT.unused_mask),
        (siit[by_edge], by_edge.sum(), CIRCUIT.outside_mask),
    ):
        count = of.reshape(len(of), -1)[:, members.ravel()].sum()
        assert_count(count, int(drawn_of) * int(members.sum()), 0.3)


def test_sources_of_their_own_are_as_often_as_said_and_stay_within_the_group():
    _, _, sources = drawn(**{**OFF, "p_own": 0.4})
    here, group = np.arange(DRAWS)[:, None, None], group_size(DRAWS)
    assert group == 40
    own = (sources != here).any((1, 2))
    assert_count(own.sum(), DRAWS, 0.4)
    assert (sources // group == here // group).all()
    for number in range(group):
        assert_count((sources[own] % group == number).sum(), own.sum() * 2 * N, 1 / group)


def test_unused_nodes_are_held_at_the_base_in_the_iit_term_alone():
    _, _, sources = drawn(**{**OFF, "p_own": 0.4, "p_base": 0.3})
    here = np.arange(DRAWS)[:, None]
    iit, siit = sources[:, EDGES_OF_IIT], sources[:, EDGES_OF_SIIT]
    held = (iit == DRAWS + here)[:, CIRCUIT.unused_mask]
    assert_count(held.all(1).sum(), DRAWS, 0.3)
    assert (held.all(1) | ~held.any(1)).all(), "all of them, or none"
    assert (iit < DRAWS)[:, ~CIRCUIT.unused_mask].all()
    assert (siit < DRAWS).all()


def test_positions_are_drawn_as_often_as_said():
    """Where some are, they are so with one random probability, and it may be all of them."""
    _, positions, _ = drawn(**{**OFF, "p_positions": 0.4})
    some = ~positions.all((1, 2, 3))
    assert_count(some.sum(), DRAWS, 0.4 * (1 - 1 / (2 * N * SEQ + 1)))
    shares = positions[some].mean((1, 2, 3))
    for bound in (0.25, 0.5, 0.75):
        assert_count((shares < bound).sum(), int(some.sum()), bound)


@pytest.mark.parametrize(("batch", "size"), [(256, 32), (2_000, 40), (84, 28), (12, 12), (251, 251), (41, 41), (1, 1)])
def test_the_groups_of_a_batch_by_hand(batch, size):
    assert group_size(batch) == size


def test_the_groups_are_the_parts_that_a_batch_is_cut_into():
    """Or a sender's source would be looked for among other samples than it was drawn from."""
    for batch in range(1, 600):
        assert group_size(batch) == BATCH_LAST.part(batch)
        assert batch % group_size(batch) == 0
        assert PLAIN.part(batch) == batch


def test_within_a_part_sources_are_counted_from_its_first():
    edges, _, sources = drawn(p_own=1.0, p_base=0.5)
    size = group_size(DRAWS)
    for first in (0, 40, DRAWS - size):
        part = slice(first, first + size)
        within = EdgeSwaps(jnp.asarray(edges[part]), None, jnp.asarray(sources[part])).within(size, DRAWS)
        runs = np.concatenate([np.arange(DRAWS)[part], DRAWS + np.arange(DRAWS)[part]])
        np.testing.assert_array_equal(runs[within.sources], sources[part])
    assert EdgeSwaps(jnp.asarray(edges[:2])).within(1, 2).sources is None


@pytest.mark.parametrize(
    "other",
    [
        {"drawn_per": "batch"},
        {"circuit_nodes": "subset"},
        {"unused_nodes": "one"},
        {"unused_nodes": "all"},
        {"embedding": True},
    ],
    ids=str,
)
def test_what_does_not_go_with_edges_is_refused_on_one_line(other):
    assert Sampling(drawn_per="example", swaps="edges").swaps == "edges"
    with pytest.raises(UserError, match=r'^swaps is "edges", .* embedding off, and set drawn_per to "example"$'):
        Sampling(**{"drawn_per": "example", "swaps": "edges", **other})


@pytest.mark.usefixtures("types_unchecked")
def test_an_unknown_swap_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r'^swaps is "edge"; did you mean "edges"\?'):
        Sampling(drawn_per="example", swaps="edge")  # pyright: ignore[reportArgumentType]


def test_shares_of_kinds_that_are_more_than_all_are_refused():
    assert Hyperparams(p_edge=0.7, p_nodes=0.2, p_edges=0.1).p_edge == 0.7
    with pytest.raises(UserError, match=r"^p_edge, p_nodes and p_edges come to 1\.1 together; they may come to 1 at"):
        Hyperparams(p_edge=0.6, p_nodes=0.3, p_edges=0.2)
    with pytest.raises(UserError, match=r"^p_own is 1\.5; it must be from 0 to 1"):
        Hyperparams(p_own=1.5)


CASE = replace(left_greater.CASE, n_ctx=5, d_model=6, d_head=2)
CONFIG = TrainConfig(CASE, epochs=1, batch_size=8, samples=40, sampling=Sampling(drawn_per="example", swaps="edges"))
LEARNS = replace(HYPER, lr_start=0.02, lr_end=0.02, w_changed=1.5, p_own=0.7, p_base=0.5, p_positions=0.5).traced()
TOLERANCE = 1e-5
"""Rounding of losses of the order of one in float32."""


def terms_by_hand(model, base: np.ndarray, source: np.ndarray, swaps: EdgeSwaps) -> list[float]:
    """The three terms: cross-entropies added up sample by sample, and the more where a swap changed the label."""
    edges, positions, numbers = map(np.asarray, (swaps.edges, swaps.positions, swaps.sources))
    reference, names = by_reader_twin(model), list(map(str, CASE.circuit.nodes))
    readers = [*names[1:], "logits"]
    source = np.concatenate([source, base])
    runs = [written(reference, tokens) for tokens in source]
    terms = [0.0, 0.0, 0.0]
    for b, tokens in enumerate(base):
        clean = label(LEFT_GREATER, tokens.tolist())
        for term in (BASE, IIT, SIIT):
            m = term - 1
            there = runs[b]
            at: Any = lambda *_: np.zeros(CASE.n_ctx, bool)
            labels = clean
            if term != BASE:
                own = swap_of(names, edges[b, m], positions[b, m], source[numbers[b, m]])
                labels = label(LEFT_GREATER, tokens.tolist(), own)
                there = {name: runs[numbers[b, m, i]][name] for i, name in enumerate(names)}

                def swapped(sender, reader, b=b, m=m):
                    i = names.index(sender)
                    return edges[b, m, readers.index(reader), i] & positions[b, m, i]

                at = swapped

            logits = path_patched(reference, tokens, at, there)
            losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(tokens)), labels]
            weights = [1 + 1.5 * (a != b) for a, b in zip(labels, clean, strict=True)]
            terms[term] += (losses * weights).mean() / len(base)
    return terms


@pytest.fixture(scope="module")
def learning():
    """A compiled step, with a learner and a batch."""
    model: Any = random_model(CASE.config)
    rng = np.random.default_rng(3)
    base, source = rng.integers(2, 4, (2, CONFIG.batch_size, CASE.n_ctx)).astype(np.int32)
    base[:, 0] = source[:, 0] = 0
    opt_state = optimizer(LEARNS, 1).init(model)
    return jax.jit(make_step(CONFIG, PLAIN)), (model, opt_state), base, source


@pytest.mark.parametrize("done", [0.25, 0.5])
def test_a_steps_terms_are_those_added_up_by_hand_before_and_from_edges_from_on(learning, done):
    step, learner, base, source = learning
    key = jax.random.key(5)
    _, terms = step(LEARNS, learner, base, source, key, jnp.float32(done))
    draw = jax.jit(lambda hyper, compound: draw_swaps(CASE.circuit, hyper, compound, len(base), CASE.n_ctx, key=key))
    swaps = draw(LEARNS, jnp.asarray(done >= 0.5))
    assert bool(swaps.positions.all()) == (done < 0.5)
    np.testing.assert_allclose(terms, terms_by_hand(learner[0], base, source, swaps), rtol=0, atol=TOLERANCE)


def test_steps_lower_the_loss(learning):
    step, learner, base, source = learning
    seen = []
    for _ in range(30):
        learner, terms = step(LEARNS, learner, base, source, jax.random.key(5), jnp.float32(1))
        seen.append(np.asarray(terms))
    assert (seen[-1] < 0.7 * seen[0]).all(), f"{seen[0]} to {seen[-1]}"


def test_a_step_takes_a_batch_in_parts_in_the_cpu_form():
    """Traced alone: what the parts and the form give is compared elsewhere."""
    config = replace(CONFIG, batch_size=84, samples=200)
    model: Any = random_model(CASE.config)
    samples = jnp.zeros((84, CASE.n_ctx), jnp.int32)
    learner = model, optimizer(LEARNS, 1).init(model)
    step = make_step(config, BATCH_LAST)
    (after, _), terms = jax.eval_shape(lambda: step(LEARNS, learner, samples, samples, jax.random.key(0)))
    assert terms.shape == (3,)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, model)


def test_a_circuit_of_the_frozen_rule_is_refused():
    config = replace(CONFIG, case=replace(CASE, counterfactual="frozen"))
    model: Any = random_model(CASE.config)
    samples = jnp.zeros((8, CASE.n_ctx), jnp.int32)
    step = make_step(config, PLAIN)
    learner = model, optimizer(LEARNS, 1).init(model)
    with pytest.raises(UserError, match=r'^the rule "frozen" knows swaps of nodes alone'):
        jax.eval_shape(lambda: step(LEARNS, learner, samples, samples, jax.random.key(0), jnp.float32(1)))


def test_an_eighth_of_the_validation_pairs_is_measured_after_each_epoch_and_all_at_the_end():
    train = make_train(replace(CONFIG, samples=120, batch_size=32), PLAIN)
    data = draw_data(replace(CONFIG, samples=120), 0)
    state = train.init(LEARNS, jax.random.key(0))
    assert len(data.validation) == 24
    compiled = lambda part: jax.jit(part)(data, state)
    after, at_the_end = compiled(train.validate), compiled(train.measure)
    n = CASE.n_ctx
    assert (int(after.base.of), int(at_the_end.base.of)) == (3 * n, 24 * n)
    assert after.edges is not None
    assert at_the_end.edges is not None
    assert set(np.asarray(after.edges.tokens.of)) == {3 * n}
    assert set(np.asarray(at_the_end.edges.tokens.of)) == {24 * n}
