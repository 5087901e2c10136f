"""The notebook runs from its first cell to its last, and is kept without what it printed."""

import json
from pathlib import Path

from tests.commands import run

NOTEBOOK = Path(__file__).parents[1] / "cases" / "tour.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
SWAPS = "nothing", "node MLP0", "unused node L0H0", "edge L0H1->MLP0", "the same at token 2", "edge L0H1->logits"


def test_it_is_kept_without_outputs():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)


def test_its_cells_run_and_under_each_swap_both_models_answer_alike(tmp_path):
    (tmp_path / "tour.py").write_text("\n".join("".join(cell["source"]) for cell in CELLS))
    ended = run(str(tmp_path / "tour.py"), MPLBACKEND="agg")
    assert ended.code == 0, ended.err
    assert "left_greater, seed 0: converged" in ended.out
    for swap in SWAPS:
        (line,) = [line for line in ended.out.splitlines() if line.startswith(swap)]
        answers = line[28:].replace(" ", "")
        assert len(answers) == 3 * 8
        assert answers[:8] == answers[8:16] == answers[16:], line
    lens, causal = (line.split("[")[1] for line in ended.out.splitlines()[-2:])
    assert lens == causal
