"""A worker that ends by an error says all of it, once; one that is killed is tried again, and what it said is kept."""

import re

import pytest

from siitjax.sweep.engine import Member, Watcher
from siitjax.sweep.processes.pool import Pool, WorkerError
from tests.tiny import CONFIG, LEARNS

MEMBERS = [Member("quick", seed, CONFIG, LEARNS) for seed in (7, 8)]
QUESTION = """
import os, sys
from siitjax.base.command import Command

class Broken(Command):
    def run(self):
        return 0

    def members(self):
        with open({log!r}, "a") as log:
            log.write("started\\n")
        {ends}

def deep():
    raise KeyError("the cause")
"""


class Notes(Watcher):
    def __init__(self):
        self.words = []

    def note(self, words):
        self.words.append(words)


@pytest.fixture
def pool(tmp_path):
    def made(ends: str) -> Pool:
        (tmp_path / "broken.py").write_text(QUESTION.format(log=str(tmp_path / "log"), ends=ends))
        return Pool(f"{tmp_path / 'broken.py'}:Broken", [], "0000", MEMBERS, [0, 1], dict, Notes())

    return made


def test_an_error_of_a_worker_ends_the_sweep_at_once_with_the_workers_traceback(pool, tmp_path):
    with pytest.raises(WorkerError) as raised:
        pool("deep()").run(1)
    said = str(raised.value)
    assert said.startswith("a worker ended with exit code 1 while starting; it said:\nTraceback (most recent")
    assert re.search(r'broken\.py", line \d+, in deep\n', said)
    assert said.endswith("KeyError: 'the cause'")
    assert (tmp_path / "log").read_text() == "started\n"


def test_a_worker_that_is_killed_is_tried_again_and_what_it_said_is_kept(pool, tmp_path):
    tried = pool('sys.stderr.write("XLA says why\\n"); sys.stderr.flush(); os.kill(os.getpid(), 9)')
    tried.run(1)
    killed = "killed by SIGKILL, as the system does when memory runs out"
    assert tried.failed == f"the workers do not start ({killed})"
    assert tried.watcher.words == [f"A worker was {killed}; it said last:\nXLA says why"] * 2
    assert (tmp_path / "log").read_text() == "started\n" * 2


def test_the_error_names_the_members_that_were_in_training(pool):
    with pytest.raises(WorkerError, match=r"exit code 1 while training member 1 \(quick, seed 8\); it said:\nwhy$"):
        pool("")._died({1}, 1, "why")
