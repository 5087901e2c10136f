"""The front door: what `import siitjax` gives, its examples, and that `siitjax.train` is the training of the sweeps."""

import doctest
import inspect
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import siitjax
from siitjax.base.errors import UserError
from siitjax.front import here
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.objective import Sampling
from sweeps.table import Models
from tests.commands import run

SMALL: dict[str, Any] = {"epochs": 2, "samples": 400, "batch_size": 64, "progress": False}
"""As in the examples, so that all train with one program."""
ROOMS = (
    *("causal.circuit", "causal.combine", "causal.data", "causal.sources", "causal.vocabulary", "flax.module"),
    *("front.evaluate", "front.grid", "front.load", "front.loggers", "front.run", "front.train"),
    *("model.config", "model.nodes", "model.transformer", "siit.config", "siit.recipe", "sweep.processes.messages"),
)
OWN = {"Recipe", "Run", "Evaluation", "train", "sweep", "evaluate", "load", "register", "find_case"}
"""The public names that the front door adds; the others are those of the rooms."""


@pytest.fixture(scope="module")
def trained() -> siitjax.Run:
    return siitjax.train("left_greater", seed=1, **SMALL)


@pytest.mark.parametrize("room", ROOMS)
def test_the_examples_are_true(room):
    __import__(f"siitjax.{room}")
    said = doctest.testmod(sys.modules[f"siitjax.{room}"])
    assert said.attempted
    assert not said.failed


def test_each_name_is_there_and_each_of_the_front_door_has_an_example():
    assert {name for names in siitjax._HOMES.values() for name in names} | {"sweep"} == {*siitjax.__all__}
    assert set(siitjax.__all__) <= set(dir(siitjax))
    for name in siitjax.__all__:
        found = getattr(siitjax, name)
        if name in OWN - {"sweep"}:
            assert ">>> import siitjax" in (inspect.getdoc(found) or ""), name
    with pytest.raises(AttributeError, match="has no attribute 'trane'"):
        _ = siitjax.trane  # type: ignore[attr-defined]


def test_importing_it_imports_nothing_and_the_room_of_sweeps_stays_one():
    words = (
        "import sys, siitjax; assert not {'jax', 'torch', 'matplotlib', 'numpy'} & {*sys.modules}; siitjax.train; "
        "assert not {'torch', 'matplotlib'} & {*sys.modules}; import siitjax.sweep.lanes as lanes; "
        "assert siitjax.sweep.lanes is lanes and callable(siitjax.sweep)"
    )
    ended = run("-c", words)
    assert ended.code == 0, ended.err


def test_a_seed_gives_the_weights_of_the_table_to_the_bit(trained, tmp_path, commands):
    flags = ["--case=1", "--rules=causal", "--first_seed=1", "--seeds=1", "--epochs=2", "--samples=400"]
    (ended,) = commands(Models, [*flags, "--batch_size=64", "--workers=1", f"--out={tmp_path}/table"])
    assert ended.code == 0, ended.err
    path = trained.save(tmp_path / "mine.safetensors")
    theirs, ours = load_file(tmp_path / "table" / "members" / "0000.safetensors"), load_file(path)
    assert {name: x.tobytes() for name, x in theirs.items()} == {name: x.tobytes() for name, x in ours.items()}


def test_a_config_is_compiled_once_whatever_the_seed_and_the_numbers(trained):
    before = here._program.cache_info().misses
    other = siitjax.train("1", seed=2, lr_start=3e-4, beta2=0.99, **SMALL)
    assert here._program.cache_info().misses == before
    assert other.about["member"]["hyperparams"]["beta2"] == 0.99
    assert not np.array_equal(other.model.embed.W_E, trained.model.embed.W_E)


def test_it_goes_on_from_a_run_a_transformer_or_a_file_alike(trained, tmp_path):
    path = trained.save(tmp_path / "deep" / "mine.safetensors")
    starts = [trained, trained.model, path, siitjax.load(path)]
    found = [siitjax.train("left_greater", start=start, **SMALL) for start in starts]
    assert len({np.asarray(x.model.embed.W_E).tobytes() for x in found}) == 1
    with pytest.raises(UserError, match=r"^the transformer does not fit the case paren_checker"):
        siitjax.train("paren_checker", start=trained, **SMALL)


def test_what_happens_is_told(trained, capsys):
    heard = []
    done = siitjax.train("left_greater", seed=1, on_epoch=heard.append, **{**SMALL, "progress": True})
    assert [(epoch.number, epoch.of) for epoch in heard] == [(1, 2), (2, 2)]
    assert [float(epoch.siia) for epoch in heard] == [*done.history["siia"]]
    for epoch in heard:
        numbers = {name: curve[epoch.number - 1] for name, curve in done.history.items() if name != "epoch"}
        assert numbers == {name: x for name, x in epoch.numbers().items() if name != "seconds"}
    assert 0 < heard[0].seconds <= heard[1].seconds < done.seconds + 1
    assert {len(curve) for curve in done.history.values()} == {2}
    said = capsys.readouterr()
    assert said.out == ""
    assert "left_greater  seed 1: compiling" in said.err
    assert "exhausted after 2 epochs" in said.err


@pytest.mark.parametrize("raises", [ZeroDivisionError, KeyboardInterrupt])
def test_an_interruption_ends_the_training_and_breaks_nothing(trained, raises):
    def at_once(epoch):
        if raises is KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(raises):
            siitjax.train("left_greater", on_epoch=at_once, **SMALL)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not [thread for thread in threading.enumerate() if thread.name == "siitjax.train"]
    again = siitjax.train("left_greater", seed=1, **SMALL)
    assert np.array_equal(again.model.embed.W_E, trained.model.embed.W_E)


def test_the_recipes_are_the_papers_and_that_of_the_table():
    published = siitjax.Recipe.published()
    assert (published.hyper, published.sampling) == (Hyperparams(), Sampling())
    case = siitjax.find_case("left_greater")
    assert published.config(case) == TrainConfig(case)
    assert siitjax.Recipe().config(case).case.init_gain == 0.18
    with pytest.raises(UserError, match=r"^this recipe swaps edges from its first batch.*give start="):
        siitjax.train("left_greater", recipe=siitjax.Recipe.edges())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta_2": 0.9}, r'^the setting is "beta_2"; did you mean "beta2"\?'),
        ({"beta2": 2.0}, r"^beta2 is 2.0; it must be at least 0 and less than 1$"),
        ({"beta2": (0.9, 0.99)}, r"^beta2 is \(0.9, 0.99\); it must be a number; siitjax.sweep takes several$"),
        ({"epochs": 1.5}, r"^epochs is 1.5; it must be a whole number$"),
        ({"epochs": 0}, r"^epochs is 0; it must be at least 1$"),
        ({"init_gain": -1}, r"^init_gain is -1.0; it must be at least 0, and finite$"),
        ({"samples": 200}, r"^batch_size is 256, but 200 samples leave 160"),
    ],
)
def test_what_cannot_be_used_is_one_line(settings, words):
    with pytest.raises(UserError, match=words):
        siitjax.train("left_greater", **settings)


def test_a_grid_has_a_row_for_each_seed_and_setting_as_the_results_have_them(trained):
    rows = siitjax.sweep("left_greater", seeds=[1], lr_start=(1e-3, 1e-4), **SMALL)
    assert [row["member"] for row in rows] == [0, 1]
    assert rows[0]["siia"] == float(trained.metrics.siia)
    with pytest.raises(UserError, match="seeds is 0"):
        siitjax.sweep("left_greater", 0)
    with pytest.raises(UserError, match="lr_start is an empty tuple"):
        siitjax.sweep("left_greater", lr_start=())


def test_a_model_is_measured_by_node_and_against_its_own_case():
    found = siitjax.evaluate(siitjax.load("left_greater"), pairs=200)
    by_hand = siitjax.evaluate(siitjax.load("left_greater").model, "left_greater", pairs=200)
    assert found.by_node() == by_hand.by_node()
    assert found.by_node()["L0H1"].right == found.metrics.node_iia[0]
    with pytest.raises(UserError, match="a bare transformer does not say its case"):
        siitjax.evaluate(siitjax.load("1").model)
    with pytest.raises(UserError, match="the transformer does not fit the case paren_checker"):
        siitjax.evaluate(siitjax.load("1"), "2")
    with pytest.raises(UserError, match="was trained on another case: its name is"):
        siitjax.evaluate("1", "2")


def test_a_registered_case_is_trained_saved_loaded_and_measured_by_its_name(tmp_path: Path):
    left = siitjax.find_case("left_greater")
    mine = siitjax.register(replace(left, name="mine_left"))
    path = siitjax.train("mine_left", **SMALL).save(tmp_path / "mine.safetensors")
    trained = siitjax.load(path)
    assert trained.case == replace(mine, init_gain=0.18)
    assert siitjax.evaluate(path, pairs=100).case.name == "mine_left"
    here_only = replace(left, name="here_only")
    path = siitjax.train(here_only, **SMALL).save(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"a case of another place is found after siitjax.register\(case\), or give it"):
        siitjax.load(path)
    assert siitjax.load(path, case=here_only).case.name == "here_only"
    with pytest.raises(UserError, match="was trained on another case: its name is"):
        siitjax.load(path, case=mine)
