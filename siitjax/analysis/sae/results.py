"""The results folder of a study of SAEs, in which nothing finished is ever lost.

config.json      the whole study, exactly, and the versions that began it; written first
saes/NAME/       one trained SAE, in SAELens' format
rows.jsonl       one row a dictionary that was scored, in whole sites
summary.json, figure.png, figure.pdf   written last
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siitjax.base.errors import UserError
from siitjax.base.files import Holder, hold, make_folder, write_atomically
from siitjax.base.jsonl import Row, RowsFile, TornError
from siitjax.base.versions import versions

FORMAT = "siitjax saes 1"
LOCK = ".lock"
BEGUN = ".config.json"
"""What a process that was killed in its first moment may leave."""
LAST = "probe"
"""The kind in a site's last row: without it, the site's rows are not whole."""


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
        if not [name for name in names if not name.startswith((LOCK, BEGUN))]:
            return False
        try:
            found = json.loads((self.folder / "config.json").read_text())
            known = found["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError):
            known, found = False, {}
        if not known:
            raise UserError(f'{self.folder} holds "{names[0]}" and no study of SAEs; choose another --out')
        if differ := [name for name in self.config if name in found and found[name] != self.config[name]]:
            raise UserError(
                f"{self.folder} holds another study, with other {' and '.join(differ)}; choose another --out"
            )
        if (self.folder / "summary.json").exists():
            return True
        if missing := [name for name in self.config if name not in found]:
            raise UserError(
                f"{self.folder} holds a study unfinished, begun by a siitjax that did not write down its "
                f"{' and '.join(missing)}, so its rows might be another's; choose another --out"
            )
        if not resume:
            raise UserError(
                f"{self.folder} holds this study unfinished; add --resume to go on, or choose another --out"
            )
        return False

    @contextmanager
    def held(self, *, resume: bool) -> Iterator[None]:
        """Begins the study, or goes on with it, and holds the folder meanwhile.

        Raises:
            UserError: as `check` does; or another process holds it, it cannot be written, or a row is torn.
        """
        with self._usable():
            make_folder(self.folder)
            lock = hold(self.folder / LOCK)
            if isinstance(lock, Holder):
                raise UserError(f"{self.folder} is in use by process {lock.pid}; wait for it, or choose another --out")
            try:
                self.check(resume=resume)  # again: another process may have begun here before this one held it
                if not (self.folder / "config.json").exists():
                    write_atomically(self.folder / "config.json", json.dumps(self._whole, indent=1) + "\n")
                with self._readable():
                    self._file.repair()
                yield
            finally:
                lock.release()

    @property
    def _whole(self) -> dict[str, Any]:
        return {"format": FORMAT, **self.config, "begun_with": versions()}

    @property
    def _file(self) -> RowsFile:
        return RowsFile(self.folder / "rows.jsonl", lambda row: isinstance(row, dict) and row.get("kind") == LAST)

    def rows(self) -> list[Row]:
        """The rows of the sites that are whole.

        Raises:
            UserError: a row is torn that others follow.
        """
        with self._readable():
            return self._file.read()

    def append(self, rows: Sequence[Row]) -> None:
        """Adds a site's rows, all or none, `LAST` the last; they are on the disk when this returns."""
        with self._usable():
            self._file.append(*rows)

    def sae(self, name: str) -> Path:
        """The folder of one SAE."""
        return self.folder / "saes" / name

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes summary.json, the last file of the folder."""
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except TornError as error:
            raise UserError(f"{error}, or choose another --out") from None

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be used ({error.strerror or error}); make room, or choose an --out that can be "
                "written"
            ) from None
