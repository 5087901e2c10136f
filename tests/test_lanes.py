"""Many members in one compilation: a lane of a batched program is the solo run, whoever stops or diverges beside it;
a whole grid traces once a bucket; and a sweep gives the same outcomes with any number of workers.

The case's label is always class 1, so that members converge, exhaust their epochs or diverge as their rates decide.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import siitjax.sweep
from cases import left_greater
from siitjax.circuit import Variable
from siitjax.data import Uniform
from siitjax.nodes import head
from siitjax.objective import Sampling
from siitjax.sweep import Member, Outcome, Watcher, compile_bucket, run_sweep
from siitjax.train import Hyperparams, Stop, TrainConfig, draw_data, make_train

TOLERANCE = 1e-4
"""Batched matrix products add in another order than a solo run's, so XLA's results differ in the last bits. Of that
rounding, 1e-7 of a gradient, Adam makes no more than rate * 1e-7 / eps a step, 5e-6 at the rates and eps below; the
runs are 8 steps long. (At eps 1e-8 Adam would make whole steps of the rounding in a gradient that is exactly 0, as
that of the keys' bias is.)"""

TOKENS_OFF = 2 / (40 * 6)
"""For the same reason a token whose two largest logits agree to the last bits may count differently."""

EPOCHS, LANES = 4, 4


def always_one(tokens):
    return 0 * tokens + 1


CASE = replace(
    left_greater.CASE,
    variables=(Variable("answer", ("tokens",), always_one, head(0, 1)),),
    strata=(Uniform((2, 3)),),
    n_ctx=6,
    d_model=6,
    d_head=2,
)
CONFIG = TrainConfig(CASE, epochs=EPOCHS, batch_size=80, samples=200, sampling=Sampling("subset", "subset"))

TRAIN = make_train(CONFIG)
init = jax.jit(jax.vmap(chex.assert_max_traces(TRAIN.init, n=1)))
advance = jax.jit(jax.vmap(chex.assert_max_traces(TRAIN.advance, n=1), (0, 0, 0, None)))
measure = jax.jit(jax.vmap(chex.assert_max_traces(TRAIN.measure, n=1)))

LEARNS = Hyperparams(0.05, 0.04, 0.9, 0.9, 1e-3, 1.0, 0.4, 1.0, 0.4, 0.5, 0.5)
STAYS = Hyperparams(1e-30, 0.0, 0.8, 0.99, 1e-2, 2.0, 0.3, 0.9, 0.5, 0.6, 0.4)
SLOW = Hyperparams(0.01, 0.001, 0.7, 0.999, 2e-3, 0.5, 0.5, 0.8, 0.3, 0.7, 0.6)
QUICK = Hyperparams(0.1, 0.05, 0.5, 0.95, 3e-3, 0.1, 1.0, 0.5, 0.2, 0.2, 0.9)
DIVERGES = replace(SLOW, lr_end=1e38)
GRID = [LEARNS, STAYS, SLOW, QUICK]


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def lane(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def run_lanes(hypers, seeds, until=EPOCHS):
    """The states and the final metrics of members trained side by side."""
    hyper, data = stack([h.traced() for h in hypers]), stack([draw_data(CONFIG, seed) for seed in seeds])
    states = advance(hyper, data, init(hyper, jnp.stack([jax.random.key(seed) for seed in seeds])), until)
    return jax.block_until_ready((states, measure(data, states)))


traces = Counter()


def counted(config: TrainConfig):
    """`make_train`, the traces of its functions counted."""

    def count(name: str, function: Callable):
        def traced(*args):
            traces[config, name] += 1
            return function(*args)

        return traced

    train = make_train(config)
    return train._replace(advance=count("advance", train.advance), measure=count("measure", train.measure))


@pytest.fixture(autouse=True, scope="module")
def count_traces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(siitjax.sweep, "make_train", counted)
        yield


compiled = cache(compile_bucket)
"""Each bucket is compiled once in this file, and its traces counted."""


def run_solo(hyper, seed, config=CONFIG):
    bucket, hyper, data = compiled(config), hyper.traced(), draw_data(config, seed)
    state = bucket.advance(hyper, data, bucket.init(hyper, jax.random.key(seed)), jnp.int32(EPOCHS))
    return state, bucket.measure(data, state)


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
        chex.assert_trees_all_equal(lane(states, i), compiled(CONFIG).init(h.traced(), jax.random.key(i)))


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


@dataclass
class Heard(Watcher):
    """Writes down everything; raises at the event called `fails`."""

    fails: str = ""

    def __post_init__(self):
        self.events: list[tuple] = []
        self.outcomes: dict[int, Outcome] = {}

    def note(self, name, index, *what):
        self.events.append((name, index, *what))
        if name == self.fails:
            raise RuntimeError(f"{name} failed")

    def started(self, index, member):
        self.note("started", index)

    def compiling(self, index, member):
        self.note("compiling", index)

    def epoch(self, index, member, epoch, metrics):
        self.note("epoch", index, epoch, metrics.tolist())

    def finished(self, index, member, outcome):
        self.outcomes[index] = outcome
        self.note("finished", index)


OTHER = replace(CONFIG, sampling=Sampling("one", "all"))
MEMBERS = [
    (10 + i, Member(str(i), i, config, hyper))
    for i, (config, hyper) in enumerate([(c, h) for h in [LEARNS, STAYS, DIVERGES] for c in (CONFIG, OTHER)])
]


def sweep(heard: Heard, workers: int, members=MEMBERS, timeout=300) -> list[TrainConfig]:
    """Runs a sweep, and fails where it hangs; gives the buckets that it asked to be compiled."""
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(siitjax.sweep, "compile_bucket", lambda config: asked.append(config) or compiled(config))
        runner = ThreadPoolExecutor(1)
        try:
            runner.submit(run_sweep, members, heard, workers=workers).result(timeout)
        finally:
            runner.shutdown(wait=False)
    return asked


@pytest.fixture(scope="module")
def sweeps():
    """What was heard of the same sweep, and the buckets it compiled, with one worker and with two."""
    results = {}
    for workers in (1, 2):
        heard = Heard()
        results[workers] = heard, sweep(heard, workers)
    return results


def test_a_sweep_compiles_and_traces_each_bucket_once_for_all_its_members(sweeps):
    for _, asked in sweeps.values():
        assert sorted(map(id, asked)) == sorted(map(id, (CONFIG, OTHER)))
    assert traces == {(config, name): 1 for config in (CONFIG, OTHER) for name in ("advance", "measure")}


def test_outcomes_are_the_same_with_any_number_of_workers_bit_for_bit(sweeps):
    one, two = (sweeps[workers][0].outcomes for workers in (1, 2))
    assert set(one) == set(two) == {index for index, _ in MEMBERS}
    for index, outcome in one.items():
        chex.assert_trees_all_equal(*(vars(replace(o, seconds=0.0)) for o in (outcome, two[index])))


def test_an_outcome_is_what_the_member_gives_on_its_own(sweeps):
    stops = set()
    for index, member in MEMBERS:
        outcome = sweeps[2][0].outcomes[index]
        state, final = run_solo(member.hyper, member.seed, member.config)
        epochs = int(state.epoch)
        assert (outcome.stop, outcome.epochs) == (Stop(int(state.stop)), epochs)
        assert outcome.history.loss.shape == (epochs, 3)
        chex.assert_trees_all_equal(outcome.model, state.model)
        chex.assert_trees_all_equal(outcome.metrics, jax.device_get(final))
        chex.assert_trees_all_equal(outcome.history, jax.tree.map(lambda x, n=epochs: np.asarray(x)[:n], state.history))
        stops.add(outcome.stop)
    assert stops == {Stop.CONVERGED, Stop.EXHAUSTED, Stop.DIVERGED}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_watcher_hears_each_member_start_run_every_epoch_once_and_finish(sweeps, workers):
    heard, _ = sweeps[workers]
    for index, member in MEMBERS:
        events = [(name, *what) for name, i, *what in heard.events if i == index]
        waited = [("compiling",)] if ("compiling",) in events else []
        history = heard.outcomes[index].history.metrics
        curves = np.stack([history.accuracy, history.iia, history.siia], 1).tolist()
        epochs = [("epoch", i, metrics) for i, metrics in enumerate(curves, start=1)]
        assert events == [("started",), *waited, *epochs, ("finished",)], member
    first_of_buckets = {index for index, _ in MEMBERS[:2]}
    assert {i for name, i, *_ in heard.events if name == "compiling"} >= first_of_buckets


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("event", ["started", "compiling", "epoch", "finished"])
def test_an_exception_in_a_watcher_ends_the_sweep_and_is_raised(workers, event):
    heard = Heard(event)
    with pytest.raises(RuntimeError, match=f"{event} failed"):
        sweep(heard, workers)
    assert 1 <= sum(name == event for name, *_ in heard.events) <= workers
    assert len(heard.outcomes) <= workers


def test_a_member_that_waits_for_a_bucket_whose_compilation_failed_is_let_go():
    """The second member of a bucket waits for the first, whose watcher fails just then."""

    class Fails(Heard):
        waiting = threading.Event()

        def started(self, index, member):
            super().started(index, member)
            if index == 1:
                self.waiting.wait()

        def compiling(self, index, member):
            super().compiling(index, member)
            if index == 0:
                self.waiting.set()
                time.sleep(0.5)
                raise RuntimeError("the first failed")

    with pytest.raises(RuntimeError, match="the first failed"):
        sweep(Fails(), 2, [(0, MEMBERS[0][1]), (1, MEMBERS[0][1])], timeout=30)
