"""Where a sweep's results folder has its rows and its members' files; reading them needs no engine."""

from pathlib import Path

from siitjax.base.jsonl import Row, RowsFile


def row_files(folder: Path) -> list[RowsFile]:
    """The files of rows; each host of a sweep has left one of its own."""
    return [RowsFile(path) for path in sorted(folder.glob("rows*.jsonl"))]


def read_rows(folder: Path) -> list[Row]:
    """The rows of every host, by member; none where the folder holds none.

    Raises:
        TornError: a row is torn that others follow.
    """
    return sorted((row for file in row_files(folder) for row in file.read()), key=lambda row: row["member"])


def weights_file(folder: Path, member: int) -> Path:
    """The weights of a member; its curves lie beside them, as .csv."""
    return folder / "members" / f"{member:04d}.safetensors"
