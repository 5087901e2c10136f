"""The engine and the device's memory: where it runs out, the members go on in fewer lanes; and the policy, which says
how many lanes there are, and where."""

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

import siitjax.sweep.engine
import siitjax.sweep.placement
from siitjax.siit.config import TrainConfig
from siitjax.sweep.engine import Member
from siitjax.sweep.lanes import Program
from siitjax.sweep.placement import Compiler, Policy, choose_policy
from tests.engine import QUEUE, Heard, assert_alone, program, run
from tests.tiny import ATTENTION as CONFIG
from tests.tiny import STAYS

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
    monkeypatch.setattr(siitjax.sweep.engine, "CHUNK_SECONDS", 0.0)
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


def starts_of(heard: Heard) -> dict[int, list[list[int]]]:
    """Of each member the epochs that were told, a list each time that it was given a lane."""
    starts = defaultdict(list)
    for name, index, *what in heard.events:
        if name == "started":
            starts[index].append([])
        elif name == "epoch":
            starts[index][-1].append(what[0])
    return starts


@pytest.mark.parametrize("call", ["init", "blank", "fill", "take", "measure"])
@pytest.mark.parametrize("turn", [0, 2])
def test_out_of_memory_in_any_call_loses_nothing_and_tells_each_epoch_once(call, turn, monkeypatch):
    """Each of the calls in which the device gives memory fails once: the first time that it is made, or the third."""
    monkeypatch.setattr(siitjax.sweep.engine, "CHUNK_SECONDS", 0.0)
    made = itertools.count()

    def compiled(config, most):
        real = program(config, min(3, most or 3))

        def failing(*args):
            if next(made) == turn:
                raise FULL
            return getattr(real, call)(*args)

        return replace(real, **{call: failing})

    heard = run(QUEUE, compiled)
    assert_alone(heard, QUEUE)
    for index, outcome in heard.outcomes.items():
        told = [epoch for start in starts_of(heard)[index] for epoch in start]
        assert told == [*range(1, outcome.epochs + 1)]
    failed = next(made) > turn
    assert failed or (call, turn) == ("blank", 2)
    assert heard.notes == ["out of memory with 3 lanes; going on with 1"] * failed


@pytest.mark.parametrize("saved", [False, True])
def test_members_whose_state_went_down_with_the_call_go_on_from_where_they_were_saved(saved, tmp_path, monkeypatch):
    """The call takes the state's memory for its result, and fails then: in the third chunk, of an epoch each."""
    monkeypatch.setattr(siitjax.sweep.engine, "CHUNK_SECONDS", 0.0)
    chunks = itertools.count()

    def compiled(config, most):
        real = program(config, min(3, most or 3))

        def advance(batch, until):
            state = real.advance(batch, until)
            if next(chunks) == 2:
                raise FULL
            return state

        return replace(real, advance=advance)

    lasting = [Member("stays", seed, CONFIG, STAYS) for seed in range(3)]
    heard = run(lasting, compiled, folder=tmp_path, save_seconds=0.0 if saved else 1000.0)
    assert_alone(heard, lasting)
    assert starts_of(heard) == {index: [[1, 2], [3, 4] if saved else [1, 2, 3, 4]] for index in range(3)}


def test_one_lane_that_memory_does_not_hold_is_an_error_that_names_a_flag():
    with pytest.raises(MemoryError, match=r"does not hold one lane of .*; lower --batch_size, or --samples"):
        run(QUEUE, full_above(0))


def test_a_measurement_that_memory_does_not_even_hold_alone_is_an_error():
    def measure(data, state):
        raise FULL

    with pytest.raises(MemoryError, match="does not hold one lane"):
        run(QUEUE[:1], lambda config, most: replace(program(config, min(3, most or 3)), measure=measure))


def test_a_lane_on_each_device_that_memory_does_not_hold_is_an_error():
    """With fewer lanes than devices there is no program: the compiler gives as many as before."""
    with pytest.raises(MemoryError, match="does not hold one lane"):
        run(QUEUE, lambda config, most: replace(full_above(0)(config, None), seconds=0.0))


@pytest.fixture
def device(monkeypatch):
    """Makes this process's devices, each with so much memory, of which each lane of a program takes 100 bytes."""
    real = program(CONFIG, 1)  # compiled on a real one

    def have(count: int, limit: int, platform: str = "gpu"):
        statistics = lambda: {"bytes_limit": limit} if limit else None
        devices = [SimpleNamespace(memory_stats=statistics, device_kind="fake") for _ in range(count)]
        monkeypatch.setattr(jax, "local_devices", lambda: devices)
        monkeypatch.setattr(jax, "default_backend", lambda: platform)

    def compile_program(config, lanes, *, batching, devices):
        return replace(real, lanes=lanes, memory=100 * lanes // len(devices))

    monkeypatch.setattr(siitjax.sweep.placement, "compile_program", compile_program)
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


def test_a_compilation_that_memory_does_not_hold_is_tried_again_on_half_the_lanes(device, monkeypatch):
    tried, real = [], program(CONFIG, 1)
    device(2, 0)

    def compile_program(config, lanes, *, batching, devices):
        tried.append(lanes)
        if lanes > most:
            raise FULL
        return replace(real, lanes=lanes)

    monkeypatch.setattr(siitjax.sweep.placement, "compile_program", compile_program)
    for most, lanes in ((6, [20, 10, 4]), (1, [20, 10, 4, 2])):
        compiler = Compiler(Policy(0, 0, 2, "vmap"), lambda config: 20)
        tried.clear()
        if most == 6:
            assert compiler(CONFIG).lanes == 4
        else:
            with pytest.raises(MemoryError, match="does not hold one lane of"):
                compiler(CONFIG)
        assert tried == lanes


def test_an_error_of_a_compilation_that_is_not_memory_s_is_raised(device, monkeypatch):
    device(1, 0)

    def compile_program(config, lanes, *, batching, devices):
        raise jax.errors.JaxRuntimeError("INTERNAL: of the compiler")

    monkeypatch.setattr(siitjax.sweep.placement, "compile_program", compile_program)
    with pytest.raises(jax.errors.JaxRuntimeError, match="of the compiler"):
        Compiler(Policy(0, 0, 1, "vmap"), lambda config: 20)(CONFIG)


@pytest.mark.parametrize(
    ("platform", "flags", "policy"),
    [
        ("cpu", {}, Policy(len(siitjax.sweep.placement.cores()), 1, 1, "map")),
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
