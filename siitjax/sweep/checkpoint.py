"""Checkpoints of members in training, by orbax: each is whole or not there, and says whose it is.

    checkpoints/0002-1/00000007/     the seventh of what worker 1 saved after the sweep's second start

One holds the state of every lane (weights, optimizer, keys, counters, curves), its checksum, and which member each lane
trains. A member is found in whatever start, worker and lane it was saved, so a sweep may go on with other lanes.
Nothing here is ever unpickled.
"""

import json
import logging
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp

from siitjax.base.errors import UserError
from siitjax.siit.train import State
from siitjax.sweep.lanes import with_keys, without_keys

FORMAT = 1
KEPT = 3
"""Checkpoints that a worker keeps: the last ones."""

NAMES = ocp.step.standard_name_format(step_format_fixed_length=8)


class CheckpointError(UserError):
    """A checkpoint cannot be used or written; the message is one line for the user."""


@dataclass(frozen=True)
class Occupant:
    """Who trains in a lane.

    Attributes:
        member: its index in the sweep.
        epoch: epochs that it has run.
        seconds: time that it has trained, over all starts of the sweep.
    """

    member: int
    epoch: int
    seconds: float


@dataclass(frozen=True)
class Spot:
    """Where the state of a member was saved."""

    start: str
    step: int
    lane: int
    occupant: Occupant


@contextmanager
def quiet() -> Iterator[None]:
    """Here orbax does not log what it raises too, and what is left of a read that failed is not reported."""
    log, before = logging.getLogger("absl"), sys.unraisablehook
    level = log.level

    def report(unraisable: Any) -> None:
        # The other reads of a reader that failed find the loop closed, a moment after it gave its error.
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    log.setLevel(logging.CRITICAL)
    sys.unraisablehook = report
    try:
        yield
    finally:
        log.setLevel(level)
        sys.unraisablehook = before


class Checkpoints:
    """Writes the checkpoints of one worker in one start of the sweep, in the background; a context.

    Raises:
        CheckpointError: from any method, when the disk is full or cannot be written.
    """

    def __init__(self, folder: Path, start: str, sweep: str):
        """Args:
        folder: that of all checkpoints.
        start: names this start of the sweep, and the worker.
        sweep: the sweep's digest.
        """
        self.sweep, self.step = sweep, 0
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            step_name_format=NAMES,
            # Hosts share nothing but the folder: none waits for another to save.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(),
                active_processes={jax.process_index()},
                barrier_sync_key_prefix=start,
            ),
            create=False,
        )
        self.folder = folder / start
        with _one_line(self.folder), quiet():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.manager = ocp.CheckpointManager(self.folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        self.quiet = quiet()
        self.quiet.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            with _one_line(self.folder):
                self.manager.close()
        finally:
            self.quiet.__exit__(None, None, None)

    def save(self, states: State, lanes: Sequence[Occupant | None]) -> list[Spot | None]:
        """Saves the lanes' states, and gives their spots; what is computed next does not wait for the disk."""
        self.step += 1
        leaves = jax.device_get(jax.tree.leaves(without_keys(states)))
        about = {
            "format": FORMAT,
            "sweep": self.sweep,
            "lanes": [lane and asdict(lane) for lane in lanes],
            # A power cut may leave zeros in a file of the right length, which orbax reads as numbers.
            "checksums": [_checksum(leaf[i] for leaf in leaves) for i in range(len(lanes))],
        }
        with _one_line(self.folder):
            self.manager.save(
                self.step,
                args=ocp.args.Composite(
                    states=ocp.args.StandardSave({f"{i:03d}": leaf for i, leaf in enumerate(leaves)}),
                    about=ocp.args.JsonSave(about),
                ),
            )
        return [lane and Spot(self.folder.name, self.step, i, lane) for i, lane in enumerate(lanes)]

    def wait(self) -> None:
        """Returns when what was saved is on the disk."""
        with _one_line(self.folder):
            self.manager.wait_until_finished()


def find(folder: Path, sweep: str) -> dict[int, list[Spot]]:
    """Where each member was saved, the most trained first. What is torn is passed over.

    Raises:
        CheckpointError: a checkpoint is another sweep's, or a newer version's.
    """
    spots: dict[int, list[Spot]] = {}
    for path in sorted(folder.glob("*/*/about/metadata")):
        place, start = path.parents[1], path.parents[2].name
        try:
            about = json.loads(path.read_bytes())
            version, of, lanes = about["format"], about["sweep"], about["lanes"]
        except (OSError, ValueError, KeyError, TypeError):  # OSError: its worker has just taken it away
            continue
        if not place.name.isdigit():  # orbax was still writing it
            continue
        if version > FORMAT:
            raise CheckpointError(f"{place} was written by a newer siitjax; update siitjax, or choose another --out")
        if of != sweep:
            raise CheckpointError(f"{place} is a checkpoint of another sweep; move it away, or choose another --out")
        for lane, occupant in enumerate(lanes):
            if occupant is not None:
                spot = Spot(start, int(place.name), lane, Occupant(**occupant))
                spots.setdefault(spot.occupant.member, []).append(spot)
    return {member: sorted(at, key=lambda s: s.occupant.epoch, reverse=True) for member, at in spots.items()}


def load(folder: Path, spot: Spot, like: State) -> State:
    """The state saved at a spot, in the shapes of `like`.

    Raises:
        CheckpointError: it is torn, or holds other shapes.
    """
    place = folder / spot.start / f"{spot.step:08d}"
    try:
        found, checksums = _read(place.absolute())
        leaves, tree = jax.tree.flatten(jax.eval_shape(without_keys, like))
        own = [np.asarray(found[f"{i:03d}"])[spot.lane] for i in range(len(leaves))]
        try:
            chex.assert_trees_all_equal_shapes_and_dtypes(own, leaves)
        except AssertionError:
            raise ValueError("its arrays have other shapes") from None
        if checksums[spot.lane] != _checksum(own):
            raise ValueError("its numbers are not those that were saved")
    except Exception as error:  # orbax and tensorstore raise of every kind
        raise CheckpointError(f"{place} is torn ({_short(error)})") from None
    return with_keys(jax.tree.unflatten(tree, own), like)


@lru_cache(maxsize=1)
def _read(place: Path) -> tuple[Mapping[str, Any], list[int]]:
    """The states of all lanes, and their checksums; kept for the next member, mostly saved beside the one before."""
    checksums = json.loads((place / "about" / "metadata").read_bytes())["checksums"]
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(place / "states"), checksums


def _checksum(leaves: Iterable[Any]) -> int:
    """Of one lane's state."""
    found = 0
    for leaf in leaves:
        found = zlib.crc32(np.asarray(leaf).tobytes(), found)
    return found


def forget(folder: Path, needed: Mapping[int, Sequence[Spot]] | None = None) -> None:
    """Takes away the checkpoints of every start in which none of `needed` was saved."""
    keep = {spot.start for spots in (needed or {}).values() for spot in spots}
    for start in folder.glob("*"):
        if start.name not in keep:
            shutil.rmtree(start, ignore_errors=True)
    if not keep and folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def next_start(folder: Path) -> int:
    """The number of this start of the sweep."""
    numbers = [name[:4] for path in folder.glob("*-*") if (name := path.name)[:4].isdigit()]
    return 1 + max(map(int, numbers), default=0)


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """Turns whatever the disk refuses into one line for the user."""
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise of every kind
        raise CheckpointError(
            f"{folder} cannot be written ({_short(error)}); make room or choose another --out, then go on with --resume"
        ) from error


def _short(error: Exception) -> str:
    text = str(error)
    for words in ("No space left on device", "Permission denied", "Read-only file system"):
        if words in text:
            return words
    return " ".join(text.split())[:120] or type(error).__name__
