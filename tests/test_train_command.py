"""`siitjax train`: a task in a file of its own is trained, saved, loaded, measured and exported; seeds go on in a
second stage; what cannot be used is one line."""

import json
import re
from pathlib import Path

import pytest

from siitjax.base.command import parse
from siitjax.base.errors import UserError
from siitjax.causal.places import at
from siitjax.cli.train import Train
from siitjax.questions.question import Sweep
from siitjax.siit.recipe import Recipe
from tests.commands import run

TASK = """
from neighbour import VOCABULARY
from siitjax import Arrangements, Case, Variable, head
import jax.numpy as jnp

def any_left(tokens):
    return (jnp.cumsum(tokens == 2) > 0).astype(jnp.int32)

CASE = Case(
    "any_left", VOCABULARY, (Variable("any_left", ("tokens",), any_left, head(0, 1)),),
    lambda length: tuple(Arrangements(2, 3, n) for n in range(length + 1)),
    n_layers=1, d_model=6, d_head=2, n_outputs=2, n_ctx=6,
)
"""
SMALL = ("--epochs=2", "--samples=200", "--batch_size=64", "--workers=1")


@pytest.fixture
def task(tmp_path) -> Path:
    (tmp_path / "neighbour.py").write_text('VOCABULARY = ("BOS", "PAD", "(", ")")\n')
    (tmp_path / "any_left.py").write_text(TASK)
    return tmp_path / "any_left.py"


def test_a_task_of_ones_own_is_trained_resumed_measured_and_exported(task, tmp_path, monkeypatch):
    out, place = tmp_path / "out", f"{task}:CASE"
    first = run("-m", "siitjax", "train", place, *SMALL, f"--out={out}")
    assert first.code == 0, first.err
    file = out / "members" / "0000.safetensors"
    lines = first.out.splitlines()
    assert lines[-1] == f"Next: siitjax evaluate {file} --nodes --case={place}"
    assert lines[-2].startswith(f"Weights: {file} (seed 0: accuracy ")
    assert "compiling" in first.err

    again = run("-m", "siitjax", "train", place, *SMALL, f"--out={out}", "--resume")
    assert "was finished before; nothing was changed." in again.out

    lost = run("-m", "siitjax", "evaluate", str(file))
    assert lost.code == 2
    assert lost.err.count("\n") == 1
    assert lost.err.endswith(f"; when it was trained, it was --case={place}\n")
    found = run("-m", "siitjax", "evaluate", str(file), f"--case={place}", "--pairs=100", "--nodes")
    assert found.code == 0, found.err
    assert "any_left: 1 layers, d_model 6, seed 0" in found.out

    exported = run("-m", "siitjax", "export", str(file), str(tmp_path / "hub"), f"--case={place}")
    assert exported.code == 0, exported.err
    assert json.loads((tmp_path / "hub" / "circuit.json").read_text())
    (shown,) = re.findall(
        r"```python\n(import siitjax\n.*?)```", (tmp_path / "hub" / "README.md").read_text(), re.DOTALL
    )
    assert f'siitjax.find_case("{place}")' in shown
    monkeypatch.chdir(tmp_path / "hub")
    exec(shown, names := {})
    assert names["trained"].case.name == "any_left"


def test_the_second_stage_goes_on_from_each_seeds_own_weights_in_a_folder_beside(tmp_path, monkeypatch, capsys):
    asked = []

    def trained(self) -> int:
        asked.append(self)
        (self.folder / "members").mkdir(parents=True)
        row = {"stop": "converged", "accuracy": 1.0, "iia": 1.0, "changed_iia": 1.0, "siia": 1.0, "holds": True}
        rows = [json.dumps({"member": i, "seed": seed, **row}) for i, seed in enumerate((5, 4))]
        (self.folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in rows))
        return 0

    monkeypatch.setattr(Sweep, "run", trained)
    flags = ["left_greater", "--seeds=2", "--seed0=4", "--epochs=9", "--edges", "--edge_epochs=3"]
    assert parse(Train, ["train", *flags, f"--out={tmp_path}/one"]).run() == 0
    first, second = asked
    assert [stage.folder.name for stage in asked] == ["one", "one-edges"]
    assert first.chosen == Recipe().changed(epochs=9)
    assert second.chosen == Recipe.edges().changed(epochs=3)
    assert "Next: siitjax evaluate" in capsys.readouterr().out
    assert [member.start for member in first.members()] == [None, None]
    with pytest.raises(UserError, match="which has no seed 7; its seeds are: 5, 4"):
        Train(case="1", seed0=7, start=str(tmp_path / "one")).members()
    starts = [member.start for member in second.members()]
    assert [(start.parts[-3], start.name) for start in starts] == [("one", f"000{i}.safetensors") for i in (1, 0)]


def test_it_trains_by_the_recipe_that_is_named():
    published = Train(case="1", recipe="published").members()[0]
    assert (published.config, published.hyper) == (Recipe.published().config(published.config.case), published.hyper)
    assert published.config.case.init_gain == 1
    assert Train(case="1").members()[0].hyper.p_unused == 0.8


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["1", "--recipe=publish"], 'did you mean "published"'),
        (["1", "--edges", "--start=x"], "--edges runs two stages"),
        ([], "CASE is missing"),
    ],
)
def test_what_it_cannot_use_is_one_line(flags, words):
    with pytest.raises(UserError, match=words):
        parse(Train, ["train", *flags])


def test_where_a_case_is_not_is_told(task, monkeypatch):
    monkeypatch.chdir(task.parent)
    assert at("any_left.py").name == "any_left"
    for place, words in (
        ("none.py:CASE", "there is no file none.py"),
        ("any_left.py:CASES", "any_left.py declares no case called CASES"),
        ("none.task:CASE", 'there is no module "none" here'),
    ):
        with pytest.raises(UserError, match=words):
            at(place)
