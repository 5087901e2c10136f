"""What the engine's tests share: members that train in a moment, programs compiled once, a watcher that writes down all
that it hears, and what each member gives alone."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from jax.stages import Compiled, Lowered

import siitjax.sweep.lanes
from siitjax.model.forms import Form, fastest
from siitjax.siit.config import TrainConfig
from siitjax.siit.objective import Sampling
from siitjax.siit.train import Stop, draw_data, make_train
from siitjax.sweep.checkpoint import Checkpoints, find, load
from siitjax.sweep.engine import Engine, Member, Outcome, Watcher
from siitjax.sweep.lanes import Batching, Program, compile_program
from siitjax.sweep.processes.launch import Waiting
from tests.tiny import ATTENTION as CONFIG
from tests.tiny import DIVERGES, EPOCHS, LEARNS, STAYS

OTHER = replace(CONFIG, sampling=Sampling("one", "all"))
HYPERS = {"learns": LEARNS, "diverges": DIVERGES, "stays": STAYS}
MEMBERS = [
    Member(name, seed, config, hyper)
    for seed, (name, hyper) in enumerate(HYPERS.items())
    for config in (CONFIG, OTHER)  # in turn, so that a bucket's members are not side by side in the queue
]
QUEUE = [Member(name, seed, CONFIG, HYPERS[name]) for seed in range(4) for name in HYPERS]
"""More members than lanes, which stop after different epochs."""
SWEEP = "the digest of this sweep"


# A later jax knows no other emitters, and no such option.
EMITTERS = {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {}
AS_USERS: Any = {"xla_backend_optimization_level": 3, **EMITTERS}
"""XLA's own defaults, where other tests compile quickly: what one lane and several give is the same to the last bit
only as users compile it."""


def compile_as_users(lowered: Lowered) -> Compiled:
    return compile_quickly(lowered, compiler_options=AS_USERS)


compile_quickly = Lowered.compile
traces = Counter()


def counted(config: TrainConfig):
    """`make_train`, the traces of what trains counted."""
    train = make_train(config)

    def epoch(*args):
        traces[config] += 1
        return train.epoch(*args)

    return train._replace(epoch=epoch)


def program(config: TrainConfig, lanes: int, batching: Batching = "map") -> Program:
    """Each is compiled once for all these tests, and traced once in that."""
    return _compiled(config, lanes, batching, fastest())


@cache
def _compiled(config: TrainConfig, lanes: int, batching: Batching, form: Form) -> Program:
    """In the form that is the fastest now: a test that acts as if on a GPU must not leave its program to others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(siitjax.sweep.lanes, "make_train", counted)
        if batching == "map":  # side by side, lanes give the same but for rounding
            patch.setattr(Lowered, "compile", compile_as_users)
        before = traces[config]
        made = compile_program(config, lanes, batching=batching)
        assert traces[config] == before + 1
    return made


def on(lanes: int, batching: Batching = "map") -> Callable[[TrainConfig, int | None], Program]:
    """A compiler for so many lanes, or the most that are allowed."""
    return lambda config, most: program(config, min(lanes, most or lanes), batching)


@dataclass
class Heard(Watcher):
    """Writes down everything, and the outcomes; at the event called `at` does something."""

    at: str = ""
    act: Callable[[], None] = lambda: None
    events: list[tuple] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def hear(self, name, index, *what):
        self.events.append((name, index, *what))
        if name == self.at:
            self.act()

    def started(self, index, member, epoch):
        self.hear("started", index, epoch)

    def compiling(self, index, member):
        self.hear("compiling", index)

    def epoch(self, index, member, epoch, seen):
        self.hear("epoch", index, epoch, seen)

    def finished(self, index, member, row):
        assert row == {"member": index}
        self.hear("finished", index)

    def note(self, words):
        self.notes.append(words)

    def keep(self, index, member, outcome):
        assert index not in self.outcomes, "kept twice"
        self.outcomes[index] = outcome
        self.hear("keep", index)
        return {"member": index}

    def of(self, *names: str) -> list[int]:
        return [index for name, index, *_ in self.events if name in names]


def run(members, compiled, heard=None, *, order=None, folder: Path | None = None, start="0001-0", **more) -> Heard:
    """Trains the members, from what is saved in `folder` if that is given, and saves there; what was heard."""
    heard = heard or Heard()
    spots = {} if folder is None else find(folder, SWEEP)
    engine = Engine(
        members,
        compiled,
        heard.keep,
        lambda spot, like: load(folder or Path(), spot, like),
        heard,
        **more,
    )
    queue = Waiting(members, [*(range(len(members)) if order is None else order)], spots)
    if folder is None:
        engine.run(queue)
    else:
        with Checkpoints(folder, start, SWEEP) as engine.checkpoints:
            engine.run(queue)
    return heard


@cache
def solo_functions(config: TrainConfig):
    train = make_train(config)
    return [jax.jit(f, compiler_options=AS_USERS) for f in (train.init, train.epoch, train.judge, train.measure)]


@cache
def solo(member: Member) -> dict:
    """What a member gives when the pure functions of training are called on it alone."""
    init, epoch, judge, measure = solo_functions(member.config)
    hyper, data = member.hyper.traced(), draw_data(member.config, member.seed)
    state = init(hyper, jax.random.key(member.seed))
    while Stop(int(state.stop)) is Stop.RUNNING:
        state, _ = judge(data, epoch(hyper, data, state, EPOCHS))
    epochs = int(state.epoch)
    history = jax.tree.map(lambda x: np.asarray(x)[:epochs], state.history)
    final = jax.device_get(measure(data, state))
    return {"stop": Stop(int(state.stop)), "epochs": epochs, "metrics": final, "history": history, "model": state.model}


def assert_alone(heard: Heard, members) -> None:
    """Every member was kept once, with the bits that it gives alone."""
    assert set(heard.outcomes) == set(range(len(members)))
    for index, outcome in heard.outcomes.items():
        expected = solo(members[index])
        chex.assert_trees_all_equal({name: getattr(outcome, name) for name in expected}, expected)
