"""Crystallising: where variables are found, both stages as a user runs them, and the rule on rows made by hand."""

import json
from dataclasses import replace

import jax.numpy as jnp
import pytest

import siitjax
from siitjax.analysis.placement import find_placement, node_scores
from siitjax.base.errors import UserError
from siitjax.model.nodes import head, mlp
from siitjax.siit.fresh_pairs import list_batches
from sweeps.crystallise import DECLARED, FOUND, SCRATCH, Crystallise
from tests.commands import run
from tests.test_compare import setting


def pairs(case, n: int):
    return [jnp.asarray(x) for x in list_batches(case, n, 0)[0]]


def test_in_a_shipped_model_every_variable_is_found_where_it_was_put():
    trained = siitjax.load("left_greater")
    found = find_placement(trained.model, trained.case, *pairs(trained.case, 200))
    assert found.nodes == {head(0, 1): head(0, 1), mlp(0): mlp(0)}
    assert [*found.scores.values()] == [1.0, 1.0]
    assert found.of(trained.case) == trained.case


def test_from_a_wrong_declaration_it_finds_the_right_one():
    trained = siitjax.load("left_greater")
    counts, *others = trained.case.variables
    wrong = replace(trained.case, variables=(replace(counts, node=head(0, 3)), *others))
    found = find_placement(trained.model, wrong, *pairs(wrong, 200))
    assert found.nodes[head(0, 3)] == head(0, 1)
    assert found.of(wrong) == trained.case


def test_a_node_that_does_nothing_has_half_of_the_balanced_score():
    """All unchanged labels are right, and none of the changed ones."""
    trained = siitjax.load("left_greater")
    scores = node_scores(trained.model, trained.case, *pairs(trained.case, 200))
    assert scores[head(0, 1)][head(0, 0)] == 0.5
    assert {*scores[mlp(0)]} == {mlp(0)}


def test_a_variable_on_several_nodes_cannot_be_placed():
    trained = siitjax.load("left_greater")
    counts, *others = trained.case.variables
    joint = replace(trained.case, variables=(replace(counts, node=(head(0, 1), head(0, 2))), *others))
    with pytest.raises(UserError, match="has a variable on several nodes"):
        node_scores(trained.model, joint, *pairs(joint, 20))


@pytest.mark.parametrize(
    ("declared", "found", "kind", "words"),
    [
        ([5] * 8, [4] * 8, "supported", "8 of 8 seeds converge"),
        ([40] * 8, [40] * 8, "contradicted", "8 of 8 seeds converge"),
        ([5, 5, 5, 100, 100, 100], [5] * 6, "contradicted", "3 of 6 seeds converge"),
        ([5] * 5, [5] * 5, "undecided", "fewer than 6 seeds; 5 of 5 seeds converge"),
    ],
)
def test_the_rule(declared, found, kind, words):
    jitter = lambda epochs: [min(e + i % 2, 100) for i, e in enumerate(epochs)]
    rows = [
        *setting(*(10 + i for i in range(len(declared))), setting=SCRATCH),
        *setting(*jitter(declared), setting=DECLARED),
        *setting(*jitter(found), setting=FOUND),
    ]
    verdict = Crystallise().verdict(rows)
    assert verdict.kind == kind
    assert verdict.because.startswith(words)


def test_one_command_runs_both_stages_and_the_second_again_alone(tmp_path):
    small = ("--case=tests.tiny:NEVER", "--seeds=1", "--samples=200", "--batch_size=50", "--lanes=1", "--devices=1")
    command = ("-m", "sweeps.crystallise", *small, "--epochs=2", "--alone_epochs=1", f"--out={tmp_path / 'results'}")
    ended = run(*command)
    assert ended.code == 0, ended.err
    assert "odd (L0H1)" in ended.out
    rows = [json.loads(line) for line in (tmp_path / "results" / "rows.jsonl").read_text().splitlines()]
    assert [row["setting"] for row in rows] == [SCRATCH, DECLARED, FOUND]
    kept = json.loads((tmp_path / "results-alone" / "placements.json").read_text())
    assert {*kept["0"]} == {"L0H1"}
    wrong = replace(Crystallise(), case="tests.tiny:NEVER", seeds=2, alone=str(tmp_path / "results-alone"))
    with pytest.raises(UserError, match="which has no transformer of seed 1; train them there"):
        wrong.members()
