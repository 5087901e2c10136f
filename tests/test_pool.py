"""Real processes: workers, hosts, lanes and meshes give the same members; what is killed, interrupted, full or held by
another ends in one line, and loses nothing.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from siitjax.base.command import parse
from siitjax.base.files import Lock, hold
from siitjax.questions.question import worker_words
from siitjax.sweep.processes.worker import find_question
from sweeps.betas import Betas
from tests.commands import HANGS, in_one_process, promptly

QUICK = ("--case=tests.tiny:NEVER", "--updates=single")
"""What each process compiles in the least time: one bucket of the smallest case."""
SMALL = (*QUICK, "--seeds=2", "--epochs=3", "--samples=200", "--batch_size=40")
"""Four members, each trained in a moment."""
LONG = (*QUICK, "--seeds=1", "--epochs=100000", "--samples=4000", "--batch_size=3000", "--save_seconds=0.2")
"""Two members, each trained for minutes: an epoch is one update."""
SECONDS = 8.0
"""In which a run ends that was interrupted, also while it compiles what takes a quarter of a minute; see `promptly`."""

WEIGHTS_OFF = 1e-3
"""Of weights where XLA adds up in another order, as it does with another number of threads: one whole step of Adam."""
METRICS_OFF = 2 / 40
"""Of metrics, for the same reason: two of the 40 strings that are validated on."""

# A shell that starts the tests in the background has them ignore SIGINT, and so would their children.
HEEDING = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
if os.environ.get("ON_CORE"):
    os.sched_setaffinity(0, {int(os.environ["ON_CORE"])})
from siitjax.base.command import main
from sweeps.betas import Betas
main(Betas)
"""
COMMAND = (sys.executable, "-c", HEEDING)
AS_USERS: dict[str, Any] = {"XLA_FLAGS": ""}
"""Compiled as users' runs are: what one lane and several give is the same to the last bit only so."""
UNCACHED: dict[str, Any] = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
"""Compiled for seconds, so that a signal comes in the middle of it."""
Rows = list[dict]


running: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_left():
    """Ends what a test that failed has left."""
    yield
    while running:
        process = running.pop()
        process.kill()
        process.wait()


class Run:
    """A sweep in a process of its own, and what it said so far."""

    def __init__(self, folder: Path, *flags: str, before: tuple[str, ...] = (), **env: str):
        self.folder, self.log = folder, folder.with_name(f"{folder.name}.{len(flags)}.{time.monotonic_ns()}.log")
        command = [*before, *COMMAND, *flags, f"--out={folder}"]
        with open(self.log, "wb") as said:
            self.process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, **env})
        running.append(self.process)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, true: Callable[[], object]) -> "Run":
        """Waits for something to be so while the run goes on."""
        end = time.monotonic() + HANGS
        while not true():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.01)
        return self

    def until_said(self, words: str, times: int = 1) -> "Run":
        return self.until(lambda: self.said.count(words) >= times)

    def children(self) -> list[int]:
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout.split()
        return [int(word) for word in found]

    def end(self, code: int, within: float = HANGS) -> str:
        """What was said, after it ended with this code in so many seconds, and without a traceback."""
        children = self.children()
        assert self.process.wait(within) == code, self.said
        end = time.monotonic() + promptly(5)
        while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < end:
            time.sleep(0.05)
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()], "a child is left"
        assert "Traceback" not in self.said
        return self.said


def rows(folder: Path) -> Rows:
    """The rows of all hosts, without their wall time."""
    lines = [line for path in folder.glob("rows*.jsonl") for line in path.read_text().splitlines()]
    found = sorted(map(json.loads, lines), key=lambda row: row["member"])
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same(folder: Path, whole: Path) -> None:
    """A finished folder holds the rows and the members of another, bit for bit, and nothing of what made it."""
    assert rows(folder) == rows(whole)
    assert files(folder / "members") == files(whole / "members")
    assert (folder / "summary.json").exists()
    assert not [path.name for path in folder.iterdir() if path.name.startswith((".lock", "checkpoints"))]


def last_line(said: str) -> str:
    """What a refusal says: one line, the last."""
    line = said.splitlines()[-1]
    assert line.startswith("betas: "), said
    assert said.count("betas: ") == 1
    return line


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The sweep on one worker."""
    folder = tmp_path_factory.mktemp("pool") / "whole"
    Run(folder, *SMALL, "--workers=1").end(0)
    assert len(rows(folder)) == 4
    return folder


@pytest.fixture(scope="module")
def whole_as_users(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pool") / "whole"
    Run(folder, *SMALL, "--workers=1", **AS_USERS).end(0)
    return folder


ON_STANDARD_INPUT = """
import os, sys
from dataclasses import dataclass
os.sched_setaffinity(0, {int(os.environ["ON_CORE"])})
from sweeps.betas import Betas

@dataclass(frozen=True)
class Mine(Betas):
    pass

small = dict(seeds=2, epochs=3, samples=200, batch_size=40)
question = Mine(case="tests.tiny:NEVER", updates=("single",), **small, out=os.environ["OUT"])
sys.exit(question.run())
"""


def test_a_question_of_no_file_is_run_in_its_own_process_to_the_same_rows(whole, tmp_path):
    folder = tmp_path / "results"
    env = {**os.environ, "ON_CORE": str(min(os.sched_getaffinity(0))), "OUT": str(folder)}
    ended = subprocess.run(
        [sys.executable], input=ON_STANDARD_INPUT, env=env, capture_output=True, text=True, timeout=HANGS
    )
    assert ended.returncode == 0, ended.stderr
    assert "All in this process: no other can import Mine, which is in no file." in ended.stderr
    assert_same(folder, whole)


@dataclass(frozen=True)
class Written(Betas):
    """A question that a worker finds in this file."""


def test_only_what_stands_in_a_file_is_given_to_workers():
    @dataclass(frozen=True)
    class Local(Betas):
        pass

    made: dict[str, Any] = {"__name__": __name__}
    exec("from sweeps.betas import Betas\nclass Made(Betas): pass", made)
    assert worker_words(Local()) is worker_words(made["Made"]()) is None
    for question in (Betas(seeds=3), Written(seeds=3)):
        name, flags = worker_words(question) or ("", [])
        assert parse(find_question(name), [name, *flags]) == question


@pytest.fixture
def unfinished(whole, tmp_path) -> Path:
    """The sweep with three of its rows, the third of them cut short by a crash, and a lock that nobody holds."""
    folder = tmp_path / "results"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("summary.json", "figure*"))
    lines = (folder / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "rows.jsonl").write_bytes(b"".join(lines[:3])[:-40])
    (folder / ".lock").write_text("1\n")
    return folder


def test_two_workers_give_the_same_members(whole, tmp_path):
    said = Run(tmp_path / "results", *SMALL, "--workers=2").end(0)
    assert "4 members to train, 2 at once, each on a core of its own" in said
    assert_same(tmp_path / "results", whole)


@pytest.mark.slow  # tests/test_engine.py has the same within one process
def test_lanes_of_one_process_give_the_same_members(whole_as_users, tmp_path):
    """On one core, as a worker is: XLA splits a sum over its threads."""
    core = str(min(os.sched_getaffinity(0)))
    said = Run(tmp_path / "results", *SMALL, "--lanes=3", ON_CORE=core, **AS_USERS).end(0)
    assert "4 members to train, 3 at once, on 1 device(s)" in said
    assert_same(tmp_path / "results", whole_as_users)


@pytest.mark.slow
def test_two_hosts_give_the_same_members(whole, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        cluster = ("--distributed", f"--coordinator=127.0.0.1:{free.getsockname()[1]}", "--hosts=2", "--workers=1")
    folder = tmp_path / "results"
    hosts = [Run(folder, *SMALL, *cluster, f"--host={i}") for i in range(2)]
    for host in hosts:
        assert "2 members to train" in host.end(0)
    assert {path.name: path.read_text().count("\n") for path in folder.glob("rows*")} == {
        "rows.jsonl": 2,
        "rows.1.jsonl": 2,
    }
    assert_same(folder, whole)


def test_a_mesh_gives_the_same_members_but_for_rounding(whole, tmp_path):
    folder = tmp_path / "results"
    said = Run(folder, *SMALL, "--devices=8", "--lanes=8").end(0)
    assert "8 at once, on 8 device(s)" in said
    for ours, theirs in zip(rows(folder), rows(whole), strict=True):
        for key, value in theirs.items():
            if key == "counts":
                for name, tally in value.items():
                    assert ours[key][name]["of"] == tally["of"], name
                    off = np.abs(np.subtract(ours[key][name]["right"], tally["right"]))
                    assert (off <= METRICS_OFF * np.array(tally["of"])).all(), name
            elif isinstance(value, float) or (isinstance(value, list) and not isinstance(value[0], str)):
                np.testing.assert_allclose(np.array(ours[key], float), np.array(value, float), atol=METRICS_OFF)
            else:
                assert ours[key] == value, key
    for path in whole.glob("members/*.safetensors"):
        ours, theirs = load_file(folder / "members" / path.name), load_file(path)
        assert ours.keys() == theirs.keys()
        for name, weight in theirs.items():
            if "b_K" not in name:  # whose gradient is 0 but for rounding, which Adam makes whole steps of
                np.testing.assert_allclose(ours[name], weight, rtol=0, atol=WEIGHTS_OFF, err_msg=name)


def kill_worker(run: Run) -> int:
    """Kills the run's one worker; its number."""
    (worker,) = run.children()
    os.kill(worker, signal.SIGKILL)
    return worker


def test_a_member_whose_worker_is_killed_is_run_again(whole, tmp_path):
    run = Run(tmp_path / "results", *SMALL, "--workers=1", **UNCACHED).until_said("compiling")
    kill_worker(run)
    assert "member 0: its worker was lost (killed by SIGKILL, as the system does when memory runs out)" in run.end(0)
    assert_same(tmp_path / "results", whole)


@pytest.mark.slow
def test_a_member_whose_workers_are_killed_twice_is_given_up_and_the_others_are_kept(whole, tmp_path):
    folder = tmp_path / "results"
    run = Run(folder, *SMALL, "--workers=1", **UNCACHED)
    for life in (1, 2):
        killed = kill_worker(run.until_said("compiling", life))
        run.until(lambda killed=killed: killed not in run.children())
    line = last_line(run.end(2))
    assert "1 member(s) were given up after two workers were lost, such as member 0 (killed by SIGKILL" in line
    assert "3 of 4 are kept" in line
    assert rows(folder) == rows(whole)[1:]
    Run(folder, *SMALL, "--workers=1", "--resume").end(0)
    assert_same(folder, whole)


@pytest.mark.parametrize(
    ("where", "number", "code", "doing"),
    [
        ("--lanes=2", signal.SIGINT, 130, "compiling"),
        ("--workers=1", signal.SIGTERM, 143, "training"),
        pytest.param("--workers=1", signal.SIGINT, 130, "compiling", marks=pytest.mark.slow),
        pytest.param("--lanes=2", signal.SIGTERM, 143, "training", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_run_within_seconds_and_it_says_how_to_go_on(tmp_path, where, number, code, doing):
    folder = tmp_path / "results"
    slow = AS_USERS | UNCACHED if doing == "compiling" else {}
    run = Run(folder, *LONG, where, **slow).until_said("compiling")
    if doing == "training":
        run.until(lambda: [*folder.glob("checkpoints/*/[0-9]*[0-9]/about/metadata")])
    run.process.send_signal(number)
    said = run.end(code, promptly(SECONDS))
    assert "Interrupted; 0 of 2 members are finished and kept" in said
    assert said.endswith("Go on with the same command and --resume.\n")
    lock = hold(folder / ".lock")
    assert isinstance(lock, Lock)
    lock.release()


def test_a_second_interrupt_leaves_at_once(tmp_path):
    """The worker is made to sleep, so that the first has to wait for it."""
    run = Run(tmp_path / "results", *SMALL, "--workers=1", **UNCACHED).until_said("compiling")
    (worker,) = run.children()
    os.kill(worker, signal.SIGSTOP)
    run.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(1.0)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(promptly(1.0)) == 130
    os.kill(worker, signal.SIGCONT)
    end = time.monotonic() + promptly(5)
    while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
    assert "Traceback" not in run.said


def test_a_folder_that_another_process_holds_is_not_touched(unfinished):
    lock = hold(unfinished / ".lock")
    assert isinstance(lock, Lock)
    before = files(unfinished)
    said = Run(unfinished, *SMALL, "--resume").end(2)
    assert f"is in use by process {os.getpid()}; wait for it, stop it, or choose another --out" in last_line(said)
    assert files(unfinished) == before
    lock.release()


def test_a_row_cut_short_is_dropped_and_a_lock_that_nobody_holds_is_no_obstacle(whole, unfinished):
    said = Run(unfinished, *SMALL, "--workers=1", "--resume").end(0)
    assert "2 members to train" in said
    assert_same(unfinished, whole)


def unshared(script: str) -> tuple[str, ...]:
    """What runs a command with a mount of its own, made by the script; skips where the kernel refuses that."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    wrapped = ("unshare", "-rm", "sh", "-ec", f'{script}; "$@"', "sh")
    tried = subprocess.run([*wrapped, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"the kernel refuses a mount: {tried.stderr.strip()}")
    return wrapped


@pytest.mark.parametrize(
    ("size", "flags"),
    [
        ("40k", ["--workers=1"]),
        pytest.param("120k", ["--workers=2"], marks=pytest.mark.slow),
        pytest.param("100k", ["--lanes=2", "--save_seconds=0"], marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_one_line_and_what_was_written_is_whole(whole_as_users, tmp_path, size, flags):
    small = tmp_path / "small"
    small.mkdir()
    keep = f"trap 'cp -a {small}/results {tmp_path} || :' EXIT"
    before = unshared(f"mount -t tmpfs -o size={size} tmpfs {small}; {keep}")
    line = last_line(Run(small / "results", *SMALL, *flags, before=before, **AS_USERS).end(2))
    assert "No space left on device" in line
    assert "make room" in line
    folder = tmp_path / "results"
    for row in rows(folder):
        assert row == rows(whole_as_users)[row["member"]]
        for kind in ("csv", "safetensors"):
            name = f"members/{row['member']:04d}.{kind}"
            assert (folder / name).read_bytes() == (whole_as_users / name).read_bytes()
    if size == "40k":
        Run(folder, *SMALL, "--workers=1", "--resume", **AS_USERS).end(0)
        assert_same(folder, whole_as_users)


def test_a_folder_that_cannot_be_written_is_one_line(unfinished):
    before = files(unfinished)
    wrapped = unshared(f"mount --bind {unfinished} {unfinished}; mount -o remount,bind,ro {unfinished}")
    said = Run(unfinished, *SMALL, "--resume", before=wrapped).end(2)
    assert "cannot be used (Read-only file system); make room, or choose an --out that can" in last_line(said)
    assert files(unfinished) == before


def test_flags_that_do_not_go_together_get_one_line_and_create_nothing(tmp_path):
    out = f"--out={tmp_path / 'results'}"
    refused = {
        ("--distributed", "--hosts=2", "--host=2"): "--host is 2, but there are 2 hosts, counted from 0; lower it",
        ("--distributed",): "--distributed found no cluster (.*); give --coordinator=host:port, --hosts=N and --host=I",
        ("--host=-2",): "--host is -2; it must be at least -1",
        ("--devices=2", "--workers=2"): "--workers and --devices exclude each other",
        ("--devices=2", "--lanes=3"): "--lanes is 3; it must be a multiple of the 2 devices",
    }
    with in_one_process() as commands:  # its own, since the number of devices is chosen before the first is used
        ended = commands(Betas, *((*SMALL, *flags, out) for flags in refused))
    for (code, said, err), words in zip(ended, refused.values(), strict=True):
        assert (code, said) == (2, ""), err
        assert re.fullmatch(f"betas: {words.replace('(.*)', '@').replace('@', '[^)]*.*')}.*\n", err), err
    assert list(tmp_path.iterdir()) == []
