"""The engine: many members, one compilation a bucket, and what each gave.

Members run in turn, one lane a worker; a worker is a thread, since XLA lets go of Python while it computes. The
first member of a bucket compiles it for all. A member's result does not depend on the number of workers.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from siitjax.evaluate import Metrics
from siitjax.train import Data, History, Hyperparams, State, Stop, TrainConfig, draw_data, make_train
from siitjax.transformer import Transformer


@dataclass(frozen=True)
class Member:
    """One training run of a sweep.

    Attributes:
        setting: what its hyperparameters are called in tables and pictures; members that differ in nothing but
            their seed share it.
        seed: decides its data, its first weights and every draw.
    """

    setting: str
    seed: int
    config: TrainConfig
    hyper: Hyperparams = field(default_factory=Hyperparams)

    def describe(self) -> dict[str, Any]:
        """Everything that decides its result, as JSON has it."""
        case, hyper = self.config.case, asdict(self.hyper)
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
            "case": {
                "name": case.name,
                "vocabulary": list(case.vocabulary),
                "circuit": {v.name: str(v.node) if v.node else None for v in case.variables},
                "loss": repr(case.loss),
                **asdict(case.config),
            },
        }


@dataclass(frozen=True)
class Outcome:
    """What a member gave.

    Attributes:
        epochs: passes over the training set that it ran.
        seconds: wall time, compilation not counted.
        metrics: measured after the end, on validation pairs of their own.
        history: its curves, one entry an epoch.
    """

    stop: Stop
    epochs: int
    seconds: float
    metrics: Metrics
    history: History
    model: Transformer


@dataclass(frozen=True)
class Bucket:
    """The compiled program of the members that share a `TrainConfig`."""

    init: Callable[[Hyperparams, Array], State]
    advance: Callable[[Hyperparams, Data, State, Int[Array, ""]], State]
    measure: Callable[[Data, State], Metrics]
    seconds: float
    """Time that the compilation took."""


def compile_bucket(config: TrainConfig) -> Bucket:
    """Compiles a bucket for one lane, ahead of time: nothing that a member does later compiles again."""
    start = time.perf_counter()
    train = make_train(config)
    hyper = Hyperparams().traced()
    root = jax.random.key(0)
    samples = lambda n: jnp.zeros((n, config.case.n_ctx), jnp.int32)
    data = Data(samples(config.n_train), samples(config.samples - config.n_train))
    state = jax.eval_shape(train.init, hyper, root)
    until = jax.ShapeDtypeStruct((), jnp.int32)
    init = jax.jit(train.init).lower(hyper, root).compile()
    advance = jax.jit(train.advance).lower(hyper, data, state, until).compile()
    measure = jax.jit(train.measure).lower(data, state).compile()
    return Bucket(init, advance, measure, time.perf_counter() - start)


class Watcher:
    """Hears of everything that happens in a sweep; all methods may be called from any worker's thread."""

    def started(self, index: int, member: Member) -> None:
        """A worker took the member."""

    def compiling(self, index: int, member: Member) -> None:
        """The member waits for its bucket's compilation."""

    def epoch(self, index: int, member: Member, epoch: int, metrics: Float[np.ndarray, "3"]) -> None:
        """The member has run `epoch` epochs; metrics are its accuracy, IIA and SIIA."""

    def finished(self, index: int, member: Member, outcome: Outcome) -> None:
        """The member stopped."""


def train_member(
    bucket: Bucket, member: Member, heard: Callable[[int, Float[np.ndarray, "3"]], None], stopping: threading.Event
) -> Outcome | None:
    """Trains one member to its end, epoch by epoch; gives it up, and returns None, once `stopping` is set."""
    start = time.perf_counter()
    data, hyper = draw_data(member.config, member.seed), member.hyper.traced()
    state = bucket.init(hyper, jax.random.key(member.seed))
    while (stop := Stop(int(state.stop))) is Stop.RUNNING:
        if stopping.is_set():
            return None
        before, state = int(state.epoch), bucket.advance(hyper, data, state, state.epoch + 1)
        if (epochs := int(state.epoch)) > before:  # an epoch that diverged is not one
            seen = state.history.metrics
            heard(epochs, np.array([float(m[before]) for m in (seen.accuracy, seen.iia, seen.siia)]))
    metrics = jax.device_get(bucket.measure(data, state))
    history = jax.tree.map(lambda x: np.asarray(x)[: int(state.epoch)], state.history)
    return Outcome(stop, int(state.epoch), time.perf_counter() - start, metrics, history, state.model)


def run_sweep(members: Sequence[tuple[int, Member]], watcher: Watcher, *, workers: int = 1) -> None:
    """Trains every member and hands each outcome to `watcher.finished` as it comes.

    Args:
        members: what to train, each with its index in the sweep.
        workers: members trained at once.

    Raises:
        KeyboardInterrupt: the user stopped it; what was finished has been handed over, and the workers have ended.
    """
    queue: SimpleQueue[tuple[int, Member]] = SimpleQueue()
    for entry in members:
        queue.put(entry)
    buckets: dict[TrainConfig, Future[Bucket]] = {}
    lock, stopping = threading.Lock(), threading.Event()

    def bucket_of(index: int, member: Member) -> Bucket:
        with lock:
            ours = member.config not in buckets
            future = buckets.setdefault(member.config, Future())
        if ours:
            try:
                watcher.compiling(index, member)
                future.set_result(compile_bucket(member.config))
            except BaseException as error:
                # Whoever waits for this compilation must hear that it will not come.
                future.set_exception(error)
        elif not future.done():
            watcher.compiling(index, member)
        return future.result()

    def work() -> None:
        while not stopping.is_set():
            try:
                index, member = queue.get_nowait()
            except Empty:
                return
            watcher.started(index, member)
            outcome = train_member(bucket_of(index, member), member, partial(watcher.epoch, index, member), stopping)
            if outcome is not None:
                watcher.finished(index, member, outcome)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work) for _ in range(workers)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stopping.set()
        for future in futures:
            future.result()
