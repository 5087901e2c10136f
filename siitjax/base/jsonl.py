"""A file of rows, a line of JSON each, that is only appended to: a crash costs no more than what was being written.

A killed process, a full disk or a power cut may leave the last append in part. Readers pass over that, and `repair`
takes it away before anything else is appended.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siitjax.base.errors import UserError
from siitjax.base.files import sync

Row = dict[str, Any]


class TornError(UserError):
    """A row that others follow is not whole; the message says where."""


@dataclass(frozen=True)
class RowsFile:
    """The rows at `path`.

    Attributes:
        ends: whether a row is the last of those that one append wrote; None where each append wrote one row.
    """

    path: Path
    ends: Callable[[Row], bool] | None = None

    def read(self) -> list[Row]:
        """The rows of the appends that are whole. Writes nothing.

        Raises:
            TornError: a row is not whole, and it is not of the last append.
        """
        return self._whole()[0]

    def repair(self) -> None:
        """Takes away what a crash left of the last append. Raises TornError as `read` does."""
        _, length = self._whole()
        if self.path.exists() and self.path.stat().st_size > length:
            os.truncate(self.path, length)

    def append(self, *rows: Row) -> None:
        """Adds the rows, all or none; they are on the disk when this returns.

        Raises:
            OSError: they cannot be written; the file is as it was.
        """
        content, is_new = "".join(json.dumps(row) + "\n" for row in rows).encode(), not self.path.exists()
        with open(self.path, "ab", buffering=0) as file:
            before = file.tell()
            try:
                while content:
                    content = content[file.write(content) :]  # in part where the disk is full; the next one says so
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(before)  # no other row is to follow half of this one
                raise
        if is_new:
            sync(self.path.parent)

    def _whole(self) -> tuple[list[Row], int]:
        """The rows of the appends that are whole, and how many bytes they take."""
        content = self.path.read_bytes() if self.path.exists() else b""
        lines = content.split(b"\n")[:-1]
        rows = [self._parsed(i, line) for i, line in enumerate(lines, start=1)]
        until = next((i for i, row in enumerate(rows) if row is None), len(rows))
        ends = [self.ends is None or (row is not None and self.ends(row)) for row in rows]
        if any(ends[until:-1]):  # rows were appended after the one that is torn
            raise self._torn(until + 1)
        kept = max((i + 1 for i in range(until) if ends[i]), default=0)
        return [row for row in rows[:kept] if row is not None], sum(len(line) + 1 for line in lines[:kept])

    def _parsed(self, number: int, line: bytes) -> Row | None:
        if b"\0" in line:  # where a power cut came between the file's new length and its content
            return None
        try:
            return json.loads(line)
        except ValueError:
            raise self._torn(number) from None

    def _torn(self, number: int) -> TornError:
        return TornError(f"{self.path} line {number} is torn: it is not whole JSON; restore it")
