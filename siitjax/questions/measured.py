"""The folder of a question that trains nothing: what was measured, line by line, the verdict and the picture.

config.json               what decides the rows; written first
rows.jsonl                a line a measurement
summary.json              the verdict, and where it ran
figure.png, figure.pdf    the picture
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from siitjax.base.errors import UserError
from siitjax.base.files import make_folder, replaced, write_atomically
from siitjax.base.jsonl import Row, RowsFile
from siitjax.base.versions import machine
from siitjax.questions.report import Verdict


def begin(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, str] | None = None,
    ends: Callable[[Row], bool] | None = None,
) -> RowsFile:
    """The rows of a folder that is new, or holds the same measurement.

    Args:
        config: what decides the rows; its "question" says whose folder it is.
        weights: of each model its weights' digest; the folder may hold other models too.
        ends: as `RowsFile` takes it.

    Raises:
        UserError: it holds something else.
    """
    given: dict[str, Any] = json.loads(json.dumps(dict(config)))
    own = dict(weights or {})
    if folder.exists():
        try:
            found = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError):
            found = {}
        if found.get("question") != given["question"]:
            raise UserError(f"{folder} exists, and is no folder of this question; choose another --out")
        differ = [name for name in given if found.get(name) != given[name]]
        held: dict[str, str] = found["weights"] if own else {}
        differ += [f"weights of {name}" for name in sorted(held.keys() & own.keys()) if held[name] != own[name]]
        if differ:
            raise UserError(f"{folder} holds another run, with other {' and '.join(differ)}; choose another --out")
        own = held | own
    else:
        make_folder(folder)
    if own:
        given["weights"] = own
    write_atomically(folder / "config.json", json.dumps(given, indent=1) + "\n")
    file = RowsFile(folder / "rows.jsonl", ends)
    file.repair()
    return file


def conclude(folder: Path, question: str, verdict: Verdict, draw: Callable[[Path], None]) -> None:
    """Writes the picture and the summary.

    Args:
        draw: draws the picture into a file.
    """
    for kind in ("png", "pdf"):
        with replaced(folder / f"figure.{kind}") as path:
            draw(path)
    summary = {"question": question, "verdict": asdict(verdict), "ran_on": {**machine(), "jax": version("jax")}}
    write_atomically(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
