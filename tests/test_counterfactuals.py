"""What a swap does to the labels: tables worked out by hand for every variable and every single-node swap, and a
walk over the graph in plain Python for random sets of nodes.

Strings are written with ^ for BOS and _ for PAD; labels with a digit a class, or as a string where they are tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import CASES, find
from siitjax.causal.case import Case
from siitjax.model.nodes import EMBED, Node

PAIRS = 400


def all_but_horizon(labels: str) -> dict[str, str]:
    return dict.fromkeys(("L0H3", "MLP0", "MLP1", "MLP2"), labels)


# case: (base, source, labels of base, {node: labels of base when the node takes source's values})
BY_HAND = {
    "left_greater": [
        ("(()", "))(", "2111", {"L0H1": "2000", "MLP0": "2000"}),
        (")(((", "())(", "20011", {"L0H1": "21000", "MLP0": "21000"}),
        ("))))", "()((", "20000", {"L0H1": "21011", "MLP0": "21011"}),
    ],
    # L2H3: base's level beside source's horizon. Every other node decides all that the label hangs on.
    "paren_checker": [
        ("()()", ")(()", "20101", {**all_but_horizon("20000"), "L2H3": "20000"}),
        (")(()", "(())", "20000", {**all_but_horizon("20001"), "L2H3": "20101"}),
        ("(())()", "()())(", "2000101", {**all_but_horizon("2010100"), "L2H3": "2000100"}),
    ],
    # L0H0: base's token is struck out where it equals the token before it in source.
    "duplicate_remover": [
        ("aab", "bac", "^a_b", {"L0H0": "^aab", "MLP0": "^aab", "MLP1": "^bac"}),
        ("abcab", "aabba", "^abcab", {"L0H0": "^abca_", "MLP0": "^a_c_b", "MLP1": "^a_b_a"}),
        ("bbcc", "ccba", "^b_c_", {"L0H0": "^bb_c", "MLP0": "^b_cc", "MLP1": "^c_ba"}),
    ],
    # L0H2: base's token is struck out where source holds it twice so far.
    "unique_extractor": [
        ("abab", "aabc", "^ab__", {"L0H2": "^ab_b", "MLP0": "^a_ab", "MLP1": "^a_ab", "MLP2": "^a_bc"}),
        ("cabca", "bcbcc", "^cab__", {"L0H2": "^ca__a", "MLP0": "^ca___", "MLP1": "^ca___", "MLP2": "^bc___"}),
        ("aaac", "baac", "^a__c", {"L0H2": "^aa_c", "MLP0": "^aa_c", "MLP1": "^aa_c", "MLP2": "^ba_c"}),
    ],
}

# case: (a string, the value of each variable at BOS and at each of its tokens)
VARIABLES_BY_HAND = {
    "left_greater": [
        ("())", {"counts": [(0, 0), (1, 0), (1, 1), (1, 2)], "left_greater": [0, 1, 0, 0], "answer": [2, 1, 0, 0]}),
        (")((", {"counts": [(0, 0), (0, 1), (1, 1), (2, 1)], "left_greater": [0, 0, 0, 1], "answer": [2, 0, 0, 1]}),
    ],
    "paren_checker": [
        (
            "())(",
            {
                "counts": [(0, 0), (1, 0), (1, 1), (1, 2), (2, 2)],
                "elevation": [0, 1, 0, -1, 0],
                "checks": [(1, 1), (0, 1), (1, 1), (0, 0), (1, 1)],
                "horizon": [1, 1, 1, 0, 0],
                "balanced": [2, 0, 1, 0, 0],
            },
        ),
        (
            "(())",
            {
                "counts": [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2)],
                "elevation": [0, 1, 2, 1, 0],
                "checks": [(1, 1), (0, 1), (0, 1), (0, 1), (1, 1)],
                "horizon": [1, 1, 1, 1, 1],
                "balanced": [2, 0, 0, 0, 1],
            },
        ),
    ],
    "duplicate_remover": [
        ("aab", {"previous": "_^aa", "is_duplicate": [0, 0, 1, 0], "kept": "^a_b"}),
        ("cbb", {"previous": "_^cb", "is_duplicate": [0, 0, 0, 1], "kept": "^cb_"}),
    ],
    "unique_extractor": [
        (
            "bab",
            {
                "counts": [(0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 2, 0)],
                "appeared": [(0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 1, 0)],
                "any_appeared": [0, 0, 0, 1],
                "kept": "^ba_",
            },
        ),
        (
            "cca",
            {
                "counts": [(0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 0, 2)],
                "appeared": [(0, 0, 0), (0, 0, 0), (0, 0, 1), (0, 0, 0)],
                "any_appeared": [0, 0, 1, 0],
                "kept": "^c_a",
            },
        ),
    ],
}


class Plain(NamedTuple):
    """A variable in plain Python: where it lives, what it reads, and its value at each position."""

    node: str | None
    reads: tuple[str, ...]
    compute: Callable[..., list]


def so_far(xs: list) -> list[list]:
    return [xs[: i + 1] for i in range(len(xs))]


def each(function: Callable) -> Callable[..., list]:
    return lambda *reads: [function(*here) for here in zip(*reads, strict=True)]


def count(letters: str) -> Callable[[list], list]:
    return lambda tokens: [tuple(past.count(letter) for letter in letters) for past in so_far(tokens)]


WALK = {
    "left_greater": {
        "counts": Plain("L0H1", ("tokens",), count("()")),
        "left_greater": Plain("MLP0", ("counts",), each(lambda n: n[0] > n[1])),
        "answer": Plain(None, ("tokens", "left_greater"), each(lambda t, more: 2 if t == "^" else int(more))),
    },
    "paren_checker": {
        "counts": Plain("L0H3", ("tokens",), count("()")),
        "elevation": Plain("MLP0", ("counts",), each(lambda n: n[0] - n[1])),
        "checks": Plain("MLP1", ("elevation",), each(lambda e: (e == 0, e >= 0))),
        "horizon": Plain("L2H3", ("checks",), lambda checks: [all(up for _, up in past) for past in so_far(checks)]),
        "balanced": Plain(
            "MLP2", ("tokens", "checks", "horizon"), each(lambda t, c, h: 2 if t == "^" else int(c[0] and h))
        ),
    },
    "duplicate_remover": {
        "previous": Plain("L0H0", ("tokens",), lambda tokens: ["_", *tokens[:-1]]),
        "is_duplicate": Plain("MLP0", ("tokens", "previous"), each(lambda t, p: t == p)),
        "kept": Plain("MLP1", ("tokens", "is_duplicate"), each(lambda t, d: "_" if d else t)),
    },
    "unique_extractor": {
        "counts": Plain("L0H2", ("tokens",), count("abc")),
        "appeared": Plain(
            "MLP0",
            ("tokens", "counts"),
            each(lambda t, n: [t == letter and k > 1 for letter, k in zip("abc", n, strict=True)]),
        ),
        "any_appeared": Plain("MLP1", ("appeared",), each(any)),
        "kept": Plain("MLP2", ("tokens", "any_appeared"), each(lambda t, a: "_" if a else t)),
    },
}


def walk(case: Case, string: str, source: dict[str, list] | None = None, swapped: tuple[Node, ...] = ()) -> dict:
    """The value of everything, those on the swapped nodes taken from `source`; in the order of the declaration."""
    nodes = {str(node) for node in swapped}
    values = {"tokens": list("^" + string)}
    if source and "embed" in nodes:
        values["tokens"] = source["tokens"]
    for name, (node, reads, compute) in WALK[case.name].items():
        values[name] = source[name] if source and node in nodes else compute(*(values[read] for read in reads))
    return values


def as_ids(values: Any) -> np.ndarray:
    """Values in plain Python as the circuit has them: tokens by their number, everything else as it is."""
    values = list(values)
    return np.array(["^_abc".index(v) for v in values] if isinstance(values[0], str) else values)


def own_labels(case: Case, strings: list[str]) -> np.ndarray:
    return np.stack([as_ids(list(walk(case, string).values())[-1]) for string in strings])


def counterfactual(case: Case, base: str, source: str, nodes: list[Node]) -> np.ndarray:
    circuit = case.circuit
    _, values = circuit(case.tokens(source))
    labels, _ = circuit(case.tokens(base), (jnp.asarray(circuit.nodes.mask(nodes)), values))
    return np.asarray(labels)


def as_labels(case: Case, written: str) -> list[int]:
    return [("^_abc" if "abc" in "".join(case.vocabulary) else "012").index(label) for label in written]


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, rows in VARIABLES_BY_HAND.items() for row in rows])
def test_every_variable_is_that_of_the_table_by_hand(name, row):
    string, expected = row
    case = find(name)
    _, (_, *values) = case.circuit(case.tokens(string))
    computed = {v.name: value for v, value in zip(case.circuit.ordered, values, strict=True)}
    assert computed.keys() == expected.keys() == {v.name for v in case.variables}
    for variable in expected:
        np.testing.assert_array_equal(computed[variable], as_ids(expected[variable]), err_msg=variable)


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, rows in BY_HAND.items() for row in rows])
def test_every_single_node_swap_gives_the_labels_of_the_table_by_hand(name, row):
    base, source, own, swapped = row
    case = find(name)
    assert swapped.keys() == {str(node) for node in case.circuit.nodes.named(case.circuit.circuit_mask)}
    assert own not in swapped.values(), "the table must hold swaps that change a label"
    np.testing.assert_array_equal(counterfactual(case, base, source, []), as_labels(case, own))
    for node, labels in swapped.items():
        computed = counterfactual(case, base, source, [Node.parse(node)])
        np.testing.assert_array_equal(computed, as_labels(case, labels), err_msg=node)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def random_swaps(request):
    """A case, random pairs of strings, and its circuit compiled over pairs and masks."""
    case: Case = request.param
    rng = np.random.default_rng(0)
    letters = "".join(case.vocabulary[2:])
    base, source = (["".join(string) for string in rng.choice(list(letters), (PAIRS, 14))] for _ in range(2))
    samples = [jnp.asarray(np.stack([case.tokens(string) for string in strings])) for strings in (base, source)]

    @jax.jit
    @jax.vmap
    def labels(base, source, mask):
        return case.circuit(base, (mask, case.circuit(source)[1]))

    def under(masks: np.ndarray):
        return labels(*samples, jnp.asarray(np.broadcast_to(masks, (PAIRS, len(case.circuit.nodes)))))

    return case, base, source, under, rng


def test_labels_and_variables_are_those_of_a_walk_in_plain_python_for_random_sets_of_nodes(random_swaps):
    case, base, source, under, rng = random_swaps
    nodes = case.circuit.nodes
    masks = rng.random((PAIRS, len(nodes))) < 0.3
    labels, (tokens, *values) = under(masks)
    walked = [walk(case, b, walk(case, s), nodes.named(mask)) for b, s, mask in zip(base, source, masks, strict=True)]
    np.testing.assert_array_equal(labels, np.stack([as_ids(list(w.values())[-1]) for w in walked]))
    for name, value in zip([v.name for v in case.circuit.ordered], values, strict=True):
        np.testing.assert_array_equal(value, np.stack([as_ids(w[name]) for w in walked]), err_msg=name)
    swapped = masks[:, nodes.index(EMBED)]
    spelled = [s if from_source else b for b, s, from_source in zip(base, source, swapped, strict=True)]
    np.testing.assert_array_equal(tokens, np.stack([case.tokens(string) for string in spelled]))


def test_swapping_nothing_or_unused_nodes_leaves_every_label(random_swaps):
    case, base, _, under, rng = random_swaps
    nothing = np.zeros(len(case.circuit.nodes), bool)
    subsets = (rng.random((PAIRS, len(nothing))) < 0.5) & case.circuit.unused_mask
    for masks in (nothing, case.circuit.unused_mask, subsets):
        np.testing.assert_array_equal(under(masks)[0], own_labels(case, base))


def test_swapping_the_embedding_or_every_node_of_the_circuit_gives_the_sources_labels(random_swaps):
    case, _, source, under, _ = random_swaps
    for mask in (case.circuit.nodes.mask([EMBED]), case.circuit.circuit_mask):
        np.testing.assert_array_equal(under(mask)[0], own_labels(case, source))


def test_a_swapped_embedding_leaves_swapped_variables_beside_it_as_they_are():
    """In source "abb" only the third letter repeats: that verdict strikes base's tokens, or source's own."""
    case, verdict = find("duplicate_remover"), Node.parse("MLP0")
    np.testing.assert_array_equal(counterfactual(case, "ccc", "abb", [verdict]), as_labels(case, "^cc_"))
    np.testing.assert_array_equal(counterfactual(case, "ccc", "abb", [verdict, EMBED]), as_labels(case, "^ab_"))
