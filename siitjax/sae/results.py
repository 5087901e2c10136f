"""The results folder of a study of SAEs, in which nothing finished is ever lost.

config.json      the whole study, exactly; written first
saes/NAME/       one trained SAE, in SAELens' format
rows.jsonl       one row a dictionary that was scored, in whole sites
summary.json, figure.png, figure.pdf   written last
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siitjax.errors import UserError
from siitjax.files import Holder, hold, write_atomically

FORMAT = "siitjax saes 1"
LOCK = ".lock"

Row = dict[str, Any]


@dataclass(frozen=True)
class SAEResults:
    """A folder, and the study that it is to hold.

    Attributes:
        config: everything that decides the rows.
    """

    folder: Path
    config: dict[str, Any]

    def check(self, *, resume: bool) -> bool:
        """Whether the study is finished. Writes nothing.

        Raises:
            UserError: the folder is foreign, holds another study, or this one unfinished while `resume` is false.
        """
        with self._usable():
            names = sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []
        if not set(names) - {LOCK}:
            return False
        try:
            found = json.loads((self.folder / "config.json").read_text())
            known = found["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError):
            known, found = False, {}
        if not known:
            raise UserError(f'{self.folder} holds "{names[0]}" and no study of SAEs; choose another --out')
        if differ := [name for name in self.config if found.get(name) != self.config[name]]:
            raise UserError(
                f"{self.folder} holds another study, with other {' and '.join(differ)}; choose another --out"
            )
        if (self.folder / "summary.json").exists():
            return True
        if not resume:
            raise UserError(
                f"{self.folder} holds this study unfinished; add --resume to go on, or choose another --out"
            )
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Begins the study, or goes on with it, and holds the folder meanwhile.

        Raises:
            UserError: another process holds it, or it cannot be written.
        """
        with self._usable():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = hold(self.folder / LOCK)
            if isinstance(lock, Holder):
                raise UserError(f"{self.folder} is in use by process {lock.pid}; wait for it, or choose another --out")
            try:
                if not (self.folder / "config.json").exists():
                    write_atomically(self.folder / "config.json", json.dumps(self._whole, indent=1) + "\n")
                yield
            finally:
                lock.release()

    @property
    def _whole(self) -> dict[str, Any]:
        return {"format": FORMAT, **self.config}

    def rows(self) -> list[Row]:
        """The rows that are whole; what a crash cut short is taken away."""
        path = self.folder / "rows.jsonl"
        if not path.exists():
            return []
        whole = path.read_bytes().rpartition(b"\n")
        if whole[2]:
            os.truncate(path, len(whole[0]) + len(whole[1]))
        return [json.loads(line) for line in whole[0].splitlines()]

    def append(self, rows: Sequence[Row]) -> None:
        """Adds a site's rows; they are on the disk when this returns."""
        with open(self.folder / "rows.jsonl", "ab") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())

    def sae(self, name: str) -> Path:
        """The folder of one SAE."""
        return self.folder / "saes" / name

    def finish(self, summary: dict[str, Any]) -> None:
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.folder} cannot be used ({error.strerror or error}); choose another --out") from None
