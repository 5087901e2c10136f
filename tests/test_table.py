"""The questions of the 15 models: what their members share, what they begin with, and what is said of them."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import cases
from siitjax.base.errors import UserError
from siitjax.model.weights import load_weights
from siitjax.siit.recipe import Recipe
from sweeps.published import Published
from sweeps.table import Models


def test_seeds_of_a_model_share_a_config_and_so_a_compilation_and_the_lanes_of_a_device():
    members = Models(case="0,0+1", seeds=3).members()
    assert {member.setting for member in members} == {"0, causal", "0+1, causal", "0+1, frozen"}
    assert len({id(member.config) for member in members}) == 3


def test_members_begin_with_what_is_shipped_or_with_the_weights_of_their_own_seed(tmp_path: Path):
    begin = lambda start: Models(case="1", rules=("causal",), seeds=2, swaps="edges", start=start).members()
    assert [member.start for member in begin("")] == [None, None]
    assert [member.start for member in begin("shipped")] == [cases.shipped("1@nodes")] * 2

    (tmp_path / "members").mkdir()
    shipped = cases.shipped("1@nodes").read_bytes()
    with (tmp_path / "rows.jsonl").open("w") as rows:
        for member, (setting, seed) in enumerate([("1, causal", 1), ("1, frozen", 0), ("1, causal", 0)]):
            rows.write(json.dumps({"member": member, "setting": setting, "seed": seed}) + "\n")
            (tmp_path / "members" / f"{member:04d}.safetensors").write_bytes(shipped)
    starts = [member.start for member in begin(str(tmp_path))]
    assert [start and start.name for start in starts] == ["0002.safetensors", "0000.safetensors"]
    for start in starts:
        assert start is not None
        assert load_weights(start).config.n_layers == 1


@pytest.mark.parametrize("swaps", ["nodes", "edges"])
def test_the_numbers_that_are_asked_for_are_those_of_every_member(swaps):
    (member,) = Models(case="1", rules=("causal",), seeds=1, swaps=swaps, lr_start=3e-4, beta2=0.99).members()
    default = Recipe.edges().hyper if swaps == "edges" else Recipe().hyper
    assert member.hyper == replace(default, lr_start=3e-4, beta2=0.99, edges_from=0.4 if swaps == "edges" else 0.0)


def test_what_a_start_does_not_have_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"has no 1, causal, seed 0; it has nothing that was trained; give shipped"):
        Models(case="1", swaps="edges", start=str(tmp_path)).members()
    (tmp_path / "rows.jsonl").write_text(json.dumps({"member": 0, "setting": "2, causal", "seed": 5}) + "\n")
    with pytest.raises(UserError, match=r"it has 2, causal, seed 5"):
        Models(case="1", swaps="edges", start=str(tmp_path)).members()


def test_the_published_recipe_is_the_papers_and_of_the_frozen_rule_where_tasks_are_combined():
    members = Published(models=("0", "0+1"), seeds=1).members()
    assert [member.setting for member in members] == ["0, causal", "0+1, frozen"]
    recipe = Recipe.published()
    for member in members:
        assert member.hyper == recipe.hyper
        assert member.config.sampling == recipe.sampling
        assert member.config.case.init_gain == 1.0


def scored(setting: str, accuracy: float, *holds: bool) -> dict:
    """A row as it is once it is measured."""
    kind = lambda words, good: {"words": words, "worst": 1.0 if good else 0.9, "worst_changed": 0.5, "holds": good}
    edges = [kind(*given) for given in zip(("one node", "one edge of the circuit"), holds, strict=True)]
    scores = {"accuracy": accuracy, "iia": 0.995, "siia": 1.0, "counts": None, "causal": {"iia": 0.75}}
    return {"setting": setting, "seed": 0, "epochs": 7, "seconds": 1.0, **scores, "causal_edges": edges}


def test_models_of_the_published_recipe_hold_where_they_do_by_true_counterfactuals():
    single = scored("0, causal", 1.0, True, True)
    rows = [single, scored("0+1, frozen", 1.0, True, False), scored("1+2, frozen", 0.999, True, True)]
    assert Published().verdict([single]).kind == "supported"
    verdict = Published().verdict(rows)
    assert verdict.kind == "contradicted"
    assert verdict.because == (
        "1 of 3 models hold their circuits in two thirds of their seeds; short of it: 0+1 (0 of 1), 1+2 (0 of 1)."
    )

    (table,) = Published().tables(rows)
    text = StringIO()
    Console(file=text, width=200).print(table)
    (line,) = (line for line in text.getvalue().splitlines() if line.strip().startswith("0+1"))
    # Model, holds, epochs, published, IIA, SIIA, causal IIA, one node, two nodes (none of them), one edge, any kind.
    assert " ".join(line.split()) == "0+1 0 of 1 7 99.34 99.50 100 75 100 (50) - (-) 90 (50) 90 (50)"


def test_the_seeds_begin_where_they_are_asked_to():
    members = Models(case="0", rules=("causal",), seeds=2, first_seed=3).members()
    assert [member.seed for member in members] == [3, 4]
