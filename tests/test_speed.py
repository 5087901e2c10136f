"""How many times the epochs of another setting one needs: censored members, rounding, families, verdicts of betas."""

import itertools
import math
import re

import numpy as np
import pytest
from scipy.stats import wilcoxon

from siitjax.base.errors import UserError
from siitjax.questions.report import Verdict
from siitjax.questions.statistics.ranks import Differences
from siitjax.questions.statistics.speed import Speed, compare, holm, interaction, ratio
from siitjax.sweep.results import Row
from sweeps.betas import Betas
from tests.test_compare import row, setting

TENS = (9, 10, 11, 10, 9, 11, 10, 12)


def diverged(*epochs: int, **more) -> list[Row]:
    return [row(i, n, "diverged", **more) for i, n in enumerate(epochs)]


def times(factor: float, *epochs: int) -> tuple[int, ...]:
    return tuple(round(factor * n) for n in epochs)


# Ranks


def test_the_interval_of_eight_differences_is_that_of_the_tables():
    # Wilcoxon's table: of 8 pairs, a rank sum of 3 or less in 5% (two-sided), so that the fourth mean from either end
    # bounds the interval. By hand, of 1, 2, 4, ..., 128: 1, 1.5, 2, 2.5 from below; 128, 96, 80, 72 from above.
    powers = tuple(2.0**i for i in range(8))
    assert Differences(powers, powers).interval() == (2.5, 72)


def test_the_interval_holds_what_the_exact_test_does_not_reject():
    x = np.random.default_rng(0).normal(0.3, 1, 9)
    low, high = Differences(tuple(x), tuple(x)).interval() or (0, 0)
    for value, inside in ((low - 1e-6, False), (low + 1e-6, True), (high - 1e-6, True), (high + 1e-6, False)):
        p = np.asarray(wilcoxon(x - value, method="exact"))[1]
        assert (p > 0.05) == inside


def test_the_centre_is_the_median_of_the_means_of_two():
    x = (1.0, 2.0, 4.0, 9.0, 9.5, 20.0, 21.0)
    means = [(a + b) / 2 for a, b in itertools.combinations_with_replacement(x, 2)]
    assert Differences(x, x).centre == (np.median(means), np.median(means))


def test_too_few_differences_or_differences_all_alike_have_no_interval():
    assert Differences((), ()).centre is None
    assert Differences((), ()).interval() is None
    assert Differences((1.0, 2.0, 3.0, 4.0, 5.0), (1.0, 2.0, 3.0, 4.0, 5.0)).interval() is None
    assert Differences((1.0,) * 32, (1.0,) * 32).interval() is None
    # Of 6, a level of 5% can be reached (2 of 64), and half of it cannot.
    six = Differences(tuple(map(float, range(6))), tuple(map(float, range(6))))
    assert (six.interval(), six.interval(0.025)) == ((0, 5), None)


def test_what_is_known_within_bounds_widens_the_interval_on_its_side():
    x = tuple(map(float, range(8)))
    assert Differences(x, (*x[:-1], math.inf)).interval() == ((Differences(x, x).interval() or (0,))[0], math.inf)
    assert Differences((-math.inf, *x[1:]), (math.inf, *x[1:])).interval() == (-math.inf, math.inf)


# Two settings


def test_a_setting_twice_as_fast_is_faster_and_one_twice_as_slow_slower():
    fast, slow = setting(*TENS), setting(*times(2, *TENS))
    assert (compare(fast, slow).kind, compare(slow, fast).kind) == ("faster", "slower")
    found = compare(slow, fast)
    # A member that converged with epoch n did so at n - 1/2: the ratio of 20 and 10 is 19.5 / 9.5.
    assert found.least == found.most
    assert found.least == pytest.approx(19.5 / 9.5, rel=0.01)


def test_the_kinds_are_the_same_both_ways():
    mirrored = {"slower": "faster", "faster": "slower", "as fast": "as fast", "unclear": "unclear"}
    rng = np.random.default_rng(0)
    for factor in (1, 1.25, 2, 4):
        one, other = (setting(*map(int, np.ceil(rng.lognormal(3, 0.2, 16) * f)), limit=100) for f in (factor, 1))
        assert compare(other, one).kind == mirrored[compare(one, other).kind]
        ours, theirs = compare(one, other), compare(other, one)
        assert ours.low is not None
        assert theirs.high == pytest.approx(1 / ours.low)


def test_as_fast_takes_the_whole_interval_within_the_margin_on_both_sides():
    steady = (40, 42, 38, 41, 39, 43, 40, 37)
    assert compare(setting(*steady), setting(*reversed(steady))).kind == "as fast"
    assert compare(setting(20, 80, 20, 80, 20, 80, 20, 80), setting(*steady)).kind == "unclear"


def test_the_order_of_the_rows_does_not_count():
    rows = setting(*times(2, *TENS))
    assert compare(rows[::-1], setting(*TENS)) == compare(rows, setting(*TENS))


def test_members_that_diverge_never_converge_and_do_not_count_as_fast():
    # Four seeds that blow up after epoch 1 against four that converge at 10; then eight, which is enough to say so.
    four = compare(diverged(1, 1, 1, 1), setting(10, 10, 10, 10))
    assert (four.kind, four.least, four.low, four.seeds) == ("unclear", math.inf, None, 4)
    eight = compare(diverged(*(1,) * 8), setting(*TENS))
    assert (eight.kind, eight.low, eight.high) == ("slower", math.inf, math.inf)
    assert eight.words("a", "b") == (
        "a needs infinitely many times the epochs of b (95% interval infinitely many), so it is slower"
    )
    assert compare(setting(*TENS), diverged(*(1,) * 8)).kind == "faster"
    some = compare([*diverged(1, 1), *setting(*TENS)[2:]], setting(*TENS))
    assert (some.kind, some.high) == ("unclear", math.inf)


def test_divergence_in_the_first_epoch_divides_nothing_by_zero():
    assert compare(diverged(*(0,) * 8), setting(*TENS)).kind == "slower"
    assert compare(diverged(0, 0), diverged(0, 0)).words("a", "b") == (
        "no seed of a or b converged, so they cannot be compared"
    )


def test_one_that_never_converges_in_its_epochs_does_not_match_one_that_just_does():
    nearly = (85, 88, 95, 90, 87, 93, 91, 86)
    found = compare(setting(*(100,) * 8), setting(*nearly))
    assert (found.kind, found.high) == ("unclear", math.inf)
    assert found.low == pytest.approx(100 / 93, rel=0.02)
    # The median of 85, ..., 95 is 89, less half an epoch: 100 / 88.5.
    assert "a needs 1.13 or more times the epochs of b (95% interval 1." in found.words("a", "b")
    assert found.words("a", "b").endswith(" or more), so it may or may not be as fast")
    assert compare(setting(*(100,) * 8), setting(*TENS)).kind == "slower"


def test_ties_give_no_verdict():
    two = compare(setting(10, 20), setting(10, 20))
    assert (two.kind, two.least, two.low) == ("unclear", 1, None)
    assert two.words("a", "b") == (
        "a needs 1.00 times the epochs of b over 2 seeds, too few: an interval takes 6 of which one or the other "
        "converged"
    )
    many = compare(setting(*(20,) * 16), setting(*(10,) * 16))
    assert (many.kind, many.low) == ("unclear", None)
    assert many.words("a", "b") == (
        "a needs 2.05 times the epochs of b in all of 16 seeds: an interval takes ratios that differ"
    )


def test_no_interval_is_narrower_than_the_rounding_to_whole_epochs():
    found = compare(setting(*(10,) * 15, 11), setting(*(10,) * 16))
    half = 2 * 0.5 / 9.5
    assert (found.low, found.high) == (pytest.approx(math.exp(-half)), pytest.approx(math.exp(half)))


def test_seeds_of_which_neither_converged_say_nothing():
    found = compare(setting(100, 100, 50), [row(0, 3, "diverged"), *setting(100, 100, 50)[1:]])
    assert found.seeds == 1
    assert str(compare(setting(100), setting(100))) == "-"


def test_different_seeds_cannot_be_compared():
    with pytest.raises(UserError, match="different seeds"):
        compare(setting(10, 10), setting(10, 10, 10))


# Families


def test_holms_correction_takes_stronger_evidence_of_a_family():
    # Of 6 seeds, one comparison can be decided (2 of 64 signs), two at once cannot (0.05 / 2 < 2 / 64).
    six = ratio(setting(*times(4, *TENS[:6])), setting(*TENS[:6]))
    assert holm({"alone": six})["alone"].kind == "slower"
    both = holm({"one": six, "other": six})
    assert {found.kind for found in both.values()} == {"unclear"}
    assert both["one"].words("a", "b").endswith("would be slower, but not with Holm's correction for 2 comparisons")


def test_what_is_decided_first_leaves_more_to_the_others():
    eight = ratio(setting(*times(4, *TENS)), setting(*TENS))
    six = ratio(setting(*times(4, *TENS[:6])), setting(*TENS[:6]))
    assert {name: found.kind for name, found in holm({"six": six, "eight": eight}).items()} == {
        "six": "slower",
        "eight": "slower",
    }


# Betas


def sweep(**epochs: tuple[int, ...]) -> list[Row]:
    """Rows of a betas sweep: single_9=... are the epochs of single updates at beta2 0.9."""
    names = {"single_9": ("single", 0.9), "three_9": ("three", 0.9)}
    names |= {"single_999": ("single", 0.999), "three_999": ("three", 0.999)}
    return [
        r
        for name, (updates, beta2) in names.items()
        for r in setting(*epochs[name], limit=1000, updates=updates, beta1=0.9, beta2=beta2)
    ]


FORTIES = (40, 44, 37, 41, 48, 39, 42, 36, 40, 45, 38, 43)


@pytest.mark.parametrize(
    ("at_9", "at_999", "kind"),
    [
        (1.6, 6.1, "supported"),
        (6.1, 1.6, "supported"),
        (1.24, 1.29, "contradicted"),
        (1.0, 1.0, "contradicted"),
        (3.0, 3.0, "contradicted"),
    ],
)
def test_the_verdict_of_betas_is_how_beta2_changes_the_ratio_of_single_to_three(at_9, at_999, kind):
    turned = lambda n: FORTIES[n:] + FORTIES[:n]
    rows = sweep(
        single_9=times(at_9, *turned(1)),
        three_9=FORTIES,
        single_999=times(at_999, *turned(5)),
        three_999=turned(8),
    )
    verdict = Betas().verdict(rows)
    assert verdict.kind == kind, verdict
    assert verdict.because.startswith("at beta2 0.9 single needs ")
    (change,) = re.findall(r"that ratio at beta2 0.999 is (.*?) times that at 0.9 \(", verdict.because)
    assert float(change) == pytest.approx(at_999 / at_9, rel=0.05)


def test_betas_is_undecided_where_the_change_may_lie_on_either_side_of_the_margin():
    rows = sweep(single_9=FORTIES, three_9=FORTIES, single_999=(20, 80) * 6, three_999=FORTIES)
    assert Betas().verdict(rows).kind == "undecided"


def test_a_sweep_without_a_contrast_is_undecided():
    verdict = Betas(beta2=(0.9,)).verdict([])
    assert verdict == Verdict("undecided", "the question needs both kinds of update, each under two beta2 or more.")


def test_an_interaction_is_bounded_by_what_is_known_of_its_four_members():
    tens, hundred = [row(0, 10)], [row(0, 100, "exhausted")]
    found = interaction(tens, tens, hundred, tens)
    assert found.low == (pytest.approx(math.log(100 / 9.5)),)
    assert found.high == (math.inf,)
    # Where single is cut short at both, it may be faster or slower at the other.
    unknown = interaction(hundred, tens, hundred, tens)
    assert (unknown.low, unknown.high) == ((-math.inf,), (math.inf,))
    assert len(interaction(hundred, hundred, hundred, hundred)) == 0


def test_a_comparison_reads_as_part_of_a_table():
    assert str(Speed("slower", 2.0, 2.0, 1.5, math.inf, 8)) == "2.00 (1.50 or more)"
    assert str(Speed("unclear", 0.0, math.inf, None, None, 3)) == "an unknown number of"
    assert str(Speed("unclear", 2.0, math.inf, 0.0, math.inf, 6)) == "2.00 or more (of any size)"
    assert str(Speed("faster", 0.0, 0.25, 0.0, 0.5, 8)) == "0.25 or less (0.50 or less)"
