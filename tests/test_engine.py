"""The engine in one process: the same outcomes on any lanes, in any order, after any interruption; lanes that are never
free while a member waits; and every kind of bad luck (torn checkpoints, memory that runs out, callbacks that raise).
"""

import itertools
import json
import pickle
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

import siitjax.checkpoint
import siitjax.lanes
import siitjax.policy
import siitjax.sweep
from siitjax.checkpoint import CheckpointError, Checkpoints, find, load
from siitjax.lanes import Batching, Program, compile_program
from siitjax.launch import Waiting
from siitjax.objective import Sampling
from siitjax.policy import Compiler, Policy, choose_policy, use_compilation_cache
from siitjax.sweep import Engine, Member, Outcome, Watcher
from siitjax.train import Stop, TrainConfig, draw_data, make_train
from tests.tiny import CONFIG, DIVERGES, EPOCHS, LEARNS, SLOW, STAYS, TOKENS_OFF, TOLERANCE

OTHER = replace(CONFIG, sampling=Sampling("one", "all"))
HYPERS = {"learns": LEARNS, "diverges": DIVERGES, "stays": STAYS}
MEMBERS = [
    Member(name, seed, config, hyper)
    for seed, (name, hyper) in enumerate(HYPERS.items())
    for config in (CONFIG, OTHER)  # in turn, so that a bucket's members are not side by side in the queue
]
QUEUE = [Member(name, seed, CONFIG, HYPERS[name]) for seed in range(4) for name in HYPERS]
"""More members than lanes, which stop after different epochs."""
SWEEP = "the digest of this sweep"


@pytest.fixture(autouse=True, scope="module")
def compiled_before():
    """Programs come from the disk where an earlier run of the tests left them."""
    before = jax.config.values["jax_compilation_cache_dir"]
    use_compilation_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    reset_cache()  # or later tests would go on reading programs from it


traces = Counter()


def counted(config: TrainConfig):
    """`make_train`, the traces of what trains counted."""
    train = make_train(config)

    def advance(*args):
        traces[config] += 1
        return train.advance(*args)

    return train._replace(advance=advance)


@cache
def program(config: TrainConfig, lanes: int, batching: Batching = "map") -> Program:
    """Each is compiled once in this file, and traced once in that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(siitjax.lanes, "make_train", counted)
        before = traces[config]
        made = compile_program(config, lanes, batching=batching)
        assert traces[config] == before + 1
    return made


def on(lanes: int, batching: Batching = "map") -> Callable[[TrainConfig, int | None], Program]:
    """A compiler for so many lanes, or the most that are allowed."""
    return lambda config, most: program(config, min(lanes, most or lanes), batching)


@dataclass
class Heard(Watcher):
    """Writes down everything, and the outcomes; at the event called `at` does something."""

    at: str = ""
    act: Callable[[], None] = lambda: None
    events: list[tuple] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def hear(self, name, index, *what):
        self.events.append((name, index, *what))
        if name == self.at:
            self.act()

    def started(self, index, member, epoch):
        self.hear("started", index, epoch)

    def compiling(self, index, member):
        self.hear("compiling", index)

    def epoch(self, index, member, epoch, metrics):
        self.hear("epoch", index, epoch, metrics.tolist())

    def finished(self, index, member, row):
        assert row == {"member": index}
        self.hear("finished", index)

    def note(self, words):
        self.notes.append(words)

    def keep(self, index, member, outcome):
        assert index not in self.outcomes, "kept twice"
        self.outcomes[index] = outcome
        self.hear("keep", index)
        return {"member": index}

    def of(self, *names: str) -> list[int]:
        return [index for name, index, *_ in self.events if name in names]


def run(members, compiled, heard=None, *, order=None, folder: Path | None = None, start="0001-0", **more) -> Heard:
    """Trains the members, from what is saved in `folder` if that is given, and saves there; what was heard."""
    heard = heard or Heard()
    spots = {} if folder is None else find(folder, SWEEP)
    engine = Engine(
        members,
        compiled,
        heard.keep,
        lambda spot, like: load(folder or Path(), spot, like),
        heard,
        **more,
    )
    queue = Waiting(members, [*(range(len(members)) if order is None else order)], spots)
    if folder is None:
        engine.run(queue)
    else:
        with Checkpoints(folder, start, SWEEP) as engine.checkpoints:
            engine.run(queue)
    return heard


@cache
def solo_functions(config: TrainConfig):
    train = make_train(config)
    return jax.jit(train.init), jax.jit(train.advance), jax.jit(train.measure)


@cache
def solo(member: Member) -> dict:
    """What a member gives when the pure functions of training are called on it alone, in one go."""
    init, advance, measure = solo_functions(member.config)
    hyper, data = member.hyper.traced(), draw_data(member.config, member.seed)
    state = advance(hyper, data, init(hyper, jax.random.key(member.seed)), EPOCHS)
    epochs = int(state.epoch)
    history = jax.tree.map(lambda x: np.asarray(x)[:epochs], state.history)
    final = jax.device_get(measure(data, state))
    return {"stop": Stop(int(state.stop)), "epochs": epochs, "metrics": final, "history": history, "model": state.model}


def assert_alone(heard: Heard, members) -> None:
    """Every member was kept once, with the bits that it gives alone."""
    assert set(heard.outcomes) == set(range(len(members)))
    for index, outcome in heard.outcomes.items():
        expected = solo(members[index])
        chex.assert_trees_all_equal({name: getattr(outcome, name) for name in expected}, expected)


@pytest.mark.parametrize(("lanes", "order"), [(1, None), (3, None), (3, [5, 3, 1, 4, 2, 0])])
def test_an_outcome_is_the_solo_run_s_bit_for_bit_whatever_the_lanes_and_the_order(lanes, order):
    heard = run(MEMBERS, on(lanes), order=order)
    assert_alone(heard, MEMBERS)
    assert {outcome.stop for outcome in heard.outcomes.values()} == {Stop.CONVERGED, Stop.EXHAUSTED, Stop.DIVERGED}
    assert Counter(MEMBERS[i].config for i in heard.of("compiling")) == {CONFIG: 1, OTHER: 1}


def test_side_by_side_an_outcome_is_the_solo_run_s_but_for_rounding():
    heard = run(QUEUE, on(3, "vmap"))
    for index, outcome in heard.outcomes.items():
        expected = solo(QUEUE[index])
        assert (outcome.stop, outcome.epochs) == (expected["stop"], expected["epochs"])
        if outcome.stop is not Stop.DIVERGED:  # whose weights are enormous
            chex.assert_trees_all_close(outcome.model, expected["model"], rtol=0, atol=TOLERANCE)
        chex.assert_trees_all_close(outcome.history.loss, expected["history"].loss, rtol=0, atol=TOLERANCE)
        chex.assert_trees_all_close(outcome.metrics, expected["metrics"], rtol=0, atol=TOKENS_OFF)


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_watcher_hears_each_member_start_run_every_epoch_once_and_finish(lanes):
    heard = run(MEMBERS, on(lanes))
    for index in range(len(MEMBERS)):
        events = [(name, *what) for name, i, *what in heard.events if i == index]
        waited = [("compiling",)] if index < 2 else []  # the first of each bucket
        seen = heard.outcomes[index].history.metrics
        curves = np.stack([seen.accuracy, seen.iia, seen.siia], 1).tolist()
        epochs = [("epoch", i, metrics) for i, metrics in enumerate(curves, start=1)]
        assert events == [*waited, ("started", 0), *epochs, ("keep",), ("finished",)]


def test_each_bucket_is_compiled_once_for_all_its_members():
    asked = []
    run(MEMBERS, lambda config, most: asked.append((config, most)) or program(config, 1))
    assert asked == [(CONFIG, None), (OTHER, None)]


def watched(lanes: int, look: Callable) -> Callable[[TrainConfig, int | None], Program]:
    """A compiler whose programs show `look` the stops, the epochs before, those after, and until where."""

    def compiled(config, most):
        real = program(config, lanes)

        def advance(batch, until):
            state = real.advance(batch, until)
            look(*map(np.asarray, (batch.state.stop, batch.state.epoch, state.epoch, until)))
            return state

        return replace(real, advance=advance)

    return compiled


def test_no_lane_is_free_while_a_member_of_the_bucket_waits(monkeypatch):
    monkeypatch.setattr(siitjax.sweep, "CHUNK_SECONDS", 0.0)
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
    monkeypatch.setattr(siitjax.sweep, "time", clock)

    def look(stops, before, after, until):
        clock.now += 1.0

    engine = Engine(QUEUE, watched(3, look), lambda *_: {}, lambda spot, like: like, Watcher())
    engine.run(Waiting(QUEUE, [*range(len(QUEUE))], {}))
    ran = sum(solo(member)["epochs"] + (solo(member)["stop"] is Stop.DIVERGED) for member in QUEUE)
    assert engine.occupancy.shares() == pytest.approx({"while_waiting": 1.0, "altogether": ran / (3 * clock.now)})


@pytest.mark.parametrize(("seconds", "chunks"), [(0.0, [1, 1, 1, 1]), (np.inf, [1, 2, 4])])
def test_a_chunk_is_doubled_until_it_lasts_long_enough(monkeypatch, seconds, chunks):
    monkeypatch.setattr(siitjax.sweep, "CHUNK_SECONDS", seconds)
    asked = []
    run(QUEUE[2:3], watched(1, lambda stops, before, after, until: asked.append(int((until - before)[0]))))
    assert asked == chunks


LASTING = [Member("lasts", seed, CONFIG, replace(SLOW, lr_start=1e-4, lr_end=1e-4)) for seed in (0, 1, 3, 4, 5)]
"""All of them train and run every epoch, so that those in the lanes are all interrupted."""


@pytest.fixture
def interrupted(tmp_path, monkeypatch) -> Path:
    """The checkpoints of a sweep on three lanes, saved after each of three epochs, and stopped then by its watcher."""
    monkeypatch.setattr(siitjax.sweep, "CHUNK_SECONDS", 0.0)
    stopping = threading.Event()
    heard = Heard("epoch", lambda: stopping.set() if heard.events[-1][:3] == ("epoch", 1, 3) else None)
    run(LASTING, on(3), heard, folder=tmp_path, save_seconds=0.0, stopping=stopping)
    assert heard.of("started") == [0, 1, 2]
    assert not heard.outcomes
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["00000001", "00000002", "00000003"]
    return tmp_path


def began(heard: Heard) -> dict[int, int]:
    """The epoch at which each member began."""
    return {index: event[0] for name, index, *event in heard.events if name == "started"}


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_stopped_sweep_goes_on_with_other_lanes_to_the_same_bits(interrupted, lanes):
    heard = run(LASTING, on(lanes), folder=interrupted, start="0002-0")
    assert_alone(heard, LASTING)
    assert began(heard) == {0: 3, 1: 3, 2: 3, 3: 0, 4: 0}
    assert not heard.notes


def test_the_seconds_of_a_member_go_on(interrupted):
    spots = find(interrupted, SWEEP)
    assert {spot.occupant.seconds > 0 for at in spots.values() for spot in at} == {True}
    longer = {1: [replace(spot, occupant=replace(spot.occupant, seconds=1000.0)) for spot in spots[1]]}
    engine = Engine(LASTING, on(1), (heard := Heard()).keep, lambda *at: load(interrupted, *at), heard)
    engine.run(Waiting(LASTING, [1, 3], longer))
    assert 1000 < heard.outcomes[1].seconds < 1100
    assert heard.outcomes[3].seconds < 100


def damages(file: Path) -> dict[str, Callable[[], object]]:
    whole = file.read_bytes()
    return {
        "half": lambda: file.write_bytes(whole[: len(whole) // 2]),
        "empty": lambda: file.write_bytes(b""),
        "gone": file.unlink,
        "whole": lambda: file.write_bytes(whole),
    }


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(interrupted):
    """Each file of the newest one is cut in half, emptied and taken away in turn."""
    files = [path for path in sorted(newest(interrupted).rglob("*")) if path.is_file()]
    read = set()
    for file in files:
        *torn, mended = damages(file).items()
        for how, damage in torn:
            damage()
            siitjax.checkpoint._read.cache_clear()
            heard = Heard()
            spots = find(interrupted, SWEEP)
            engine = Engine(LASTING, on(1), heard.keep, lambda spot, like: load(interrupted, spot, like), heard)
            engine.run(Waiting(LASTING, [1], spots))
            chex.assert_trees_all_equal(heard.outcomes[1].model, solo(LASTING[1])["model"])
            assert began(heard)[1] in (2, 3), (file, how)
            if began(heard)[1] == 2 and "about" not in file.parts:
                assert "00000003 is torn" in heard.notes[0], (file, how)
                assert "member 1 goes on from the one before" in heard.notes[0]
                assert "\n" not in heard.notes[0]
            read |= {(file.name, how)} if began(heard)[1] == 2 else set()
            mended[1]()
    assert len(read) > 3


def test_where_all_checkpoints_are_torn_members_start_afresh(interrupted):
    for file in interrupted.rglob("states/*"):
        shutil.rmtree(file) if file.is_dir() else file.write_bytes(b"")
    heard = run(LASTING, on(3), folder=interrupted, start="0002-0")
    assert_alone(heard, LASTING)
    assert set(began(heard).values()) == {0}
    assert len(heard.notes) == 9


@pytest.mark.parametrize(
    ("change", "words"),
    [({"sweep": "other"}, "00000003 is a checkpoint of another sweep"), ({"format": 2}, "written by a newer siitjax")],
)
def test_a_checkpoint_that_is_not_this_sweep_s_is_refused_in_one_line(interrupted, change, words):
    file = newest(interrupted) / "about" / "metadata"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=words) as raised:
        find(interrupted, SWEEP)
    assert "\n" not in str(raised.value)


def test_nothing_in_a_checkpoint_is_unpickled(interrupted, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    like = program(CONFIG, 1).init(STAYS.traced(), jax.random.key(1))
    state = load(interrupted, find(interrupted, SWEEP)[1][0], like)
    assert int(state.epoch) == 3
    assert not [path for path in interrupted.rglob("*") if path.is_file() and path.read_bytes()[:1] == b"\x80"]


def test_a_state_of_other_shapes_is_refused(interrupted):
    like = jax.eval_shape(make_train(replace(CONFIG, epochs=5)).init, STAYS.traced(), jax.random.key(1))
    with pytest.raises(CheckpointError, match="its arrays have other shapes"):
        load(interrupted, find(interrupted, SWEEP)[1][0], like)


FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes")


def full_above(lanes: int, after: int = 0) -> Callable[[TrainConfig, int | None], Program]:
    """Programs on three lanes or fewer that run out of memory where they are more than `lanes`, in chunk `after`."""
    chunks = itertools.count()

    def compiled(config, most):
        real = program(config, min(3, most or 3))

        def advance(batch, until):
            if real.lanes > lanes and next(chunks) >= after:
                raise FULL
            return real.advance(batch, until)

        return replace(real, advance=advance)

    return compiled


@pytest.mark.parametrize("after", [0, 1, 2])
def test_out_of_memory_the_members_go_on_in_half_the_lanes_to_the_same_bits(after, monkeypatch):
    monkeypatch.setattr(siitjax.sweep, "CHUNK_SECONDS", 0.0)
    heard = run(QUEUE, full_above(1, after))
    assert_alone(heard, QUEUE)
    assert heard.notes == ["out of memory with 3 lanes; going on with 1"]


def test_out_of_memory_while_a_member_is_measured_keeps_none_twice(monkeypatch):
    """The other two have stopped in the same chunk; `Heard.keep` refuses a member that it has."""
    measured = itertools.count()

    def compiled(config, most):
        real = program(config, min(3, most or 3))

        def measure(data, state):
            if next(measured) == 1:
                raise FULL
            return real.measure(data, state)

        return replace(real, measure=measure)

    members = [replace(QUEUE[1], seed=seed) for seed in range(6)]  # that diverge in the same epoch
    assert_alone(run(members, compiled), members)


def test_one_lane_that_memory_does_not_hold_is_an_error_that_names_a_flag():
    with pytest.raises(MemoryError, match=r"does not hold one lane of .*; lower --batch_size, or --samples"):
        run(QUEUE, full_above(0))


def test_a_lane_on_each_device_that_memory_does_not_hold_is_an_error():
    """With fewer lanes than devices there is no program: the compiler gives as many as before."""
    with pytest.raises(MemoryError, match="does not hold one lane"):
        run(QUEUE, lambda config, most: replace(full_above(0)(config, None), seconds=0.0))


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


@pytest.fixture
def device(monkeypatch):
    """Makes this process's devices, each with so much memory, of which each lane of a program takes 100 bytes."""

    def have(count: int, limit: int, platform: str = "gpu"):
        statistics = lambda: {"bytes_limit": limit} if limit else None
        devices = [SimpleNamespace(memory_stats=statistics, device_kind="fake") for _ in range(count)]
        monkeypatch.setattr(jax, "local_devices", lambda: devices)
        monkeypatch.setattr(jax, "default_backend", lambda: platform)

    def compile_program(config, lanes, *, batching, devices):
        return replace(program(config, 1), lanes=lanes, memory=100 * lanes // len(devices))

    monkeypatch.setattr(siitjax.policy, "compile_program", compile_program)
    return have


@pytest.mark.parametrize(
    ("devices", "memory", "flag", "waiting", "most", "lanes"),
    [
        (1, 0, 0, 20, None, 20),  # a device that does not say what it has
        (1, 10_000, 0, 20, None, 20),
        (1, 10_000, 0, 2000, None, 90),  # nine tenths of it
        (1, 10_000_000, 0, 2000, None, 512),
        (4, 10_000, 0, 2000, None, 360),
        (4, 10_000, 0, 5, None, 8),  # as many on each device
        (4, 10_000, 0, 1, None, 4),
        (1, 10, 0, 2000, None, 1),
        (1, 10_000, 64, 20, None, 64),
        (1, 10_000, 64, 20, 32, 32),
        (4, 10_000, 8, 20, 2, 4),
    ],
)
def test_a_compiler_takes_as_many_lanes_as_members_wait_and_memory_holds(
    device, devices, memory, flag, waiting, most, lanes
):
    device(devices, memory)
    compiler = Compiler(Policy(0, flag, devices, "vmap"), lambda config: waiting)
    assert compiler(CONFIG, most).lanes == lanes
    assert compiler(CONFIG) is compiler(CONFIG)


@pytest.mark.parametrize(
    ("platform", "flags", "policy"),
    [
        ("cpu", {}, Policy(len(siitjax.policy.cores()), 1, 1, "map")),
        ("cpu", {"workers": 3}, Policy(3, 1, 1, "map")),
        ("cpu", {"workers": 3, "lanes": 2}, Policy(3, 2, 1, "map")),
        ("cpu", {"lanes": 3}, Policy(0, 3, 1, "map")),
        ("cpu", {"devices": 4}, Policy(0, 4, 4, "map")),
        ("gpu", {}, Policy(0, 0, 4, "vmap")),
        ("gpu", {"lanes": 8}, Policy(0, 8, 4, "vmap")),
        ("gpu", {"devices": 1, "lanes": 3}, Policy(0, 3, 1, "vmap")),
    ],
)
def test_the_backend_and_the_flags_decide_the_policy(device, platform, flags, policy):
    device(4, 0, platform)
    assert choose_policy(**flags) == policy


@pytest.mark.parametrize(
    ("platform", "flags", "words"),
    [
        ("gpu", {"devices": 5}, "--devices is 5, but this process has 4; lower it"),
        ("cpu", {"devices": 5}, "--devices is 5, but this process has 4; lower it"),
        ("cpu", {"devices": 2, "workers": 2}, "--workers and --devices exclude each other"),
        ("gpu", {"workers": 2}, "--workers is for CPUs, and this is a gpu; leave it out"),
        ("gpu", {"lanes": 6}, "--lanes is 6; it must be a multiple of the 4 devices"),
        ("cpu", {"lanes": 3, "devices": 2}, "--lanes is 3; it must be a multiple of the 2 devices"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(device, platform, flags, words):
    device(4, 0, platform)
    with pytest.raises(ValueError, match=words):
        choose_policy(**flags)


def test_lanes_that_cannot_be_compiled_are_refused(types_unchecked):
    two = jax.local_devices()[:1] * 2
    for lanes, devices in ((3, two), (0, None), (-1, None)):
        with pytest.raises(ValueError, match=f"lanes is {lanes}; it must be a multiple of the"):
            compile_program(CONFIG, lanes, devices=devices)
    with pytest.raises(ValueError, match='batching is "vmpa"; did you mean "vmap"'):
        compile_program(CONFIG, 1, batching="vmpa")  # type: ignore


def newest(folder: Path) -> Path:
    return max(folder.glob("*/[0-9]*"))
