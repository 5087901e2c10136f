"""A research question as a command: a results folder, members trained, a table, a picture, a sentence.

A question is a frozen dataclass, one field a flag (see sweeps/betas.py). Running it trains the members that it lists
and have no row yet, and ends with its table, its picture and its sentence.
"""

import ast
import json
import os
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
from rich.console import Console
from rich.table import Table

from siitjax.base.command import MOST_SEEDS, Command, as_flags, flag
from siitjax.base.errors import UserError
from siitjax.base.files import replaced
from siitjax.base.precision import MatmulPrecision
from siitjax.causal import registry
from siitjax.causal.case import Case
from siitjax.causal.validate import check_labels
from siitjax.questions.report import Verdict, summarise, summary, table
from siitjax.questions.statistics.ranks import Differences
from siitjax.siit.config import TrainConfig, Updates
from siitjax.siit.objective import DrawnPer, Sampling
from siitjax.sweep import hosts, slurm
from siitjax.sweep.checkpoint import find, forget
from siitjax.sweep.claims import Claims
from siitjax.sweep.engine import Member, Occupancy
from siitjax.sweep.placement import Policy, choose_policy, use_compilation_cache
from siitjax.sweep.processes.launch import launch
from siitjax.sweep.progress import Progress
from siitjax.sweep.results import Results, ResultsError, Row

Words = tuple[str, list[str]]
"""What a worker process is told of a question: where its class is, and its flags."""


@dataclass(frozen=True)
class Sweep(Command):
    """Members that are trained into a results folder: where they run, and what is said of them at the end."""

    title: ClassVar[str]
    """What it is about, as the reports print it."""

    workers: int = flag(0, "processes on CPU, each of which trains one member at a time; 0: one a core", least=0)
    lanes: int = flag(0, "members trained side by side by one program; 0: 1 on CPU, elsewhere as many as fit", least=0)
    devices: int = flag(0, "devices that the lanes are split over; 0: all; on CPU they are virtual", least=0)
    distributed: bool = flag(False, "this process is one of several hosts that share --out")
    coordinator: str = flag("", "host:port of the first host; empty: what JAX, SLURM or the TPU says")
    hosts: int = flag(0, "number of hosts that share --out; 0: what the cluster says", least=0)
    host: int = flag(-1, "number of this host, counted from 0; -1: what the cluster says", least=-1)
    slurm_jobs: int = flag(0, "SLURM jobs that share --out, which this process submits and waits for; 0: none", least=0)
    slurm_partition: str = flag("", "partition of the jobs; empty: the cluster's own")
    slurm_minutes: int = flag(240, "time limit of a job, which goes on in the next one", least=1)
    slurm_gpus: int = flag(0, "GPUs of a job; it has as many cores as --workers, one at least", least=0)
    slurm_cluster: str = flag("slurm", "slurm, or local: processes of this machine, to try it out")
    slurm_job: int = flag(0, "number of this job, which jobs are given when they start", least=0, most=2**62)
    save_seconds: float = flag(10.0, "seconds between two checkpoints of the members in training", least=0)
    out: str = flag("", "folder of the results; empty: one in results/, named by the question and the case")
    resume: bool = flag(False, "go on with an unfinished results folder")
    config_only: bool = flag(False, "print the full config as JSON, and train nothing")

    @property
    @abstractmethod
    def about(self) -> str:
        """The case that is trained, as the folder and the reports name it."""

    @property
    def folder(self) -> Path:
        """The results folder: --out, or one that is named by the question and what it is about."""
        return Path(self.out) if self.out else Path("results") / f"{type(self).__name__.lower()}-{self.about}"

    @property
    def goes_on(self) -> bool:
        """Whether the folder may hold the sweep unfinished."""
        return self.resume or self.distributed or self.slurm_job > 0

    @property
    def _submits(self) -> bool:
        """Whether this process submits jobs, and is none itself."""
        return self.slurm_jobs > 0 and not self.slurm_job

    @property
    def _cluster(self) -> slurm.Cluster:
        return slurm.Cluster(
            self.slurm_cluster,
            self.slurm_partition,
            self.slurm_jobs,
            self.slurm_minutes,
            max(self.workers, 1),
            self.slurm_gpus,
        )

    @abstractmethod
    def members(self) -> Sequence[Member]:
        """Everything to train."""

    @abstractmethod
    def verdict(self, rows: Sequence[Row]) -> Verdict:
        """What the rows say."""

    def comparisons(self, rows: Sequence[Row]) -> Mapping[str, Differences]:
        """The ratios of epochs that the verdict rests on, by name: the picture shows them."""
        return {}

    def measure(self, rows: Sequence[Row], results: Results) -> Iterator[Row]:
        """What a question measures of these members' weights and curves: a row each, with "member" and what is new."""
        yield from ()

    def tables(self, rows: Sequence[Row]) -> Sequence[Table]:
        """What is printed before the verdict: one table a setting, unless a question adds to it."""
        return [table(summarise(rows), f"{self.title} ({self.about})")]

    def picture(self, rows: Sequence[Row], verdict: Verdict, path: Path) -> None:
        """Draws the picture, a png or a pdf as the path says: convergence and ratios, unless a question has its own."""
        from siitjax.questions.pictures import picture

        picture(rows, self.comparisons(rows), f"{self.title} ({self.about})\n{verdict.kind.capitalize()}", path)

    def run(self) -> int:
        """Trains what has no row yet, and reports; 130 or 143 when a signal ended it."""
        if self.slurm_jobs and self.distributed:
            raise UserError("--slurm_jobs and --distributed are both given; a job is no host, so leave one out")
        if self._submits:
            slurm.check(self._cluster)
        if self.devices:
            jax.config.update("jax_num_cpu_devices", self.devices)
        if self.distributed:
            hosts.join(self.coordinator, self.hosts, self.host)
        members = tuple(self.members())
        host = jax.process_index() if self.distributed else self.slurm_job
        results = Results(self.folder, self.title, members, host, shared=bool(self.slurm_jobs))
        if self.config_only:
            print(json.dumps(results.config(), indent=1))
            return 0
        screen = Console(width=None if sys.stdout.isatty() else 160)
        rows = results.check(resume=self.goes_on)
        if rows is not None and len(rows) == len(members) and results.is_finished():
            _show(self, self.measured(rows, results), screen)
            screen.print(f"{results.folder} was finished before; nothing was changed.", soft_wrap=True, highlight=False)
            return 0
        for case in dict.fromkeys(member.config.case for member in members):
            check_labels(case)
        use_compilation_cache()
        policy, worker = choose_policy(self.workers, self.lanes, self.devices), worker_words(self)
        if policy.workers and worker is None:
            policy = replace(policy, workers=0)
        with results.held() as lock:
            if self._submits:
                return self._submit(results, worker, screen)
            return self._train(results, policy, worker, lock, screen)

    def _submit(self, results: Results, worker: Words | None, screen: Console) -> int:
        if worker is None:
            raise UserError(f"no job could import {type(self).__name__}, which is in no file; write it into one")
        results.begin(resume=self.resume)
        log = Console(stderr=True, soft_wrap=True, highlight=False)
        ended = slurm.train(results, slurm.Job(*worker), self._cluster, log)
        return 128 + ended if ended is not None else self._report(results, None, screen)

    def _train(self, results: Results, policy: Policy, worker: Words | None, lock: int, screen: Console) -> int:
        log = Console(stderr=True, soft_wrap=True)
        done = {row["member"] for row in results.begin(resume=self.goes_on)}
        waiting = [i for i in range(len(results.members)) if i not in done]
        if not results.host:
            spots = find(results.checkpoints, results.digest)
            forget(results.checkpoints, {index: spots[index] for index in waiting if index in spots})
        if self.distributed:
            hosts.wait("begin")
        waiting = hosts.ours(waiting)
        ended, claims = None, Claims(results) if self.slurm_job else None
        if waiting:
            log.print(f"{len(waiting)} members to train, {policy.words(len(waiting))}", highlight=False)
            if worker is None and jax.default_backend() == "cpu":
                log.print(f"All in this process: no other can import {type(self).__name__}, which is in no file.")
            with Keeper(results, log, len(waiting), claims) as progress:
                ended = launch(results, waiting, policy, progress, self.save_seconds, worker, lock, claims)
        kept = len(results.check(resume=True) or ())
        if ended is not None and ended.signal is not None:
            log.print(
                f"Interrupted; {kept} of {len(results.members)} members are finished and kept in {results.folder}, "
                "and what was in training is saved. Go on with the same command and --resume.",
                highlight=False,
            )
            if self.distributed:
                hosts.leave()
            return replace(ended, at_once=ended.at_once or self.distributed).leave()
        if ended is not None and ended.given_up:
            index, cause = next(iter(ended.given_up.items()))
            raise ResultsError(
                f"{len(ended.given_up)} member(s) were given up after two workers were lost, such as member {index} "
                f"({cause}); {kept} of {len(results.members)} are kept in {results.folder}, and --resume tries again"
            )
        if self.distributed:
            hosts.wait("end")
            if jax.process_index():
                return 0
        if self.slurm_job:
            return 0  # the process that submitted it reports
        return self._report(results, ended.occupancy if ended else None, screen)

    def _report(self, results: Results, occupancy: Occupancy | None, screen: Console) -> int:
        from siitjax.questions.pictures import curves_picture

        rows = self.measured(results.check(resume=True) or [], results)
        verdict = _show(self, rows, screen)
        busy = {} if occupancy is None else {"occupancy": occupancy.shares()}
        forget(results.checkpoints)
        with results.usable():
            for kind in ("png", "pdf"):
                with replaced(results.folder / f"figure.{kind}") as path:
                    self.picture(rows, verdict, path)
            with replaced(results.folder / "curves.png") as path:
                curves_picture(results, rows, f"{self.title} ({self.about})", path)
            results.finish({**summary(summarise(rows), verdict), **busy})
        screen.print(f"Results, weights and picture: {results.folder}", soft_wrap=True, highlight=False)
        return 0

    def measured(self, rows: Sequence[Row], results: Results) -> list[Row]:
        """The rows with what `measure` gives, which is kept in the folder's measured.jsonl."""
        with results.usable():
            kept = {row["member"]: row for row in results.measured.read()}
            missing = [row for row in rows if row["member"] not in kept]
            results.measured.repair()
            for found in self.measure(missing, results):
                results.measured.append(found)
                kept[found["member"]] = found
        return [row | kept.get(row["member"], {}) for row in rows]


@dataclass(frozen=True)
class Question(Sweep):
    """One research question: what to train, and what the rows say."""

    title: ClassVar[str]
    """The question, as the reports print it."""

    case: str = flag("left_greater", "a task by name or number, several with + between (1+2), or path/to/file.py:CASE")
    width_factor: float = flag(
        0.0, "several tasks: d_model, as a multiple of the largest task's; 0: 32, or more where heads need it", least=0
    )
    seeds: int = flag(16, "members a setting; their seeds count from --first_seed", least=1, most=MOST_SEEDS)
    first_seed: int = flag(0, "the first seed: a later sweep adds seeds to an earlier one", least=0)
    epochs: int = flag(100, "passes over the training strings at most; the learning rate falls until the last", least=1)
    samples: int = flag(10_000, "strings a task: four fifths are trained on, one fifth is validated on", least=1)
    batch_size: int = flag(256, "pairs of a base and a source a batch", least=1)
    init_gain: float = flag(1.0, "gain of the Xavier normal first weights; the shipped models have 0.18")
    drawn_per: DrawnPer = flag("batch", "draw what is swapped for each batch, or for each example: batch or example")
    embedding: bool = flag(
        False, "count the embedding as a node of the circuit, as the original did; its swap is the source run"
    )
    matmul_precision: MatmulPrecision = flag(
        "highest", "precision of matrix products on GPUs and TPUs: highest (float32), high, or default (fastest)"
    )

    @property
    def about(self) -> str:
        return registry.short_name(self.case)

    @property
    def every_seed(self) -> range:
        """The seeds of each setting."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def build(self, **layout: Any) -> Case:
        """The case that is asked for; `layout` as `siitjax.causal.registry.build` takes it."""
        return registry.build(self.case, **{"width_factor": self.width_factor, "init_gain": self.init_gain, **layout})

    def train_config(self, case: Case, updates: Updates = "single", **sampling: Any) -> TrainConfig:
        """How a case is trained; `sampling` is what differs from the flags."""
        how = Sampling(**{"drawn_per": self.drawn_per, "embedding": self.embedding, **sampling})
        samples = self.samples * max(len(case.tasks), 1)
        return TrainConfig(case, self.epochs, self.batch_size, samples, updates, how, self.matmul_precision)


class Keeper(Progress):
    """Progress that appends each row to the results before it is shown."""

    def __init__(self, results: Results, log: Console, waiting: int, claims: Claims | None = None):
        super().__init__(log, waiting, 0)
        self.results, self.claims = results, claims

    def finished(self, index: int, member: Member, row: Row) -> None:
        with self.lock:
            self.results.append(row)
            if self.claims is not None:
                self.claims.release(index)
        super().finished(index, member, row)


def worker_words(question: Sweep) -> Words | None:
    """What a worker is told of the question. None where it could not import the class: one of a notebook, of standard
    input, of exec, or of a function."""
    kind = type(question)
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if module is None or file is None or not _defines(Path(file), kind.__qualname__):
        return None
    name = kind.__module__
    if name == "__main__":
        name = os.path.abspath(file) if module.__spec__ is None else module.__spec__.name
    return f"{name}:{kind.__name__}", as_flags(question)


def _defines(file: Path, name: str) -> bool:
    """Whether a class of that name is written in the file, not within anything else."""
    if file.suffix != ".py" or not file.exists():
        return False
    return any(isinstance(line, ast.ClassDef) and line.name == name for line in ast.parse(file.read_bytes()).body)


def _show(question: Sweep, rows: Sequence[Row], screen: Console) -> Verdict:
    verdict = question.verdict(rows)
    for found in question.tables(rows):
        screen.print(found)
    screen.print(str(verdict), soft_wrap=True, highlight=False)
    return verdict
