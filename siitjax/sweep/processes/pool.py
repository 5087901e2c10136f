"""Worker processes, each pinned to a core, that train the members of a sweep; see `siitjax.sweep.processes.worker`.

A member whose worker is killed (a signal, no memory) is given to another worker once, and goes on from its last
checkpoint. A worker that ends by an error of its own would do so again: it ends the sweep, with its traceback.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from siitjax.siit.config import TrainConfig
from siitjax.sweep.checkpoint import Spot
from siitjax.sweep.claims import Claims
from siitjax.sweep.cores import cores, pinned
from siitjax.sweep.engine import Member, Occupancy, Watcher
from siitjax.sweep.processes.messages import (
    Compiling,
    Done,
    Failed,
    Finished,
    Given,
    Note,
    Reached,
    Started,
    Stop,
    Take,
    Told,
    read_said,
    tell,
)

DEATHS = 2
"""A member is given up when so many of its workers were killed."""
SAID = 20_000
"""Characters kept of what a dead worker wrote last on its standard error."""


class WorkerError(RuntimeError):
    """A worker ended by an error, which is a bug; the message holds its traceback."""


@dataclass
class Pool:
    """Trains members in worker processes.

    Attributes:
        question: what the workers import, `module:Class`, and its flags.
        start: names this start of the sweep in the checkpoints; a worker adds its number.
        members: all of the sweep.
        waiting: the indices of those to train, in order.
        find: where each member was saved, as `siitjax.sweep.checkpoint.find` gives it.
        inherit: file descriptors that the workers keep open: the folder's lock.
        claims: what keeps other processes off the members, where there are any; `find` is asked anew for each then.
        given_up: members whose workers died, and how the last one did.
        failed: what a worker could not do, in one line.
    """

    question: str
    flags: Sequence[str]
    start: str
    members: Sequence[Member]
    waiting: list[int]
    find: Callable[[], Mapping[int, Sequence[Spot]]]
    watcher: Watcher
    inherit: Sequence[int] = ()
    claims: Claims | None = None
    occupancy: Occupancy = field(default_factory=Occupancy)
    given_up: dict[int, str] = field(default_factory=dict)
    failed: str = ""

    def __post_init__(self):
        self.lock = threading.RLock()
        self.stopping = False
        self.processes: list[subprocess.Popen[str]] = []
        self.spots = self.find()
        self.taken: set[TrainConfig] = set()
        self.ends: list[float] = []
        self.errors: list[BaseException] = []
        self.deaths: Counter[int | None] = Counter()

    def run(self, workers: int) -> None:
        """Trains until no member waits; a worker's failure stops all, and stands in `failed`."""
        threads = [threading.Thread(target=self._keep_alive, args=(k,), daemon=True) for k in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        idle = sum((time.perf_counter() - end for end in self.ends), 0.0)
        self.occupancy += Occupancy(whole_last=idle)

    def stop(self) -> None:
        """Has every worker save what it trains, and end."""
        self.stopping = True
        for process in [*self.processes]:
            _tell(process, Stop())

    def _keep_alive(self, k: int) -> None:
        """Runs worker k, and a new one in its place where it dies."""
        lives = 0
        try:
            while not self.stopping and self.waiting:
                lives += 1
                self._run_one(k, f"{self.start}-{k}" if lives == 1 else f"{self.start}-{k}.{lives}")
        except BaseException as error:
            self.errors.append(error)
            self.stop()

    def _run_one(self, k: int, name: str) -> None:
        core = cores()[k % len(cores())]
        command = [sys.executable, "-m", "siitjax.sweep.processes.worker", self.question, name, *self.flags]
        with tempfile.TemporaryFile() as errors:
            with pinned(core):
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    pass_fds=self.inherit,
                    env={**os.environ, "JAX_PLATFORMS": "cpu"},
                )
            self.processes.append(process)
            if self.stopping:
                _tell(process, Stop())
            training: set[int] = set()
            try:
                self._serve(process, training)
            finally:
                if process.poll() is None and sys.exc_info()[0] is not None:
                    process.kill()
                code = process.wait()
                self.processes.remove(process)
                for pipe in (process.stdin, process.stdout):
                    with contextlib.suppress(OSError):  # what it was not told any more
                        pipe.close() if pipe else None
            if code and not self.failed:
                self._died(training, code, _end_of(errors))

    def _serve(self, process: subprocess.Popen[str], training: set[int]) -> None:
        """Answers a worker until it ends; `training` holds what it was given and has not finished."""
        assert process.stdout is not None
        for line in process.stdout:
            if not line.endswith("\n"):
                return  # it died while it spoke
            match message := read_said(line):
                case Take(like):
                    given = self._next(like)
                    if given is not None:
                        training.add(given)
                    _tell(process, Given(given, () if given is None else self.spots.get(given, ())))
                case Started(index, epoch):
                    self.watcher.started(index, self.members[index], epoch)
                case Compiling(index):
                    self.watcher.compiling(index, self.members[index])
                case Reached(index, epoch):
                    self.watcher.epoch(index, self.members[index], epoch, message.shares)
                case Finished(index, row):
                    self.watcher.finished(index, self.members[index], row)
                    training.discard(index)
                case Note(words):
                    self.watcher.note(words)
                case Done(occupancy):
                    with self.lock:
                        self.occupancy += Occupancy(**occupancy)
                        self.ends.append(time.perf_counter())
                case Failed(words):
                    self.failed = self.failed or words
                    self.stop()

    def _next(self, like: int | None) -> int | None:
        with self.lock:
            while not self.stopping and (found := self._first(like)) is not None:
                self.waiting.remove(found)
                if self.claims is None or self.claims.take(found):
                    self.taken.add(self.members[found].config)
                    if self.claims is not None:
                        self.spots = self.find()
                    return found
            return None

    def _first(self, like: int | None) -> int | None:
        config = lambda index: self.members[index].config
        if like is not None:
            return next((i for i in self.waiting if config(i) == config(like)), None)
        # Rather a bucket that no other worker has: two would compile the same one side by side.
        fresh = (i for i in self.waiting if config(i) not in self.taken)
        return next(fresh, self.waiting[0] if self.waiting else None)

    def _died(self, training: set[int], code: int, said: str) -> None:
        """Gives what a killed worker was training to the next one, once.

        Raises:
            WorkerError: it was not killed, but ended by an error.
        """
        if code > 0:
            names = [f"member {i} ({self.members[i].setting}, seed {self.members[i].seed})" for i in sorted(training)]
            what = f"training {', '.join(names)}" if names else "starting"
            raise WorkerError(f"a worker ended with exit code {code} while {what}; it said:\n{said}")
        cause = _killed(code)
        if said:
            self.watcher.note(f"A worker was {cause}; it said last:\n{said}")
        if self.stopping:
            return  # it is run again when the sweep is resumed
        with self.lock:
            self.spots = self.find()
            self.taken -= {self.members[index].config for index in training}
            for index in sorted(training, reverse=True):
                self.deaths[index] += 1
                if self.deaths[index] < DEATHS:
                    self.waiting.insert(0, index)
                    self.watcher.note(f"member {index}: its worker was lost ({cause}); it is run again")
                else:
                    self.given_up[index] = cause
            if not training:
                self.deaths[None] += 1
                if self.deaths[None] >= DEATHS * max(len(self.processes), 1):
                    self.failed = f"the workers do not start ({cause})"
                    self.stop()


def _tell(process: subprocess.Popen[str], message: Told) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(tell(message) + "\n")
        process.stdin.flush()
    except (OSError, ValueError):
        pass  # it is dead, which is seen where it is waited for


def _killed(code: int) -> str:
    """How a process was killed, in words; `code` is minus the signal."""
    hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{hint}"


def _end_of(errors: IO[bytes]) -> str:
    """What a process wrote last on its standard error."""
    errors.seek(0)
    return errors.read().decode(errors="replace").strip()[-SAID:]
