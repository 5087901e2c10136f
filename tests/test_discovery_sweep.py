"""The question of discovery: its rule on rows made up, and its command, which goes on where it stopped."""

import json
import shutil
from io import StringIO

import pytest
from rich.console import Console

import cases
from siitjax.analysis.discovery.report import AT_EDGES, AT_NODES, seeds_table, sharing, truth
from sweeps.discovery import Discovery, decide, numbered_and_others

PARTS = ("0", "1", "2", "3")
COMBINED = ("0+1", "0+2", "0+3", "1+2", "1+3", "2+3")
SMALL = ("--models=1", "--pairs=10", "--methods=EAP,random")


@pytest.fixture
def printed():
    """What a table prints."""

    def text(table):
        Console(file=(out := StringIO()), width=200).print(table)
        return out.getvalue()

    return text


def rows_of(model, found, at=AT_EDGES, method="EAP", seed=None):
    return {
        "model": model,
        "at": at,
        "seed": seed,
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


def test_seeds_of_a_model_are_averaged_first():
    """0+1 has three seeds at 0.6, 0.7 and 0.8: it counts once, at 0.7, and so does each of its tasks' models."""
    rows = [rows_of(part, 0.9) for part in ("0", "1")]
    rows += [rows_of("0+1", found, seed=seed) for found, seed in ((0.6, None), (0.7, 0), (0.8, 1))]
    assert sharing(rows).low == pytest.approx([0.2])
    once = decide(sharing_costs(0.1, 0.2, 0.3, 0.25, 0.15, 0.05))
    again = [row | {"seed": seed} for row in sharing_costs(0.1, 0.2, 0.3, 0.25, 0.15, 0.05) for seed in (None, 0)]
    assert decide(again) == once


def test_further_tasks_have_no_part_in_the_verdict():
    rows = sharing_costs(0.1, 0.2, 0.3, 0.25, 0.15, 0.05)
    assert decide([*rows, rows_of("induction", 0.0)]) == decide(rows)
    assert [len(each) for each in numbered_and_others([*rows, rows_of("induction", 0.0)])] == [len(rows), 1]


def test_the_spread_over_seeds_is_beside_that_over_models(printed):
    """Two models of two seeds each: 0.5 and 0.7, 0.8 and 0.8; one model has one seed and is left out."""
    found = (("0", 0.5), ("0", 0.7), ("1", 0.8), ("1", 0.8), ("2", 0.1))
    rows = [rows_of(model, each, seed=i) for i, (model, each) in enumerate(found)]
    table = seeds_table(rows, "seeds")
    assert table is not None
    # Within: the root of (0.02 + 0) / 2. Between: the standard deviation of 0.6 and 0.8.
    assert ["EAP", "2", "4", "0.100", "0.141"] in [line.split() for line in printed(table).splitlines()]
    assert seeds_table(rows[:2], "seeds") is None


def test_members_that_hold_are_further_seeds(tmp_path, commands, member):
    out, again = tmp_path / "results", shutil.copytree(member, tmp_path / "again")
    one, more, *refused = commands(
        Discovery,
        (*SMALL, "--kinds=edges", f"--out={out}"),
        (*SMALL, "--kinds=edges", f"--members={member}", f"--out={out}"),
        (*SMALL, f"--members={member},{again}", f"--out={tmp_path / 'new'}"),
    )
    assert (one[0], more[0]) == (0, 0), more[2]
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [(row["seed"], row["method"]) for row in rows] == [
        (None, "EAP"),
        (None, "random"),
        (4, "EAP"),
        (4, "random"),
    ]
    assert rows[0]["scores"] == rows[2]["scores"]
    assert len(rows[0]["scores"]) == len(cases.find("1").circuit.nodes.possible_edges)
    assert refused[0][0] == 2
    assert "--models and --members give 1 edges seed 4 twice; give each once" in refused[0][2]


def test_folders_without_members_that_hold_are_refused_in_one_line(tmp_path, commands, member):
    rows = [json.loads(line) for line in (member / "rows.jsonl").read_text().splitlines()]
    without_holds = {key: value for key, value in rows[0].items() if key != "holds"}
    folders = {"none": rows[1:], "nodes": [without_holds], "foreign": [{"model": "1"}], "empty": []}
    for name, held in folders.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    found = commands(
        Discovery, *((*SMALL, f"--members={tmp_path / name}", f"--out={tmp_path / 'new'}") for name in folders)
    )
    words = (
        "has no member that holds, of 1; give a folder that has one",
        "is of members trained under swaps of nodes; give a folder that python -m sweeps.table --swaps=edges leaves",
        "is not a sweep's results folder ('member'); give one, such as python -m sweeps.table --swaps=edges leaves",
        "is not a sweep's results folder (it holds no rows); give one",
    )
    for (code, said, err), word in zip(found, words, strict=True):
        assert (code, said) == (2, ""), err
        assert err.count("\n") == 1, err
        assert word in err
    assert not (tmp_path / "new").exists()


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
