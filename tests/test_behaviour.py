"""What a case computes and draws is part of what a sweep, or a member's file, is: an edit of it is told in one line."""

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import cases
from siitjax.base.errors import UserError
from siitjax.base.versions import versions
from siitjax.causal.behaviour import _digest, behaviour, change
from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.causal.data import Those, Uniform
from siitjax.io.trained import read_trained
from siitjax.model.nodes import head, mlp
from siitjax.sweep.results import Results, ResultsError
from tests import tear
from tests.tiny import CASE, always_one


def with_variables(*variables: Variable) -> Case:
    return replace(CASE, variables=variables)


def is_right(tokens):
    return tokens == 3


def as_class(is_right):
    return is_right.astype(jnp.int32)


BEGINNING = (Those(Uniform((2, 3)), lambda strings: strings[:, 0] == 2),)
TWO = (Variable("is_right", ("tokens",), is_right, head(0, 1)), Variable("answer", ("is_right",), as_class, mlp(0)))
EDITED = {
    "labels that are the opposite": (
        with_variables(Variable("answer", ("tokens",), always_one, head(0, 1))),
        with_variables(Variable("answer", ("tokens",), lambda tokens: 0 * tokens, head(0, 1))),
        'its variable "answer" was computed otherwise',
    ),
    "a placed variable that no label shows": (
        with_variables(TWO[0], Variable("answer", ("is_right",), lambda x: 1 + 0 * as_class(x), mlp(0))),
        with_variables(
            Variable("is_right", ("tokens",), lambda tokens: tokens == 2, head(0, 1)),
            Variable("answer", ("is_right",), lambda x: 1 + 0 * as_class(x), mlp(0)),
        ),
        'its variable "is_right" was computed otherwise',
    ),
    "plumbing": (
        with_variables(Variable("k", ("tokens",), always_one), Variable("answer", ("k",), lambda k: k, mlp(0))),
        with_variables(Variable("k", ("tokens",), lambda t: 0 * t), Variable("answer", ("k",), lambda k: k, mlp(0))),
        'its variable "answer" was computed otherwise',
    ),
    "what is read, where no value shows it": (
        with_variables(*TWO),
        with_variables(TWO[0], Variable("answer", ("tokens",), lambda tokens: as_class(is_right(tokens)), mlp(0))),
        "its labels under a swap of L0H1 were others",
    ),
    "the strings": (
        CASE,
        replace(CASE, strata=BEGINNING),
        "it drew other strings from the same seed",
    ),
}


@pytest.mark.parametrize("what", EDITED)
def test_an_edit_is_told_though_name_circuit_and_sizes_are_the_same(what):
    before, after, words = EDITED[what]
    assert before.describe() == after.describe()
    said = json.loads(json.dumps(behaviour(before).describe()))
    assert change(said, behaviour(after)) == words
    assert change(said, behaviour(before)) is None


def test_the_digests_are_these_on_every_machine():
    """Labels, values and swaps are computed again here in plain Python, from the samples."""
    found = behaviour(cases.find("left_greater"))
    samples = [[int(token) for token in sample.split()] for sample in found.samples]

    def digest(rows: list[list[int]]) -> str:
        flat = [x for row in rows for x in row]
        shape = str((len(rows), len(rows[0])))
        return hashlib.sha256(shape.encode() + struct.pack(f"<{len(flat)}q", *flat)).hexdigest()[:12]

    greater = [[int(s[: i + 1].count(2) > s[: i + 1].count(3)) for i in range(len(s))] for s in samples]
    answers = [[2, *row[1:]] for row in greater]
    assert found.computed.variables["left_greater"] == digest(greater)
    assert found.computed.variables["answer"] == digest(answers)
    # Under a swap each sample answers what the one before it does, the last one stands before the first.
    swapped = digest([answers[-1], *answers][:16])
    assert found.computed.swaps == {"L0H1": swapped, "MLP0": swapped}
    assert found.describe() == {
        "draws": "c9553426d468",
        "variables": {"counts": "d927acd5065b", "left_greater": "7841827bcd00", "answer": "f3366864d1d6"},
        "swaps": {"L0H1": "34b4215bba75", "MLP0": "34b4215bba75"},
    }


def test_integers_and_booleans_count_exactly_and_numbers_but_for_their_last_bits():
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 2, (7, 5))
    assert len({_digest(whole.astype(kind)) for kind in (np.int64, np.int32, np.uint8, bool)}) == 1
    assert _digest(whole) != _digest(whole.reshape(5, 7))
    more = whole.copy()
    more[3, 2] += 1
    assert _digest(more) != _digest(whole)
    for scale in (1e-3, 1.0, 1e6):
        numbers = scale * rng.standard_normal((64, 15))
        numbers[0, :3] = np.inf, -np.inf, np.nan
        shift = 0.1 * max(scale, 1) * (numbers > 0)
        near = numbers * (1 + 1e-7 * rng.standard_normal((64, 15)))
        assert _digest(numbers) == _digest(numbers.astype(np.float32)) == _digest(near)
        for other in (-numbers, np.where(np.isnan(numbers), 0, numbers), numbers[::-1], numbers + shift):
            assert _digest(other) != _digest(numbers)


def test_fractions_that_a_rounding_would_cut_in_two_have_one_digest():
    """k / n, as a mean of counts gives it, is off by its last bit on another machine."""
    for n in range(1, 65):
        exact = np.full((64, 15), 1 / n)
        for off in (np.nextafter(np.float32(1 / n), np.float32(0)), np.nextafter(np.float32(1 / n), np.float32(2))):
            assert _digest(np.full((64, 15), off)) == _digest(exact)


def edited(words: str) -> tuple[Case, str]:
    """The case of the members that are made up, edited."""
    if words == "strings":
        return replace(CASE, strata=BEGINNING), "it drew other strings from the same seed"
    return (
        with_variables(Variable("answer", ("tokens",), lambda tokens: 0 * tokens, head(0, 1))),
        'its variable "answer" was computed otherwise',
    )


def results(folder: Path, case: Case = CASE) -> Results:
    members = tuple(replace(member, config=replace(member.config, case=case)) for member in tear.MEMBERS)
    return Results(folder, "made up", members)


@pytest.mark.parametrize("what", ["labels", "strings"])
def test_a_sweep_is_not_gone_on_with_after_an_edit_of_its_case(tmp_path, what):
    """Two cases with opposite labels shared one digest, so that --resume mixed the rows of two tasks."""
    case, words = edited(what)
    tear.run(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(b"")
    before = tear.contents(tmp_path)
    with pytest.raises(ResultsError) as error:
        results(tmp_path, case).check(resume=True)
    assert str(error.value) == (
        f"{tmp_path} was begun with another left_greater: {words}; undo the edit of the case, or choose another --out"
    )
    assert tear.contents(tmp_path) == before
    assert results(tmp_path).check(resume=True) == []


def test_another_numpy_is_named_where_strings_differ(tmp_path):
    tear.run(tmp_path)
    rewrite(tmp_path, lambda config: config["begun_with"].update(numpy="2.0.0"))
    with pytest.raises(ResultsError, match=rf"seed \(with numpy 2.0.0, which is {versions()['numpy']} now\); undo"):
        results(tmp_path, edited("strings")[0]).check(resume=True)


def rewrite(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_the_versions_that_began_a_sweep_are_written_down_and_not_compared(tmp_path):
    tear.run(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["begun_with"] == versions()
    assert {"siitjax", "jax", "numpy"} < versions().keys()
    digest = results(tmp_path).digest
    rewrite(tmp_path, lambda config: config["begun_with"].update(jax="0.1"))
    assert len(results(tmp_path).check(resume=False) or []) == len(tear.MEMBERS)
    assert results(tmp_path).digest == digest


def test_the_digest_of_a_sweep_knows_what_its_case_computes(tmp_path):
    digests = set()
    for name, case in (("a", CASE), ("b", edited("labels")[0]), ("c", edited("strings")[0])):
        sweep = results(tmp_path / name, case)
        with sweep.held():
            sweep.begin(resume=False)
        digests.add(sweep.digest)
    assert len(digests) == 3


def test_what_was_trained_on_a_case_that_was_edited_meanwhile_is_not_kept(tmp_path):
    """As a worker does that is started after the edit, in the place of one that was lost."""
    with results(tmp_path).held():
        results(tmp_path).begin(resume=False)
    case, words = edited("labels")
    late = results(tmp_path, case)
    with pytest.raises(ResultsError, match=rf"left_greater was edited while .* ran: {words}; member 0 is not kept"):
        late.write(0, late.members[0], tear.outcome(0))
    assert list((tmp_path / "members").iterdir()) == []


def test_a_folder_that_does_not_say_what_its_case_computes_is_read_when_finished_and_else_refused(tmp_path):
    """As an older siitjax left it."""
    tear.run(tmp_path)
    rewrite(tmp_path, lambda config: (config.pop("begun_with"), [m.pop("behaviour") for m in config["members"]]))
    assert len(results(tmp_path).check(resume=False) or []) == len(tear.MEMBERS)
    (tmp_path / "rows.jsonl").write_bytes(b"")
    with pytest.raises(ResultsError, match="begun by a siitjax that did not write down what a case computes and draws"):
        results(tmp_path).check(resume=True)


@pytest.fixture(scope="module")
def member(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("behaviour")
    tear.run(folder)
    return folder / "members" / "0000.safetensors"


def test_a_member_says_what_its_case_computed_and_which_versions_trained_it(member):
    about = read_trained(member, lambda description: CASE).about
    assert about["member"]["behaviour"] == behaviour(CASE).describe()
    assert about["samples"] == [*behaviour(CASE).samples]
    assert about["versions"] == versions()


@pytest.mark.parametrize("what", ["labels", "strings and labels"])
def test_a_member_of_an_edited_case_is_not_handed_out_with_a_wrong_causal_model(member, what):
    case, words = edited("labels")
    if what != "labels":  # which does not hide that the labels are others
        case = replace(case, strata=edited("strings")[0].strata)
    with pytest.raises(UserError) as error:
        read_trained(member, lambda description: case)
    assert str(error.value) == (
        f"{member} was trained on another left_greater: {words}; undo the edit of the case, or read the weights alone "
        "with siitjax.model.weights.load_weights"
    )


def test_a_member_whose_case_draws_other_strings_now_is_read_with_a_warning(member):
    with pytest.warns(UserWarning, match=r"0000.safetensors was trained on other strings than left_greater draws now$"):
        found = read_trained(member, lambda description: edited("strings")[0])
    assert found.case.describe() == CASE.describe()
