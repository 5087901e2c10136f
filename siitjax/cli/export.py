"""`python -m siitjax export`: models as folders that a model hub could show."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from siitjax.base.choice import check_choice
from siitjax.base.command import Command, argument, flag
from siitjax.base.errors import UserError
from siitjax.causal.registry import find, locate
from siitjax.io.eap_folder import write_eap
from siitjax.io.hub_folder import new_folder, write_folder
from siitjax.io.trained import load, read_model
from siitjax.siit.metrics import Shares, read_shares
from siitjax.sweep.rows import read_rows

Format = Literal["hub", "eap"]


@dataclass(frozen=True)
class Export(Command):
    """Writes a trained model as a folder: weights, config, circuit, vocabulary, metrics and a model card.

    With --format=eap it is what EAP-IG's library reads instead: graph.json, pairs.csv, a metric and config flags.
    """

    model: str = argument(
        "a shipped model (0+1+2+3, or task names), a weights file, or a folder with model.safetensors"
    )
    out: str = argument("the folder to write; it must not exist")
    case: str = flag("", "where the model's case is, if not in cases/: package.module:CASE or path/to/file.py:CASE")
    format: Format = flag("hub", "hub: a folder as a model hub has it; eap: what EAP-IG's library reads")
    all: bool = flag(False, "MODEL is a sweep's results folder: write a folder a member, named by its number")

    def run(self) -> int:
        out = Path(self.out)
        check_choice("the format", self.format, get_args(Format))
        write = _write if self.format == "hub" else _write_eap
        if self.case:
            find(self.case)
        if not self.all:
            write(self.model, out)
            print(f"{self.model} is exported to {out}")
            return 0
        files = sorted((Path(self.model) / "members").glob("*.safetensors"))
        if not files:
            raise UserError(
                f"{self.model} is not a sweep's results: it holds no members/*.safetensors; "
                "without --all, a single model is exported"
            )
        with new_folder(out) as folder:
            for file in files:
                write(str(file), folder / file.stem)
        print(f"{len(files)} members of {self.model} are exported to {out}")
        return 0


def _write(model: str, out: Path) -> None:
    path = locate(model)
    if path.exists():
        read_model(path)  # the strictest reader says all that is wrong with a file
    write_folder(out, load(model), _measured(path))


def _write_eap(model: str, out: Path) -> None:
    write_eap(out, load(model))


def _measured(file: Path) -> Shares | None:
    """The metrics of a sweep's member, which stand in the row of its results folder; None of any other file."""
    folder = file.parent.parent
    if not file.stem.isdecimal() or file.parent.name != "members":
        return None
    try:
        found = [row for row in read_rows(folder) if row["member"] == int(file.stem)]
        return read_shares(found[0]) if found else None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the rows of {folder} are torn ({error!r}); restore them, or run the sweep with --resume"
        ) from None
