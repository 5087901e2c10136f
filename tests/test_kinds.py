"""Which kinds of swap training must draw: what is left out, and what the rule says of rows made by hand."""

import pytest

import cases
from sweeps.kinds import ALL, LEFT_OUT, Kinds


def rows(seeds: int, **held: int) -> list[dict]:
    """Rows of a sweep in which so many seeds of a setting hold; of one that is not named, none does."""
    return [
        {"setting": name, "seed": seed, "holds": seed < held.get(name.replace(" ", "_"), 0)}
        for name in LEFT_OUT
        for seed in range(seeds)
    ]


def test_each_setting_leaves_out_one_kind_and_all_share_a_compilation_and_a_start():
    members = Kinds(seeds=2).members()
    assert [(m.setting, m.seed) for m in members] == [(name, seed) for name in LEFT_OUT for seed in (0, 1)]
    assert len({id(member.config) for member in members}) == 1
    assert {member.start for member in members} == {cases.shipped("unique_extractor@nodes")}
    recipe = members[0].hyperparams()
    for member in members:
        differ = {name: value for name, value in member.hyperparams().items() if value != recipe[name]}
        assert differ == dict(LEFT_OUT[member.setting])


@pytest.mark.parametrize(
    ("seeds", "held", "kind", "words"),
    [
        (5, {"all_kinds": 5}, "undecided", "fewer than 6 seeds a setting; seeds that hold: all kinds 5 of 5, no"),
        (6, {"all_kinds": 4, "no_positions": 3}, "supported", "without any kind it does not hold"),
        (6, {"all_kinds": 6, "no_positions": 4}, "contradicted", "it holds as well with no positions; seeds"),
        (6, {"all_kinds": 3, "no_positions": 6}, "contradicted", "not even with all kinds two thirds"),
    ],
)
def test_the_rule(seeds, held, kind, words):
    verdict = Kinds().verdict(rows(seeds, **held))
    assert verdict.kind == kind
    assert verdict.because.startswith(words)


def test_the_table_shows_the_worst_swap_of_each_kind_and_what_falls_short():
    def row(name, seed, worst, changed, holds):
        kind = {"words": "one node", "worst": worst, "worst_changed": changed, "holds": holds}
        return {"setting": name, "seed": seed, "stop": "exhausted", "epochs": 1, "edges": [kind]}

    found = [row(ALL, 0, 1.0, 0.998, True), row(ALL, 1, 0.9995, 0.996, True), row("no positions", 0, 0.95, None, False)]
    question = Kinds()
    table = question.worst_swaps(found)
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["swap"] == ["one node"]
    assert (cells[ALL], cells["no positions"], cells["no subsets"]) == (["99.60"], ["95*"], ["-"])
