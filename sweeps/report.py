"""Every verdict, table and picture again, from the rows that lie in sweeps/results."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from siitjax.base.choice import check_choice
from siitjax.base.command import Command, flag, main
from siitjax.base.errors import UserError
from siitjax.base.files import make_folder, replaced, write_atomically
from siitjax.base.jsonl import Row, RowsFile
from siitjax.questions.model_tables import edges_table, latest, nodes_table
from siitjax.questions.report import Verdict
from siitjax.sweep.rows import row_files
from sweeps.alignment import Alignment
from sweeps.betas import Betas
from sweeps.capacity import Capacity
from sweeps.crystallise import Crystallise
from sweeps.discovery import Discovery
from sweeps.gain import Gain
from sweeps.growth import Growth
from sweeps.heads import Heads
from sweeps.kinds import Kinds
from sweeps.polysemanticity import Polysemanticity
from sweeps.published import Published
from sweeps.saes import SAEs
from sweeps.sampling import ONE, SUBSETS, Samplings
from sweeps.schedule import Schedules
from sweeps.table import PUBLISHED, Models, reaches
from sweeps.weights import Weights

ROWS = Path(__file__).parent / "results"
BY_VALUE = ("f1", "auroc", "variable_iia", "variable_changed_iia", "variable_changed")
"""What a dictionary's row has for each value or variable, by name: most of the row, and no section asks for it."""


@dataclass(frozen=True)
class Collected(Models):
    """The models of several sweeps together, a line a model; of a seed that was trained on, the last row."""

    title = "Do transformers hold their circuits?"

    def tables(self, rows: Sequence[Row]) -> Sequence[Table]:
        if self.swaps == "edges":
            return [edges_table(latest(rows), reaches, self.title)]
        return [nodes_table(latest(rows), reaches, self.title, PUBLISHED if self.case == "all" else None)]

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        return super().verdict(latest(rows))


@runtime_checkable
class Question(Protocol):
    """What is asked of rows, whether members were trained for them or models measured."""

    @property
    def title(self) -> str: ...
    def verdict(self, rows: Sequence[Row]) -> Verdict: ...
    def tables(self, rows: Sequence[Row]) -> Sequence[Table]: ...
    def picture(self, rows: Sequence[Row], verdict: Verdict, path: Path) -> None: ...


@dataclass(frozen=True)
class Section:
    """A question, and the files of sweeps/results that have its rows."""

    question: Question
    files: tuple[str, ...] = ()
    pictured: bool = True


FROM_DRAWN = Collected(
    case="indirect_object", rules=("causal",), swaps="edges", edges_from=0.0, init_gain=1.0, epochs=240, first_seed=3
)
"""Every kind of swap from the first epoch on."""
FEW_KINDS = {"p_edge": 0.4, "p_nodes": 0.0, "p_edges": 0.3, "p_own": 0.0, "p_base": 0.0, "p_positions": 1.0}

SECTIONS: Mapping[str, Section] = {
    "betas-left_greater": Section(Betas(seeds=32)),
    "betas-paren_checker": Section(
        Betas(case="paren_checker", seeds=32, drawn_per="example", init_gain=0.18),
        ("betas-paren_checker", "betas-paren_checker-later"),
    ),
    "betas-0+1": Section(
        Betas(case="0+1", seeds=16, epochs=60, samples=5_000, p_unused=0.8, drawn_per="example", init_gain=0.18),
    ),
    "betas-1+2": Section(
        Betas(case="1+2", seeds=16, epochs=60, samples=5_000, p_unused=0.8, drawn_per="example", init_gain=0.18),
    ),
    "weights-paren_checker": Section(Weights(seeds=32)),
    "sampling-paren_checker": Section(Samplings(seeds=16)),
    "sampling-backup": Section(Samplings(seeds=32, only=(SUBSETS, ONE)), ("sampling-paren_checker", "sampling-backup")),
    "sampling-1+2": Section(Samplings(case="1+2", seeds=16, samples=5_000, only=(SUBSETS, ONE))),
    "schedule-paren_checker": Section(Schedules(seeds=16)),
    "gain-tasks": Section(Gain(), ("gain-duplicate_remover", "gain-tasks")),
    "kinds-unique_extractor": Section(Kinds()),
    "heads": Section(
        Heads(seeds=16, d_head=(2, 4, 8, 16)), ("heads-2", "heads-2-later", "heads-4", "heads-8", "heads-16")
    ),
    "capacity-tasks-nodes": Section(Capacity(case="tasks", models=("0", "0+1"), d_mlp=(2, 32), seeds=6)),
    "crystallise-left_greater": Section(Crystallise(case="left_greater", seeds=16, alone_epochs=20)),
    "crystallise-paren_checker": Section(Crystallise()),
    "crystallise-indirect_object": Section(
        Crystallise(case="indirect_object", seeds=16, batch_size=64, alone_epochs=10)
    ),
    "polysemanticity": Section(Polysemanticity()),
    "discovery": Section(Discovery()),
    "alignment": Section(Alignment()),
    "alignment-nodes": Section(
        Alignment(
            case=("0+1@nodes", "0+2@nodes", "0+3@nodes", "1+2@nodes", "1+3@nodes", "2+3@nodes"),
            methods=("DAS", "neuron mask", "full vector"),
        ),
        pictured=False,
    ),
    "saes": Section(SAEs(seeds=8)),
    "growth": Section(Growth()),
    "models-nodes": Section(Collected(rules=("causal",)), ("nodes-singles", "nodes-combined"), pictured=False),
    "models-edges": Section(
        Collected(rules=("causal",), swaps="edges", start="FOLDER", epochs=20),
        ("edges", "edges-longer", "edges-1+3-base", "edges-3-base"),
        pictured=False,
    ),
    "published": Section(Published(), ("frozen-singles", "frozen-pairs", "frozen-more"), pictured=False),
    "further-nodes": Section(
        Collected(case="further", rules=("causal",), batch_size=64), ("further", "nodes-two_majorities"), pictured=False
    ),
    "further-edges": Section(
        Collected(case="further", rules=("causal",), swaps="edges", start="FOLDER", epochs=20),
        ("further-edges", "edges-two_majorities", "further-edges-bracket_kinds"),
        pictured=False,
    ),
    "token_frequency-nodes": Section(
        Collected(case="token_frequency", rules=("causal",), batch_size=64, epochs=180), pictured=False
    ),
    "token_frequency-edges": Section(
        Collected(case="token_frequency", rules=("causal",), swaps="edges", start="FOLDER", epochs=20), pictured=False
    ),
    "paren_shares-nodes": Section(
        Collected(case="paren_shares", rules=("causal",), epochs=240, beta2=0.999, seeds=1, first_seed=100),
        pictured=False,
    ),
    "paren_shares-edges": Section(
        Collected(
            case="paren_shares",
            rules=("causal",),
            swaps="edges",
            start="FOLDER",
            epochs=60,
            beta2=0.999,
            seeds=1,
            first_seed=100,
        ),
        pictured=False,
    ),
    "ioi-nodes": Section(
        Collected(case="ioi", rules=("causal",), batch_size=64, epochs=25, seeds=1),
        pictured=False,
    ),
    "ioi-edges": Section(
        Collected(case="ioi", rules=("causal",), swaps="edges", start="FOLDER", epochs=60, beta2=0.999, seeds=1),
        pictured=False,
    ),
    # The recipe was found on seeds 0 to 2, whose rows are in indirect_object-first: they have no part in the verdict.
    "indirect_object-later": Section(FROM_DRAWN, pictured=False),
    # This one was found on seed 5, of which no row is kept.
    "indirect_object-few_kinds": Section(
        replace(FROM_DRAWN, epochs=120, first_seed=6, w_base=0.05, **FEW_KINDS), pictured=False
    ),
}
"""By name; the rows lie in sweeps/results/NAME.jsonl where no files are listed."""


@dataclass(frozen=True)
class Report(Command):
    """Every verdict, table and picture again, from the rows that lie in sweeps/results.

    Writes report.md, a section a question, and pictures/NAME.png into --out. Nothing is trained. The repository's own
    are those of --out=sweeps.

    With --keep, the rows of finished results folders are first taken into sweeps/results, each under its folder's name.
    """

    title: ClassVar[str] = "What the sweeps say"

    only: tuple[str, ...] = flag((), "the sections, by name; none: all")
    pictures: bool = flag(True, "draw the pictures too")
    keep: tuple[str, ...] = flag((), "finished results folders whose rows are taken into sweeps/results first")
    out: str = flag("results/report", "folder of the report, which is written anew")

    def run(self) -> int:
        for name in self.only:
            check_choice("the section", name, tuple(SECTIONS))
        for folder in self.keep:
            keep(Path(folder))
        out, screen = Path(self.out), Console(stderr=True)
        make_folder(out / "pictures")
        said = [f"# {self.title}\n\n    python -m sweeps.report    # this text again, from the rows in sweeps/results"]
        for name in track(self.only or SECTIONS, "reporting", console=screen, disable=not screen.is_terminal):
            section, rows = SECTIONS[name], rows_of(name)
            verdict = section.question.verdict(rows)
            said.append(in_markdown(name, section, rows, verdict))
            print(f"{name}: {verdict.kind}", flush=True)
            if section.pictured:
                said.append(f"![{section.question.title}](pictures/{name}.png)")
            if section.pictured and self.pictures:
                with replaced(out / "pictures" / f"{name}.png") as path:
                    section.question.picture(rows, verdict, path)
        write_atomically(out / "report.md", "\n\n".join(said) + "\n")
        print(f"Tables and pictures: {out / 'report.md'}")
        return 0


def rows_of(name: str) -> list[Row]:
    """The rows of a section.

    Raises:
        UserError: a file is missing.
    """
    section, rows = SECTIONS[name], []
    for file in section.files or (name,):
        path = ROWS / f"{file}.jsonl"
        if not path.exists():
            raise UserError(f"{path} is missing; restore it, or keep the rows of a results folder: --keep=FOLDER")
        rows += RowsFile(path).read()
    return rows


def keep(folder: Path) -> None:
    """Takes the rows of a finished results folder, with what was measured of its members, into sweeps/results.

    Raises:
        UserError: the folder is not that of a finished sweep, or other rows lie there under its name.
    """
    if not (folder / "summary.json").exists():
        raise UserError(f"--keep names {folder}, which has no summary.json, so it is no finished results folder")
    measured = {row["member"]: row for row in RowsFile(folder / "measured.jsonl").read()}
    found = [row for file in row_files(folder) for row in file.read()]
    # Rows of what was measured, not trained, have no member.
    rows = [row | measured.get(row.get("member"), {}) for row in sorted(found, key=lambda row: row.get("member", 0))]
    by_value = lambda name, x: name in BY_VALUE and isinstance(x, dict)
    rows = [{name: x for name, x in row.items() if not by_value(name, x)} for row in rows]
    path, text = ROWS / f"{folder.name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
    if path.exists() and path.read_text() != text:
        raise UserError(f"--keep names {folder}, but {path} has other rows; remove that file, or rename the folder")
    write_atomically(path, text)


def command(question: Question) -> str:
    """The command line that asks it; only what differs from the defaults."""
    module = next(kind.__module__ for kind in type(question).__mro__ if kind.__module__ != __name__)
    asked: Any = question  # a dataclass, whose fields are its flags
    given = {f.name: (getattr(asked, f.name), f.default) for f in fields(asked)}
    words = lambda value: ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
    changed = [f"--{name}={shlex.quote(words(value))}" for name, (value, default) in given.items() if value != default]
    return " ".join(["python -m", module, *changed])


def in_markdown(name: str, section: Section, rows: Sequence[Row], verdict: Verdict) -> str:
    """A section: the question, its command, where its rows lie, the verdict, and its tables."""
    question, text = section.question, StringIO()
    screen = Console(file=text, width=400, highlight=False, soft_wrap=True)
    for table in question.tables(rows):
        title, caption = table.title, table.caption
        table.box, table.title, table.caption = box.MARKDOWN, None, None
        screen.print(f"\n**{title}**\n")
        screen.print(table)
        if caption:
            screen.print(f"\n*{caption}*")
    lines = "\n".join(line.strip() for line in text.getvalue().splitlines())
    lines = re.sub("\n{3,}", "\n\n", lines).strip()
    files = ", ".join(f"{file}.jsonl" for file in section.files or (name,))
    where = f"Rows: {files} ([commands and devices](results/README.md))."
    return f"## {name}\n\n{question.title}\n\n    {command(question)}\n\n{verdict}\n\n{where}\n\n{lines}"


if __name__ == "__main__":
    main(Report)
