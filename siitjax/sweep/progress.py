"""What is seen of a sweep while it runs: in place on a terminal, plain lines when piped."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from siitjax.base.share import percent
from siitjax.siit.metrics import share
from siitjax.sweep.engine import Member, Row, Watcher

LINE_SECONDS = 20.0
"""Between two plain lines of one member."""


@dataclass
class _Live:
    """A member in training."""

    member: Member
    said: float
    doing: str = "starting"
    epoch: int = 0
    seen: tuple[Fraction, ...] = ()

    def words(self) -> str:
        if not self.seen:
            return self.doing
        accuracy, iia, siia = map(percent, self.seen)
        limit = self.member.config.epochs
        return f"epoch {self.epoch} of {limit}  accuracy {accuracy}  IIA {iia}  SIIA {siia}"


class Progress(Watcher):
    """Shows which members are live, their epochs and metrics, and the time left.

    The time left assumes that members to come run as many epochs as those that finished (all of them until one
    has), at the pace so far; compilation is in the pace.
    """

    def __init__(self, console: Console, total: int, done: int):
        self.console = console
        self.total, self.done = total, done
        self.members: dict[int, _Live] = {}
        self.lock = threading.Lock()
        self.began = time.perf_counter()
        self.epochs_run = 0
        self.finished_epochs: list[int] = []
        self.longest = 1
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.console.is_terminal:
            self.live.stop()

    def started(self, index: int, member: Member, epoch: int) -> None:
        now = time.perf_counter()
        with self.lock:
            self.members[index] = _Live(member, now, epoch=epoch)
            self.longest = max(self.longest, member.config.epochs)

    def compiling(self, index: int, member: Member) -> None:
        with self.lock:
            self.members.setdefault(index, _Live(member, time.perf_counter())).doing = "compiling"
        self._line(index, member, "compiling")

    def epoch(self, index: int, member: Member, epoch: int, seen: Sequence[Fraction]) -> None:
        now = time.perf_counter()
        with self.lock:
            live = self.members[index]
            live.epoch, live.seen = epoch, tuple(seen)
            self.epochs_run += 1
            speak = now - live.said > LINE_SECONDS
            if speak:
                live.said = now
        if speak:
            self._line(index, member, live.words())

    def finished(self, index: int, member: Member, row: Row) -> None:
        with self.lock:
            self.members.pop(index, None)
            self.done += 1
            self.finished_epochs.append(row["epochs"])
        values = "  ".join(
            f"{name} {percent(share(row, key))}"
            for name, key in (
                ("accuracy", "accuracy"),
                ("IIA", "iia"),
                ("changed IIA", "changed_iia"),
                ("SIIA", "siia"),
            )
        )
        end = f"{row['stop']} after {row['epochs']} epochs, {row['seconds']:.1f} s"
        self._line(index, member, f"{end}  {values}  [{self.done} of {self.total}, {self._left()}]", always=True)

    def note(self, words: str) -> None:
        self.console.print(words, markup=False, highlight=False)

    def _line(self, index: int, member: Member, words: str, always: bool = False) -> None:
        if always or not self.console.is_terminal:
            self.console.print(
                f"{index:4d}  {member.setting}  seed {member.seed}: {words}", markup=False, highlight=False
            )

    def _left(self) -> str:
        if not self.epochs_run:
            return "time left unknown yet"
        expected = float(np.mean(self.finished_epochs)) if self.finished_epochs else self.longest
        waiting = self.total - self.done - len(self.members)
        going = sum(max(expected - live.epoch, 1) for live in self.members.values())
        seconds = (waiting * expected + going) * (time.perf_counter() - self.began) / self.epochs_run
        if seconds < 90:
            return f"about {seconds:.0f} s left"
        return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"

    def _render(self) -> Table:
        with self.lock:
            grid = Table.grid(padding=(0, 2))
            for index, live in sorted(self.members.items()):
                grid.add_row(f"{index:4d}", live.member.setting, f"seed {live.member.seed}", live.words())
            grid.add_row("", f"{self.done} of {self.total} members", "", self._left())
            return grid
