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
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from siitjax.checkpoint import CheckpointError, Checkpoints, Occupant, Spot
from siitjax.cores import cores
from siitjax.errors import UserError
from siitjax.lanes import Batch, Program
from siitjax.metrics import Metrics, shares
from siitjax.train import Data, History, Hyperparams, State, Stop, TrainConfig, draw_data
from siitjax.transformer import Transformer

CHUNK_SECONDS = 0.2
"""A chunk lasts about this long at least, and one epoch: the host's work between two is some milliseconds."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Member:
    """One training run of a sweep.

    Attributes:
        setting: what its hyperparameters are called in tables and pictures; members that differ in nothing but
            their seed share it.
        seed: decides its data, its first weights and every draw.

    Raises:
        UserError: the seed is one that JAX takes for another.
    """

    setting: str
    seed: int
    config: TrainConfig
    hyper: Hyperparams = field(default_factory=Hyperparams)

    def __post_init__(self):
        # JAX takes a seed modulo 2^32: two of them would be one.
        if not 0 <= self.seed < 2**32:
            raise UserError(f"the seed is {self.seed}; it must be at least 0 and less than 2**32")

    def describe(self) -> dict[str, Any]:
        """Everything that decides its result, as JSON has it."""
        hyper = asdict(self.hyper)
        return {
            "setting": self.setting,
            "seed": self.seed,
            "hyperparams": {name: float(value) for name, value in hyper.items()},
            "training": {
                "epochs": self.config.epochs,
                "batch_size": self.config.batch_size,
                "samples": self.config.samples,
                "updates": self.config.updates,
                **asdict(self.config.sampling),
            },
            "case": self.config.case.describe(),
        }


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


@dataclass
class _Occupied:
    """A lane in use."""

    index: int
    member: Member
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
        while not self.stopping.is_set() and (first := queue.take(None)) is not None:
            config = self.members[first[0]].config
            _Bucket(self, queue, config, deque([(*first, None)])).run()


Ended = list[tuple[_Occupied, float, Batch]]
"""What has stopped and is not handed over yet, with its seconds."""


class _Bucket:
    """The lanes while they train one bucket."""

    def __init__(self, engine: Engine, queue: Queue, config: TrainConfig, pending: deque):
        self.engine, self.queue, self.config = engine, queue, config
        self.pending: deque[tuple[int, Sequence[Spot], tuple[State, float] | None]] = pending
        self.lanes: list[_Occupied | None] = []
        self.drained = False
        self.saved = time.perf_counter()
        self.use(None)

    def use(self, most: int | None) -> None:
        """Compiles the bucket, for `most` lanes at most; all lanes are free then."""
        index = self.pending[0][0]
        self.engine.watcher.compiling(index, self.engine.members[index])
        self.engine.compiling = True
        self.program = self.engine.compiled(self.config, most)
        self.engine.compiling = False
        self.batch: Batch = self.program.blank()
        self.lanes = [None] * self.program.lanes
        self.chunk = 1

    def run(self) -> None:
        engine = self.engine
        ended: Ended = []
        mark = time.perf_counter()
        while True:
            self.fill()
            if not any(self.lanes):
                break
            started = time.perf_counter()
            try:
                state = self.program.advance(self.batch, jnp.asarray(self.until(), jnp.int32))
                # While the device trains: files are written, and what stopped in the last chunk is handed over.
                self.hand_over(ended)
                stops, epochs = jax.device_get((state.stop, state.epoch))
            except jax.errors.JaxRuntimeError as error:
                self.fewer_lanes(error)
                mark = time.perf_counter()
                continue
            self.batch = replace(self.batch, state=state)
            before = [lane.epoch if lane else epoch for lane, epoch in zip(self.lanes, epochs, strict=True)]
            # The epoch that diverged is not counted in `epochs`.
            ran = epochs - before + ((stops == Stop.DIVERGED) & [lane is not None for lane in self.lanes])
            ended = self.heard(stops, epochs)
            now = time.perf_counter()
            trained = (now - started) * float(ran.sum()) / max(int(ran.max()), 1)
            whole, mark = (now - mark) * len(self.lanes), now
            engine.occupancy += (
                Occupancy(trained_last=trained, whole_last=whole) if self.drained else Occupancy(trained, whole)
            )
            if now - started < CHUNK_SECONDS:
                self.chunk = min(2 * self.chunk, self.config.epochs)
            if engine.stopping.is_set() or now - self.saved > engine.save_seconds:
                self.hand_over(ended)
                self.save()
            if engine.stopping.is_set():
                break
        self.hand_over(ended)

    def fill(self) -> None:
        """Gives every free lane the next member."""
        given = []
        for i, lane in enumerate(self.lanes):
            if lane is None and not self.engine.stopping.is_set() and (found := self.next()) is not None:
                given.append((i, *found))
        # Hundreds of lanes begin at once, and numpy lets go of Python where it sorts.
        with ThreadPoolExecutor(len(cores())) as pool:
            data = pool.map(lambda found: draw_data(self.config, self.engine.members[found[1]].seed), given)
            for (lane, index, spots, trained), own in zip(given, data, strict=True):
                self.put(lane, index, spots, trained, own)

    def next(self) -> tuple[int, Sequence[Spot], tuple[State, float] | None] | None:
        if self.pending:
            return self.pending.popleft()
        found = None if self.drained else self.queue.take(self.config)
        self.drained = found is None
        return None if found is None else (*found, None)

    def put(
        self, lane: int, index: int, spots: Sequence[Spot], trained: tuple[State, float] | None, data: Data
    ) -> None:
        member = self.engine.members[index]
        hyper = member.hyper.traced()
        state, seconds = trained or self.restored(spots, self.program.init(hyper, jax.random.key(member.seed)))
        self.batch = self.program.fill(self.batch, jnp.int32(lane), hyper, data, state)
        epoch = int(state.epoch)
        self.lanes[lane] = _Occupied(index, member, epoch, time.perf_counter() - seconds)
        self.engine.watcher.started(index, member, epoch)

    def restored(self, spots: Sequence[Spot], new: State) -> tuple[State, float]:
        """The most trained state that can be read, and the seconds that it took; `new` where there is none."""
        for spot in spots:
            try:
                return self.engine.load(spot, new), spot.occupant.seconds
            except CheckpointError as error:
                self.engine.watcher.note(f"{error}; member {spot.occupant.member} goes on from the one before")
        return new, 0.0

    def until(self) -> list[int]:
        return [lane.epoch + self.chunk if lane else 0 for lane in self.lanes]

    def heard(self, stops: np.ndarray, epochs: np.ndarray) -> Ended:
        """Tells the watcher of the epochs that were run; frees the lanes whose member has stopped, and gives those."""
        metrics = jax.device_get(self.batch.state.history.metrics)
        ended: Ended = []
        for i, lane in enumerate(self.lanes):
            if lane is None:
                continue
            for epoch in range(lane.epoch, int(epochs[i])):
                now = shares(metrics.at((i, epoch)))
                self.engine.watcher.epoch(lane.index, lane.member, epoch + 1, (now.accuracy, now.iia, now.siia))
            lane.epoch = int(epochs[i])
            if stops[i] != Stop.RUNNING:
                ended.append((lane, lane.seconds, self.program.take(self.batch, jnp.int32(i))))
                self.lanes[i] = None
        return ended

    def hand_over(self, ended: Ended) -> None:
        """Measures and keeps what stopped; each leaves the list when it is kept, so that none is kept twice."""
        while ended:
            lane, seconds, alone = ended[0]
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
            ended.pop(0)

    def save(self) -> None:
        if self.engine.checkpoints is not None and any(self.lanes):
            occupants = [lane and Occupant(lane.index, lane.epoch, lane.seconds) for lane in self.lanes]
            self.engine.checkpoints.save(self.batch.state, occupants)
        self.saved = time.perf_counter()

    def fewer_lanes(self, error: RuntimeError) -> None:
        """After the device's memory ran out: the members move to half as many lanes."""
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise error
        before = len(self.lanes)
        too_large = MemoryError(
            f"the device's memory does not hold one lane of {self.config.case.name}; lower --batch_size, or --samples"
        )
        if before == 1:
            raise too_large from None
        for i, lane in reversed([*enumerate(self.lanes)]):
            if lane is not None:
                self.pending.appendleft(
                    (lane.index, (), (self.program.take(self.batch, jnp.int32(i)).state, lane.seconds))
                )
        self.use(before // 2)
        if len(self.lanes) >= before:  # one on each device
            raise too_large from None
        self.engine.watcher.note(f"out of memory with {before} lanes; going on with {len(self.lanes)}")
