"""What a row lacks: a metric that is None, such as IIA on changed labels where no label changed. Its seed is left out,
and "-" stands where no seed is left."""

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from siitjax.questions.pictures import curves_picture, picture, strips
from siitjax.questions.report import summarise, table
from siitjax.questions.statistics.paired import Points, by_seed, difference
from siitjax.questions.statistics.speed import ratio
from siitjax.sweep.results import CURVES, Results, Row
from sweeps.schedule import Schedules
from sweeps.table import Models
from tests.test_compare import row, setting

NONE: dict[str, Any] = {"changed_iia": None, "worst_changed_iia": None}


def printed(table: Table, line: str) -> list[str]:
    """The words of the line of a table that begins so."""
    out = io.StringIO()
    Console(file=out, width=200).print(table)
    return next(words for words in map(str.split, out.getvalue().splitlines()) if " ".join(words).startswith(line))


def test_a_difference_leaves_out_the_seeds_that_lack_the_metric_in_either_setting():
    ours = [row(seed, 10, changed_iia=share) for seed, share in enumerate((0.5, None, 0.75, None))]
    others = [row(seed, 10, changed_iia=share) for seed, share in enumerate((0.25, 0.5, None, None))]
    assert difference(ours, others, "changed_iia") == Points(25.0, None, None)
    assert str(difference(ours[1:], others[1:], "changed_iia")) == "-"


def test_a_mean_is_over_the_seeds_that_have_the_metric():
    some = [row(0, 10, changed_iia=0.5, worst_changed_iia=0.25), row(1, 10, **NONE), row(2, 10, changed_iia=0.75)]
    (found,) = summarise(some)
    assert (found.changed_iia, found.worst_changed_iia, found.run) == (0.625, 0.25, 3)
    (found,) = summarise(setting(10, 20, **NONE))
    assert (found.accuracy, found.changed_iia, found.worst_changed_iia) == (1.0, None, None)


def test_a_table_shows_a_dash_where_no_seed_has_the_metric():
    # Setting, converged, interval, epochs, accuracy, IIA, changed IIA, worst node, SIIA, joint SIIA, seconds.
    words = printed(table(summarise(setting(10, 20, **NONE)), ""), "a 2 of 2")
    assert words[5:] == ["15", "100", "100", "-", "-", "100", "100", "2.0"]


def test_the_tables_of_questions_show_it_too():
    rows = [{**one, "setting": name} for name in Schedules().settings() for one in setting(10, 20, **NONE)]
    _, beside = Schedules().tables(rows)
    assert printed(beside, "constant 0.001") == ["constant", "0.001", "1.00", "+0.000", "-", "+0.000", "+0.000"]
    _, published = Models().tables([row(0, 10, setting="1, causal", member=0, **NONE)])
    assert printed(published, "1 causal")[4:] == ["100", "100", "-", "-", "100", "100", "no"]


def curves(folder, member: int, changed: str) -> Row:
    """Writes the curves of a member of two epochs; its row."""
    (folder / "members").mkdir(exist_ok=True)
    lines = [",".join(("epoch", *CURVES))]
    lines += [
        ",".join((str(epoch), *(changed if name == "changed_iia" else "0.5" for name in CURVES))) for epoch in (1, 2)
    ]
    (folder / "members" / f"{member:04d}.csv").write_text("\n".join(lines) + "\n")
    return row(0, 2, setting=f"setting {member}", member=member, **({} if changed != "nan" else NONE))


def test_a_picture_of_curves_that_no_seed_has_is_drawn_without_a_warning(tmp_path):
    rows = [curves(tmp_path, 0, "nan"), curves(tmp_path, 1, "0.5")]
    curves_picture(Results(tmp_path, "", ()), rows, "title", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_a_picture_of_ratios_shows_bounds_and_the_lack_of_any(tmp_path):
    rows = [*setting(*range(10, 18)), *(r | {"setting": "b"} for r in setting(*[12] * 7, 100))]
    known, none = ratio(by_seed(rows, "b"), by_seed(rows, "a")), ratio([], [])
    picture(rows, {"b / a": known, "of nothing": none}, "title", tmp_path / "figure.png")
    picture([], {}, "title", tmp_path / "empty.png")
    strips({"a": [0.0, 0.3], "b": []}, "points", 0.1, "title", tmp_path / "strips.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 0 for name in ("figure", "empty", "strips"))
