"""Where forms of the step are timed: this process, or processes with a core each that work at the same time.

python -m siitjax.bench.process SETUP       is such a process: it takes and answers lines of JSON
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from siitjax.base.errors import UserError
from siitjax.bench.timing import LARGE_GFLOP, PARTS, STEPS, Timed, large_product, seconds
from siitjax.causal import registry
from siitjax.model.forms import PLAIN, fastest
from siitjax.siit.config import Hyperparams, TrainConfig, Updates
from siitjax.siit.objective import Sampling, Swaps
from siitjax.siit.train import draw_data, make_train
from siitjax.sweep.cores import pinned
from siitjax.sweep.engine import Engine, Member, Watcher
from siitjax.sweep.lanes import Batching, Program, compile_program

FORMS = {"plain": lambda: PLAIN, "fast": fastest, "fast, nodes": fastest}
"""The last is the fast form under swaps of nodes, drawn for each example as those of edges are, to compare."""
EPOCHS = 24
"""Epochs of a member; in the queue that occupancy is measured on, the short ones run one."""
SAMPLES = 10_000
"""Strings a task, as sweeps draw them."""
QUEUE = 4
"""Members of that queue, in lanes."""


@dataclass(frozen=True)
class Setup:
    """What a station is to time.

    Attributes:
        samples: strings a task.
        forms: names of `FORMS`.
        lanes, devices, batching: as `siitjax.sweep.lanes` takes them.
    """

    case: str
    batch_size: int
    samples: int
    updates: Updates
    swaps: Swaps
    forms: tuple[str, ...]
    lanes: int
    devices: int
    batching: Batching

    @property
    def config(self) -> TrainConfig:
        """What is timed, as training takes it."""
        case = registry.build(self.case)
        samples = self.samples * max(len(case.tasks), 1)
        how = Sampling(swaps=self.swaps, drawn_per="example" if self.swaps == "edges" else "batch")
        return TrainConfig(case, EPOCHS, self.batch_size, samples, self.updates, how)


@dataclass
class Station:
    """This process."""

    setup: Setup
    forms: dict[str, Timed] = field(default_factory=dict)

    def prepare(self, parts: Sequence[str] = PARTS) -> None:
        """Compiles what is timed: those of `PARTS`."""
        setup = self.setup
        self.product = large_product()
        for name in setup.forms:
            config = setup.config
            if name == "fast, nodes":
                config = replace(config, sampling=Sampling(drawn_per="example"))
            self.forms[name] = Timed(config, FORMS[name](), setup.lanes, setup.batching, setup.devices)
            for part in parts:
                jax.block_until_ready(getattr(self.forms[name], part)())

    def counted(self) -> float:
        """Floating point operations of a plain training step, as XLA counts them."""
        train = make_train(self.setup.config, PLAIN)
        hyper, data = Hyperparams().traced(), draw_data(self.setup.config, 0)
        state = train.init(hyper, jax.random.key(0))
        batch = data.train[: self.setup.batch_size]
        step = jax.jit(train.step).lower(hyper, (state.model, state.opt_state), batch, batch, state.root)
        return (step.compile().cost_analysis() or {}).get("flops", 0.0)

    def time(self, form: str, part: str) -> float:
        """Seconds of one training step, or one evaluation, of all the station's lanes."""
        return seconds(getattr(self.forms[form], part), 1) / (STEPS if part == "step" else 1)

    def gemm(self) -> float:
        """GFLOP/s of one large matrix product."""
        return LARGE_GFLOP / seconds(self.product, 3)

    def engine(self) -> tuple[dict[str, float], float, float]:
        """The engine's occupancy, and the seconds that its program takes to compile with nothing cached and again.

        The queue is four times the lanes, of long and short members in turn. A short one diverges in its first epoch:
        its learning rate sees to that.
        """
        config = self.setup.config
        devices = jax.local_devices()[: self.setup.devices]
        programs: list[Program] = []
        with tempfile.TemporaryDirectory() as folder, cached_in(folder):
            for _ in range(2):
                jax.clear_caches()
                lanes, batching = self.setup.lanes, self.setup.batching
                programs.append(compile_program(config, lanes, batching=batching, devices=devices))
        cold, cached = programs
        rates = [1e-3, 1e38]
        members = [Member("", i, config, Hyperparams(lr_start=rates[i % 2])) for i in range(QUEUE * self.setup.lanes)]
        engine = Engine(
            members,
            compiled=lambda config, most: cached,
            keep=lambda index, member, outcome: {},
            load=lambda spot, like: like,
            watcher=Watcher(),
        )
        waiting = [*range(len(members))]

        class Queue:
            def take(self, like):
                return (waiting.pop(0), ()) if waiting else None

        engine.run(Queue())
        return asdict(engine.occupancy), cold.seconds, cached.seconds

    def memory(self) -> float:
        """GiB at the most: of the device where it says so, else of the process."""
        on_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return on_device / 2**30 if on_device else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def cached_in(folder: str) -> Iterator[None]:
    """Compiled programs are kept in this folder, all of them; after that as they were before."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (folder, 0.0), strict=True):
        jax.config.update(name, value)
    # JAX opens its cache once, and would go on with the folder of before.
    reset_cache()
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
        reset_cache()


class Crew:
    """Stations in processes of their own, one pinned to each core given, that do the same thing at the same time."""

    def __init__(self, setup: Setup, cores: Sequence[int]):
        env = {**os.environ, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "siitjax.bench.process"]
        pipes: Mapping[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
        self.processes = []
        for core in cores:
            with pinned(core):
                self.processes.append(subprocess.Popen([*command, json.dumps(asdict(setup))], **pipes))

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def ask(self, what: str, *arguments: Any) -> list[Any]:
        """What each station gives for a method of it; all run it at once.

        Raises:
            UserError: one of the processes has ended.
        """
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps([what, *arguments]) + "\n")
            process.stdin.flush()
        answers = [process.stdout.readline() if process.stdout else "" for process in self.processes]
        if not all(answers):
            raise UserError(f"a process that was timed is gone, at {what}; free some memory and try again")
        return [json.loads(answer) for answer in answers]


def in_turn(work: Mapping[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """What each gave in every run, taken turn by turn so that all see the same machine."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(runs):
        for name, function in work.items():
            found[name].append(function())
    return found


def main(argv: Sequence[str]) -> None:
    """The process of a crew: `argv` is its setup."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    setup = json.loads(argv[0])
    station = Station(Setup(**{**setup, "forms": tuple(setup["forms"])}))
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        answer = getattr(station, what)(*arguments)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
