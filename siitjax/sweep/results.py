"""The results folder: one that explains itself, and in which nothing finished is ever lost.

    config.json              the whole sweep, exactly, and the versions that began it; written first
    rows.jsonl               one row a finished member: what it was, why it stopped, every metric
    members/0003.safetensors its weights;  members/0003.csv  its curves
    checkpoints/             the members in training; gone when all are finished
    measured.jsonl           what the question measured of the weights, if anything; a line a member
    summary.json, figure.png, figure.pdf, curves.png   written when all members are there

A member's files are on the disk before its row is appended, so a whole row stands for a member that is complete. A
folder is continued only by the sweep that began it, whose cases compute and draw what they did, and by one process at a
time.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from siitjax.base.errors import UserError, one_line
from siitjax.base.files import Holder, hold, make_folder, write_atomically
from siitjax.base.jsonl import Row, RowsFile, TornError
from siitjax.base.versions import machine, versions
from siitjax.causal.behaviour import behaviour, change
from siitjax.causal.case import Case
from siitjax.causal.registry import places
from siitjax.model.weights import save_weights
from siitjax.siit.edge_metrics import rows
from siitjax.siit.metrics import NAMES, shares
from siitjax.sweep.engine import Member, Outcome
from siitjax.sweep.rows import row_files, weights_file

FORMAT = "siitjax sweep 1"
ENDED = ("stop", "epochs", "seconds", *NAMES)
"""What a row says of how its member ended."""
LOCK = ".lock"
BEGUN = ".config.json"
"""What a process that was killed in its first moment may leave."""
BEGUN_WITH = "begun_with"
"""Of config.json, what decides no row: the versions that began the sweep."""
CURVES = ("accuracy", "iia", "changed_iia", "sequence_iia", "siia", "joint_siia", "subset_siia")


class ResultsError(UserError):
    """The folder cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Results:
    """A results folder of one sweep."""

    folder: Path
    question: str
    members: tuple[Member, ...]
    host: int = 0
    """Of several that write into one folder: each has its own rows file."""
    shared: bool = False
    """Whether others may write into the folder now, whose rows files are theirs to repair."""

    def config(self) -> dict[str, Any]:
        """What config.json holds: everything that decides the rows."""
        return {
            "format": FORMAT,
            "question": self.question,
            "members": [member.describe() for member in self.members],
        }

    @property
    def digest(self) -> str:
        """Names the sweep that has begun in its checkpoints."""
        config = {name: said for name, said in self._begun().items() if name != BEGUN_WITH}
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def checkpoints(self) -> Path:
        """The folder of the members in training; it is gone when the sweep is finished."""
        return self.folder / "checkpoints"

    def check(self, *, resume: bool) -> list[Row] | None:
        """The rows of the members that are finished; None where the sweep has not begun. Writes nothing.

        Raises:
            ResultsError: the folder cannot be used, is foreign or torn, holds another sweep, or holds this one
                unfinished while `resume` is false.
        """
        with self.usable():
            if not (self.folder / "config.json").exists():
                names = sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []
                if holds := [name for name in names if name != "members" and not name.startswith((LOCK, BEGUN))]:
                    raise ResultsError(
                        f'{self.folder} holds "{holds[0]}" and no config.json, so it is not a sweep\'s results; '
                        "choose another --out"
                    )
                return None
            begun = self._begun()
            self._check_same(begun)
            rows = self._read()
        if len(rows) < len(self.members) and not all("behaviour" in member for member in begun["members"]):
            raise ResultsError(
                f"{self.folder} holds this sweep unfinished, begun by a siitjax that did not write down what a case "
                "computes and draws, so its rows might be another task's; choose another --out"
            )
        if len(rows) < len(self.members) and not resume:
            raise ResultsError(
                f"{self.folder} holds this sweep unfinished, {len(rows)} of {len(self.members)} members; "
                "add --resume to go on, or choose another --out"
            )
        return rows

    @contextmanager
    def held(self) -> Iterator[int]:
        """Holds the folder, so that no other process writes into it; gives the lock's file descriptor.

        Raises:
            ResultsError: another process holds it, or it cannot be written.
        """
        with self.usable():
            make_folder(self.folder)
            lock = hold(self.folder / (LOCK if not self.host else f"{LOCK}.{self.host}"))
        if isinstance(lock, Holder):
            raise ResultsError(
                f"{self.folder} is in use by process {lock.pid}; wait for it, stop it, or choose another --out"
            )
        try:
            yield lock.descriptor
        finally:
            lock.release()

    def begin(self, *, resume: bool) -> list[Row]:
        """The rows that are there, the folder being made if it is not; a row that a crash cut short is taken away.

        Raises:
            ResultsError: as `check` does.
        """
        rows = self.check(resume=resume)
        with self.usable():
            make_folder(self.folder / "members")
            if rows is None and not self.host:
                config = {**self.config(), BEGUN_WITH: versions()}
                write_atomically(self.folder / "config.json", json.dumps(config, indent=1) + "\n")
            for file in row_files(self.folder):
                if not self.shared or file.path.name == self._rows_name:
                    file.repair()
        return rows or []

    def write(self, index: int, member: Member, outcome: Outcome) -> Row:
        """Writes a finished member's files; gives its row.

        Raises:
            ResultsError: they cannot be written, or the member's case is not the one that the sweep was begun with.
        """
        case, described = member.config.case, member.describe()
        about = about_member(described, case)
        with self.usable():
            begun = self._begun()["members"][index]
            if begun != described:  # a process that started later than the sweep may have read an edited case
                words = change(begun["behaviour"], behaviour(case)) or _difference(begun, described)
                raise ResultsError(
                    f"{case.name} was edited while {self.folder} ran: {words}; member {index} is not kept; undo "
                    "the edit and --resume, or choose another --out"
                )
            file = weights_file(self.folder, index)
            save_weights(file, outcome.model, about)
            write_atomically(file.with_suffix(".csv"), _curves(outcome))
        return row_of(index, member, outcome)

    def append(self, row: Row) -> None:
        """Adds the row of a member whose files are written; it is on the disk when this returns."""
        with self.usable():
            RowsFile(self.folder / self._rows_name).append(row)

    @property
    def _rows_name(self) -> str:
        return "rows.jsonl" if not self.host else f"rows.{self.host}.jsonl"

    def weights(self, row: Row) -> Path:
        """The weights of the member that `row` describes."""
        return weights_file(self.folder, row["member"])

    def curves(self, row: Row) -> dict[str, list[float]]:
        """The curves of the member that `row` describes, one value an epoch.

        Raises:
            ValueError: the file is cut short, or a value is no number.
            OSError, KeyError: the file, or a curve in it, is missing.
        """
        text = self.weights(row).with_suffix(".csv").read_text()
        if not text.endswith("\n"):
            raise ValueError("its last line is cut short")
        epochs = list(csv.DictReader(io.StringIO(text)))
        return {name: [float(epoch[name]) for epoch in epochs] for name in CURVES}

    @property
    def measured(self) -> RowsFile:
        """What the question measured of the trained weights."""
        return RowsFile(self.folder / "measured.jsonl")

    def is_finished(self) -> bool:
        """Whether the summary, which is written last, is there."""
        return (self.folder / "summary.json").exists()

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes summary.json, with where and by what the sweep was run."""
        ran_on = {**machine(), **versions()}
        write_atomically(self.folder / "summary.json", json.dumps({**summary, "ran_on": ran_on}, indent=1) + "\n")

    @contextmanager
    def usable(self) -> Iterator[None]:
        """Turns what the disk refuses meanwhile into one line for the user.

        Raises:
            ResultsError: the disk refused something.
        """
        try:
            yield
        except OSError as error:
            raise ResultsError(
                f"{self.folder} cannot be used ({error.strerror or error}); make room, or choose an --out that can "
                "be written"
            ) from None

    def _begun(self) -> dict[str, Any]:
        """What config.json holds of the sweep that began the folder."""
        path = self.folder / "config.json"
        try:
            found = json.loads(path.read_text())
        except ValueError:
            raise ResultsError(f"{path} is torn: it is not whole JSON; restore it, or choose another --out") from None
        members = found.get("members") if isinstance(found, dict) and found.get("format") == FORMAT else None
        if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
            raise ResultsError(f"{self.folder} holds a config.json that is not of {FORMAT}; choose another --out")
        return found

    def _check_same(self, begun: dict[str, Any]) -> None:
        """Raises ResultsError where the folder was begun by another sweep, or one whose cases did something else."""
        ours = self.config()
        if difference := _difference(_flags(begun), _flags(ours)):
            raise ResultsError(
                f"{self.folder} holds another sweep: {difference}; give the flags that it was begun with, "
                "or choose another --out"
            )
        for found, member in zip(begun["members"], self.members, strict=True):
            case = member.config.case
            if "behaviour" in found and (words := change(found["behaviour"], behaviour(case))):
                then, now = begun[BEGUN_WITH]["numpy"], versions()["numpy"]
                numpy = f" (with numpy {then}, which is {now} now)" if then != now else ""
                raise ResultsError(
                    f"{self.folder} was begun with another {case.name}: {words}{numpy}; undo the edit of the case, "
                    "or choose another --out"
                )

    def _read(self) -> list[Row]:
        try:
            rows = [row for file in row_files(self.folder) for row in file.read()]
        except TornError as error:
            raise ResultsError(f"{error}, or choose another --out") from None
        path = self.folder / "rows.jsonl"
        numbers = [row.get("member") if isinstance(row, dict) else None for row in rows]
        if len(set(numbers)) < len(rows) or not set(numbers) <= set(range(len(self.members))):
            raise ResultsError(f"{path} is damaged: its members are {numbers}; restore it, or choose another --out")
        for row in rows:
            member = self.members[row["member"]]
            wrong = [key for key, value in _head(row["member"], member).items() if row.get(key) != value]
            if missing := [*wrong, *(name for name in ENDED if name not in row)]:
                raise ResultsError(
                    f'{path} is damaged: the "{missing[0]}" of member {row["member"]} is missing or another\'s; '
                    "restore it, or choose another --out"
                )
            self._check_files(row)
        return sorted(rows, key=lambda row: row["member"])

    def _check_files(self, row: Row) -> None:
        try:
            with safe_open(self.weights(row), "numpy"):
                curves = self.curves(row)
            if {len(curve) for curve in curves.values()} != {row["epochs"]}:
                raise ValueError(f"its curves are not of {row['epochs']} epochs")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            files = f"{self.weights(row)} or {self.weights(row).with_suffix('.csv').name}"
            raise ResultsError(
                f"{files} is missing or torn ({one_line(error)}), though a row stands for it; restore it, "
                "or take its row out of rows.jsonl and --resume"
            ) from None


def _flags(config: dict[str, Any]) -> dict[str, Any]:
    """The config without what is compared in words of its own, or not at all."""
    members = [{name: said for name, said in member.items() if name != "behaviour"} for member in config["members"]]
    return {**config, BEGUN_WITH: None, "members": members}


def _difference(found: Any, ours: Any, where: str = "") -> str | None:
    """The first place at which two JSON values differ, in words."""
    if isinstance(found, dict) and isinstance(ours, dict):
        for key in (*ours, *(key for key in found if key not in ours)):
            if difference := _difference(found.get(key), ours.get(key), f"{where}.{key}" if where else key):
                return difference
        return None
    if isinstance(found, list) and isinstance(ours, list):
        if len(found) != len(ours):
            return f"it has {len(found)} {where or 'entries'}, not {len(ours)}"
        pairs = enumerate(zip(found, ours, strict=True))
        return next((d for i, (a, b) in pairs if (d := _difference(a, b, f"{where}[{i}]"))), None)
    return None if found == ours else f"its {where} is {json.dumps(found)}, not {json.dumps(ours)}"


def _head(index: int, member: Member) -> Row:
    """What a row says of its member before it is trained."""
    return {
        "member": index,
        "setting": member.setting,
        "seed": member.seed,
        "case": member.config.case.name,
        "updates": member.config.updates,
        **member.hyperparams(),
    }


def about_member(member: dict[str, Any], case: Case) -> dict[str, Any]:
    """What the file of a member says of it, beside the weights.

    Args:
        member: as `Member.describe` gives it.
    """
    about = {"member": member, "samples": [*behaviour(case).samples], "versions": versions()}
    return {**about, "places": found} if (found := places(case.name)) else about


def row_of(index: int, member: Member, outcome: Outcome) -> Row:
    """What rows.jsonl keeps of a finished member."""
    circuit = member.config.case.circuit
    embed = ["embed"] if member.config.sampling.embedding else []
    return {
        **_head(index, member),
        "stop": outcome.stop.name.lower(),
        "epochs": outcome.epochs,
        "seconds": round(outcome.seconds, 3),
        **shares(outcome.metrics).to_json(),
        **_under_edges(member, outcome),
        "circuit_nodes": [*embed, *map(str, circuit.nodes.named(circuit.circuit_mask))],
        "unused_nodes": [*map(str, circuit.nodes.named(circuit.unused_mask))],
    }


def _under_edges(member: Member, outcome: Outcome) -> Row:
    """What each kind of swap of edges comes to, where that was measured."""
    if outcome.metrics.edges is None:
        return {}
    found = rows(member.config.case, outcome.metrics.edges)
    return {"holds": all(row.holds for row in found), "edges": [row.to_json() for row in found]}


def _curves(outcome: Outcome) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["epoch", "loss_base", "loss_iit", "loss_siit", *CURVES])
    for epoch in range(outcome.epochs):
        seen = shares(outcome.history.metrics.at(epoch))
        values = (math.nan if (share := getattr(seen, name)) is None else float(share) for name in CURVES)
        writer.writerow([epoch + 1, *map(float, outcome.history.loss[epoch]), *values])
    return text.getvalue()
