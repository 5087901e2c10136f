"""Command lines as users type them: each in a process of its own, or many in one, since JAX takes seconds to import."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import NamedTuple

from siitjax.base.command import Command
from siitjax.sweep.cores import cores

HANGS = 1200.0
"""Seconds after which a process is taken to hang; on a machine that does much else, all takes ten times as long."""

EACH = """
import contextlib, importlib, io, json, sys, traceback
from siitjax.base.command import main
answers = sys.stdout
for line in sys.stdin:
    module, name, argv = json.loads(line)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(getattr(importlib.import_module(module), name), [name.lower(), *argv])
        except SystemExit as end:
            code = end.code
        except Exception:
            code = 1
            traceback.print_exc()
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


class Ended(NamedTuple):
    """The exit code, the output and the errors of a command line."""

    code: int
    out: str
    err: str


def run(*command: str, input: str = "", within: float = HANGS, **env: str) -> Ended:
    """`python` with these words, and this on its standard input, in a process of its own."""
    ended = subprocess.run(
        [sys.executable, *command],
        input=input,
        capture_output=True,
        text=True,
        timeout=within,
        env={**os.environ, **env},
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


class Commands:
    """A process that runs one command line after another, without the tests' type checks."""

    def __init__(self, process: subprocess.Popen[str]):
        self.process = process

    def __call__(self, command: type[Command], *argvs: Sequence[str]) -> list[Ended]:
        """How each command line ended. A bug is of code 1, with its traceback."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        late, ended = Timer(HANGS, self.process.kill), []
        late.start()
        for argv in argvs:
            print(json.dumps([command.__module__, command.__name__, argv]), file=stdin, flush=True)
            ended.append(Ended(*json.loads(stdout.readline() or '[-1, "", "the process hung, or died"]')))
        late.cancel()
        return ended


@contextmanager
def in_one_process() -> Iterator[Commands]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", EACH], stdin=pipe, stdout=pipe, text=True) as process:
        yield Commands(process)
        process.kill()


def promptly(seconds: float) -> float:
    """So many seconds on a quiet machine, and as many more on this one as its cores have more to do."""
    return seconds * max(1.0, max(os.getloadavg()) / len(cores()))
