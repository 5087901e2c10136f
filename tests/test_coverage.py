"""The statistics of verdicts on simulated sweeps: the demonstration itself, in short."""

from siitjax.command import parse
from tests.coverage import WORLDS, Coverage, Seen, simulate


def test_intervals_cover_the_truth_and_few_verdicts_are_wrong(capsys):
    assert parse(Coverage, ["coverage", "--sweeps=200"]).run() == 0
    assert "; 0 fall short" in capsys.readouterr().out.splitlines()[-1]


def test_what_falls_short_is_told():
    full = Seen(1000, 1000, 930, 100, 49, 0)
    assert not full.short
    for worse in (dict(covered=929), dict(wrong=50), dict(rash=1)):
        assert Seen(**{**vars(full), **worse}).short


def test_statistics_that_are_wrong_fall_short(monkeypatch):
    import numpy as np

    from siitjax import ranks

    monkeypatch.setattr(ranks, "_dropped", lambda n, level: n)  # of 8 pairs, 8 means in place of 3
    assert simulate(WORLDS[0], 8, 200, np.random.default_rng(0)).short
