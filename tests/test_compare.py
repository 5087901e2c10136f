"""Summaries of settings and rows made by hand, which other tests take too."""

import math

import pytest

from siitjax.base.errors import UserError
from siitjax.questions.report import summarise
from siitjax.questions.statistics.paired import difference
from siitjax.sweep.results import Row


def row(seed: int, epochs: int, stop: str = "converged", **more) -> Row:
    metrics = dict.fromkeys(("accuracy", "iia", "changed_iia", "worst_changed_iia", "siia", "joint_siia"), 1.0)
    return {"setting": "a", "seed": seed, "epochs": epochs, "stop": stop, "seconds": 2.0, **metrics, **more}


def setting(*epochs: int, limit: int = 100, **more) -> list[Row]:
    return [row(i, n, "exhausted" if n == limit else "converged", **more) for i, n in enumerate(epochs)]


def test_a_summary_has_wilsons_interval_and_medians():
    (found,) = summarise([*setting(10, 20, 40, 100), row(4, 3, "diverged", iia=0.5)])
    # Wilson, 3 of 5, z = 1.959964: centre (0.6 + z^2 / 10) / (1 + z^2 / 5), the textbook's formula.
    z = 1.959964
    centre = (0.6 + z**2 / 10) / (1 + z**2 / 5)
    half = z / (1 + z**2 / 5) * math.sqrt(0.6 * 0.4 / 5 + z**2 / 100)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))
    assert (found.run, found.converged, found.diverged, found.median_epochs) == (5, 3, 1, 20)
    assert found.iia == pytest.approx(0.9)
    assert found.worst_changed_iia == 1


def test_no_median_without_convergence():
    (found,) = summarise(setting(100, 100))
    assert found.median_epochs is None


def test_metrics_of_different_seeds_cannot_be_compared():
    with pytest.raises(UserError, match="different seeds"):
        difference(setting(10, 10), setting(10, 10, 10), "iia")
