"""The statistics of a verdict, on numbers worked out by hand."""

import math

import pytest

from siitjax.compare import lag
from siitjax.report import Verdict, summarise
from siitjax.results import Row
from sweeps.betas import Betas


def row(seed: int, epochs: int, stop: str = "converged", **more) -> Row:
    metrics = dict.fromkeys(("accuracy", "iia", "changed_iia", "worst_changed_iia", "siia", "joint_siia"), 1.0)
    return {"setting": "a", "seed": seed, "epochs": epochs, "stop": stop, "seconds": 2.0, **metrics, **more}


def setting(*epochs: int, limit: int = 100, **more) -> list[Row]:
    return [row(i, n, "exhausted" if n == limit else "converged", **more) for i, n in enumerate(epochs)]


def test_the_ratio_is_a_geometric_mean_and_its_interval_students():
    found = lag(setting(20, 40, 80), setting(10, 10, 10))
    # log2 of the ratios: 1, 2, 3; mean 2, standard error 1 / sqrt(3); t of 2 degrees of freedom at 97.5%: 4.3027.
    half = 4.3027 / math.sqrt(3)
    assert found.ratio == pytest.approx(4)
    assert (found.low, found.high) == (
        pytest.approx(2 ** (2 - half), rel=1e-4),
        pytest.approx(2 ** (2 + half), rel=1e-4),
    )
    assert found.kind == "unclear"


def test_the_kinds_follow_the_margin():
    tens = setting(10, 10, 10, 10)
    assert lag(setting(10, 11, 10, 11), tens).kind == "matches"
    assert lag(setting(8, 8, 8, 8), tens).kind == "matches"
    assert lag(setting(20, 21, 19, 20), tens).kind == "behind"
    assert lag(setting(12, 13, 12, 13), tens).kind == "unclear"


def test_seeds_of_which_neither_converged_say_nothing():
    found = lag(setting(100, 100, 50), setting(100, 50, 50))
    assert found.pairs == 2
    assert found.ratio == pytest.approx(math.sqrt(2))
    assert lag(setting(100, 100), setting(100, 50)).ratio is None


def test_different_seeds_cannot_be_compared():
    with pytest.raises(ValueError, match="different seeds"):
        lag(setting(10, 10), setting(10, 10, 10))


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


def sweep(**epochs: tuple[int, ...]) -> list[Row]:
    """Rows of a betas sweep: single_9=... are the epochs of single updates at beta2 0.9."""
    names = {"single_9": ("single", 0.9), "three_9": ("three", 0.9)}
    names |= {"single_999": ("single", 0.999), "three_999": ("three", 0.999)}
    return [
        r
        for name, (updates, beta2) in names.items()
        for r in setting(*epochs[name], updates=updates, beta1=0.9, beta2=beta2)
    ]


@pytest.mark.parametrize(
    ("single_9", "single_999", "kind"),
    [
        ((10, 10, 11), (30, 31, 32), "supported"),
        ((30, 31, 32), (30, 31, 32), "contradicted"),
        ((10, 10, 11), (10, 10, 11), "contradicted"),
        ((10, 10, 11), (5, 10, 40), "undecided"),
    ],
)
def test_the_verdict_of_betas_follows_from_the_two_comparisons(single_9, single_999, kind):
    tens = (10, 10, 10)
    verdict = Betas().verdict(sweep(single_9=single_9, three_9=tens, single_999=single_999, three_999=tens))
    assert verdict.kind == kind
    assert str(verdict).startswith(f"{kind.capitalize()}: at beta2 0.9 single needs ")


def test_a_sweep_without_a_contrast_is_undecided():
    verdict = Betas(beta2=(0.9,)).verdict([])
    assert verdict == Verdict("undecided", "the question needs both kinds of update, each under two beta2 or more.")
