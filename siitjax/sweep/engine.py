"""The engine: many members through a few lanes, one compilation a bucket, none ever lost.

A member that stops leaves its lane at the end of a chunk of epochs, and the next one takes it. What a member gives
depends on its seed alone, not on its lane, its company, or where it was interrupted.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from siitjax.base.errors import UserError
from siitjax.base.jsonl import Row
from siitjax.causal.behaviour import behaviour
from siitjax.model.transformer import Transformer
from siitjax.model.weights import load_weights, state_dict, with_weights
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.metrics import Metrics, Shares, shares
from siitjax.siit.train import Data, History, State, Stop, draw_data
from siitjax.sweep.checkpoint import CheckpointError, Checkpoints, Occupant, Spot, quiet
from siitjax.sweep.cores import cores
from siitjax.sweep.lanes import Batch, Program, with_keys, without_keys
from siitjax.sweep.memory import ran_out, too_large

CHUNK_SECONDS = 0.2
"""A chunk lasts about this long at least, and one epoch: the host's work between two is some milliseconds."""
SEEDS_KEPT = 32
"""Seeds whose strings are kept: a grid trains each once a setting, and drawing takes as long as a tenth of an epoch."""


@dataclass(frozen=True)
class Member:
    """One training run of a sweep.

    Attributes:
        setting: what its hyperparameters are called in tables and pictures; members that differ in nothing but
            their seed share it.
        seed: decides its data, its first weights and every draw.
        start: the file of the weights that it begins with; None for drawn ones.

    Raises:
        UserError: the seed is one that JAX takes for another.
    """

    setting: str
    seed: int
    config: TrainConfig
    hyper: Hyperparams = field(default_factory=Hyperparams)
    start: Path | None = None

    def __post_init__(self):
        # JAX takes a seed modulo 2^32: two of them would be one.
        if not 0 <= self.seed < 2**32:
            raise UserError(f"the seed is {self.seed}; it must be at least 0 and less than 2**32")

    def describe(self) -> dict[str, Any]:
        """Everything that decides its result, as JSON has it."""
        return {
            "setting": self.setting,
            "seed": self.seed,
            "hyperparams": self.hyperparams(),
            "training": {
                "epochs": self.config.epochs,
                "batch_size": self.config.batch_size,
                "samples": self.config.samples,
                "updates": self.config.updates,
                **asdict(self.config.sampling),
                "matmul_precision": self.config.matmul_precision,
                "dtype": jnp.result_type(float).name,
            },
            "case": self.config.case.describe(),
            "behaviour": behaviour(self.config.case).describe(),
            **({} if self.start is None else {"start": sha256(self.start.read_bytes()).hexdigest()}),
        }

    def first_weights(self, drawn: Transformer) -> Transformer:
        """The weights that it begins with, given those that were drawn.

        Raises:
            UserError: the file is of a transformer of another shape.
        """
        if self.start is None:
            return drawn
        return with_weights(drawn, state_dict(load_weights(self.start)))

    def hyperparams(self) -> dict[str, float]:
        """Its `Hyperparams` by name, as plain numbers."""
        return {name: float(value) for name, value in asdict(self.hyper).items()}


@dataclass(frozen=True)
class Outcome:
    """What a member gave.

    Attributes:
        epochs: passes over the training set that it ran.
        seconds: wall time in its lane, compilation not counted.
        metrics: measured after the end, on validation pairs of their own.
        history: its curves, one entry an epoch.
    """

    stop: Stop
    epochs: int
    seconds: float
    metrics: Metrics
    history: History
    model: Transformer


class Watcher:
    """Hears of everything that happens in a sweep; all methods may be called from any thread."""

    def started(self, index: int, member: Member, epoch: int) -> None:
        """The member took a lane, `epoch` epochs of it having been run before."""

    def compiling(self, index: int, member: Member) -> None:
        """The member waits for its bucket's compilation."""

    def epoch(self, index: int, member: Member, epoch: int, seen: Sequence[Fraction]) -> None:
        """The member has run `epoch` epochs; what was seen after the last are its accuracy, IIA and SIIA."""

    def measured(
        self,
        index: int,
        member: Member,
        epoch: int,
        losses: Float[np.ndarray, "3"],
        metrics: Shares,
        seconds: float,
    ) -> None:
        """The same, with the mean of each loss (baseline, IIT, SIIT), all metrics, and the s since the member began.
        Nothing is told of members that train in other processes."""

    def finished(self, index: int, member: Member, row: Row) -> None:
        """The member stopped, and its files are written; `row` is what to keep of it."""

    def note(self, words: str) -> None:
        """Something that the user should know."""


@runtime_checkable
class Queue(Protocol):
    """Where the engine takes members from."""

    def take(self, like: TrainConfig | None) -> tuple[int, Sequence[Spot]] | None:
        """The next member, one of the bucket `like` if that is given: its index, and where its state was saved."""
        ...


@dataclass(frozen=True)
class Occupancy:
    """How busy the lanes were, in lane-seconds, compilation not counted.

    Attributes:
        trained, whole: in training, and altogether, while a member was waiting for a lane.
        trained_last, whole_last: the same from then to the end, when nothing is left for a free lane.
    """

    trained: float = 0.0
    whole: float = 0.0
    trained_last: float = 0.0
    whole_last: float = 0.0

    def __add__(self, other: "Occupancy") -> "Occupancy":
        return Occupancy(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def shares(self) -> dict[str, float]:
        """The share of lane-time in training, while members were waiting and over the whole sweep."""
        trained, whole = self.trained + self.trained_last, self.whole + self.whole_last
        return {"while_waiting": self.trained / (self.whole or 1.0), "altogether": trained / (whole or 1.0)}


class _Trained(NamedTuple):
    """A member that goes on: its state, the seconds that it took, and its last epoch that the watcher has heard of."""

    state: State
    seconds: float
    heard: int


_Pending = tuple[int, Sequence[Spot], _Trained | None]
"""A member that waits for a lane: its index, where it was saved, and what it goes on from where that is at hand."""


@dataclass
class _Occupied:
    """A lane in use; `spots` is where its member was saved, the last first."""

    index: int
    member: Member
    spots: Sequence[Spot]
    epoch: int
    began: float

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began


@dataclass
class Engine:
    """Trains the members of a queue in the lanes of one process.

    Attributes:
        members: all of the sweep.
        compiled: the program of a bucket, given how many members wait for it at most; or of no more than that
            number of lanes.
        keep: writes what a member gave; its row.
        load: the state saved at a spot, in the shapes of another.
        checkpoints: where the lanes are saved, every `save_seconds`; None for nowhere.
        stopping: set to have the lanes saved and the engine stop.
    """

    members: Sequence[Member]
    compiled: Callable[[TrainConfig, int | None], Program]
    keep: Callable[[int, Member, Outcome], Row]
    load: Callable[[Spot, State], State]
    watcher: Watcher
    checkpoints: Checkpoints | None = None
    save_seconds: float = 10.0
    stopping: threading.Event = field(default_factory=threading.Event)
    occupancy: Occupancy = field(default_factory=Occupancy)
    compiling: bool = False
    """Nothing is in training, so that leaving at once loses nothing."""

    def run(self, queue: Queue) -> None:
        """Trains members until the queue is empty.

        Raises:
            MemoryError: the device's memory does not hold one lane.
            UserError: a file cannot be written.
        """
        with quiet():
            while not self.stopping.is_set() and (first := queue.take(None)) is not None:
                config = self.members[first[0]].config
                _Bucket(self, queue, config, deque([(*first, None)])).run()


class Ended(NamedTuple):
    """What has stopped and is not handed over yet."""

    lane: _Occupied
    seconds: float
    alone: Batch


class _Bucket:
    """The lanes while they train one bucket."""

    def __init__(self, engine: Engine, queue: Queue, config: TrainConfig, pending: deque):
        self.engine, self.queue, self.config = engine, queue, config
        self.pending: deque[_Pending] = pending
        self.drawn = lru_cache(SEEDS_KEPT)(partial(draw_data, config))
        self.lanes: list[_Occupied | None] = []
        self.ended: list[Ended] = []
        self.drained = False
        self.saved = time.perf_counter()
        self.use(None)

    def use(self, most: int | None) -> None:
        """Compiles the bucket, for `most` lanes at most; all lanes are free then."""
        self.batch: Batch | None = None
        index = self.pending[0][0]
        self.engine.watcher.compiling(index, self.engine.members[index])
        self.engine.compiling = True
        self.program = self.engine.compiled(self.config, most)
        self.engine.compiling = False
        if most is not None and self.program.lanes > most:  # one on each device
            raise too_large(self.config.case)
        self.lanes = [None] * self.program.lanes
        self.chunk = 1

    def run(self) -> None:
        engine = self.engine
        self.mark = time.perf_counter()  # what was compiled before does not count
        while True:
            try:
                self.fill()
                if not any(self.lanes):
                    break
                self.chunk_of_epochs()
                if engine.stopping.is_set() or time.perf_counter() - self.saved > engine.save_seconds:
                    self.hand_over()
                    self.save()
            except jax.errors.JaxRuntimeError as error:
                self.fewer_lanes(error)
                self.mark = time.perf_counter()
            if engine.stopping.is_set():
                break
        self.batch = None
        try:
            self.hand_over()
        except jax.errors.JaxRuntimeError as error:
            raise (too_large(self.config.case) if ran_out(error) else error) from None

    def chunk_of_epochs(self) -> None:
        """Trains every lane for a chunk, and counts how busy they were."""
        started = time.perf_counter()
        ran = self.advance()
        now = time.perf_counter()
        trained = (now - started) * float(ran.sum()) / max(int(ran.max()), 1)
        whole, self.mark = (now - self.mark) * len(self.lanes), now
        self.engine.occupancy += (
            Occupancy(trained_last=trained, whole_last=whole) if self.drained else Occupancy(trained, whole)
        )
        if now - started < CHUNK_SECONDS:
            self.chunk = min(2 * self.chunk, self.config.epochs)

    def advance(self) -> Int[np.ndarray, " lane"]:
        """Trains every lane, and tells of it; the epochs that each ran."""
        assert self.batch is not None
        until = [lane.epoch + self.chunk if lane else 0 for lane in self.lanes]
        state = self.program.advance(self.batch, jnp.asarray(until, jnp.int32))
        self.batch = batch = replace(self.batch, state=state)
        # While the device trains: files are written, and what stopped in the last chunk is handed over.
        self.hand_over()
        stops, epochs = jax.device_get((state.stop, state.epoch))
        before = [lane.epoch if lane else epoch for lane, epoch in zip(self.lanes, epochs, strict=True)]
        # The epoch that diverged is not counted in `epochs`.
        ran = epochs - before + ((stops == Stop.DIVERGED) & [lane is not None for lane in self.lanes])
        self.hear(batch, stops, epochs)
        return ran

    def fill(self) -> None:
        """Gives every free lane the next member."""
        if self.batch is None:
            self.batch = self.program.blank()
        given: deque[tuple[int, _Pending]] = deque()
        for i, lane in enumerate(self.lanes):
            if lane is None and not self.engine.stopping.is_set() and (found := self.next()) is not None:
                given.append((i, found))
        try:
            # Hundreds of lanes begin at once, and numpy lets go of Python where it sorts.
            with ThreadPoolExecutor(len(cores())) as pool:
                draw = lambda one: self.drawn(self.engine.members[one[1][0]].seed)
                for data in pool.map(draw, [*given]):
                    lane, found = given[0]
                    self.put(lane, *found, data)
                    given.popleft()
        finally:
            self.pending.extendleft(found for _, found in reversed(given))  # where memory ran out meanwhile

    def next(self) -> _Pending | None:
        if self.pending:
            return self.pending.popleft()
        found = None if self.drained else self.queue.take(self.config)
        self.drained = found is None
        return None if found is None else (*found, None)

    def put(self, lane: int, index: int, spots: Sequence[Spot], trained: _Trained | None, data: Data) -> None:
        assert self.batch is not None
        member = self.engine.members[index]
        hyper = member.hyper.traced()
        if trained is None:
            new = self.program.init(hyper, jax.random.key(member.seed))
            trained = self.restored(spots, replace(new, model=member.first_weights(new.model)))
        self.batch = self.program.fill(self.batch, jnp.int32(lane), hyper, data, trained.state)
        self.lanes[lane] = _Occupied(index, member, spots, trained.heard, time.perf_counter() - trained.seconds)
        self.engine.watcher.started(index, member, trained.heard)

    def restored(self, spots: Sequence[Spot], new: State) -> _Trained:
        """The most trained state that can be read; `new` where there is none."""
        for spot in spots:
            try:
                state = self.engine.load(spot, new)
                return _Trained(state, spot.occupant.seconds, int(state.epoch))
            except CheckpointError as error:
                self.engine.watcher.note(f"{error}; member {spot.occupant.member} goes on from the one before")
        return _Trained(new, 0.0, 0)

    def hear(self, batch: Batch, stops: np.ndarray, epochs: np.ndarray) -> None:
        """Tells the watcher of the epochs that were run, and frees the lanes whose member has stopped."""
        history = jax.device_get(batch.state.history)
        for i, lane in enumerate(self.lanes):
            if lane is None:
                continue
            for epoch in range(lane.epoch, int(epochs[i])):
                now, who = shares(history.metrics.at((i, epoch))), (lane.index, lane.member, epoch + 1)
                self.engine.watcher.epoch(*who, (now.accuracy, now.iia, now.siia))
                self.engine.watcher.measured(*who, np.asarray(history.loss[i, epoch]), now, lane.seconds)
            lane.epoch = int(epochs[i])
            if stops[i] != Stop.RUNNING:
                self.ended.append(Ended(lane, lane.seconds, self.program.take(batch, jnp.int32(i))))
                self.lanes[i] = None

    def hand_over(self) -> None:
        """Measures and keeps what stopped; each leaves the list when it is kept, so that none is kept twice."""
        while self.ended:
            lane, seconds, alone = self.ended[0]
            state, epochs = alone.state, lane.epoch
            outcome = Outcome(
                stop=Stop(int(state.stop)),
                epochs=epochs,
                metrics=jax.device_get(self.program.measure(alone.data, state)),
                history=jax.tree.map(lambda x, n=epochs: np.asarray(x)[:n], state.history),
                model=state.model,
                seconds=seconds,
            )
            row = self.engine.keep(lane.index, lane.member, outcome)
            self.engine.watcher.finished(lane.index, lane.member, row)
            self.ended.pop(0)

    def save(self) -> None:
        if self.engine.checkpoints is not None and self.batch is not None and any(self.lanes):
            occupants = [lane and Occupant(lane.index, lane.epoch, lane.seconds) for lane in self.lanes]
            spots = self.engine.checkpoints.save(self.batch.state, occupants)
            for lane, spot in zip(self.lanes, spots, strict=True):
                if lane is not None and spot is not None:
                    lane.spots = [spot, *lane.spots]
        self.saved = time.perf_counter()

    def fewer_lanes(self, error: RuntimeError) -> None:
        """After the device's memory ran out: the members move to half as many lanes."""
        if not ran_out(error):
            raise error
        before = len(self.lanes)
        if before == 1:
            raise too_large(self.config.case) from None
        states = self.states()
        for i, lane in reversed([*enumerate(self.lanes)]):
            if lane is not None:
                trained = states and _Trained(states(i), lane.seconds, lane.epoch)
                self.pending.appendleft((lane.index, lane.spots, trained))
        if not self.pending:  # what ended is to be measured, and has the memory for itself now
            self.batch = None
            return
        self.use(before // 2)
        self.engine.watcher.note(f"out of memory with {before} lanes; going on with {len(self.lanes)}")

    def states(self) -> Callable[[int], State] | None:
        """What each lane holds, read without the device's memory; None where it went down with the call that failed,
        so that the members go on from where they were saved."""
        if self.batch is None:
            return None
        state = self.batch.state
        try:
            held = jax.device_get(without_keys(state))
        except RuntimeError:  # it was to become the call's result
            if self.engine.checkpoints is not None:
                self.engine.checkpoints.wait()
            return None
        return lambda i: with_keys(jax.tree.map(lambda x: x[i], held), state)
