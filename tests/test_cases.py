"""The four cases against issue 3's table: sizes and nodes as written there, and every variable, the label among
them, against brute force in plain Python at every position of every string of a short context."""

import sys
from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cases
from cases import CASES, find, paren_checker
from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.causal.loss import CrossEntropy
from siitjax.model.nodes import Node
from siitjax.sweep.engine import Member
from tests.tiny import CONFIG

NODES = {
    "left_greater": {"counts": "L0H1", "left_greater": "MLP0", "answer": None},
    "paren_checker": {"counts": "L0H3", "elevation": "MLP0", "checks": "MLP1", "horizon": "L2H3", "balanced": "MLP2"},
    "duplicate_remover": {"previous": "L0H0", "is_duplicate": "MLP0", "kept": "MLP1"},
    "unique_extractor": {"counts": "L0H2", "appeared": "MLP0", "any_appeared": "MLP1", "kept": "MLP2"},
}
# layers, d_model, d_head, letters of a string, classes a token
SIZES = {
    "left_greater": (1, 12, 3, "()", 3),
    "paren_checker": (3, 20, 5, "()", 3),
    "duplicate_remover": (2, 20, 5, "abc", 5),
    "unique_extractor": (3, 32, 8, "abc", 5),
}
SHORT = {"()": 7, "abc": 6}


def balances(string: str) -> bool:
    """Whether nothing is left of `string` once every () is struck out, again and again."""
    while "()" in string:
        string = string.replace("()", "")
    return string == ""


def never_below(string: str) -> bool:
    """Whether no beginning of `string` has more ) than (."""
    return all(string[:i].count("(") >= string[:i].count(")") for i in range(len(string) + 1))


# The value of each variable at the last token of a beginning, in which ^ stands for BOS and _ for PAD.
TRUTH = {
    "left_greater": {
        "counts": lambda s: [s.count("("), s.count(")")],
        "left_greater": lambda s: s.count("(") > s.count(")"),
        "answer": lambda s: 2 if s == "^" else int(s.count("(") > s.count(")")),
    },
    "paren_checker": {
        "counts": lambda s: [s.count("("), s.count(")")],
        "elevation": lambda s: s.count("(") - s.count(")"),
        "checks": lambda s: [s.count("(") == s.count(")"), s.count("(") >= s.count(")")],
        "horizon": lambda s: never_below(s),
        "balanced": lambda s: 2 if s == "^" else int(balances(s[1:])),
    },
    "duplicate_remover": {
        "previous": lambda s: "^_abc".index(("_" + s)[-2]),
        "is_duplicate": lambda s: s[-2:] in ("aa", "bb", "cc"),
        "kept": lambda s: "^_abc".index("_" if s[-2:] in ("aa", "bb", "cc") else s[-1]),
    },
    "unique_extractor": {
        "counts": lambda s: [s.count("a"), s.count("b"), s.count("c")],
        "appeared": lambda s: [s[-1] == letter and letter in s[:-1] for letter in "abc"],
        "any_appeared": lambda s: s[-1] in s[:-1],
        "kept": lambda s: "^_abc".index("_" if s[-1] in s[:-1] else s[-1]),
    },
}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def everything(request):
    """A case, every string of a short context, and the labels and values that the circuit gives them."""
    case: Case = request.param
    letters = SIZES[case.name][3]
    strings = ["".join(string) for string in product(letters, repeat=SHORT[letters])]
    short = case.with_context(1 + SHORT[letters])
    samples = jnp.stack([short.tokens(string) for string in strings])
    return case, strings, samples, jax.jit(jax.vmap(short.circuit))(samples)


def by_brute_force(case: Case, variable: str, strings: list[str]) -> np.ndarray:
    value = TRUTH[case.name][variable]
    return np.array([[value("^" + string[:i]) for i in range(len(string) + 1)] for string in strings])


def test_labels_are_those_of_brute_force_for_every_string(everything):
    case, strings, _, (labels, _) = everything
    label = list(TRUTH[case.name])[-1]
    np.testing.assert_array_equal(labels, by_brute_force(case, label, strings))


def test_every_variable_is_that_of_brute_force_for_every_string(everything):
    case, strings, samples, (_, (tokens, *values)) = everything
    assert {v.name for v in case.circuit.ordered} == set(TRUTH[case.name])
    np.testing.assert_array_equal(tokens, samples)
    for variable, value in zip(case.circuit.ordered, values, strict=True):
        expected = by_brute_force(case, variable.name, strings)
        np.testing.assert_array_equal(value, expected, err_msg=variable.name)
        assert (value.dtype == bool) == (expected.dtype == bool), variable.name


def test_labels_are_classes_that_the_transformer_has(everything):
    case, _, _, (labels, _) = everything
    assert case.n_outputs == SIZES[case.name][4]
    assert set(np.unique(labels).tolist()) <= set(range(case.n_outputs))
    assert case.loss == CrossEntropy()


def test_the_one_table_holds_the_four_cases():
    assert {case.name for case in CASES} == set(NODES)
    # The numbers of Anders & Garriga-Alonso 2024.
    numbered = ["duplicate_remover", "left_greater", "paren_checker", "unique_extractor"]
    assert [find(str(i)).name for i in range(4)] == [case.name for case in CASES] == numbered


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sizes_and_nodes_are_those_of_the_issues_table(case):
    n_layers, d_model, d_head, letters, _ = SIZES[case.name]
    nodes = NODES[case.name]
    assert (case.config.n_layers, case.config.d_model, case.config.d_head) == (n_layers, d_model, d_head)
    assert (case.config.n_heads, case.config.mlp_width) == (d_model // d_head, 4 * d_model)
    assert (case.n_ctx, case.config.n_ctx) == (15, 15)
    assert case.vocabulary == ("BOS", "PAD", *letters)
    assert (case.config.d_vocab, case.config.d_vocab_out) == (2 + len(letters), case.n_outputs)
    assert {v.name: None if v.node is None else str(v.node) for v in case.variables} == nodes
    assert set(case.circuit.nodes.named(case.circuit.circuit_mask)) == {Node.parse(n) for n in nodes.values() if n}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_is_found_by_its_name(case):
    assert find(case.name) is case


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [("paren_cheker", "paren_checker"), ("leftgreater", "left_greater"), ("unique", "unique_extractor")],
)
def test_an_unknown_case_is_refused_with_the_nearest_name(unknown, nearest):
    with pytest.raises(ValueError, match=f'"{unknown}".*did you mean "{nearest}"') as refusal:
        find(unknown)
    assert all(name in str(refusal.value) for name in NODES)


@pytest.mark.parametrize("unknown", ["", "7", "Δ"])
def test_a_name_like_none_is_refused_too(unknown):
    with pytest.raises(ValueError, match="did you mean"):
        find(unknown)


def test_a_task_that_cannot_be_imported_breaks_no_other(monkeypatch):
    """Its own error, with its traceback, comes when it is asked for."""
    monkeypatch.setitem(sys.modules, "cases.left_greater", None)  # which import refuses
    assert find("2").name == "paren_checker"
    assert cases.load("0").case.name == "duplicate_remover"
    with pytest.raises(ModuleNotFoundError, match=r"import of cases.left_greater halted"):
        find("left_greater")
    with pytest.warns(
        UserWarning, match=r"^cases/left_greater.py cannot be used, and is left out: ModuleNotFoundError: "
    ):
        assert [case.name for case in cases.CASES] == ["duplicate_remover", "paren_checker", "unique_extractor"]


def test_a_task_is_called_as_its_file(monkeypatch):
    monkeypatch.setattr(paren_checker, "CASE", replace(paren_checker.CASE, name="parens"))
    with pytest.raises(
        UserError, match=r'cases/paren_checker.py declares a case called "parens"; give it the name of its'
    ):
        find("2")


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_a_seed_that_jax_takes_for_another_is_refused(seed):
    with pytest.raises(UserError, match=rf"the seed is {seed}; it must be at least 0 and less than 2\*\*32"):
        Member("any", seed, CONFIG)


def test_with_context_changes_the_context_and_nothing_else():
    case = find("paren_checker")
    longer = case.with_context(25)
    assert (longer.n_ctx, longer.config.n_ctx) == (25, 25)
    assert replace(longer, n_ctx=15) == case
    assert (case.n_ctx, case.config.n_ctx) == (15, 15)


@pytest.mark.parametrize("n_ctx", [1, 0, -3])
def test_a_context_without_room_for_a_token_is_refused(n_ctx):
    with pytest.raises(ValueError, match=f"n_ctx is {n_ctx}; it must be at least 2"):
        find("left_greater").with_context(n_ctx)


def test_a_string_is_spelled_in_the_cases_tokens():
    assert find("left_greater").tokens("())").tolist() == [0, 2, 3, 3]
    assert find("duplicate_remover").tokens(["a", "PAD", "c"]).tolist() == [0, 2, 1, 4]
    with pytest.raises(ValueError, match='"x" is not a token of left_greater; those are BOS PAD'):
        find("left_greater").tokens("(x")


@pytest.mark.parametrize("vocabulary", [("PAD", "BOS", "(", ")"), ("(", ")"), ("BOS", "PAD", "(", "(")])
def test_a_vocabulary_that_does_not_begin_with_bos_and_pad_or_repeats_is_refused(vocabulary):
    with pytest.raises(ValueError, match='it must begin "BOS", "PAD" and repeat nothing'):
        replace(find("left_greater"), vocabulary=vocabulary)


def test_a_case_without_strata_is_refused():
    with pytest.raises(ValueError, match="lists no strata"):
        replace(find("left_greater"), strata=())
