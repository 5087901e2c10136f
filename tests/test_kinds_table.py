"""Settings under swaps of every kind: what the table says of rows made by hand, and what real weights come to."""

import pytest

import cases
from siitjax.questions.kinds_table import kinds_scores, kinds_table, worst_by_kind
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.sweep.engine import Member
from siitjax.sweep.results import Results


def row(setting: str, seed: int, edge: float, outside: float) -> dict:
    kinds = [
        {"words": "one edge of the circuit", "worst": 0.99, "worst_changed": edge},
        {"words": "one edge outside", "worst": outside, "worst_changed": None},
    ]
    return {"setting": setting, "seed": seed, "kinds": kinds}


def test_the_worst_swap_is_of_changed_labels_or_of_all_tokens_where_it_changes_none():
    rows = [row("a", 0, 0.5, 1.0), row("a", 1, 0.25, 0.75)]
    assert worst_by_kind(rows, "kinds") == {"one edge of the circuit": [0.5, 0.25], "one edge outside": [1.0, 0.75]}


def test_a_line_a_kind_has_the_median_the_worst_seed_and_the_paired_differences():
    # The seeds lie in another order in the two settings: they are paired by seed.
    rows = [row("one", seed, (90 - seed) / 100, 1.0) for seed in range(6)]
    rows += [row("subsets", seed, (92 - 2 * seed) / 100, 1.0) for seed in reversed(range(6))]
    table = kinds_table(rows, {"one": "subsets"})
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["worst swap"] == ["one edge of the circuit", "one edge outside"]
    # Medians of 90 .. 85 and of 92 .. 82; by seed the differences are -2, -1, 0, 1, 2, 3.
    assert cells["subsets"] == ["87 (82)", "100 (100)"]
    assert cells["one"] == ["87.50 (85)", "100 (100)"]
    assert cells["one - subsets"] == ["+0.500 (-2.000 to +3.000)", "+0.000"]


@pytest.mark.parametrize(("name", "holds"), [("1", True), ("0+1@nodes", False)])
def test_members_are_measured_by_the_weights_that_their_folder_holds(name, holds, tmp_path):
    trained = cases.load(name)
    results = Results(tmp_path, "", (Member("a", 0, TrainConfig(trained.case), Hyperparams()),))
    weights = results.weights({"member": 0})
    weights.parent.mkdir()
    weights.write_bytes(cases.shipped(name).read_bytes())
    found = kinds_scores({"member": 0}, results)
    assert all(kind["holds"] for kind in found) == holds
    # Both hold one node at a time.
    assert next(kind["holds"] for kind in found if kind["words"] == "one node")
