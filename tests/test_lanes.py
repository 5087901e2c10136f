"""Train functions vmapped over lanes: a lane is the solo run, whoever stops or diverges beside it, and a whole grid
traces once.
"""

from dataclasses import fields, replace

import chex
import jax
import jax.numpy as jnp
import numpy as np

from siitjax.siit.config import Hyperparams
from siitjax.siit.train import Stop, draw_data, make_train
from tests.tiny import ATTENTION as CONFIG
from tests.tiny import DIVERGES, EPOCHS, LEARNS, QUICK, SLOW, STAYS, TOKENS_OFF, TOLERANCE

LANES = 4

TRAIN = make_train(CONFIG)
init = jax.jit(jax.vmap(chex.assert_max_traces(TRAIN.init, n=1)))
advance = jax.jit(jax.vmap(chex.assert_max_traces(TRAIN.advance, n=1), (0, 0, 0, None)))
measure = jax.jit(jax.vmap(chex.assert_max_traces(TRAIN.measure, n=1)))

OF_EDGES = (
    *("edges_from", "p_edge", "p_nodes", "p_edges", "p_outside"),
    *("p_whole", "p_own", "p_base", "p_positions", "w_changed"),
)
"""What swaps of nodes, as these lanes have them, leave unread: it varies all the same, and compiles nothing again."""
GRID = [replace(h, **dict.fromkeys(OF_EDGES, i / 12)) for i, h in enumerate((LEARNS, STAYS, SLOW, QUICK))]


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def lane(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def run_lanes(hypers, seeds, until=EPOCHS):
    """The states and the final metrics of members trained side by side."""
    hyper, data = stack([h.traced() for h in hypers]), stack([draw_data(CONFIG, seed) for seed in seeds])
    states = advance(hyper, data, init(hyper, jnp.stack([jax.random.key(seed) for seed in seeds])), until)
    return jax.block_until_ready((states, measure(data, states)))


solo_init, solo_advance, solo_measure = jax.jit(TRAIN.init), jax.jit(TRAIN.advance), jax.jit(TRAIN.measure)


def run_solo(hyper, seed):
    data = draw_data(CONFIG, seed)
    state = solo_advance(hyper.traced(), data, solo_init(hyper.traced(), jax.random.key(seed)), EPOCHS)
    return state, solo_measure(data, state)


def test_a_lane_is_the_solo_run():
    states, finals = run_lanes(GRID, range(LANES))
    for i, hyper in enumerate(GRID):
        (state, final), (solo, solo_final) = (lane(states, i), lane(finals, i)), run_solo(hyper, i)
        assert (int(state.stop), int(state.epoch)) == (int(solo.stop), int(solo.epoch))
        chex.assert_trees_all_close(state.model, solo.model, rtol=0, atol=TOLERANCE)
        chex.assert_trees_all_close(state.history.loss, solo.history.loss, rtol=0, atol=TOLERANCE)
        chex.assert_trees_all_close(state.history.metrics, solo.history.metrics, rtol=0, atol=TOKENS_OFF)
        chex.assert_trees_all_close(final, solo_final, rtol=0, atol=TOKENS_OFF)


def test_a_lane_begins_as_the_solo_run_does_bit_for_bit():
    """First weights, optimizer state and keys: nothing that is added up."""
    hyper = stack([h.traced() for h in GRID])
    states = init(hyper, jnp.stack([jax.random.key(seed) for seed in range(LANES)]))
    for i, h in enumerate(GRID):
        chex.assert_trees_all_equal(lane(states, i), solo_init(h.traced(), jax.random.key(i)))


def test_a_member_does_not_depend_on_its_lane_bit_for_bit():
    order = [2, 0, 3, 1]
    here, there = run_lanes(GRID, range(LANES)), run_lanes([GRID[i] for i in order], order)
    chex.assert_trees_all_equal(there, lane(here, np.array(order)))


def test_a_member_that_diverges_changes_no_neighbour_bit_for_bit():
    healthy, beside_diverged = run_lanes(GRID, range(LANES)), run_lanes([LEARNS, STAYS, DIVERGES, QUICK], range(LANES))
    assert Stop(int(beside_diverged[0].stop[2])) is Stop.DIVERGED
    assert Stop(int(healthy[0].stop[2])) is not Stop.DIVERGED
    for i in (0, 1, 3):
        chex.assert_trees_all_equal(lane(beside_diverged, i), lane(healthy, i))


def test_a_member_that_stops_early_stays_as_it_was_while_the_others_go_on():
    states, _ = run_lanes(GRID, range(LANES))
    stops, epochs = [Stop(s) for s in states.stop.tolist()], states.epoch.tolist()
    assert stops[1] is Stop.EXHAUSTED
    early = [i for i in range(LANES) if stops[i] is Stop.CONVERGED and epochs[i] < EPOCHS]
    assert early
    for i in early:
        then, _ = run_lanes(GRID, range(LANES), until=epochs[i])
        chex.assert_trees_all_equal(lane(states, i), lane(then, i))
        # Had the others been stopped with it, they would stand where it does.
        assert int(states.epoch[1]) == EPOCHS > epochs[i]


def test_a_grid_over_every_hyperparameter_and_seed_traces_once():
    """`chex.assert_max_traces` stands around the functions above: a second trace anywhere in this file raises."""
    for field in fields(Hyperparams):
        assert len({float(getattr(hyper, field.name)) for hyper in GRID}) == LANES, field.name
    for seeds in (range(LANES), range(10, 10 + LANES)):
        run_lanes(GRID, seeds)
        run_lanes(GRID[::-1], seeds)
