"""A sweep that is killed at random moments ends as one that was not: the demonstration itself, in short."""

import subprocess
import sys

from tests.tear import everything


def test_a_sweep_that_is_killed_again_and_again_ends_bit_for_bit_as_one_that_was_not():
    command = [sys.executable, "-m", "tests.chaos", "--kills=5"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "5 of 5 kills bit-identical"


def test_a_file_that_is_torn_anywhere_in_its_last_write_loses_nothing(tmp_path):
    """At one byte in 97 of each, as far as nothing is trained for it."""
    for torn in everything(tmp_path, every=97):
        assert torn.well == torn.times > 0, torn
