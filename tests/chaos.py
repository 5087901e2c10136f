"""Kills a sweep again and again, and shows that nothing of it is lost.

    python -m tests.chaos --kills=50
    python -m tests.chaos --tear

One sweep runs undisturbed. The same sweep is then killed (SIGKILL) at random moments, and resumed, on one or two
workers, until it is finished: its rows and weights must be those of the undisturbed one, bit for bit. A line a kill
says what was killed, and what it was doing. With --tear nothing is killed, and each file is torn at every byte of its
last write: see tests/tear.py.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from siitjax.base.command import Command, flag, main
from tests.tear import everything

SWEEP = ("--seeds=2", "--save_seconds=0.2")
QUICK = (*SWEEP, "--case=tests.tiny:NEVER", "--updates=single", "--epochs=60", "--samples=1000")
"""Four members of one compilation, of the smallest case."""
WHOLE = (*SWEEP, "--beta2=0.9", "--epochs=25", "--samples=4000")
"""Four members of two compilations: of one and of three updates a batch."""
RUN_SECONDS = 9.0
"""About what an undisturbed run takes on one worker: kills come within this time."""
LAST = 600.0
"""Seconds after which a run is taken to hang."""

PLACES = {
    "checkpoints/*/*tmp*": "saving a checkpoint",
    ".*.new": "writing a file",
    "members/.*.new": "writing a file",
}
"""What lies in a folder while something is written there."""

Contents = dict[str, object]


def contents(folder: Path) -> Contents:
    """The rows, without their wall time, and the bytes of every member's files."""
    lines = (folder / "rows.jsonl").read_text().splitlines()
    rows = sorted((json.loads(line) for line in lines), key=lambda row: row["member"])
    files = {path.name: path.read_bytes() for path in sorted((folder / "members").iterdir())}
    return {"rows": [{k: v for k, v in row.items() if k != "seconds"} for row in rows], **files}


def start(folder: Path, workers: int, sweep: tuple[str, ...], *, cached: bool = True) -> subprocess.Popen[bytes]:
    """The sweep, begun or resumed, in a process group of its own."""
    flags = (f"--workers={workers}", f"--out={folder}", "--resume")
    command = [sys.executable, "-m", "sweeps.betas", *sweep, *flags]
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": str(cached).lower()}
    if sweep is WHOLE:  # compiled as users' runs are
        env["XLA_FLAGS"] = ""
    said = open(folder.with_suffix(".log"), "wb")  # noqa: SIM115 (the process keeps it)
    return subprocess.Popen(command, stdout=said, stderr=said, env=env, start_new_session=True)


def workers_of(pid: int) -> list[int]:
    """The live children of a process."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(word) for word in found]


def doing(folder: Path, since: float) -> str:
    """What a run that began at `since` does just now, by what lies in its folder and what it said last."""
    for pattern, words in PLACES.items():
        with contextlib.suppress(FileNotFoundError):  # it is done, or taken away, just now
            # An earlier kill may have left others.
            if any(path.stat().st_mtime > since for path in folder.glob(pattern)):
                return words
    lines = folder.with_suffix(".log").read_text().splitlines()
    if lines and lines[-1].endswith("compiling"):
        return "compiling or training"
    return "training" if any("epochs" in line for line in lines) else "starting"


@dataclass(frozen=True)
class Chaos(Command):
    """Kills a sweep at random moments, resumes it, and compares what comes out with an undisturbed run."""

    kills: int = flag(50, "how many", least=1)
    seed: int = flag(0, "decides the moments", least=0)
    quick: bool = flag(False, "kill a sweep of the smallest case, which is compiled in the least time")
    tear: bool = flag(False, "tear every file at every byte of its last write instead, and go on from there")
    every: int = flag(1, "of these bytes, one in so many", least=1)

    def run(self) -> int:
        with tempfile.TemporaryDirectory() as name:
            return self._tear(Path(name)) if self.tear else self._run(Path(name))

    def _tear(self, home: Path) -> int:
        times = well = 0
        for torn in everything(home, self.every):
            print(torn, flush=True)
            times, well = times + torn.times, well + torn.well
        print(f"{well} of {times} tears lost nothing", flush=True)
        return 0 if well == times else 1

    def _run(self, home: Path) -> int:
        whole, folder, sweep = home / "undisturbed", home / "killed", QUICK if self.quick else WHOLE
        began = time.monotonic()
        if start(whole, 2, sweep).wait(LAST) != 0:
            raise ValueError(f"the undisturbed run failed: {whole.with_suffix('.log').read_text()[-300:]}")
        expected, rng = contents(whole), random.Random(self.seed)
        print(f"undisturbed: {len(expected) - 1} files, {time.monotonic() - began:.0f} s", flush=True)
        killed = same = pending = 0
        while killed < self.kills or pending:
            cached, workers = rng.random() < 0.8, rng.choice((1, 2))
            process = start(folder, workers, sweep, cached=cached)
            if killed < self.kills and self._kill(process, folder, rng, killed + 1, workers):
                killed, pending = killed + 1, pending + 1
            code = process.wait(LAST)
            log = folder.with_suffix(".log").read_text()
            if code == 0:
                good = contents(folder) == expected
                print(f"      finished after {pending} kills: {'bit-identical' if good else 'DIFFERENT'}", flush=True)
                same, pending = same + pending * good, 0
                shutil.rmtree(folder)
            elif code != -signal.SIGKILL and "--resume tries again" not in log:
                print(f"      exit {code}: {log[-300:]}", flush=True)
                return 1
        print(f"{same} of {killed} kills bit-identical", flush=True)
        return 0 if same == killed else 1

    def _kill(self, process: subprocess.Popen[bytes], folder: Path, rng: random.Random, n: int, workers: int) -> bool:
        """Kills something of the run at some moment; false where it was finished before."""
        began, since = time.monotonic(), time.time()
        until = began + rng.uniform(0.3, RUN_SECONDS)
        sought = rng.choice(("", "", "saving a checkpoint", "writing a file"))
        while time.monotonic() < until:
            if process.poll() is not None:
                return False
            if sought and doing(folder, since) == sought:
                break
            time.sleep(0.002 if sought else 0.02)
        what, seen = rng.choice(("the sweep", "a worker", "all its processes")), doing(folder, since)
        children = workers_of(process.pid)
        if process.poll() is not None:
            return False
        if what == "a worker" and children:
            _kill(rng.choice(children))
        elif what == "all its processes":
            for pid in (process.pid, *children):
                _kill(pid)
        else:
            what = "the sweep"
            _kill(process.pid)
        after = time.monotonic() - began
        print(f"{n:4d}  {what} of {workers} worker(s) after {after:5.2f} s, {seen}", flush=True)
        return True


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(Chaos)
