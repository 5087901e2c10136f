"""The question of alignment: its rule on rows made up, and its command, which goes on where it stopped."""

import json

import pytest

from siitjax.analysis.alignment.report import chosen
from siitjax.analysis.alignment.study import UNTRAINED, WRONG
from sweeps.alignment import Alignment, decide

COMBINED = ("0+1", "0+2", "0+3", "0+1+2+3", "1+3", "2+3")
SMALL = ("--case=1", "--nodes=MLP0", "--methods=PCA,full vector", "--sizes=1,2", "--pairs=20", "--held_out=20")


def row(model, balanced, method="DAS", control="", size=1, seed=0, validation=None):
    return {
        "model": model,
        "node": "MLP0",
        "variable": "counts",
        "shared": True,
        "method": method,
        "control": control,
        "size": size,
        "seed": seed,
        "validation": balanced if validation is None else validation,
        "balanced": balanced,
    }


def rows_of(figures, untrained=0.6, wrong=0.6, models=COMBINED):
    rows = []
    for i, (model, figure) in enumerate(zip(models, figures, strict=False)):
        rows += [row(model, figure), row(model, 0.5, "random")]
        rows += [row(model, untrained + i / 100, control=UNTRAINED), row(model, wrong + i / 100, control=WRONG)]
    return rows


HIGH, LOW = (0.99, 0.98, 0.97, 0.995, 0.985, 0.96), (0.9, 0.8, 0.7, 0.94, 0.93, 0.92)


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (rows_of(HIGH), "supported"),
        (rows_of(LOW), "contradicted"),
        (rows_of((0.9, *HIGH[1:])), "undecided"),
        (rows_of(HIGH[:5]), "undecided"),
        (rows_of(HIGH, untrained=1.0), "contradicted"),
        (rows_of(HIGH, wrong=0.94), "undecided"),
        (rows_of(HIGH, models=[f"{model}@nodes" for model in COMBINED]), "undecided"),
        (rows_of(HIGH, models=("1+2", *COMBINED[1:])), "undecided"),  # on which the settings were chosen
        ([row("0+1", 1.0, "PCA")], "undecided"),
    ],
)
def test_the_verdict_is_the_rule_s(rows, kind):
    assert decide(rows).kind == kind


def test_of_variables_alone_on_their_node_nothing_is_said():
    assert decide([each | {"shared": False} for each in rows_of(HIGH)]).kind == "undecided"


def test_the_smallest_size_near_the_best_is_chosen_by_other_pairs():
    rows = [
        row("1", 0.1, size=1, validation=0.80),
        row("1", 0.2, size=2, validation=0.90),
        row("1", 0.3, size=2, seed=1, validation=0.985),
        row("1", 0.4, size=4, validation=0.99),
        row("1", 0.9, size=8, validation=0.98),
    ]
    assert [each["balanced"] for each in chosen(rows)] == [0.3]


def test_the_command_goes_on_where_it_stopped_and_refuses_the_rest(tmp_path, commands):
    out, foreign = tmp_path / "results", tmp_path / "foreign"
    foreign.mkdir()
    first, again, *refused = commands(
        Alignment,
        (*SMALL, f"--out={out}"),
        (*SMALL, f"--out={out}"),
        (*SMALL, "--seed=2", f"--out={out}"),
        (*SMALL, f"--out={foreign}"),
        *(
            (*SMALL, *wrong, f"--out={tmp_path / 'new'}")
            for wrong in (
                ("--case=9",),
                ("--methods=PCAA",),
                ("--nodes=MLP3",),
                ("--nodes=L0H0",),
                ("--sizes=49",),
                ("--variables=counts",),
                ("--batch_size=21",),
            )
        ),
    )
    assert first[0] == 0, first[2]
    assert "DAS was measured at no node that several tasks share" in first[1]
    assert first[1] == again[1]  # every figure was read again
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "figure.pdf",
        "figure.png",
        "rows.jsonl",
        "summary.json",
    }
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [(each["control"], each["method"], each["size"]) for each in rows] == [
        ("", "PCA", 1),
        ("", "PCA", 2),
        ("", "full vector", 48),
        ("untrained", "full vector", 48),
    ]
    assert rows[2]["balanced"] == 1
    words = (
        "holds another run, with other seed; choose another --out",
        "exists, and is no folder of this question; choose another --out",
        '"9"',
        'the method is "PCAA"; did you mean "PCA"',
        'the node is "MLP3"; did you mean "MLP0"? Of left_greater, these hold a variable: L0H1, MLP0',
        'the node is "L0H0"; did you mean "L0H1"',
        "a size is 49, but MLP0 of left_greater holds 48 numbers a token; choose sizes up to that",
        'the variable on MLP0 is "counts"; did you mean "left_greater"? It holds left_greater',
        "a batch has 21 pairs, but there are 20; lower it, or take more",
    )
    for (code, said, err), word in zip(refused, words, strict=True):
        assert (code, said) == (2, ""), err
        assert err.count("\n") == 1, err
        assert word in err
