"""A sweep that is killed at random moments ends as one that was not: the demonstration itself, in short."""

import subprocess
import sys


def test_a_sweep_that_is_killed_again_and_again_ends_bit_for_bit_as_one_that_was_not():
    command = [sys.executable, "-m", "tests.chaos", "--kills=5"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "5 of 5 kills bit-identical"
