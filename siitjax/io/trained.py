"""A trained transformer with its case and its metrics, in one file that says all of it.

A sweep's members and the shipped models are such files: weights, and in the metadata the transformer's config, the
case with its circuit and vocabulary, what it computes on some samples, the training, the seed, the versions that
trained it, and (of shipped models) the metrics.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from siitjax.base.errors import UserError, one_line
from siitjax.base.jsonl import Row
from siitjax.base.versions import versions
from siitjax.causal.behaviour import Computed, behaviour, compute
from siitjax.causal.case import Case
from siitjax.causal.registry import described, locate
from siitjax.model.transformer import Transformer
from siitjax.model.weights import METADATA, checked_model, read_config, read_tensors, read_weights, save_weights
from siitjax.siit.metrics import Shares, read_shares, share
from siitjax.sweep.rows import read_rows, weights_file

MODEL_FILE = "model.safetensors"
"""What the file is called in a folder of its own."""
TASK = ("name", "vocabulary", "circuit", "loss", "counterfactual")
"""What of a case's description says which task it is; the rest is its transformer's size."""


@dataclass(frozen=True)
class Trained:
    """A trained transformer.

    Attributes:
        case: the task that it was trained on, with its circuit.
        model: the transformer.
        metrics: as measured when it was saved; None where nothing was.
        about: its member (hyperparameters, training, seed), the versions that trained it, samples on which the case
            was computed, and on what the metrics were measured; as JSON has it.
    """

    case: Case
    model: Transformer
    metrics: Shares | None
    about: dict[str, Any]


def save_trained(path: Path, trained: Trained) -> None:
    """Writes the file, whole or not at all."""
    metrics = {} if trained.metrics is None else {"metrics": trained.metrics.to_json()}
    save_weights(path, trained.model, {**trained.about, **metrics})


def load(name: str | Path) -> Trained:
    """A trained transformer, with its case and metrics.

    Args:
        name: what `siitjax.causal.registry.locate` takes.

    Raises:
        UserError: it is no such thing.
    """
    return read_trained(locate(name), described)


def read_trained(path: Path, case_of: Callable[[dict[str, Any]], Case]) -> Trained:
    """What `save_trained`, or a sweep, wrote.

    Args:
        path: the file, or a folder that holds it as model.safetensors.
        case_of: finds the case that a description (see `Case.describe`) is of; raises UserError where there is none.

    Raises:
        UserError: there is no such file, it is torn, it is not of a trained member, or it is of another case, or of one
            that computed something else.
    """
    file = _file(path)
    if not file.exists():
        what = f"it holds no {MODEL_FILE}" if path.is_dir() else "there is nothing of that name"
        raise UserError(f"{path} is not a model: {members_instead(path) or what}")
    model, about = read_weights(file)
    if "member" not in about:
        raise UserError(f"{file} does not say what it was trained on; only a sweep's members and shipped models do")
    metrics = about.pop("metrics", None)
    try:
        case = case_of(about["member"]["case"])
    except UserError as error:
        if not (said := about.get("places")):
            raise
        raise UserError(f"{error}; when it was trained, it was --case={', --case='.join(said.values())}") from None
    _check_described(file, case, about, case.describe())
    if "behaviour" in about["member"]:  # older versions did not write it down
        _check_behaviour(file, case, about)
    return Trained(case, model, None if metrics is None else read_shares(metrics), about)


def read_model(path: Path) -> Transformer:
    """The transformer of a model's folder, or of a weights file of siitjax.

    Raises:
        UserError: it is none, is torn, or its weights are not those that its config needs; all that differ are named.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        what = f"there is no {file.name if path.is_dir() else 'such file or folder'}"
        raise UserError(
            f"{path} is not a model: {members_instead(path) or what}; "
            "python -m siitjax export MODEL OUT makes a model's folder"
        )
    weights, metadata = read_tensors(file)
    if METADATA not in metadata:
        raise UserError(
            f"{file} says nothing of its transformer, so siitjax did not write it; "
            "read published folders with siitjax.torch.read_published"
        )
    return checked_model(read_config(file, metadata)[0], weights, str(file))


def members_instead(path: Path) -> str:
    """What to give in place of a sweep's results folder; "" where it is none."""
    members = sorted((path / "members").glob("*.safetensors"))
    if not members:
        return ""
    return f"it is a sweep's results folder, of {len(members)} members; give one of them, such as {members[0]}"


def check_described(path: Path, case: Case) -> None:
    """Raises UserError where the file, or the folder that holds it, says that its transformer is of another task."""
    file = _file(path)
    _check_described(file, case, read_weights(file)[1], TASK)


def _file(path: Path) -> Path:
    return path / MODEL_FILE if path.is_dir() else path


def _check_described(file: Path, case: Case, about: dict[str, Any], keys: Iterable[str]) -> None:
    ours, said_of = case.describe(), about.get("member", {}).get("case", {})
    both = [key for key in keys if key in said_of] + (["counted", "sources"] if said_of else [])
    for key in both:
        if ours.get(key) != (said := said_of.get(key)):
            own = json.dumps(ours.get(key))
            raise UserError(
                f"{file} was trained on another case: its {key} is {json.dumps(said)}, not {own}; give that case"
            )


def _check_behaviour(file: Path, case: Case, about: dict[str, Any]) -> None:
    """Raises UserError where the case computes something else than when the file's member was trained."""
    said = about["member"]["behaviour"]
    now = compute(case, tuple(about["samples"]))
    if words := now.change(Computed(said["variables"], said["swaps"])):
        raise UserError(
            f"{file} was trained on another {case.name}: {words}; undo the edit of the case, or read the weights alone "
            "with siitjax.model.weights.load_weights"
        )
    # NumPy promises the same draws within a version.
    if said["draws"] != behaviour(case).draws and about["versions"]["numpy"] == versions()["numpy"]:
        warnings.warn(f"{file} was trained on other strings than {case.name} draws now", stacklevel=3)


def read_converged(folder: Path, case_of: Callable[[dict[str, Any]], Case]) -> dict[str, Trained]:
    """The members that converged in a sweep's results folder, or hold where it trained under swaps of edges; by setting
    and seed.

    Args:
        case_of: as `read_trained` takes it.

    Raises:
        UserError: it is no such folder, or a member cannot be read.
    """
    rows = _members(folder, "python -m sweeps.capacity")
    good = [row for row in rows if row.get("holds", row["stop"] == "converged")]
    return {f"{setting}, seed {seed}": trained for (setting, seed), trained in _read(folder, good, case_of)}


def read_holding(folder: Path, case_of: Callable[[dict[str, Any]], Case]) -> dict[tuple[str, int], Trained]:
    """The members of a sweep under swaps of edges that hold their circuit under swaps of every kind, by setting and
    seed.

    Args:
        case_of: as `read_trained` takes it.

    Raises:
        UserError: it is no such folder, its members were trained under swaps of nodes, none of them holds, or one
            cannot be read.
    """
    rows = _members(folder, leaves := "python -m sweeps.table --swaps=edges")
    if not any("holds" in row for row in rows):
        raise UserError(f"{folder} is of members trained under swaps of nodes; give a folder that {leaves} leaves")
    holding = [row for row in rows if row.get("holds") and share(row, "accuracy") == 1]
    if not holding:
        raise UserError(f"{folder} has no member that holds, of {len(rows)}; give a folder that has one")
    return dict(_read(folder, holding, case_of))


def _members(folder: Path, leaves: str) -> list[Row]:
    """The rows of a sweep's results folder; UserError where it is none.

    Args:
        leaves: the command that leaves such a folder.
    """
    try:
        if not (rows := read_rows(folder)):
            raise ValueError("it holds no rows")
        for row in rows:
            _ = row["setting"], row["seed"], row["member"], row["stop"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is not a sweep's results folder ({one_line(error)}); give one, such as {leaves} leaves"
        ) from None
    return rows


def _read(
    folder: Path, rows: Iterable[Row], case_of: Callable[[dict[str, Any]], Case]
) -> Iterator[tuple[tuple[str, int], Trained]]:
    """The members of some rows, each with its setting and seed."""
    # Seeds of a setting get the same case, and so share what is compiled for it.
    made = cache(lambda text: case_of(json.loads(text)))
    for row in rows:
        trained = read_trained(weights_file(folder, row["member"]), lambda description: made(json.dumps(description)))
        yield (row["setting"], row["seed"]), trained
