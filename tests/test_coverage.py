"""The statistics of verdicts on simulated sweeps: the demonstration itself, in short."""

import numpy as np

from siitjax.questions.statistics import ranks
from tests.commands import run
from tests.coverage import WORLDS, Seen, simulate


def test_intervals_cover_the_truth_and_few_verdicts_are_wrong():
    ended = run("-m", "tests.coverage", "--sweeps=200")
    assert ended.code == 0, ended.out + ended.err
    assert ended.out.splitlines()[-1].endswith("; 0 fall short (!)")


def test_what_falls_short_is_told():
    full = Seen(1000, 1000, 930, 100, 49, 0)
    assert not full.short
    for worse in (dict(covered=929), dict(wrong=50), dict(rash=1)):
        assert Seen(**{**vars(full), **worse}).short


def test_statistics_that_are_wrong_fall_short(monkeypatch):
    monkeypatch.setattr(ranks, "_dropped", lambda n, level: n)  # of 8 pairs, 8 means in place of 3
    assert simulate(WORLDS[0], 8, 200, np.random.default_rng(0)).short
