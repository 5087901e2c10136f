"""Shares against the fractions that they are: how they are shown, compared and kept."""

import json
from dataclasses import replace
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

import cases
from siitjax.base.share import exact, percent
from siitjax.questions.report import summarise
from siitjax.siit.metrics import Metrics, Shares, Tally, mean, read_shares, share, shares
from sweeps.table import reaches
from tests.test_compare import row


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.57, "57"),  # 57 of 100, whose float lies below it
        (np.float32(0.57), "57"),
        (jnp.float32(0.9999), "99.99"),
        (np.float32(0.9999), "99.99"),
        (Fraction(9999, 10_000), "99.99"),
        (Fraction(2, 3), "66.66"),
        (Fraction(999_999, 1_000_000), "99.99"),
        (0.99999, "99.99"),
        (Fraction(101, 200), "50.50"),
        (1.0, "100"),
        (Fraction(1), "100"),
        (0, "0"),
        (Fraction(1, 10**6), "0.00"),
        (Fraction(-1, 3), "-33.34"),
        (None, "-"),
        (float("nan"), "-"),
    ],
)
def test_a_percentage_is_rounded_down(share, words):
    assert percent(share) == words


def by_hand(right: int, of: int) -> str:
    """In whole numbers alone."""
    if 100 * right % of == 0:
        return str(100 * right // of)
    digits = f"{10_000 * right // of:03d}"
    return f"{digits[:-2]}.{digits[-2:]}"


def test_every_share_of_up_to_200_is_shown_as_division_by_hand_gives_it():
    for of in range(1, 201):
        for right in range(of + 1):
            wanted = by_hand(right, of)
            assert percent(Fraction(right, of)) == percent(right / of) == wanted, (right, of)
            assert (wanted == "100") == (right == of)


def test_every_hundredth_of_a_percent_is_shown_as_it_is_in_either_precision():
    for n in range(10_001):
        wanted = by_hand(n, 10_000)
        assert percent(np.float32(n) / np.float32(10_000)) == percent(n / 10_000) == wanted, n


def metrics(iia: tuple[int, int] = (1, 1), changed: tuple[tuple[int, int], ...] = ((2, 3), (0, 0))) -> Metrics:
    """Of two circuit nodes and one unused: all right, but what is given."""
    two = lambda right, of: Tally(np.array([right, right]), np.array([of, of]))
    one = Tally(np.array(60), np.array(60))
    right, of = map(np.array, zip(*changed, strict=True))
    alone = Tally(np.array([60]), np.array([60]))
    return Metrics(one, two(*iia), Tally(right, of), two(1, 3), alone, one, one)


def test_metrics_come_to_exact_shares():
    found = shares(metrics((2, 3), ((2, 3), (0, 0))))
    assert (found.accuracy, found.iia, found.sequence_iia, found.siia) == (1, Fraction(2, 3), Fraction(1, 3), 1)
    assert found.node_changed_iia == (Fraction(2, 3), None)
    assert (found.changed_iia, found.worst_changed_iia, found.node_changed) == (Fraction(2, 3), Fraction(2, 3), (3, 0))
    assert not found.perfect
    assert shares(metrics()).perfect
    assert shares(metrics(changed=((1, 3), (1, 2)))).changed_iia == Fraction(5, 12)


def test_what_json_keeps_is_exact():
    ours = shares(metrics((2, 3)))
    kept = json.loads(json.dumps(ours.to_json()))
    assert (kept["iia"], kept["node_changed_iia"]) == (2 / 3, [2 / 3, None])
    assert kept["counts"]["node"] == {"right": [2, 2], "of": [3, 3]}
    again = read_shares(kept)
    assert replace(again, counts=None) == replace(ours, counts=None)
    assert again.to_json() == ours.to_json()
    assert share(kept, "iia") == Fraction(2, 3)


def test_a_file_of_an_older_version_keeps_its_shares_and_the_counts_that_are_known():
    """2/3 in float32 is no third, but 3 changed labels are known; of how many tokens 0.9999 is, nobody knows."""
    ours = shares(metrics((2, 3)))
    old = {**ours.to_json(), "iia": float(np.float32(0.9999)), "node_changed_iia": [float(np.float32(2 / 3)), None]}
    del old["counts"]
    found = read_shares(old)
    assert found.counts is None
    assert found.iia == Fraction(9999, 10_000)
    assert found.node_changed_iia == (Fraction(2, 3), None)
    assert found.changed_iia == found.worst_changed_iia == Fraction(2, 3)
    assert found.node_changed == (3, 0)
    assert found.to_json()["iia"] == 0.9999


@pytest.mark.parametrize("name", ["0+1+2+3", "1"])
def test_a_shipped_model_s_metrics_are_read(name):
    found = cases.load(name).metrics
    assert isinstance(found, Shares)
    assert found.accuracy == found.siia == 1
    assert all(isinstance(x, Fraction) for x in (found.iia, *found.node_iia, *found.node_siia))


def test_a_goal_is_met_by_the_very_share():
    for iia, meets in (((9_999, 10_000), True), ((9_998_999, 10_000_000), False)):
        kept = {"seed": 0, **shares(metrics(iia, ((1, 1), (1, 1)))).to_json()}
        assert reaches(kept) is meets
        assert reaches({name: value for name, value in kept.items() if name != "counts"}) is meets


def test_means_over_seeds_are_exact():
    rows = [row(0, 3), {**row(1, 3), **shares(metrics((2, 3))).to_json()}, row(2, 3, iia=None)]
    (found,) = summarise(rows)
    assert found.iia == Fraction(5, 6)
    assert mean([Fraction(1, 3), None, Fraction(1, 2)]) == Fraction(5, 12)
    assert exact(float("nan")) is None
