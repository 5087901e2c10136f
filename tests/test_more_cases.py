"""The further tasks: labels against brute force in plain Python, InterpBench's sizes and placement, and that each is
found, described and combined by its name, and that no node of a circuit is silent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cases
import siitjax
from siitjax.base.errors import UserError
from siitjax.causal import registry
from siitjax.causal.case import Case
from siitjax.causal.validate import check_labels
from sweeps.table import Models

N = 400
"""Strings of each case that are looked at; all of them, where it has fewer."""

PEOPLE = "Ann Bob Cal Dan Eve Fay Gil Hal Ida Jon Kim Lou"
WORDS_OF_IOI = (
    "park shop school garden station gave handed passed sold ring book drink ball letter and went to the . a later "
    "that day , after lunch it rained again"
)
IN_IOI = {"word": "MLP0", "duplicate": "L1H1", "inhibited": "L2H1", "indirect_object": "L4H1"}


def share_of_x(s):
    return [Fraction(s[1 : i + 1].count("x"), max(i, 1)) for i in range(len(s))]


def paren_shares(s):
    return [Fraction(s[: i + 1].count("(") - s[: i + 1].count(")"), max(i, 1)) for i in range(len(s))]


def token_frequency(s):
    word = [c for c in s if c not in ("BOS", "PAD")]
    shares = [Fraction(word.count(c), len(word)) for c in s]
    return [2 if share > Fraction(1, 2) else 1 if share > Fraction(1, 4) else 0 for share in shares]


def adjacent_remover(s):
    return ["PAD" if i and s[i - 1] == s[i] else s[i] for i in range(len(s))]


def first_occurrences(s):
    return ["PAD" if s[i] in s[:i] else s[i] for i in range(len(s))]


def ioi(s):
    one, two, again = (word for word in s if word in PEOPLE.split())
    other = next((name for name in (one, two) if name != again), "BOS")
    return [*["BOS"] * (len(s) - 1), other if again in (one, two) else "BOS"]


def ioi_full(s):
    return ioi(s)


def modular_count(s):
    return [s[: i + 1].count("a") % 3 for i in range(len(s))]


def induction(s):
    answers = []
    for i, here in enumerate(s):
        earlier = [j for j in range(i) if s[j] == here]
        answers.append(s[earlier[-1] + 1] if earlier else "PAD")
    return answers


def sorting(s):
    return ["BOS", *sorted(s[1:])]


def reversal(s):
    return ["PAD", *(b if a != b else "PAD" for a, b in zip(s[1:], s[:0:-1], strict=True))]


def most_frequent(s):
    letters = lambda i: sorted(s[1 : i + 1])
    return ["BOS", *(max(letters(i), key=letters(i).count) for i in range(1, len(s)))]


def bracket_kinds(s):
    stack, answers = [], []
    for c in s:
        if c in "([":
            stack.append(c)
        elif c in ")]":
            assert "([".index(stack.pop()) == ")]".index(c)
        answers.append("([".index(stack[-1]) + 1 if stack else 0)
    return answers


def addition(s):
    a, b = int(s[1] + s[2]), int(s[3] + s[4])
    tens, ones = divmod((a + b) % 100, 10)
    return [0] * 5 + [ones, tens]


def two_hop(s):
    hop = lambda i: int(s[i]) if i else 0
    return [s[hop(hop(i))] for i in range(len(s))]


def three_bits(s):
    return [int("".join(["0", "0", "0", *s[1 : i + 1]][-3:]), 2) for i in range(len(s))]


def flip_flop(s):
    answers, bit = [], None
    for c in s:
        bit = c[1] if c[0] == "w" else bit
        answers.append(0 if bit is None else 1 + (int(bit) ^ (c == "n")))
    return answers


def indirect_object(s):
    (other,) = {s[1], s[3]} - {s[5]}
    return [*["BOS"] * 6, other]


def below_maximum(s):
    digits = [0, *map(int, s[1:])]
    return [max(digits[: i + 1]) - digits[i] for i in range(len(s))]


def two_majorities(s):
    more = lambda i, one, other: s[: i + 1].count(one) > s[: i + 1].count(other)
    return [{(0, 0): 0, (1, 0): 1, (0, 1): 2, (1, 1): 3}[more(i, "a", "b"), more(i, "c", "d")] for i in range(len(s))]


@dataclass(frozen=True)
class Further:
    """A case of the table.

    Attributes:
        truth: each token's label of a string, BOS first: a class, the name of a token, or a number.
        places: the node of every variable.
        sizes: layers, heads, d_head, d_model, d_mlp, n_ctx; 0 for no MLPs.
        letters: the vocabulary without BOS and PAD.
    """

    truth: Callable[[list[str]], list]
    places: Mapping[str, str | None]
    sizes: tuple[int, ...]
    letters: str

    @property
    def name(self) -> str:
        return self.truth.__name__


FURTHER = (
    Further(share_of_x, {"is_x": "MLP0", "share": "L1H2"}, (2, 4, 3, 12, 48, 5), "a b c x"),
    Further(
        paren_shares,
        {"is_open": "MLP0", "is_close": "MLP0", "opens": "L1H0", "closes": "L1H1", "difference": "MLP1"},
        (2, 4, 5, 20, 80, 10),
        "a b c ( )",
    ),
    Further(
        token_frequency,
        {"same": "L0H0", "letters": "L0H1", "count": "MLP0", "length": "MLP0", "frequency": "MLP1"},
        (2, 4, 6, 26, 104, 10),
        "a b c d e",
    ),
    Further(adjacent_remover, {"shifted": "L0H0", "kept": "MLP0"}, (2, 4, 8, 32, 128, 15), "a b c"),
    Further(
        first_occurrences,
        {"pair": "MLP0", "width": "L1H0", "count": "MLP1", "index": "MLP2", "kept": "L3H0"},
        (4, 4, 12, 50, 200, 10),
        "a b c",
    ),
    Further(ioi, IN_IOI, (6, 4, 16, 64, 256, 18), f"{PEOPLE} {WORDS_OF_IOI}"),
    Further(ioi_full, IN_IOI, (6, 4, 16, 64, 3072, 18), f"{PEOPLE} {WORDS_OF_IOI}"),
    Further(modular_count, {"count": "L0H0", "residue": "MLP0"}, (1, 4, 4, 16, 64, 10), "a b"),
    Further(induction, {"previous": "L0H0", "follower": "L1H0"}, (2, 4, 8, 32, 0, 10), "a b c d"),
    Further(sorting, {"counts": "L0H0", "ordered": "MLP0"}, (1, 4, 6, 24, 96, 9), "a b c"),
    Further(reversal, {"opposite": "L0H0", "moved": "MLP0"}, (1, 4, 6, 24, 96, 9), "a b c"),
    Further(most_frequent, {"counts": "L0H0", "most_frequent": "MLP0"}, (1, 4, 6, 24, 96, 10), "a b c"),
    Further(
        bracket_kinds,
        {"balance": "L0H0", "depth": "MLP0", "closes_next": "L1H0"},
        (2, 4, 8, 32, 128, 10),
        "( [ ) ]",
    ),
    Further(
        addition,
        {"first": "L0H0", "second": "L0H1", "total": "MLP0", "carry": "L1H0", "digit": "MLP1"},
        (2, 4, 8, 32, 128, 7),
        "= 0 1 2 3 4 5 6 7 8 9",
    ),
    Further(two_hop, {"named": "L0H0", "answer": "L1H0"}, (2, 4, 8, 32, 0, 6), "1 2 3 4 5"),
    Further(three_bits, {"two_before": "L0H0+L0H1", "number": "MLP0"}, (1, 4, 6, 24, 96, 12), "0 1"),
    Further(flip_flop, {"memory": "L0H0", "answer": "MLP0"}, (1, 4, 6, 24, 96, 12), "w0 w1 i0 i1 n"),
    Further(
        indirect_object,
        {"earlier": "L0H0", "inhibited": "L1H0", "other": "L2H0"},
        (3, 4, 8, 32, 0, 7),
        "Ann Bob Cal Dan Eve and with . ; to for",
    ),
    Further(below_maximum, {"maximum": "L0H0", "below": "MLP0"}, (1, 4, 6, 24, 96, 10), "0 1 2 3 4 5"),
    Further(
        two_majorities,
        {"a_lead": "L0H0", "c_lead": "L0H1", "a_ahead": "MLP0.0", "c_ahead": "MLP0.1", "answer": None},
        (1, 4, 6, 24, 96, 12),
        "a b c d",
    ),
)
every_case = pytest.mark.parametrize("further", FURTHER, ids=lambda further: further.name)


@cache
def samples(name: str) -> tuple[Case, np.ndarray]:
    """The case, and strings of it."""
    case = siitjax.find_case(name)
    return case, case.draw(N, N // 4, np.random.default_rng(0))[0]


def test_the_table_holds_every_further_task():
    assert [further.name for further in FURTHER] == [module.split(".")[1] for module in cases.FURTHER]


@every_case
def test_labels_are_those_of_brute_force(further):
    case, strings = samples(further.name)
    labels = np.asarray(jax.jit(jax.vmap(lambda tokens: case.circuit(tokens)[0]))(jnp.asarray(strings)))
    counted = np.asarray(case.counted_mask(jnp.asarray(strings)))
    assert counted.any(1).all()
    for string, label, counts in zip(strings, labels, counted, strict=True):
        true = further.truth([case.vocabulary[token] for token in string])
        classes = [case.vocabulary.index(x) if isinstance(x, str) else float(x) for x in true]
        np.testing.assert_allclose(label.reshape(len(string))[counts], np.array(classes)[counts], atol=1e-6)


@every_case
def test_sizes_and_places_are_those_of_the_table(further):
    case, shape = siitjax.find_case(further.name), siitjax.find_case(further.name).config
    width = 0 if shape.attn_only else shape.mlp_width
    assert (shape.n_layers, shape.n_heads, shape.d_head, shape.d_model, width, shape.n_ctx) == further.sizes
    assert {v.name: v.place for v in case.variables} == further.places
    assert case.vocabulary == ("BOS", "PAD", *further.letters.split())


@every_case
def test_labels_can_be_learned_and_no_node_is_silent(further):
    """A swap of each node changes a label: else nothing would show that the transformer has the variable there."""
    case, strings = samples(further.name)
    check_labels(case)
    base, other = jnp.asarray(strings[: N // 2]), jnp.asarray(strings[N // 2 :])
    source = case.source_of(base, other, jax.random.key(0))
    masks = jnp.asarray(np.stack([case.config.nodes.mask(unit) for unit in case.circuit.units]))

    def swapped(base, source):
        values = case.circuit(source)[1]
        label, counted = case.circuit(base)[0], case.counted_mask(base)
        differs = lambda mask: ~case.loss.same(case.circuit(base, (mask, values))[0], label) & counted
        return jax.vmap(differs)(masks).any(1)

    assert np.asarray(jax.jit(jax.vmap(swapped))(base, source)).mean(0).min() > 0.05


@every_case
def test_a_model_of_it_names_its_case(further):
    """What a trained model's file says of its case is enough to make it again."""
    case = siitjax.find_case(further.name)
    assert registry.described(case.describe()) == case
    assert registry.number(further.name) == ""  # it has no shipped model


def test_a_task_is_listed_once(monkeypatch):
    assert not {*cases.TASKS} & {further.name for further in FURTHER}
    with pytest.raises(UserError, match=r'a case called "induction" already'):
        siitjax.register(siitjax.find_case("induction"))
    with pytest.raises(UserError, match=r'did you mean "two_hop"\? It must be one of duplicate_remover, .*, two_hop'):
        siitjax.find_case("two_hops")


def test_the_table_of_models_trains_them_by_name():
    members = Models(case="induction,addition+flip_flop", rules=("causal",), seeds=1).members()
    assert [member.config.case.name for member in members] == ["induction", "addition+flip_flop"]
    assert Models(case="further").models() == tuple(
        further.name for further in FURTHER if not further.name.startswith("ioi")
    )


@pytest.mark.parametrize(
    "names", ["most_frequent+left_greater", "induction+three_bits", "sorting+reversal", "share_of_x+paren_shares"]
)
def test_they_are_combined_by_name_with_one_another_and_with_the_numbered_ones(names):
    case = siitjax.find_case(names)
    check_labels(case)
    parts = [siitjax.find_case(name) for name in names.split("+")]
    strings = case.draw(40, 10, np.random.default_rng(0))[0]
    labels = jax.jit(jax.vmap(lambda tokens: case.circuit(tokens)[0]))(jnp.asarray(strings))
    for string, label in zip(strings, np.asarray(labels), strict=True):
        words = [case.vocabulary[token] for token in string]
        part = next(part for part in parts if f"{part.name}:" == words[0])
        own = [word for word in words[1:] if word != "PAD"]
        alone = part.circuit(part.tokens(own[1:]))[0]
        np.testing.assert_allclose(label[1 : 1 + len(own)], alone, atol=1e-6)
