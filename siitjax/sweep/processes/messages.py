"""What a pool and its workers say to each other: one message a line, as JSON.

A worker says that it wants a member (`Take`) and is given one (`Given`); it tells what happens to those that it has.
The pool may tell it to stop at any time.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from siitjax.base.jsonl import Row
from siitjax.sweep.checkpoint import Occupant, Spot


@dataclass(frozen=True)
class Take:
    """A worker wants a member: of the bucket of member `like`, or of any where that is None."""

    like: int | None


@dataclass(frozen=True)
class Started:
    """Member `index` is trained from `epoch` on."""

    index: int
    epoch: int


@dataclass(frozen=True)
class Compiling:
    """The program of member `index` is compiled."""

    index: int


@dataclass(frozen=True)
class Reached:
    """Member `index` has run an epoch; `seen` are its metrics, as text such as "99/100"."""

    index: int
    epoch: int
    seen: Sequence[str]

    @property
    def shares(self) -> list[Fraction]:
        """The metrics as numbers."""
        return [*map(Fraction, self.seen)]


@dataclass(frozen=True)
class Finished:
    """Member `index` has ended: its files are written, and `row` is to be appended."""

    index: int
    row: Row


@dataclass(frozen=True)
class Note:
    """Words for the user."""

    words: str


@dataclass(frozen=True)
class Done:
    """The worker has no more to do; `occupancy` has the fields of `siitjax.sweep.engine.Occupancy`."""

    occupancy: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """The worker ends by what the user can mend, told in `words`."""

    words: str


Said = Take | Started | Compiling | Reached | Finished | Note | Done | Failed
"""What a worker says."""
KINDS: dict[str, type[Said]] = {
    "take": Take,
    "started": Started,
    "compiling": Compiling,
    "epoch": Reached,
    "finished": Finished,
    "note": Note,
    "done": Done,
    "failed": Failed,
}
NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True)
class Given:
    """The answer to `Take`: member `index`, and where it was saved; None where there is none."""

    index: int | None
    spots: Sequence[Spot] = ()


@dataclass(frozen=True)
class Stop:
    """The worker is to save what it trains, and end."""


Told = Given | Stop
"""What a worker is told."""


def say(message: Said) -> str:
    """What a worker says, as a line without its end.

    Example:
        >>> say(Started(3, 0))
        '{"says": "started", "index": 3, "epoch": 0}'
        >>> read_said(say(Take(None)))
        Take(like=None)
    """
    return json.dumps({"says": NAMES[type(message)], **asdict(message)})


def read_said(line: str) -> Said:
    """What `say` wrote."""
    found = json.loads(line)
    return KINDS[found.pop("says")](**found)


def tell(message: Told) -> str:
    """What a worker is told, as a line without its end.

    Example:
        >>> tell(Given(2))
        '{"index": 2, "spots": []}'
        >>> read_told(tell(Stop()))
        Stop()
    """
    return json.dumps({"stop": True} if isinstance(message, Stop) else asdict(message))


def read_told(line: str) -> Told:
    """What `tell` wrote."""
    found = json.loads(line)
    if found.get("stop"):
        return Stop()
    spots = [Spot(s["start"], s["step"], s["lane"], Occupant(**s["occupant"])) for s in found["spots"]]
    return Given(found["index"], spots)
