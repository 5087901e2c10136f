"""Three questions about the recipe: what they train, what their rules say of rows made by hand, and one run as a user
meets it, to its table of what is measured after training."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from siitjax.base.command import parse
from siitjax.base.errors import UserError
from siitjax.questions.report import Verdict
from siitjax.questions.statistics.paired import Points, by_seed, difference, points
from siitjax.sweep.engine import Member
from siitjax.sweep.results import Results, Row
from sweeps.betas import Betas
from sweeps.capacity import Capacity, Seeds, most_more
from sweeps.gain import Gain
from sweeps.heads import Heads
from sweeps.kinds import Kinds
from sweeps.published import Published
from sweeps.sampling import METRICS, ONE, SUBSETS, Samplings, backup
from sweeps.schedule import Schedules
from sweeps.table import Models
from sweeps.weights import Weights
from tests.commands import run
from tests.test_compare import setting


def names(members: Sequence[Member]) -> list[tuple[str, int]]:
    return [(member.setting, member.seed) for member in members]


def varied(members: Sequence[Member]) -> dict[str, dict]:
    """What differs from the recipe in each setting."""
    recipe = Member("", 0, members[0].config).describe()
    found = {}
    for member in members:
        own = member.describe()
        pairs = (
            (key, value, recipe[part][key]) for part in ("hyperparams", "training") for key, value in own[part].items()
        )
        found[member.setting] = {key: value for key, value, usual in pairs if value != usual}
    return found


def test_the_weights_are_those_of_both_papers_and_of_the_slip():
    members = Weights(seeds=2).members()
    assert names(members) == [(name, seed) for name in ("0.4/1/0.4", "1/1/0.4", "0.4/1/0.16") for seed in (0, 1)]
    assert varied(members) == {"0.4/1/0.4": {}, "1/1/0.4": {"w_base": 1.0}, "0.4/1/0.16": {"w_siit": 0.16}}


def test_the_schedules_are_the_published_fall_its_two_ends_and_a_deeper_fall():
    members = Schedules(seeds=1).members()
    assert varied(members) == {
        "linear 0.001 to 0.0002": {},
        "constant 0.001": {"lr_end": 1e-3},
        "constant 0.0002": {"lr_start": 2e-4},
        "linear 0.001 to 1e-05": {"lr_end": 1e-5},
    }


def test_the_samplings_vary_one_axis_at_a_time():
    members = Samplings(seeds=1).members()
    assert members[0].config.sampling.drawn_per == "example"
    assert varied(members) == {
        SUBSETS: {},
        ONE: {"unused_nodes": "one"},
        "unused: all": {"unused_nodes": "all"},
        "drawn per batch": {"drawn_per": "batch"},
        "circuit: subsets": {"circuit_nodes": "subset"},
    }


@pytest.mark.parametrize("question", [Weights, Schedules, Samplings])
def test_they_share_their_defaults_and_what_shares_a_program_is_one_config(question):
    members = question().members()
    config = members[0].config
    assert (config.case.name, config.case.init_gain, config.epochs) == ("paren_checker", 0.18, 60)
    assert {member.seed for member in members} == set(range(8))
    assert len({member.config for member in members}) == (5 if question is Samplings else 1)
    assert all(replace(m.config, sampling=config.sampling) == config for m in members)


@pytest.mark.parametrize("question", [Weights, Gain, Heads, Capacity, Betas, Kinds, Models, Published])
def test_a_later_sweep_has_the_seeds_that_follow_and_all_else_the_same(question):
    first, later = (names(question(first_seed=begin, seeds=2).members()) for begin in (0, 5))
    assert later == [(setting, seed + 5) for setting, seed in first]
    assert {seed for _, seed in first} == {0, 1}


def test_quick_is_left_greater_on_five_seeds_at_most(monkeypatch):
    seen = []
    monkeypatch.setattr("siitjax.questions.question.Question.run", lambda self: seen.append(self) or 0)
    for flags in ((), ("--quick",), ("--quick", "--seeds=2")):
        parse(Weights, ["weights", *flags]).run()
    assert [(q.case, q.seeds, q.folder.name) for q in seen] == [
        ("paren_checker", 8, "weights-paren_checker"),
        ("left_greater", 5, "weights-left_greater"),
        ("left_greater", 2, "weights-left_greater"),
    ]


def test_points_are_a_median_with_the_interval_of_the_sign_test():
    # Of 6, the interval goes from the least to the largest (2 of 64 signs); of 9 from the second (20 of 512).
    assert points([i / 100 for i in (5, 1, 9, 2, 8, 3, 7, 4, 6)]) == Points(5.0, 2.0, 8.0)
    found = points([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    assert (found.median, found.low, found.high) == pytest.approx((3.5, 1, 6))
    assert str(found) == "+3.500 (+1.000 to +6.000)"
    assert points([0.5] * 8) == Points(50.0, None, None)
    assert points([0.01, 0.02, 0.03]) == Points(2.0, None, None)
    assert str(points([0.01])) == "+1.000"
    assert str(points([])) == "-"


def test_a_difference_is_paired_by_seed():
    ours = [
        {"setting": name, "seed": seed, "x": x}
        for name, seed, x in (("a", 1, 0.7), ("b", 0, 0.1), ("b", 1, 0.2), ("a", 0, 0.4))
    ]
    found = difference(by_seed(ours, "a"), by_seed(ours, "b"), "x")
    assert found.median == pytest.approx(100 * (0.3 + 0.5) / 2)
    with pytest.raises(ValueError, match="different seeds"):
        difference(by_seed(ours, "a"), by_seed(ours, "b")[:1], "x")


def times(factor: int, epochs: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(factor * n for n in epochs)


def sweep(names: tuple[str, ...], *epochs: tuple[int, ...]) -> list[Row]:
    """Rows of the settings, which took these epochs, a seed each."""
    return [{**row, "setting": name} for name, own in zip(names, epochs, strict=True) for row in setting(*own)]


TENS = (9, 10, 11, 10, 12, 10, 8, 11)
NEAR = (10, 10, 10, 11, 11, 9, 9, 10)
TWENTIES, THIRTIES = (20, 21, 19, 22, 18, 20, 21, 19), (30, 31, 29, 32, 33, 28, 30, 31)
FIVES = (5, 6, 5, 4, 5, 6, 5, 4)
SPREAD = (8, 10, 14, 7, 16, 6, 12, 9)
NEVER = (100,) * 8


@pytest.mark.parametrize(
    ("gupta", "slip", "kind"),
    [
        (times(4, NEAR), times(4, NEAR[::-1]), "contradicted"),
        (times(4, NEAR), times(8, NEAR), "supported"),
        (times(2, NEAR), times(4, NEAR), "supported"),
        (times(4, NEAR), times(4, SPREAD), "undecided"),
        (times(1, NEAR), times(4, SPREAD), "supported"),
        (NEVER, times(4, TENS), "supported"),
    ],
)
def test_the_weights_matter_where_the_ratio_of_some_lies_outside_the_margin_either_way(gupta, slip, kind):
    verdict = Weights().verdict(sweep(Weights.weights, times(4, TENS), gupta, slip))
    assert verdict.kind == kind, verdict
    assert verdict.because.startswith("1/1/0.4 needs ")


def test_what_one_comparison_decides_two_at_once_may_not():
    six = TENS[:6], THIRTIES[:6], (9, 30, 9, 30, 9, 30)
    verdict = Weights().verdict(sweep(Weights.weights, *six))
    assert verdict.kind == "undecided"
    assert "so it would be slower, but not with Holm's correction for 2 comparisons" in verdict.because
    alone = Weights(weights=Weights.weights[:2])
    assert alone.verdict(sweep(alone.weights, *six[:2])).kind == "supported"


def test_the_verdict_on_weights_says_how_each_compares_and_how_many_converged():
    because = Weights().verdict(sweep(Weights.weights, TENS, FIVES, (*times(4, TENS)[:7], 100))).because
    assert re.match(r"1/1/0.4 needs 0.47 times the epochs of 0.4/1/0.4 \(95% interval .*\), so it is faster; ", because)
    assert because.endswith("so it is slower; converged: 8 of 8 at 0.4/1/0.4, 8 of 8 at 1/1/0.4, 7 of 8 at 0.4/1/0.16.")


def test_without_pairs_or_others_the_weights_are_undecided():
    verdict = Weights().verdict(sweep(Weights.weights, NEVER, NEVER, NEVER))
    assert verdict.kind == "undecided"
    assert "no seed of 1/1/0.4 or 0.4/1/0.4 converged, so they cannot be compared" in verdict.because
    alone = Weights(weights=("1/1/1",)).verdict([])
    assert alone == Verdict("undecided", "the question needs two sets of weights or more.")


@pytest.mark.parametrize("words", ["1/1", "1/1/high", "0.4,1"])
def test_weights_that_are_not_three_numbers_get_one_line(words):
    with pytest.raises(ValueError, match=r"must be three numbers with / between, such as 0.4/1/0.4"):
        Weights(weights=(words,)).members()
    with pytest.raises(ValueError, match="w_iit is -1"):
        Weights(weights=("1/-1/1",)).members()


@pytest.mark.parametrize(
    ("high", "low", "kind"),
    [
        (TWENTIES, THIRTIES, "supported"),
        (times(2, FIVES), THIRTIES, "undecided"),
        (FIVES, THIRTIES, "contradicted"),
        (SPREAD, THIRTIES, "undecided"),
        (NEVER, NEVER, "supported"),
    ],
)
def test_the_fall_matters_where_both_constant_rates_are_slower(high, low, kind):
    names = tuple(Schedules().settings())
    verdict = Schedules().verdict(sweep(names, TENS, high, low, (1, 2) * 4))
    assert verdict.kind == kind, verdict
    assert verdict.because.startswith("constant 0.001 needs ")
    assert "; constant 0.0002 needs " in verdict.because


def test_a_constant_rate_that_is_as_fast_contradicts():
    names = tuple(Schedules().settings())
    rows = sweep(names, times(4, TENS), times(4, NEAR), times(8, TENS), TENS)
    assert Schedules().verdict(rows).kind == "contradicted"


@pytest.mark.parametrize(
    ("narrow", "wide", "kind"),
    [
        (times(8, TENS), times(4, NEAR), "supported"),
        (times(2, TENS), times(8, TENS), "supported"),
        (times(8, TENS), times(8, NEAR), "contradicted"),
        (times(8, TENS), times(4, SPREAD), "undecided"),
        (NEVER, NEVER, "contradicted"),
    ],
)
def test_tasks_share_a_head_where_they_are_as_fast_or_faster_at_some_width(narrow, wide, kind):
    names = [f"{share} heads, d_head {d}" for d in (4, 8) for share in ("own", "shared")]
    verdict = Heads().verdict(sweep(tuple(names), times(4, TENS), narrow, times(4, TENS), wide))
    assert verdict.kind == kind, verdict


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (times(8, TENS), times(4, NEAR), "supported"),
        (times(2, TENS), times(4, NEAR), "supported"),
        (times(4, NEAR), times(4, NEAR[::-1]), "contradicted"),
        (times(4, NEAR), times(4, SPREAD), "undecided"),
        (NEVER, times(4, NEAR), "supported"),
    ],
)
def test_the_gain_of_the_first_weights_matters_where_it_does_for_some_task(first, second, kind):
    gain = Gain(models=("0", "1"), gains=(0.18, 1.0))
    names = tuple(f"{model}, gain {g}" for model in ("0", "1") for g in ("0.18", "1"))
    verdict = gain.verdict(sweep(names, times(4, TENS), first, times(4, TENS), second))
    assert verdict.kind == kind, verdict
    assert verdict.because.startswith("of 0, gain 1 needs")


def test_one_gain_alone_is_no_question():
    with pytest.raises(UserError, match=r"--gains lists 1; give two or more, such as 0.18,1"):
        Gain(gains=(1.0,)).members()


@pytest.mark.parametrize(
    ("converged", "kind"),
    [
        # Of 14 seeds: one, two and three copies with 2 neurons, then with 32.
        ((14, 0, 0, 14, 14, 0), "supported"),
        ((14, 0, 0, 14, 0, 0), "contradicted"),
        ((14, 14, 14, 14, 14, 14), "undecided"),  # nothing was narrow
        ((14, 5, 0, 14, 14, 5), "supported"),
        ((14, 5, 0, 14, 11, 0), "undecided"),
    ],
)
def test_a_wider_mlp_holds_more_where_chance_does_not_explain_it(converged, kind):
    capacity = Capacity(d_mlp=(2, 32), seeds=14)
    names = tuple(f"{model}, d_mlp {d}" for d in capacity.d_mlp for model in capacity.models)
    epochs = [(10,) * n + (100,) * (14 - n) for n in converged]
    assert capacity.verdict(sweep(names, *epochs)).kind == kind
    few = [each[:2] for each in epochs]
    assert capacity.verdict(sweep(names, *few)).kind == "undecided"


@pytest.mark.parametrize("n", [8, 14, 16, 32])
def test_a_third_more_of_the_seeds_is_rarely_missed(n):
    """By counting every outcome: the upper end of the interval lies below the truth in 5% of the sweeps or fewer."""
    counts = range(n + 1)
    below = np.array([[most_more(Seeds(a, n), Seeds(b, n)) < 1 / 3 for b in counts] for a in counts])
    for fewer in np.linspace(0, 2 / 3, 41):
        many, few = (binom.pmf(counts, n, p) for p in (fewer + 1 / 3, fewer))
        assert many @ below @ few < 0.05


def test_tasks_fit_under_swaps_of_edges_where_they_hold_whether_or_not_they_converged():
    capacity = Capacity(models=("1",), d_mlp=(2, 32), seeds=14, swaps="edges")
    wide = [{**row, "setting": "1, d_mlp 32", "holds": True} for row in setting(*(100,) * 14)]
    narrow = [{**row, "setting": "1, d_mlp 2", "holds": False} for row in setting(*(10,) * 14)]
    assert capacity.verdict([*wide, *narrow]).kind == "supported"
    assert [capacity.share(wide + narrow, "1", d) for d in (2, 32)] == [0, 1]


def test_members_under_swaps_of_edges_begin_with_those_of_the_same_width_and_seed(tmp_path: Path):
    asked = {"models": ("1",), "d_mlp": (2, 32), "seeds": 1, "first_seed": 4}
    nodes = Capacity(**asked)
    members = nodes.members()
    assert {member.config.batch_size for member in members} == {256}
    with (tmp_path / "rows.jsonl").open("w") as rows:
        for i, member in enumerate(reversed(members)):
            rows.write(json.dumps({"member": i, "setting": member.setting, "seed": member.seed}) + "\n")
    second = Capacity(**asked, swaps="edges", start=str(tmp_path)).members()
    assert [member.start and member.start.name for member in second] == ["0001.safetensors", "0000.safetensors"]
    assert {(member.config.batch_size, member.config.sampling.swaps) for member in second} == {(64, "edges")}
    with pytest.raises(UserError, match=r"has no 1, d_mlp 2, seed 5; it has 1, d_mlp 32, seed 4, 1, d_mlp 2, seed 4"):
        Capacity(**{**asked, "first_seed": 5}, start=str(tmp_path)).members()
    with pytest.raises(UserError, match=r"--start is empty, but --swaps=edges goes on from weights that hold at nodes"):
        Capacity(**asked, swaps="edges").members()


def test_rates_that_are_the_same_are_refused():
    with pytest.raises(ValueError, match=r"--high is 0.001, --low 0.001 and --lowest 1e-05; they must all differ"):
        Schedules(low=1e-3).members()


def hiding(one: tuple[float, ...], subsets: tuple[float, ...], siia: float = 1.0) -> list[Row]:
    """Rows whose worst subsets cost these points, a seed each."""
    return [
        {"setting": name, "seed": seed, "siia": siia, "hidden": points / 100}
        for name, own in ((ONE, one), (SUBSETS, subsets))
        for seed, points in enumerate(own)
    ]


NONE = (0.0,) * 6


def test_shared_heads_are_shown_under_swaps_of_every_kind_where_these_were_measured():
    question, names = Heads(d_head=(4,)), ("own heads, d_head 4", "shared heads, d_head 4")
    rows = sweep(names, TENS, TENS)
    assert [table.title for table in question.tables(rows)][1:] == []
    kinds = [{"words": "one edge", "worst": 1.0, "worst_changed": 0.5}]
    measured = [row | {"kinds": kinds} for row in rows]
    _, table = question.tables(measured)
    assert [str(column.header) for column in table.columns][1:] == [
        *names,
        "shared heads, d_head 4 - own heads, d_head 4",
    ]


@pytest.mark.parametrize(
    ("one", "subsets", "kind"),
    [
        ((5.0, 5.5, 4.5, 5.0, 5.0, 5.2), NONE, "supported"),
        (NONE, NONE, "undecided"),
        ((0.01, 0.0, 0.02, 0.0, 0.05, 0.0), NONE, "contradicted"),
        ((5.0, 0.0, 0.0, 0.0, 0.0, 0.0), NONE, "undecided"),
        ((5.0, 5.5, 4.5, 5.0, 5.0, 5.2), (5.0, 5.5, 4.5, 5.0, 5.0, 5.15), "contradicted"),
        ((5.0, 5.5, 4.5, 5.0, 5.0), (0.0,) * 5, "undecided"),
    ],
)
def test_backup_behaviour_is_what_single_sampling_hides_beyond_random_subsets(one, subsets, kind):
    assert backup(hiding(one, subsets)).kind == kind


def test_the_verdict_on_sampling_says_in_how_many_seeds_and_leaves_out_those_that_do_not_hold_single_swaps():
    rows = hiding((5.0, 5.0, 0.1, 0.0, 0.0, 90.0, 5.0), (0.0,) * 7)
    next(row for row in rows if (row["setting"], row["seed"]) == (SUBSETS, 5))["siia"] = 0.99
    because = backup(rows).because
    # Of 5, 5, 0.1, 0, 0, 5.
    assert "hide +2.550 points more than in random subsets" in because
    assert because.endswith("in 3 of 6 seeds; 6 of 7 seeds hold single swaps (SIIA 99.9) both ways.")
    assert backup(hiding(NONE, NONE, siia=0.99)) == Verdict(
        "undecided", "only 0 of 6 seeds hold single swaps (SIIA 99.9) both ways, and the comparison needs 6."
    )


def test_some_ways_of_sampling_may_be_trained_alone_and_others_rows_are_left_out():
    question = Samplings(seeds=1, only=(ONE, SUBSETS))
    assert [member.setting for member in question.members()] == [SUBSETS, ONE]
    shares = {**dict.fromkeys(METRICS, 0.5), "hidden": 0.1, "worst_subset": ["L0H0"]}
    rows = [{**row, **shares} for row in sweep((SUBSETS, ONE, "unused: all"), TENS, TENS, TENS)]
    assert [table.row_count for table in question.tables(rows)] == [2, 1, 2]
    assert backup([row for row in rows if row["setting"] == SUBSETS]).because == f'"{ONE}" was not trained.'


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ((ONE,), '--only is unused: one; name "random subsets" too, with which others are compared'),
        (("unused",), 'the setting is "unused"; did you mean "unused: one"? It must be one of random subsets, '),
    ],
)
def test_ways_of_sampling_that_cannot_be_trained_alone_are_refused(only, words):
    with pytest.raises(UserError, match=re.escape(words)):
        Samplings(only=only).members()


TINY = """
from dataclasses import dataclass, replace
from siitjax.causal.circuit import Variable
from siitjax.base.command import main
from siitjax.model.nodes import head
from sweeps.capacity import Capacity
from sweeps.heads import Heads
from sweeps.sampling import METRICS, ONE, SUBSETS, Samplings
from tests import tiny

@dataclass(frozen=True)
class Tiny(Samplings):
    def settings(self):
        is_right = Variable("is_right", ("tokens",), lambda tokens: (tokens == 3).astype(int), head(0, 1))
        config = replace(tiny.CONFIG, case=replace(tiny.CASE, variables=(is_right,)))
        return {SUBSETS: (config, tiny.LEARNS), ONE: (config, tiny.STAYS)}

if __name__ == "__main__":
    main(Tiny)
"""


def test_a_run_ends_in_what_is_measured_of_the_trained_weights(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    folder = tmp_path / "results"
    command = (str(tmp_path / "tiny.py"), "--seeds=2", "--workers=1", f"--out={folder}")
    ended = run(*command, PYTHONPATH=str(Path(__file__).parent.parent))
    assert ended.code == 0, ended.err
    assert "The unused nodes of what was trained" in ended.out
    assert "seeds hold single swaps (SIIA 99.9) both ways, and the comparison needs 6." in ended.out
    kept = [json.loads(line) for line in (folder / "measured.jsonl").read_text().splitlines()]
    assert [one["member"] for one in kept] == [0, 1, 2, 3]
    for one in kept:
        assert 0 <= one["worst_siia"] <= min(one["joint_siia"], one["siia"]) + 1e-6
        assert one["hidden"] == pytest.approx(one["siia"] - one["worst_siia"])
        assert set(one["worst_subset"]) <= {"L0H0", "L0H2", "MLP0"}


def test_what_was_measured_is_kept_and_not_measured_again(tmp_path):
    question = Samplings(seeds=1)
    results = Results(tmp_path, "", tuple(question.members()))
    rows = [{"member": 0, "setting": SUBSETS, "seed": 0, "siia": 0.7}]
    shares = {name: i / 10 for i, name in enumerate(METRICS)}
    kept = {"member": 0, **shares, "hidden": 0.3, "worst_subset": ["L0H0"]}
    results.measured.append(kept)
    assert question.measured(rows, results) == [{**rows[0], **kept}]
    torn = '{"member": 0\n' + json.dumps(kept) + "\n"
    (tmp_path / "measured.jsonl").write_text(torn)
    with pytest.raises(UserError, match=r"measured.jsonl line 1 is torn: it is not whole JSON; restore it"):
        question.measured(rows, results)
    assert (tmp_path / "measured.jsonl").read_text() == torn
