"""The results folder: one that explains itself, and in which nothing finished is ever lost.

    config.json              the whole sweep, exactly; written first
    rows.jsonl               one row a finished member: what it was, why it stopped, every metric
    members/0003.safetensors its weights;  members/0003.csv  its curves
    checkpoints/             the members in training; gone when all are finished
    summary.json, figure.png, figure.pdf   written when all members are there

A member's files are written before its row is appended, so a whole row stands for a member that is complete. A folder
is continued only by the sweep that began it, and by one process at a time.
"""

import csv
import errno
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from safetensors import SafetensorError, safe_open

from siitjax.compound import rows
from siitjax.errors import UserError, one_line
from siitjax.export import save_weights
from siitjax.files import Holder, hold, write_atomically
from siitjax.metrics import NAMES, shares
from siitjax.sweep import Member, Outcome, Row

FORMAT = "siitjax sweep 1"
ENDED = ("stop", "epochs", "seconds", *NAMES)
"""What a row says of how its member ended."""
LOCK = ".lock"
BEGUN = ".config.json"
"""What a process that was killed in its first moment may leave."""
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

    def config(self) -> dict[str, Any]:
        """What config.json holds: everything that decides the rows."""
        return {
            "format": FORMAT,
            "question": self.question,
            "members": [member.describe() for member in self.members],
        }

    @property
    def digest(self) -> str:
        """Names the sweep in its checkpoints."""
        return hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode()).hexdigest()[:16]

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
            rows = self._read()
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
            self.folder.mkdir(parents=True, exist_ok=True)
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
            (self.folder / "members").mkdir(exist_ok=True)
            if rows is None and not self.host:
                write_atomically(self.folder / "config.json", json.dumps(self.config(), indent=1) + "\n")
            for path in self._row_files():
                whole = path.read_bytes().rpartition(b"\n")
                if whole[2]:
                    os.truncate(path, len(whole[0]) + 1)
        return rows or []

    def write(self, index: int, member: Member, outcome: Outcome) -> Row:
        """Writes a finished member's files; gives its row."""
        about = {"member": member.describe()}
        with self.usable():
            save_weights(self.folder / "members" / f"{index:04d}.safetensors", outcome.model, about)
            write_atomically(self.folder / "members" / f"{index:04d}.csv", _curves(outcome))
        return _row(index, member, outcome)

    def append(self, row: Row) -> None:
        """Adds the row of a member whose files are written; it is on the disk when this returns."""
        name = "rows.jsonl" if not self.host else f"rows.{self.host}.jsonl"
        line = (json.dumps(row) + "\n").encode()
        with self.usable(), open(self.folder / name, "ab", buffering=0) as file:
            whole = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)  # no other row is to follow half of this one
                raise

    def weights(self, row: Row) -> Path:
        """The weights of the member that `row` describes."""
        return self.folder / "members" / f"{row['member']:04d}.safetensors"

    def curves(self, row: Row) -> dict[str, list[float]]:
        """The curves of the member that `row` describes, one value an epoch."""
        with open(self.folder / "members" / f"{row['member']:04d}.csv", newline="") as file:
            epochs = list(csv.DictReader(file))
        return {name: [float(epoch[name]) for epoch in epochs] for name in CURVES}

    def is_finished(self) -> bool:
        """Whether the summary, which is written last, is there."""
        return (self.folder / "summary.json").exists()

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes summary.json, with where and by what the sweep was run."""
        packages = {name: version(name) for name in ("jax", "jaxlib", "equinox", "optax", "numpy")}
        ran_on = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), **packages}
        write_atomically(self.folder / "summary.json", json.dumps({**summary, "ran_on": ran_on}, indent=1) + "\n")

    @contextmanager
    def usable(self) -> Iterator[None]:
        """Turns what the disk refuses meanwhile into one line for the user."""
        try:
            yield
        except OSError as error:
            raise ResultsError(
                f"{self.folder} cannot be used ({error.strerror or error}); make room, or choose an --out that can "
                "be written"
            ) from None

    def _row_files(self) -> list[Path]:
        return sorted(self.folder.glob("rows*.jsonl"))

    def _read(self) -> list[Row]:
        found = _parsed(self.folder / "config.json")
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ResultsError(f"{self.folder} holds a config.json that is not of {FORMAT}; choose another --out")
        if difference := _difference(found, self.config()):
            raise ResultsError(
                f"{self.folder} holds another sweep: {difference}; give the flags that it was begun with, "
                "or choose another --out"
            )
        rows = []
        for path in self._row_files():
            whole, _, _torn = path.read_text().rpartition("\n")
            rows += [_parsed(path, line, i) for i, line in enumerate(whole.splitlines(), start=1)]
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
                self.curves(row)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            files = f"{self.weights(row)} or {self.weights(row).with_suffix('.csv').name}"
            raise ResultsError(
                f"{files} is missing or torn ({one_line(error)}), though a row stands for it; restore it, "
                "or take its row out of rows.jsonl and --resume"
            ) from None


def _parsed(path: Path, text: str | None = None, line: int = 1) -> Any:
    try:
        return json.loads(path.read_text() if text is None else text)
    except ValueError:
        where = f"{path} line {line}" if text is not None else str(path)
        raise ResultsError(f"{where} is torn: it is not whole JSON; restore it, or choose another --out") from None


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
        **member.describe()["hyperparams"],
    }


def _row(index: int, member: Member, outcome: Outcome) -> Row:
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
