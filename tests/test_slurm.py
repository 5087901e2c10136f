"""A sweep as jobs of a cluster: submitit's local executor, a job killed and one preempted, and the same rows."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from siitjax.base.errors import UserError
from siitjax.sweep.claims import Claims
from siitjax.sweep.results import Results
from siitjax.sweep.slurm import Cluster, Job, check
from sweeps.betas import Betas
from tests.commands import run
from tests.test_pool import QUICK, Run, assert_same

# Four members, long enough that a job is in the midst of one when it is killed: an epoch is one update.
FLAGS = (*QUICK, "--seeds=2", "--epochs=60", "--samples=400", "--batch_size=300", "--save_seconds=0.2")
ON_CORE = ("taskset", "--cpu-list", str(min(os.sched_getaffinity(0))))
"""As a worker is: XLA splits a sum over its threads."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "results"
    Run(folder, *FLAGS, "--lanes=1", before=ON_CORE).end(0)
    return folder


def holders(folder: Path) -> Iterator[int]:
    """The processes that have a member in training."""
    for path in sorted(folder.glob(".lock.member-*")):
        try:
            yield int(path.read_text())
        except (FileNotFoundError, ValueError):
            continue


KILLED = (signal.SIGKILL, "--lanes=1")
PREEMPTED = pytest.param(signal.SIGUSR2, "--workers=1", marks=pytest.mark.slow)


@pytest.mark.parametrize(("number", "how"), [KILLED, PREEMPTED], ids=["killed", "preempted"])
def test_jobs_share_a_sweep_and_one_that_is_lost_costs_no_row(whole, tmp_path, number, how):
    """Jobs that train in their own process, and such as have a worker."""
    pytest.importorskip("submitit")
    folder = tmp_path / "results"
    sweep = Run(folder, *FLAGS, how, "--slurm_jobs=2", "--slurm_cluster=local", before=ON_CORE)
    saved = lambda: [*folder.glob("checkpoints/*/*/about/metadata")]
    sweep.until(lambda: saved() and [*holders(folder)])
    os.kill(next(holders(folder)), number)
    said = sweep.end(0)
    assert "Submitted 2 jobs" in said
    assert ("1 job(s) were lost; as many are submitted in their place" in said) == (number == signal.SIGKILL)
    assert_same(folder, whole)


@pytest.mark.slow
def test_whoever_waits_may_leave_and_come_back(whole, tmp_path):
    pytest.importorskip("submitit")
    folder = tmp_path / "results"
    sweep = Run(folder, *FLAGS, "--workers=1", "--slurm_jobs=1", "--slurm_cluster=local")
    sweep.until(lambda: [*holders(folder)])
    os.kill(sweep.process.pid, signal.SIGINT)
    assert sweep.process.wait(30) == 130
    assert "the jobs go on without this process" in sweep.said
    assert "--resume waits for them and reports" in sweep.said
    again = Run(folder, *FLAGS, "--workers=1", "--slurm_jobs=1", "--slurm_cluster=local", "--resume")
    again.end(0)
    assert_same(folder, whole)


def test_a_member_is_taken_by_one_process_and_not_again_once_it_has_a_row(tmp_path):
    members = tuple(Betas(case="left_greater", seeds=1).members())
    ours, theirs = (Claims(Results(tmp_path, "?", members, host)) for host in (1, 2))
    assert ours.take(0)
    assert ours.take(0)  # again, as when its worker is lost
    assert theirs.is_held(0)
    assert not theirs.take(0)
    assert theirs.take(1)
    ours.results.append({"member": 0})
    ours.release(0)
    assert not theirs.take(0)
    assert not theirs.is_held(0)


def test_bad_input_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    folder = tmp_path / "results"
    both = "--slurm_jobs and --distributed are both given; a job is no host, so leave one out"
    for flags, said in (
        (("--distributed",), both),
        (("--slurm_cluster=slrm",), '--slurm_cluster is "slrm"; it must be one of slurm, local'),
        ((), "there is no sbatch here; submit from a machine that has SLURM, or try --slurm_cluster=local"),
    ):
        ended = run("-m", "sweeps.betas", *QUICK, "--slurm_jobs=2", *flags, f"--out={folder}", PATH="")
        assert (ended.code, ended.out) == (2, "")
        assert said in ended.err
        assert ended.err.count("\n") == 1
        assert not folder.exists()
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="needs submitit, which is not installed"):
        check(Cluster("local", "", 1, 1, 1, 0))


def test_a_job_is_put_back_as_it_was():
    submitit = pytest.importorskip("submitit")
    again = Job("sweeps.betas:Betas", ["--seeds=1"]).checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function == Job("sweeps.betas:Betas", ["--seeds=1"])
