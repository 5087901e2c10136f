"""`python -m siitjax evaluate`: every shipped model holds its circuit, and one that does not is told."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cases
from cases import left_greater
from siitjax.base.command import main
from siitjax.base.errors import UserError
from siitjax.causal.combine import combine
from siitjax.cli.evaluate import Evaluate, failures, list_batches, measured_again
from siitjax.io.trained import Trained, read_trained, save_trained
from siitjax.model.transformer import init_transformer
from siitjax.siit.evaluate import evaluate
from siitjax.siit.metrics import Metrics, Tally, shares
from tests.commands import run

PAIRS = 1_000
SOME = ["3", "1+2", "0+1+2+3"]
FURTHER = [
    *("addition", "adjacent_remover", "below_maximum", "bracket_kinds", "flip_flop", "indirect_object", "induction"),
    *("ioi", "modular_count", "most_frequent", "reversal", "share_of_x", "sorting", "three_bits", "two_hop"),
]
OTHERS = [name for name in cases.MODELS if name not in SOME]


@pytest.mark.parametrize("name", SOME + [pytest.param(name, marks=pytest.mark.slow) for name in OTHERS])
def test_a_shipped_model_holds_what_it_stores(name):
    trained = cases.load(name)
    assert cases.number(trained.case.name) == name
    assert trained.metrics is not None
    metrics = measured_again(trained, PAIRS, seed=7)
    assert metrics.base.of > PAIRS
    assert failures(trained.case, trained.metrics, metrics) == []
    found = shares(metrics)
    assert found.accuracy == 1
    assert found.iia >= Fraction("0.9995")
    assert (found.worst_changed_iia or 0) >= Fraction("0.99")
    assert found.joint_siia >= Fraction("0.999")


def test_the_shipped_models_weigh_less_than_3_megabytes_of_each_kind():
    names = [*cases.MODELS, *(name + cases.AT_NODES for name in cases.MODELS)]
    files = [cases.SHIPPED / f"{name}.safetensors" for name in names]
    assert sum(file.stat().st_size for file in files) < 6_000_000
    others = [cases.SHIPPED / f"{name}.safetensors" for name in FURTHER]
    assert sum(file.stat().st_size for file in others) < 3_000_000
    assert sorted(cases.SHIPPED.iterdir()) == sorted([*files, *others])
    assert set(cases.TABLE.shipped) == {file.stem for file in [*files, *others]}


@pytest.mark.parametrize("name", FURTHER)
def test_a_shipped_model_of_a_further_task_is_found_by_name_and_answers(name):
    trained = cases.load(name)
    assert trained.case.name == name.partition("@")[0]
    strings = jnp.asarray(trained.case.draw(200, 50, np.random.default_rng(5))[0])
    logits, labels = jax.jit(jax.vmap(lambda tokens: (trained.model(tokens)[0], trained.case.circuit(tokens)[0])))(
        strings
    )
    right = trained.case.loss.correct(logits, labels)[trained.case.counted_mask(strings)]
    assert bool(right.all())
    with pytest.raises(
        UserError, match=r"^no model of paren_shares is shipped; train one: siitjax train paren_shares$"
    ):
        cases.load("paren_shares")


def test_a_shipped_model_is_found_by_numbers_and_by_names_in_any_order():
    loaded = [cases.load(name) for name in ("0+1", "1+0", "left_greater+duplicate_remover", "duplicate_remover+1")]
    assert {json.dumps(trained.about, sort_keys=True) for trained in loaded} == {
        json.dumps(loaded[0].about, sort_keys=True)
    }


def test_a_name_is_a_shipped_model_and_a_path_a_path_whatever_lies_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "left_greater").mkdir()
    shipped = cases.SHIPPED / "1.safetensors"
    assert cases.locate("left_greater") == cases.locate("1") == shipped
    for path in ("./left_greater", Path("left_greater")):
        assert cases.locate(path) == Path("left_greater")
        with pytest.raises(UserError, match=r"left_greater is not a model: it holds no model.safetensors"):
            cases.load(path)
    assert cases.locate(Path("nothing")) == cases.locate("./nothing") == Path("nothing")
    with pytest.raises(UserError, match='the model is "nothing"; did you mean'):
        cases.locate("nothing")
    assert cases.locate("here.safetensors") == Path("here.safetensors")


def test_a_few_pairs_are_drawn_as_many_are():
    (batch,) = list_batches(left_greater.CASE, 2, 0)
    assert [len(side) for side in batch] == [2, 2]
    assert [len(base) for base, _ in list_batches(cases.load("1+2").case, 5003, 0)] == [5000, 3]


def small(**changes) -> Trained:
    case = replace(left_greater.CASE, **changes)
    model = init_transformer(case.config, key=jax.random.key(0))
    samples, _ = case.draw(40, 20, np.random.default_rng(0))
    metrics = evaluate(model, case, jnp.asarray(samples), key=jax.random.key(1))
    return Trained(case, model, shares(metrics), {"member": {"case": case.describe(), "seed": 3}})


def test_what_is_saved_comes_back(tmp_path):
    saved = small()
    save_trained(tmp_path / "model.safetensors", saved)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = cases.load(path)
        assert found.case.describe() == saved.case.describe()
        assert found.about["member"] == saved.about["member"]
        assert eqx.tree_equal(found.model, saved.model)
        assert found.metrics is not None
        assert saved.metrics is not None
        assert found.metrics.to_json() == saved.metrics.to_json()
        assert replace(found.metrics, counts=None) == replace(saved.metrics, counts=None)


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({"name": "left_graeter"}, 'case is "left_graeter"; did you mean "left_greater"'),
        ({"vocabulary": ["BOS", "PAD", "x", "y"]}, "are not those of cases/"),
        ({"d_model": 5}, "are not those of cases/"),
    ],
)
def test_a_case_that_cases_does_not_make_is_refused(tmp_path, description, words):
    saved = small()
    member = {**saved.about["member"], "case": {**saved.case.describe(), **description}}
    save_trained(tmp_path / "a.safetensors", replace(saved, about={"member": member}))
    with pytest.raises(ValueError, match=words):
        read_trained(tmp_path / "a.safetensors", cases.described)


@pytest.mark.parametrize("names", ["0", "3", "1+1", "0+2+3"])
@pytest.mark.parametrize("rule", ["causal", "frozen"])
def test_every_case_is_found_again_by_its_description(names, rule):
    case = cases.build(names, counterfactual=rule, init_gain=0.18)
    assert cases.described(json.loads(json.dumps(case.describe()))).describe() == case.describe()


@pytest.mark.parametrize("copies", [1, 3])
def test_a_case_that_is_combined_with_copies_or_none_is_found_again(copies):
    case = combine([cases.build("1", init_gain=0.18)] * copies, width_factor=2.6, d_head=4, d_mlp=8)
    assert cases.described(json.loads(json.dumps(case.describe()))).describe() == case.describe()


def metrics(**right) -> Metrics:
    """Those of a circuit of two nodes, and two unused ones, that is held but for what is given as right."""
    of = {"base": 10_000, "joint": 10_000, "subset": 10_000, "node": [10_000] * 2, "unused": [10_000] * 2}
    of |= {"whole": [700] * 2, "changed": [400, 0]}
    tallies: dict[str, Any] = {name: Tally(np.array(right.get(name, n)), np.array(n)) for name, n in of.items()}
    return Metrics(**tallies)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, []),
        ({"base": 9_999}, []),  # less than the margin
        ({"base": 7_500}, ["accuracy is 75 (stored 100)"]),
        ({"joint": 5_000, "subset": 7_500}, ["joint_siia is 50 (", "subset_siia is 75 ("]),
        ({"node": [10_000, 5_001]}, ["IIA of MLP0 is 50.01 ("]),
        ({"changed": [200, 0]}, ["changed IIA of L0H1 is 50 ("]),
        ({"changed": [399, 0]}, []),  # one of 400 may be chance
        ({"unused": [10_000, 5_000]}, ["SIIA of L0H2 is 50 ("]),
    ],
)
def test_a_stored_figure_fails_when_the_new_one_lies_wholly_below_it(found, words):
    case = replace(left_greater.CASE, d_model=12, d_head=4)  # L0H1 and MLP0 hold the circuit; L0H0 and L0H2 nothing
    lines = failures(case, shares(metrics()), metrics(**found))
    assert len(lines) == len(words)
    assert all(line.startswith(start) for line, start in zip(lines, words, strict=True))


def test_exhaustive_takes_every_string_of_the_tasks_that_have_few_enough():
    case = left_greater.CASE.with_context(5)
    every = case.every(2**4)
    assert every is not None
    assert {tuple(row) for row in every.tolist()} == {
        (0, a, b, c, d) for a in (2, 3) for b in (2, 3) for c in (2, 3) for d in (2, 3)
    }
    assert case.every(2**4 - 1) is None
    both = combine([case, cases.find("duplicate_remover")])  # 3**14 strings are too many
    samples = both.every(2**4)
    assert samples is not None
    assert samples.shape == (2**4, 16)
    assert set(samples[:, 0].tolist()) == {both.vocabulary.index("left_greater:")}
    batches = list_batches(both, 100, 0, exhaustive=True)
    assert sum(len(base) for base, _ in batches) == 2**4 + 1_000_000


def test_a_model_that_was_harmed_is_told_by_exit_1(tmp_path, commands):
    trained = cases.load("left_greater")
    harmed = eqx.tree_at(lambda m: m.unembed.b_U, trained.model, replace_fn=lambda b: b.at[0].add(100.0))
    save_trained(tmp_path / "model.safetensors", replace(trained, model=harmed))
    (ended,) = commands(Evaluate, (str(tmp_path), "--pairs=500", "--nodes"))
    assert ended.code == 1, ended.err
    assert "Does not hold: accuracy is " in ended.out
    assert "stored figures do not hold." in ended.out


def test_a_model_that_is_whole_is_told_by_exit_0_with_a_line_a_node():
    ended = run("-m", "siitjax", "evaluate", "left_greater", "--pairs=500", "--nodes")
    assert ended.code == 0, ended.err
    assert "All stored figures hold." in ended.out
    for words in ("L0H1", "counts", "MLP0", "joint SIIA", "a random subset"):
        assert words in ended.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "evaluate: MODEL is missing: a shipped model"),
        (("left_graeter",), 'the model is "left_graeter"; did you mean "left_greater"?'),
        (("0+1+7",), 'the model is "0+1+7"; did you mean "0+1+3"?'),
        (("tests",), "tests is not a model: it holds no model.safetensors"),
        (("pyproject.toml",), "pyproject.toml is not a whole safetensors file"),
        (("0", "1"), '"1" is an argument too many'),
        (("0", "--pairs=0"), "--pairs is 0; it must be at least 2"),
        (("0", f"--seed={2**63}"), "--seed is 9223372036854775808; it must be at most 2147483647"),
        (("0", "--pairs=1"), "--pairs is 1; it must be at least 2"),
        (
            ("{results}",),
            "a sweep's results folder, of 2 members; give one of them, such as {results}/members/0000",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, capsys, words, line):
    (tmp_path / "members").mkdir()
    for index in (0, 1):
        (tmp_path / "members" / f"{index:04d}.safetensors").touch()
    with pytest.raises(SystemExit, match=r"^2$"):
        main(Evaluate, ["evaluate", *(word.format(results=tmp_path) for word in words)])
    said = capsys.readouterr()
    assert said.out == ""
    assert line.format(results=tmp_path) in said.err
    assert said.err.startswith("evaluate: ")
    assert said.err.count("\n") == 1
