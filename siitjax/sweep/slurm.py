"""A sweep as SLURM jobs that share its folder, by submitit: what submits them, waits, and replaces those that are lost.

Each job takes members that no other has (`siitjax.sweep.claims`), and keeps its rows in a file of its own. A job that
SLURM preempts, or that reaches its time limit, is put back into the queue by submitit; one that was killed otherwise is
submitted again from here. Either goes on from the members' checkpoints.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from shutil import which
from typing import Any

from rich.console import Console

from siitjax.base.command import parse
from siitjax.base.errors import UserError, one_line
from siitjax.base.files import Lock, hold
from siitjax.sweep.claims import Claims
from siitjax.sweep.processes.interrupt import Interrupt
from siitjax.sweep.processes.worker import find_question
from siitjax.sweep.results import LOCK, Results, ResultsError
from siitjax.sweep.rows import read_rows

CLUSTERS = ("slurm", "local")
POLL, SAY = 2.0, 60.0
"""Seconds between two looks at the jobs, and between two lines about them."""
PATIENCE = 60.0
"""Seconds to wait for jobs to end when all is trained."""
REQUEUED = 1_000
"""Times that a job may reach its time limit."""


@dataclass(frozen=True)
class Cluster:
    """Where the jobs run.

    Attributes:
        kind: "slurm", or "local": processes of this machine, to try things out.
        jobs: how many share the sweep.
        minutes: the time limit of each.
        cpus, gpus: what each is given.
    """

    kind: str
    partition: str
    jobs: int
    minutes: int
    cpus: int
    gpus: int


@dataclass
class Job:
    """What a job runs: the question, as `siitjax.questions.question.worker_words` has it."""

    question: str
    flags: Sequence[str]

    def __call__(self) -> None:
        from submitit import JobEnvironment

        # A number of its own, the same when it is requeued: 1234_5 is 12340005.
        job, _, index = str(JobEnvironment().job_id).partition("_")
        number = int(job) * 10_000 + int(index or 0)
        code = parse(find_question(self.question), [self.question, *self.flags, f"--slurm_job={number}"]).run()
        if code:
            raise RuntimeError(f"the sweep ended with exit code {code}")

    def checkpoint(self, *_: Any) -> Any:
        """What submitit puts back into the queue: the same, as what is trained is saved every few seconds."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def train(results: Results, job: Job, cluster: Cluster, log: Console) -> int | None:
    """Submits the jobs, and returns when every member has a row; or the signal that ended waiting.

    Raises:
        UserError: submitit or the cluster is not there.
        ResultsError: a job ended by an error, or too many were lost.
    """
    executor = _executor(results.folder / "slurm", cluster)
    claims, lost = Claims(results), 0
    with executor.batch():
        live = [executor.submit(job) for _ in range(cluster.jobs)]
    numbers = sorted({str(each.job_id).partition("_")[0] for each in live})
    log.print(f"Submitted {cluster.jobs} jobs ({' '.join(numbers)}); their logs are in {results.folder / 'slurm'}")
    said, before = -SAY, -1
    with Interrupt(lambda: None) as interrupt:
        while True:
            finished = {row["member"] for row in read_rows(results.folder)}
            missing = [i for i in range(len(results.members)) if i not in finished]
            if len(finished) > before or time.monotonic() - said > SAY:
                said, before = time.monotonic(), len(finished)
                log.print(f"{len(finished)} of {len(results.members)} members are finished; {len(live)} jobs are on")
            if not missing:
                _leave(live, results.folder)
                return None
            ended = [each for each in live if each.done()]
            live = [each for each in live if each not in ended]
            gone = sum(_was_lost(each, results) for each in ended)
            if not live and not gone and not any(map(claims.is_held, missing)):
                gone = 1  # what is missing was given up by a job that has ended, and none has it
            if gone:
                lost += gone
                if lost > cluster.jobs + 1:
                    raise ResultsError(
                        f"{lost} jobs were lost, and {len(missing)} members are not finished; see the logs in "
                        f"{results.folder / 'slurm'}, and --resume tries again"
                    )
                log.print(f"{gone} job(s) were lost; as many are submitted in their place")
                live += [executor.submit(job) for _ in range(gone)]
            if interrupt.event.wait(POLL):
                cancel = f"scancel {' '.join(numbers)}" if cluster.kind == "slurm" else f"kill {' '.join(numbers)}"
                log.print(
                    f"{len(finished)} of {len(results.members)} members are finished, and the jobs go on without this "
                    f"process. The same command with --resume waits for them and reports; {cancel} ends them."
                )
                return interrupt.signal


def _leave(live: Sequence[Any], folder: Path) -> None:
    """Waits for jobs that have nothing left to do, and takes away the locks that killed ones have left."""
    until = time.monotonic() + PATIENCE
    while not all(job.done() for job in live) and time.monotonic() < until:
        time.sleep(0.1)
    for path in folder.glob(f"{LOCK}.*"):
        if isinstance(lock := hold(path, patience=0.0), Lock):
            lock.release()


def check(cluster: Cluster) -> None:
    """Raises UserError where submitit or the cluster is not there; writes nothing."""
    try:
        import_module("submitit")
    except ImportError:
        raise UserError("--slurm_jobs needs submitit, which is not installed; pip install '.[slurm]'") from None
    if cluster.kind not in CLUSTERS:
        raise UserError(f'--slurm_cluster is "{cluster.kind}"; it must be one of {", ".join(CLUSTERS)}')
    if cluster.kind == "slurm" and which("sbatch") is None:
        raise UserError("there is no sbatch here; submit from a machine that has SLURM, or try --slurm_cluster=local")


def _executor(folder: Path, cluster: Cluster) -> Any:
    import submitit

    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster.kind, slurm_max_num_timeout=REQUEUED)
    except RuntimeError as error:
        raise UserError(f"submitit cannot use the cluster: {one_line(error)}") from None
    given = {"slurm_partition": cluster.partition} if cluster.partition else {}
    executor.update_parameters(
        name="siitjax",
        timeout_min=cluster.minutes,
        cpus_per_task=cluster.cpus,
        **({"gpus_per_node": cluster.gpus} if cluster.gpus else {}),
        **given,
    )
    return executor


def _was_lost(job: Any, results: Results) -> bool:
    """Whether a job that has ended was killed. Raises ResultsError where it ended by an error, as others would."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        error = job.exception()
    except UncompletedJobError:
        return True
    if isinstance(error, FailedJobError) and "UncompletedJobError" not in str(error):
        last = str(error).strip().splitlines()[-1]
        raise ResultsError(f"job {job.job_id} ended by an error ({last}); its log is in {results.folder / 'slurm'}")
    return error is not None
