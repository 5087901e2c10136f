"""Trains the members of a results folder as the policy says: in worker processes, or in the lanes of this one."""

import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from siitjax.siit.config import TrainConfig
from siitjax.sweep.checkpoint import Checkpoints, Spot, find, load, next_start
from siitjax.sweep.claims import Claims
from siitjax.sweep.engine import Engine, Member, Occupancy, Watcher
from siitjax.sweep.placement import Compiler, Policy
from siitjax.sweep.processes.interrupt import Interrupt
from siitjax.sweep.processes.pool import Pool
from siitjax.sweep.results import Results, ResultsError


@dataclass(frozen=True)
class Ended:
    """How training ended.

    Attributes:
        signal: the one that ended it, or None.
        given_up: members whose workers were lost, and how.
        at_once: whether something was left running that the process cannot wait for: a compilation, other hosts.
    """

    occupancy: Occupancy = field(default_factory=Occupancy)
    signal: int | None = None
    given_up: dict[int, str] = field(default_factory=dict)
    at_once: bool = False

    def leave(self) -> int:
        """The exit code of a process that a signal ended; does not return where it is to leave at once."""
        code = 128 + (self.signal or 0)
        if self.at_once:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return code


class Waiting:
    """The members of one process that wait for a lane."""

    def __init__(self, members: Sequence[Member], indices: list[int], spots: dict[int, list[Spot]]):
        self.members, self.indices, self.spots = members, indices, spots

    def take(self, like: TrainConfig | None) -> tuple[int, Sequence[Spot]] | None:
        """The next member, of the bucket of `like` if one is given, and where it was saved; None if none waits."""
        for index in self.indices:
            if like is None or self.members[index].config == like:
                self.indices.remove(index)
                return index, self.spots.get(index, ())
        return None

    def count(self, config: TrainConfig) -> int:
        """How many wait for a bucket, with the one that asks."""
        return 1 + sum(self.members[index].config == config for index in self.indices)


class Claimed(Waiting):
    """The same, of members that other processes may have."""

    def __init__(self, results: Results, indices: Sequence[int], claims: Claims):
        super().__init__(results.members, list(indices), {})
        self.claims = claims

    def take(self, like: TrainConfig | None) -> tuple[int, Sequence[Spot]] | None:
        while (found := super().take(like)) is not None:
            if self.claims.take(found[0]):
                return found[0], self.claims.spots().get(found[0], ())
        return None


def launch(
    results: Results,
    waiting: Sequence[int],
    policy: Policy,
    watcher: Watcher,
    save_seconds: float,
    worker: tuple[str, Sequence[str]] | None,
    lock: int,
    claims: Claims | None = None,
) -> Ended:
    """Trains the waiting members; their files are written, and their rows given to `watcher.finished`.

    Args:
        save_seconds: between checkpoints.
        worker: what a worker process is told of the question; needed where the policy has workers.
        lock: file descriptor of the folder's lock, which the workers hold too.
        claims: what keeps other processes off the members, where several share the folder.

    Raises:
        ResultsError: a file cannot be read or written, a checkpoint is not of this sweep, or no worker can start.
        WorkerError: a worker ended by an error.
        MemoryError: the device's memory does not hold one lane.
    """
    saved = lambda: claims.spots() if claims else find(results.checkpoints, results.digest)
    start = f"{next_start(results.checkpoints):04d}-{results.host}"
    if policy.workers:
        assert worker is not None
        question, flags = worker
        pool = Pool(question, flags, start, results.members, list(waiting), saved, watcher, [lock], claims)
        with Interrupt(pool.stop) as interrupt:
            pool.run(min(policy.workers, len(waiting)))
        if pool.failed and interrupt.signal is None:
            raise ResultsError(pool.failed)
        return Ended(pool.occupancy, interrupt.signal, pool.given_up)
    queue = Waiting(results.members, list(waiting), saved()) if claims is None else Claimed(results, waiting, claims)
    return _in_this_process(results, queue, policy, watcher, save_seconds, start)


def _in_this_process(
    results: Results, queue: Waiting, policy: Policy, watcher: Watcher, save_seconds: float, start: str
) -> Ended:
    errors: list[BaseException] = []
    with (
        Checkpoints(results.checkpoints, start, results.digest) as checkpoints,
        Interrupt(lambda: None) as interrupt,
    ):
        engine = Engine(
            members=results.members,
            compiled=Compiler(policy, queue.count),
            keep=results.write,
            load=lambda spot, like: load(results.checkpoints, spot, like),
            watcher=watcher,
            checkpoints=checkpoints,
            save_seconds=save_seconds,
            stopping=interrupt.event,
        )

        def run() -> None:
            try:
                engine.run(queue)
                checkpoints.wait()
            except BaseException as error:
                errors.append(error)

        # A compilation hears no signal; this thread does.
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            if interrupt.signal is not None and engine.compiling:
                return Ended(engine.occupancy, interrupt.signal, at_once=True)
    if errors:
        raise errors[0]
    return Ended(engine.occupancy, interrupt.signal)
