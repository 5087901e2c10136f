"""The engine's checkpoints: a sweep goes on from them to the same bits, torn ones are passed over, and those of another
sweep are refused."""

import json
import pickle
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import chex
import jax
import pytest

import siitjax.sweep.checkpoint
import siitjax.sweep.engine
from siitjax.siit.train import make_train
from siitjax.sweep.checkpoint import CheckpointError, find, load
from siitjax.sweep.engine import Engine, Member
from siitjax.sweep.processes.launch import Waiting
from tests.engine import SWEEP, Heard, assert_alone, on, program, run, solo
from tests.tiny import ATTENTION as CONFIG
from tests.tiny import SLOW, STAYS

LASTING = [Member("lasts", seed, CONFIG, replace(SLOW, lr_start=1e-4, lr_end=1e-4)) for seed in (0, 1, 3, 4, 5)]
"""All of them train and run every epoch, so that those in the lanes are all interrupted."""


@pytest.fixture
def interrupted(tmp_path, monkeypatch) -> Path:
    """The checkpoints of a sweep on three lanes, saved after each of three epochs, and stopped then by its watcher."""
    monkeypatch.setattr(siitjax.sweep.engine, "CHUNK_SECONDS", 0.0)
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


def newest(folder: Path) -> Path:
    return max(folder.glob("*/[0-9]*"))


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
            siitjax.sweep.checkpoint._read.cache_clear()
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
