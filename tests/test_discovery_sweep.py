"""The question of discovery: its rule on rows made up, and its command, which goes on where it stopped."""

import json

import pytest

from siitjax.analysis.discovery.report import AT_EDGES, AT_NODES, sharing, truth
from sweeps.discovery import Discovery, decide

PARTS = ("0", "1", "2", "3")
COMBINED = ("0+1", "0+2", "0+3", "1+2", "1+3", "2+3")
SMALL = ("--models=1", "--pairs=10", "--methods=EAP,random")


def rows_of(model, found, at=AT_EDGES, method="EAP"):
    return {
        "model": model,
        "at": at,
        "tasks": len(model.split("+")),
        "method": method,
        "above_chance": found,
        "average_precision": found,
    }


def sharing_costs(*costs, models=COMBINED):
    """Single tasks at 0.9, combined ones so much below; a control that has no part in it."""
    rows = [rows_of(part, 0.9) for part in PARTS]
    rows += [rows_of(model, 0.9 - cost) for model, cost in zip(models, costs, strict=False)]
    return rows + [rows_of(row["model"], 0.0, method="random") for row in rows]


@pytest.mark.parametrize(
    ("costs", "kind"),
    [
        ((0.1, 0.2, 0.3, 0.25, 0.15, 0.05), "supported"),
        ((-0.1, -0.2, -0.3, -0.25, -0.15, -0.05), "contradicted"),
        ((0.1, -0.2, 0.3, -0.25, 0.15, -0.05), "undecided"),
        ((0.1, 0.2, 0.3, 0.25, 0.15), "undecided"),
    ],
)
def test_the_verdict_is_the_rule_s(costs, kind):
    assert decide(sharing_costs(*costs)).kind == kind


def test_a_combined_model_is_compared_with_its_own_parts():
    rows = [rows_of("0", 0.9), rows_of("1", 0.5), rows_of("0+1", 0.6), rows_of("1+2", 0.1)]
    assert sharing(rows).low == pytest.approx([0.1])  # 1+2 has a part that was not measured


def test_models_are_compared_with_those_of_the_same_case():
    rows = [rows_of("0", 0.9), rows_of("0", 0.6, AT_NODES), rows_of("1", 0.5)]
    assert truth(rows).low == pytest.approx([0.3])


def test_nothing_is_said_of_controls_alone():
    assert decide([rows_of("0", 0.5, method="random")]).kind == "undecided"


def test_the_command_goes_on_where_it_stopped_and_refuses_the_rest(tmp_path, commands):
    out, foreign = tmp_path / "results", tmp_path / "foreign"
    foreign.mkdir()
    first, again, *refused = commands(
        Discovery,
        (*SMALL, f"--out={out}"),
        (*SMALL, f"--out={out}"),
        (*SMALL, "--seed=2", f"--out={out}"),
        (*SMALL, f"--out={foreign}"),
        ("--models=0+9", f"--out={tmp_path / 'new'}"),
        ("--methods=EAPP", f"--out={tmp_path / 'new'}"),
        ("--kinds=all", f"--out={tmp_path / 'new'}"),
    )
    assert first[0] == 0, first[2]
    assert "an interval takes 6 combined models" in first[1]
    assert first[1] == again[1]  # every figure was read again
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "figure.pdf",
        "figure.png",
        "rows.jsonl",
        "summary.json",
    ]
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    found = [(row["at"], row["method"]) for row in rows]
    assert found == [("edges", "EAP"), ("edges", "random"), ("nodes", "EAP"), ("nodes", "random")]
    assert [row["compiled"] for row in rows] == [False, False, True, True]
    assert rows[0]["true"] == 3
    words = (
        "holds another run, with other seed; choose another --out",
        "exists, and is no folder of this question; choose another --out",
        'the model is "0+9"; did you mean "0+',
        'the method is "EAPP"; did you mean "EAP"',
        'kinds is "all"; did you mean',
    )
    for (code, said, err), word in zip(refused, words, strict=True):
        assert (code, said) == (2, ""), err
        assert err.count("\n") == 1, err
        assert word in err
