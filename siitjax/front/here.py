"""Members trained in this process: a bar or lines meanwhile, Ctrl-C heeded at once, each config compiled once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NoReturn

import jax
import jax.numpy as jnp
from rich.console import Console

from siitjax.causal.case import Case
from siitjax.causal.validate import check_labels
from siitjax.front.run import LOSSES, Epoch
from siitjax.siit.config import TrainConfig
from siitjax.sweep.engine import Engine, Member, Outcome, Row, Watcher
from siitjax.sweep.lanes import Program, compile_program
from siitjax.sweep.placement import Compiler, choose_policy, use_compilation_cache
from siitjax.sweep.processes.launch import Waiting
from siitjax.sweep.progress import Progress
from siitjax.sweep.results import row_of

OnEpoch = Callable[[Epoch], None]
KEPT = 16
"""Programs that are kept for the next call; each takes some megabytes."""


def train_here(
    members: Sequence[Member], *, progress: bool = True, on_epoch: OnEpoch | Sequence[OnEpoch] | None = None
) -> list[tuple[Outcome, Row]]:
    """Trains the members, one after another on a CPU, as lanes side by side on a GPU; what each gave, and its row.

    Args:
        on_epoch: called in this thread after each epoch of each member, one after another where there are several;
            what one raises ends the training.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed. Nothing is kept but what was compiled.
        UserError: a label of a case cannot be learned, or a member cannot begin.
        MemoryError: the device's memory does not hold one lane.
    """
    for case in dict.fromkeys(member.config.case for member in members):
        _check_once(case)
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        use_compilation_cache()
    shown = Progress(_console(), len(members), 0) if progress else Watcher()
    callbacks = () if on_epoch is None else (on_epoch,) if callable(on_epoch) else on_epoch
    told, queue, errors = _Told(members, shown), Waiting(members, [*range(len(members))], {}), []
    engine = Engine(members, _compiler(queue), told.keep, _no_checkpoint, told)

    def run() -> None:
        try:
            engine.run(queue)
        except BaseException as error:
            errors.append(error)
        finally:
            told.epochs.put(None)

    # A compilation hears no signal; this thread does.
    thread = Thread(target=run, name="siitjax.train")
    with shown if isinstance(shown, Progress) else nullcontext():
        thread.start()
        try:
            for epoch in told.heard():
                for callback in callbacks:
                    callback(epoch)
        except BaseException:
            engine.stopping.set()
            if not engine.compiling:  # which ends by itself, and trains nothing after
                thread.join()
            raise
    thread.join()
    if errors:
        raise errors[0]
    return [told.found[index] for index in range(len(members))]


class _Told(Watcher):
    """Hands on what it hears to the screen, and epochs to the thread that waits for them."""

    def __init__(self, members: Sequence[Member], shown: Watcher):
        self.members, self.shown = members, shown
        self.epochs: SimpleQueue[Epoch | None] = SimpleQueue()
        self.found: dict[int, tuple[Outcome, Row]] = {}
        self.started, self.compiling = shown.started, shown.compiling
        self.epoch, self.finished, self.note = shown.epoch, shown.finished, shown.note

    def measured(self, index, member, epoch, losses, metrics, seconds):
        named = dict(zip(LOSSES, losses.tolist(), strict=True))
        self.epochs.put(Epoch(epoch, member.config.epochs, named, metrics, seconds))

    def heard(self) -> Iterator[Epoch]:
        """The epochs, as they come, until the training has ended."""
        while True:
            try:
                epoch = self.epochs.get(timeout=0.1)  # a wait without an end might not hear of a signal
            except Empty:
                continue
            if epoch is None:
                return
            yield epoch

    def keep(self, index: int, member: Member, outcome: Outcome) -> Row:
        row = row_of(index, member, outcome)
        self.found[index] = (outcome, row)
        return row


def _compiler(queue: Waiting) -> Callable[[TrainConfig, int | None], Program]:
    """Compiles buckets. On a CPU a lane each, as a worker process does, and kept for the next call."""
    if jax.default_backend() == "cpu" or len(queue.indices) == 1:
        return lambda config, most: _program(config, jnp.result_type(float).name)
    return Compiler(choose_policy(), queue.count)


@lru_cache(maxsize=KEPT)
def _program(config: TrainConfig, dtype: str) -> Program:
    return compile_program(config)


@lru_cache(maxsize=256)
def _check_once(case: Case) -> None:
    check_labels(case)


def _no_checkpoint(spot: object, like: object) -> NoReturn:
    raise AssertionError("what is trained here has no checkpoints")


def _console() -> Console:
    return Console(stderr=True, soft_wrap=True, force_jupyter=False)
