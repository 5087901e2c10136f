"""The strings that members train and validate on: how many, from which kinds, that no string is in both sets, and
that nothing but the seed decides which. The kinds are counted over all strings, enumerated in plain Python.

The tests of bias compare the beginnings of the strings drawn with those of all strings of their kind. Strings are
drawn without repetition, so that the statistic can only be smaller than chi-square's.
"""

from collections import Counter
from itertools import accumulate, product

import numpy as np
import pytest
from scipy.stats import chisquare

from cases import CASES, find
from siitjax.causal.data import Arrangements, Those, Uniform, draw_split
from siitjax.siit.config import TrainConfig
from siitjax.siit.train import draw_data

LENGTH = 14
BEGINNING = 3
"""Tokens of a string whose distribution is tested."""
LEAST_P = 1e-4
"""Some 140 p-values are computed, so that chance alone gives one below this for fewer than 2 of 100 choices of seed."""
OFF = 0.04
"""How far the share of a first letter may be off: 3.6 standard deviations of 2,000 draws, or more."""

LETTER_TASKS = [case for case in CASES if case.vocabulary[2:] == ("a", "b", "c")]

Strings = list[tuple[int, ...]]


def lefts(string: tuple[int, ...]) -> int:
    return string.count(2)


def paren_kind(string: tuple[int, ...]) -> str:
    heights = list(accumulate(1 if token == 2 else -1 for token in string))
    level, up = heights[-1] == 0, min(heights) >= 0
    return {(1, 1): "balanced", (0, 1): "horizon only", (1, 0): "elevation only", (0, 0): "neither"}[level, up]


KIND = {
    "left_greater": lefts,
    "paren_checker": paren_kind,
    "duplicate_remover": lambda string: "any",
    "unique_extractor": lambda string: "any",
}


def as_strings(samples) -> Strings:
    """The samples without their BOS."""
    return [tuple(sample[1:]) for sample in np.asarray(samples).tolist()]


def all_beginnings(case) -> dict[object, Counter]:
    """How often each beginning stands in all strings of each kind; of letters, every one is equally common."""
    length = BEGINNING if case in LETTER_TASKS else LENGTH
    everything = by_kind(case.name, product(range(2, len(case.vocabulary)), repeat=length))
    return {kind: Counter(string[:BEGINNING] for string in strings) for kind, strings in everything.items()}


def by_kind(name: str, strings) -> dict[object, Strings]:
    groups = {}
    for string in strings:
        groups.setdefault(KIND[name](string), []).append(string)
    return groups


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def drawn(request):
    """The name of a case, and the data that its member of seed 0 has by default."""
    data = draw_data(TrainConfig(request.param), seed=0)
    return request.param.name, np.asarray(data.train), np.asarray(data.validation)


@pytest.fixture(scope="module")
def parens():
    """The strings of paren_checker by kind: all there are, those trained on and those validated on."""
    data = draw_data(TrainConfig(find("paren_checker")), seed=1)
    everything = product((2, 3), repeat=LENGTH)
    return [by_kind("paren_checker", s) for s in (everything, as_strings(data.train), as_strings(data.validation))]


def test_there_are_8000_samples_to_train_on_and_2000_to_validate_on(drawn):
    _, train, validation = drawn
    assert (train.shape, validation.shape) == ((8000, 15), (2000, 15))


def test_no_string_is_in_both_sets(drawn):
    _, train, validation = drawn
    assert not set(as_strings(train)) & set(as_strings(validation))


def test_every_sample_is_bos_and_then_letters_of_the_task(drawn):
    name, *sets = drawn
    for samples in sets:
        assert (samples[:, 0] == 0).all()
        assert set(np.unique(samples[:, 1:]).tolist()) == set(range(2, len(find(name).vocabulary)))


@pytest.mark.parametrize("drawn", LETTER_TASKS, indirect=True, ids=lambda case: case.name)
def test_strings_of_the_letter_tasks_are_not_repeated(drawn):
    _, train, validation = drawn
    assert len({*as_strings(train), *as_strings(validation)}) == 10_000


def test_left_greater_is_uniform_over_the_number_of_lefts():
    """No lefts, and nothing but lefts, is one string each, which is trained on; the other 13 share validation."""
    data = draw_data(TrainConfig(find("left_greater")), seed=1)
    train, validation = (Counter(map(lefts, as_strings(samples))) for samples in (data.train, data.validation))
    assert {n: train[n] for n in range(15)} == {n: 534 if n < 5 else 533 for n in range(15)}
    assert {n: validation[n] for n in range(15)} == {n: {0: 0, 14: 0, 12: 153, 13: 153}.get(n, 154) for n in range(15)}


@pytest.mark.parametrize("n_ctx", [8, 21])
def test_left_greater_is_uniform_over_the_number_of_lefts_in_another_context(n_ctx):
    train, _ = find("left_greater").with_context(n_ctx).draw(8000, 2000, np.random.default_rng(0))
    counted = Counter(map(lefts, as_strings(train)))
    assert set(counted) == set(range(n_ctx))
    assert max(counted.values()) - min(counted.values()) <= 1


def test_paren_checker_is_a_quarter_of_each_kind_in_both_sets(parens):
    everything, train, validation = parens
    assert {kind: len(train[kind]) for kind in everything} == dict.fromkeys(everything, 2000)
    assert {kind: len(validation[kind]) for kind in everything} == dict.fromkeys(everything, 500)


def test_all_429_balanced_strings_appear_and_are_split_four_to_one(parens):
    everything, train, validation = (set(kinds["balanced"]) for kinds in parens)
    assert len(everything) == 429
    assert train | validation == everything
    assert (len(train), len(validation)) == (343, 86)


def test_repetition_within_a_kind_is_even(parens):
    _, train, validation = (Counter(kinds["balanced"]) for kinds in parens)
    assert set(train.values()) == {2000 // 343, 2000 // 343 + 1}
    assert set(validation.values()) == {500 // 86, 500 // 86 + 1}


def test_kinds_that_hold_enough_strings_repeat_none(parens):
    everything, train, validation = parens
    for kind in everything.keys() - {"balanced"}:
        assert len({*train[kind], *validation[kind]}) == 2500, kind


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_strings_begin_as_all_strings_of_their_kind_do(case):
    everything = all_beginnings(case)
    data = draw_data(TrainConfig(case), seed=2)
    for samples in (data.train, data.validation):
        for kind, strings in by_kind(case.name, sorted(set(as_strings(samples)))).items():
            expected = everything[kind]
            observed = Counter(string[:BEGINNING] for string in strings)
            assert observed.keys() <= expected.keys()
            if len(expected) > 1:
                share = len(strings) / expected.total()
                p = chisquare([observed[b] for b in expected], [share * n for n in expected.values()]).pvalue
                assert p > LEAST_P, (kind, observed)


@pytest.mark.parametrize("drawn", LETTER_TASKS, indirect=True, ids=lambda case: case.name)
def test_letters_are_equally_frequent_at_every_position_of_the_letter_tasks(drawn):
    _, *sets = drawn
    for samples in sets:
        for position in range(1, 15):
            observed = np.bincount(samples[:, position], minlength=5)[2:]
            assert chisquare(observed).pvalue > LEAST_P, (position, observed)


def test_each_first_letter_appears_as_often_as_equal_shares_of_the_kinds_have_it(drawn):
    """Equally often, but in paren_checker, where no balanced string begins with a right parenthesis."""
    name, *sets = drawn
    kinds = all_beginnings(find(name)).values()
    for samples in sets:
        for letter in range(2, len(find(name).vocabulary)):
            of_kind = [sum(n for b, n in kind.items() if b[0] == letter) / kind.total() for kind in kinds]
            share, expected = (samples[:, 1] == letter).mean(), np.mean(of_kind)
            assert abs(share - expected) < OFF, (letter, share)
            assert name == "paren_checker" or expected == pytest.approx(1 / (len(find(name).vocabulary) - 2))


def test_the_order_of_samples_tells_nothing_of_their_kind(drawn):
    """Each half of a set holds a kind as often as the other."""
    name, *sets = drawn
    for samples in sets:
        kinds = [KIND[name](string) for string in as_strings(samples)]
        first, second = Counter(kinds[: len(kinds) // 2]), Counter(kinds[len(kinds) // 2 :])
        for kind in set(kinds):
            assert chisquare([first[kind], second[kind]]).pvalue > LEAST_P, kind


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_seed_decides_the_data_and_nothing_else_does(case):
    first = draw_data(TrainConfig(case, samples=1000), 3)
    np.random.seed(0)
    again = draw_data(TrainConfig(case, samples=1000, batch_size=32, epochs=2, updates="three"), 3)
    other = draw_data(TrainConfig(case, samples=1000), 4)
    assert first.train.tolist() == again.train.tolist()
    assert first.validation.tolist() == again.validation.tolist()
    assert first.train.tolist() != other.train.tolist()
    assert first.validation.tolist() != other.validation.tolist()


def test_a_kind_of_one_string_is_only_trained_on():
    one, six = Arrangements(2, 3, 0), Arrangements(2, 3, 2)
    train, validation = draw_split([one, six], 4, 40, 10, np.random.default_rng(0))
    assert Counter((train == 2).sum(1).tolist()) == {0: 20, 2: 20}
    assert (validation == 2).sum(1).tolist() == [2] * 10


def test_kinds_of_one_string_alone_cannot_be_split():
    with pytest.raises(ValueError, match="the strata hold one string each; a train-validation split needs more"):
        draw_split([Arrangements(2, 3, 0), Arrangements(2, 3, 4)], 4, 40, 10, np.random.default_rng(0))


def test_a_kind_that_holds_no_string_is_refused_with_what_to_do():
    never = Those(Uniform((2, 3)), lambda strings: np.zeros(len(strings), bool))
    with pytest.raises(
        ValueError, match=r"strings of length 4 held fewer than \d+ of a kind that the case lists.*n_ctx"
    ):
        draw_split([Uniform((2, 3)), never], 4, 40, 10, np.random.default_rng(0))


def test_a_context_in_which_no_string_is_balanced_is_refused():
    with pytest.raises(ValueError, match=r"strings of length 3 held fewer than .* of a kind that the case lists"):
        find("paren_checker").with_context(4).draw(80, 20, np.random.default_rng(0))


@pytest.mark.parametrize(("n_train", "n_validation"), [(7, 3), (80, 20), (1000, 250)])
def test_few_strings_are_shared_out_to_within_one_of_each_kind(n_train, n_validation):
    train, validation = draw_split(
        [Arrangements(2, 3, n) for n in (3, 4, 5)], LENGTH, n_train, n_validation, np.random.default_rng(0)
    )
    for strings, n in ((train, n_train), (validation, n_validation)):
        counted = np.bincount((strings == 2).sum(1), minlength=6)[3:]
        assert (counted.sum(), counted.max() - counted.min() <= 1) == (n, True)
