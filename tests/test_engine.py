"""The engine in one process: the same outcomes on any lanes and in any order, lanes that are never free while a member
waits, and what its watcher hears."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest

import siitjax.sweep.engine
import siitjax.sweep.lanes
import siitjax.sweep.placement
from siitjax.model.forms import ROLLED, fastest
from siitjax.siit.config import TrainConfig
from siitjax.siit.metrics import shares
from siitjax.siit.train import Stop, draw_data
from siitjax.sweep.engine import Engine, Watcher
from siitjax.sweep.lanes import Program, compile_program
from siitjax.sweep.placement import Compiler, choose_policy
from siitjax.sweep.processes.launch import Waiting
from tests.engine import MEMBERS, OTHER, QUEUE, Heard, assert_alone, on, program, run, solo
from tests.tiny import ATTENTION as CONFIG
from tests.tiny import TOKENS_OFF, TOLERANCE


@pytest.mark.parametrize(("lanes", "order"), [(1, None), (3, None), (3, [5, 3, 1, 4, 2, 0])])
def test_an_outcome_is_the_solo_run_s_bit_for_bit_whatever_the_lanes_and_the_order(lanes, order):
    heard = run(MEMBERS, on(lanes), order=order)
    assert_alone(heard, MEMBERS)
    assert {outcome.stop for outcome in heard.outcomes.values()} == {Stop.CONVERGED, Stop.EXHAUSTED, Stop.DIVERGED}
    assert Counter(MEMBERS[i].config for i in heard.of("compiling")) == {CONFIG: 1, OTHER: 1}


def test_side_by_side_an_outcome_is_the_solo_run_s_but_for_rounding():
    assert_alone_but_for_rounding(run(QUEUE, on(3, "vmap")))


def assert_alone_but_for_rounding(heard: Heard) -> None:
    """Every member of the queue was kept, and gives what it gives alone."""
    assert set(heard.outcomes) == set(range(len(QUEUE)))
    for index, outcome in heard.outcomes.items():
        expected = solo(QUEUE[index])
        assert (outcome.stop, outcome.epochs) == (expected["stop"], expected["epochs"])
        if outcome.stop is not Stop.DIVERGED:  # whose weights are enormous
            chex.assert_trees_all_close(outcome.model, expected["model"], rtol=0, atol=TOLERANCE)
        chex.assert_trees_all_close(outcome.history.loss, expected["history"].loss, rtol=0, atol=TOLERANCE)
        chex.assert_trees_all_close(outcome.metrics, expected["metrics"], rtol=0, atol=TOKENS_OFF)


def test_what_a_gpu_runs_gives_the_solo_run_s_outcomes_but_for_rounding(monkeypatch):
    """The reference form, lanes side by side, and as many as memory holds: all members wait, and two of them fit."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(siitjax.sweep.placement, "limit_of", lambda device: 250)
    compiled = []

    def compile_for(config, lanes, **how):
        assert how["batching"] == "vmap"
        compiled.append(lanes)
        real = compile_program(config, lanes, **how) if lanes == 2 else program(config, 1)
        return replace(real, memory=100 * lanes)

    monkeypatch.setattr(siitjax.sweep.placement, "compile_program", compile_for)
    assert fastest() is ROLLED
    queue = Waiting(QUEUE, [*range(len(QUEUE))], {})
    heard = Heard()
    Engine(QUEUE, Compiler(choose_policy(), queue.count), heard.keep, lambda spot, like: like, heard).run(queue)
    assert compiled == [len(QUEUE), 2]
    assert_alone_but_for_rounding(heard)


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_watcher_hears_each_member_start_run_every_epoch_once_and_finish(lanes):
    heard = run(MEMBERS, on(lanes))
    for index in range(len(MEMBERS)):
        events = [(name, *what) for name, i, *what in heard.events if i == index]
        waited = [("compiling",)] if index < 2 else []  # the first of each bucket
        outcome = heard.outcomes[index]
        curves = [shares(outcome.history.metrics.at(epoch)) for epoch in range(outcome.epochs)]
        epochs = [("epoch", i, (seen.accuracy, seen.iia, seen.siia)) for i, seen in enumerate(curves, start=1)]
        assert events == [*waited, ("started", 0), *epochs, ("keep",), ("finished",)]


def test_each_bucket_is_compiled_once_for_all_its_members():
    asked = []
    run(MEMBERS, lambda config, most: asked.append((config, most)) or program(config, 1))
    assert asked == [(CONFIG, None), (OTHER, None)]


def test_training_that_is_traced_twice_is_a_bug_with_a_traceback(monkeypatch):
    twice = lambda one, *how: lambda *batch: [one(*jax.tree.map(lambda x: x[0], batch)) for _ in range(2)]
    monkeypatch.setattr(siitjax.sweep.lanes, "over_lanes", twice)
    with pytest.raises(AssertionError, match="assert_equal failed"):
        compile_program(CONFIG)


def watched(lanes: int, look: Callable) -> Callable[[TrainConfig, int | None], Program]:
    """A compiler whose programs show `look` the stops, the epochs before, those after, and until where."""

    def compiled(config, most):
        real = program(config, lanes)

        def advance(batch, until):
            before = jax.device_get((batch.state.stop, batch.state.epoch))  # it cannot be read after
            state = real.advance(batch, until)
            look(*before, *map(np.asarray, (state.epoch, until)))
            return state

        return replace(real, advance=advance)

    return compiled


def test_no_lane_is_free_while_a_member_of_the_bucket_waits(monkeypatch):
    monkeypatch.setattr(siitjax.sweep.engine, "CHUNK_SECONDS", 0.0)
    heard, seen = Heard(), []

    def look(stops, before, after, until):
        free = int((stops != Stop.RUNNING).sum())
        seen.append((free, len(QUEUE) - len(heard.of("started"))))

    run(QUEUE, watched(3, look), heard)
    assert [free for free, waiting in seen if waiting] == [0] * sum(waiting > 0 for _, waiting in seen)
    assert sum(waiting > 0 for _, waiting in seen) > 4
    assert seen[-1][0] > 0  # the last one trains alone


def test_occupancy_is_the_share_of_lane_time_in_training(monkeypatch):
    """On a clock that goes by a second an epoch: of every lane-second, those in which a member ran an epoch."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(siitjax.sweep.engine, "time", clock)

    def look(stops, before, after, until):
        clock.now += 1.0

    engine = Engine(QUEUE, watched(3, look), lambda *_: {}, lambda spot, like: like, Watcher())
    engine.run(Waiting(QUEUE, [*range(len(QUEUE))], {}))
    ran = sum(solo(member)["epochs"] + (solo(member)["stop"] is Stop.DIVERGED) for member in QUEUE)
    assert engine.occupancy.shares() == pytest.approx({"while_waiting": 1.0, "altogether": ran / (3 * clock.now)})


def test_a_seed_s_strings_are_drawn_once_for_all_settings(monkeypatch):
    drawn = []

    def draw(config, seed):
        drawn.append(seed)
        return draw_data(config, seed)

    monkeypatch.setattr(siitjax.sweep.engine, "draw_data", draw)
    run(QUEUE, lambda config, most: program(config, 1))
    assert drawn == [0, 1, 2, 3]


@pytest.mark.parametrize(("seconds", "chunks"), [(0.0, [1, 1, 1, 1]), (np.inf, [1, 2, 4])])
def test_a_chunk_is_doubled_until_it_lasts_long_enough(monkeypatch, seconds, chunks):
    monkeypatch.setattr(siitjax.sweep.engine, "CHUNK_SECONDS", seconds)
    asked = []
    run(QUEUE[2:3], watched(1, lambda stops, before, after, until: asked.append(int((until - before)[0]))))
    assert asked == chunks


def test_an_error_that_is_not_memory_s_is_raised():
    def advance(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: of the device")

    with pytest.raises(jax.errors.JaxRuntimeError, match="of the device"):
        run(QUEUE, lambda config, most: replace(program(config, 1), advance=advance))


@pytest.mark.parametrize("at", ["started", "compiling", "epoch", "keep", "finished"])
@pytest.mark.parametrize("lanes", [1, 3])
def test_an_exception_in_a_callback_ends_the_engine_and_is_raised(at, lanes):
    def fail():
        raise RuntimeError(f"{at} failed")

    heard = Heard(at, fail)
    with pytest.raises(RuntimeError, match=f"{at} failed"):
        run(MEMBERS, on(lanes), heard)
    assert len(heard.of(at)) == 1


def test_lanes_that_cannot_be_compiled_are_refused(types_unchecked):
    two = jax.local_devices()[:1] * 2
    for lanes, devices in ((3, two), (0, None), (-1, None)):
        with pytest.raises(ValueError, match=f"lanes is {lanes}; it must be a multiple of the"):
            compile_program(CONFIG, lanes, devices=devices)
    with pytest.raises(ValueError, match='batching is "vmpa"; did you mean "vmap"'):
        compile_program(CONFIG, 1, batching="vmpa")  # type: ignore
