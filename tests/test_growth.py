"""How cost grows: slopes of exact powers, and what the rule makes of lines that lie above the operations' or do not."""

import numpy as np
import pytest

import cases
from siitjax.bench.flops import step_flops
from siitjax.siit.config import TrainConfig
from siitjax.siit.objective import Sampling
from sweeps.growth import AXES, Growth, slope

RUNS = (0.9, 1.0, 1.2)


def line(name: str, of_time: float, of_operations: float = 1.0) -> list[dict]:
    """Rows whose time and operations are powers of the size; in each run all sizes are as slow."""
    return [
        {"line": name, "size": n, "gflop": n**of_operations, "ms": [run * 5 * n**of_time for run in RUNS]}
        for n in (1, 2, 4)
    ]


def test_the_slope_of_a_power_is_its_exponent():
    assert slope([1, 3, 10], np.array([2.0, 2 * 3**1.5, 2 * 10**1.5])) == pytest.approx(1.5)
    assert slope([1, 2], np.array([[1.0, 1.0], [2.0, 4.0]])) == pytest.approx([1.0, 2.0])


def test_a_line_above_the_margin_contradicts_and_lines_below_it_support():
    below = [*line("layers", 1.05), *line("lanes", -0.95, -1.0)]
    assert str(Growth().verdict(below)) == (
        "Supported: slope of the time less that of the operations: layers +0.05; lanes +0.05."
    )
    assert Growth().verdict([*below, *line("tokens", 1.2)]).kind == "contradicted"
    mixed = line("width", 1.0)
    mixed[2]["ms"] = [4 * 5 * run * 4**extra for run, extra in zip(RUNS, (0.0, 0.0, 0.5), strict=True)]
    assert Growth().verdict(mixed).kind == "undecided"


def test_the_picture_has_a_panel_a_size_and_the_table_a_row_a_line(tmp_path):
    rows = [row for name in (*AXES, "edges, swaps of edges") for row in line(name, 1.0)]
    question = Growth()
    question.picture(rows, question.verdict(rows), tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 0
    assert [table.row_count for table in question.tables(rows)] == [7]


def test_the_operations_of_mixing_are_counted_under_swaps_of_edges():
    # left_greater: the embedding to 4 heads, the MLP and the logits; each head to the MLP and the logits; the MLP to
    # the logits. 15 edges of 15 tokens of 12 features, a product and a sum, forward and backward, under two masks.
    nodes, edges = (
        step_flops(TrainConfig(cases.find("left_greater"), sampling=Sampling(swaps=swaps, drawn_per="example")))
        for swaps in ("nodes", "edges")
    )
    assert edges - nodes == 256 * (6 + 8 + 1) * 15 * 12 * 2 * 2 * 2
