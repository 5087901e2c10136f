"""The rows in sweeps/results: that report.md is what they give, and how the rows of a sweep come to lie there."""

import json
from pathlib import Path

import pytest

import sweeps.report
from siitjax.base.errors import UserError
from siitjax.questions.question import Sweep
from sweeps.betas import Betas
from sweeps.report import SECTIONS, Report, command, keep, rows_of

SWEEPS = Path(sweeps.report.__file__).parent


def test_the_report_in_the_repository_is_what_the_rows_give(tmp_path: Path):
    assert Report(out=str(tmp_path), pictures=False).run() == 0
    assert (tmp_path / "report.md").read_text() == (SWEEPS / "report.md").read_text()


def test_every_picture_in_the_repository_is_of_a_section_or_named_by_the_readme():
    told = (SWEEPS / "README.md").read_text() + (SWEEPS / "report.md").read_text()
    assert [path.name for path in sorted((SWEEPS / "pictures").iterdir()) if f"pictures/{path.name}" not in told] == []


def test_every_row_is_of_a_seed_that_its_question_asks_for():
    for name, section in SECTIONS.items():
        if isinstance(section.question, Sweep) and not section.files:
            seeds = {row["seed"] for row in rows_of(name)}
            first = getattr(section.question, "first_seed", 0)
            assert seeds == set(range(first, first + getattr(section.question, "seeds", 0))), name


def test_one_section_is_written_with_its_picture(tmp_path: Path):
    assert Report(only=("betas-left_greater",), out=str(tmp_path)).run() == 0
    assert "## betas-left_greater" in (tmp_path / "report.md").read_text()
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["betas-left_greater.png"]


def test_a_command_names_what_differs_from_the_defaults():
    assert command(Betas(seeds=3, beta2=(0.9, 0.99))) == "python -m sweeps.betas --seeds=3 --beta2=0.9,0.99"
    assert command(SECTIONS["models-nodes"].question) == "python -m sweeps.table --rules=causal"


def test_the_rows_of_a_finished_folder_are_kept_with_what_was_measured(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sweeps.report, "ROWS", tmp_path)
    folder = tmp_path / "betas-of-mine"
    folder.mkdir()
    rows = [{"member": 0, "setting": "a", "siia": 1.0}, {"member": 1, "setting": "b", "siia": 0.5}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "measured.jsonl").write_text(json.dumps({"member": 1, "hidden": 0.1}) + "\n")
    with pytest.raises(UserError, match=r"has no summary.json, so it is no finished results folder$"):
        keep(folder)
    (folder / "summary.json").write_text("{}")
    keep(folder)
    kept = [json.loads(line) for line in (tmp_path / "betas-of-mine.jsonl").read_text().splitlines()]
    assert kept == [rows[0], {**rows[1], "hidden": 0.1}]
    keep(folder)  # the same again
    (folder / "measured.jsonl").unlink()
    with pytest.raises(UserError, match=r"betas-of-mine.jsonl has other rows; remove that file, or rename the folder$"):
        keep(folder)


def test_of_a_dictionary_s_row_what_is_by_value_is_left_out(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sweeps.report, "ROWS", tmp_path)
    folder = tmp_path / "saes-of-mine"
    folder.mkdir()
    rows = [{"kind": "topk", "mean_f1": 0.5, "f1": {"counts = 1": 0.5}}, {"method": "EAP", "auroc": 0.9}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text("{}")
    keep(folder)
    kept = [json.loads(line) for line in (tmp_path / "saes-of-mine.jsonl").read_text().splitlines()]
    assert kept == [{"kind": "topk", "mean_f1": 0.5}, {"method": "EAP", "auroc": 0.9}]


def test_a_section_that_is_not_there_and_a_file_that_is_missing_are_named(tmp_path: Path, monkeypatch):
    with pytest.raises(UserError, match=r'the section is "betas-left_lesser"; did you mean "betas-left_greater"\?'):
        Report(only=("betas-left_lesser",), out=str(tmp_path)).run()
    monkeypatch.setattr(sweeps.report, "ROWS", tmp_path)
    with pytest.raises(UserError, match=r"betas-left_greater.jsonl is missing; restore it, or keep the rows of a"):
        rows_of("betas-left_greater")


def test_betas_of_one_kind_of_update_compare_nothing():
    assert Betas(updates=("single",)).comparisons(rows_of("betas-left_greater")) == {}
