"""A sweep that is killed at random moments ends as one that was not: the demonstration itself, in short and in full."""

import pytest

from tests.commands import HANGS, run
from tests.tear import everything


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "quick"), [(3, "--quick"), (50, "--noquick")])
def test_a_sweep_that_is_killed_again_and_again_ends_bit_for_bit_as_one_that_was_not(kills, quick):
    ended = run("-m", "tests.chaos", f"--kills={kills}", quick, within=kills * HANGS)
    assert ended.code == 0, ended.out + ended.err
    assert ended.out.splitlines()[-1] == f"{kills} of {kills} kills bit-identical"


def test_a_file_that_is_torn_anywhere_in_its_last_write_loses_nothing(tmp_path):
    """At one byte in 97 of each, as far as nothing is trained for it."""
    for torn in everything(tmp_path, every=97):
        assert torn.well == torn.times > 0, torn
