"""RASP programs as cases. Labels are those of plain Python and of tracr's compiled transformer, on every string of a
short context; so are they where a node's s-ops are patched in that transformer. Such a case trains and comes back."""

import doctest
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tracr")
from tracr.compiler import compiling, lib
from tracr.rasp import rasp

import siitjax
from siitjax import Case, UserError, head, mlp
from siitjax.causal.combine import combine
from siitjax.causal.validate import check_labels
from siitjax.rasp.program import Program, read_program
from tests.compiled import BOS, Compiled, compile_program

ROOT = Path(__file__).parents[1]
LONGEST = ("shuffle_dyck2",)
PAIRS = 300
"""Pairs of a base and a source of each length, for each node."""


class Shown(NamedTuple):
    """A program, and its output in plain Python; None where tracr's transformer alone says it."""

    program: rasp.SOp
    vocab: Collection[Any]
    longest: int
    plain: Callable[[tuple[Any, ...]], list[Any]] | None = None


def most_frequent(longest: int) -> rasp.SOp:
    """The token that stands most often, the first of several, at every position."""
    first = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == 0)
    return rasp.Aggregate(first, lib.make_sort_freq(longest)).named("most_frequent")


def shares(token: str, string: tuple[str, ...]) -> list[float]:
    return [string[: i + 1].count(token) / (i + 1) for i in range(len(string))]


def balanced(string: tuple[str, ...]) -> list[bool]:
    def one(pair: str) -> bool:
        heights = [string[:i].count(pair[0]) - string[:i].count(pair[1]) for i in range(len(string) + 1)]
        return min(heights) >= 0 and heights[-1] == 0

    return [one("()") and one("{}")] * len(string)


def in_turn(string: tuple[Any, ...]) -> list[Any]:
    """By how often each stands, the most frequent first, and otherwise as they stand."""
    return sorted(string, key=lambda x: -string.count(x))


PROGRAMS = {
    "length": Shown(lib.make_length(), "ab", 4, lambda s: [len(s)] * len(s)),
    "length_number": Shown(rasp.numerical(lib.make_length()), "ab", 4, lambda s: [len(s)] * len(s)),
    "reverse": Shown(lib.make_reverse(rasp.tokens), "abc", 4, lambda s: [*s[::-1]]),
    "pair_balance": Shown(
        lib.make_pair_balance(rasp.tokens, "(", ")"),
        "()a",
        3,
        lambda s: [a - b for a, b in zip(shares("(", s), shares(")", s), strict=True)],
    ),
    "shuffle_dyck": Shown(lib.make_shuffle_dyck(["()"]), "()", 4, balanced),
    "shuffle_dyck2": Shown(lib.make_shuffle_dyck2(), "(){}", 3, balanced),
    "hist": Shown(lib.make_hist(), "abc", 4, lambda s: [s.count(x) for x in s]),
    "sort_unique": Shown(lib.make_sort_unique(rasp.tokens, rasp.tokens), (1, 2, 3), 3),
    "sort": Shown(lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=4, min_key=1), (1, 2, 3), 4, sorted),
    "sort_freq": Shown(lib.make_sort_freq(4), "abc", 4, in_turn),
    "frac_prevs": Shown(lib.make_frac_prevs(rasp.tokens == "a"), "ab", 4, lambda s: shares("a", s)),
    "shift_by": Shown(lib.shift_by(1, rasp.tokens), "abc", 4, lambda s: [None, *s[:-1]]),
    "shifted_number": Shown(
        rasp.numerical(lib.shift_by(1, rasp.tokens) == "a").named("shifted_number"),
        "ab",
        3,
        lambda s: [0, *(x == "a" for x in s[:-1])],
    ),
    "detect_pattern": Shown(lib.detect_pattern(rasp.tokens, "aba"), "ab", 4),
    "count_less_freq": Shown(
        lib.make_count_less_freq(1), "abc", 4, lambda s: [sum(n for n in Counter(s).values() if n <= 1)] * len(s)
    ),
    "count": Shown(lib.make_count(rasp.tokens, "a"), "abc", 4, lambda s: [s.count("a")] * len(s)),
    "nary_sequencemap": Shown(
        lib.make_nary_sequencemap(lambda x, y, z: x * y - z, rasp.tokens, rasp.indices, rasp.tokens),
        (1, 2, 3),
        3,
        lambda s: [x * i - x for i, x in enumerate(s)],
    ),
    "most_frequent": Shown(most_frequent(4), "abc", 4, lambda s: in_turn(s)[:1] * len(s)),
}


class Read(NamedTuple):
    case: Case
    program: Program
    labels: Callable[..., Any]
    """Of base, mask and source."""


@cache
def read(name: str) -> Read:
    shown = PROGRAMS[name]
    case = siitjax.from_rasp(shown.program, shown.vocab, shown.longest, min_seq_len=1)
    circuit = case.circuit
    label = lambda base, mask, source: circuit(base, (mask, circuit(source)[1]))[0]
    program = read_program(shown.program, shown.vocab, shown.longest, causal=False, shorter=True)
    return Read(case, program, jax.jit(jax.vmap(label, (0, None, 0))))


def strings_of(letters: Collection[Any], length: int) -> list[tuple[Any, ...]]:
    return [*product(letters, repeat=length)]


def tokens_of(case: Case, strings: list[tuple[Any, ...]]) -> np.ndarray:
    found = np.full((len(strings), case.n_ctx), siitjax.PAD, np.int32)
    found[:, 0] = siitjax.BOS
    found[:, 1 : 1 + len(strings[0])] = [[case.vocabulary.index(str(x)) for x in string] for string in strings]
    return found


def labels_of(case: Case, strings: list[tuple[Any, ...]]) -> np.ndarray:
    """The labels behind BOS."""
    return np.asarray(jax.jit(jax.vmap(lambda x: case.circuit(x)[0]))(tokens_of(case, strings)))[:, 1:]


def written_by(name: str, compiled: Compiled, unit: tuple[siitjax.Node, ...]) -> list[int]:
    """The dimensions of the compiled transformer's stream that the variables on some nodes are written to."""
    case, program, _ = read(name)
    found = []
    for i, step in enumerate(program.steps):
        if {*case.variables[i].nodes} & {*unit}:
            expression, of_head = step.expression, ""
            if expression is None:
                expression, of_head = program.steps[i + 1].expression, "_selector_width_attn_output"
            assert expression is not None
            label = expression.label + of_head
            assert compiled.dimensions(label), label
            found += compiled.dimensions(label)
    return found


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * (x in LONGEST)) for x in PROGRAMS])
def test_labels_and_counterfactual_labels_are_those_of_the_compiled_transformer(name):
    (program, vocab, longest, plain), (case, ours, labels) = PROGRAMS[name], read(name)
    compiled = compile_program(program, vocab, longest)
    assert case.n_layers <= compiled.layers
    values, rng, changed = None if ours.numerical else ours.values, np.random.default_rng(0), 0
    clean = np.empty(0)
    for length in range(1, longest + 1):
        strings = strings_of(ours.letters, length)
        tokens, stream = tokens_of(case, strings), compiled.embed(strings)
        _, wrote = compiled.run(stream)
        everywhere = np.arange(len(strings))
        for unit in ((), *case.circuit.units):
            base, source = rng.integers(0, len(strings), (2, PAIRS)) if unit else (everywhere, everywhere)
            at = written_by(name, compiled, unit)
            theirs = compiled.read(compiled.run(stream[base], patch=(at, [x[source] for x in wrote]))[0], values)
            mask = jnp.asarray(case.config.nodes.mask(unit))
            fit = np.resize(np.arange(len(base)), max(PAIRS, len(strings_of(ours.letters, longest))))
            found = np.asarray(labels(tokens[base][fit], mask, tokens[source][fit]))[: len(base), 1 : 1 + length]
            if values is None:
                assert theirs == pytest.approx(found[..., 0], abs=1e-5)
            else:
                assert (theirs == found).all(), unit
            if not unit:
                clean = found
                known = ours.values if values is None else (*values, None)
                if plain is not None and values is None:
                    assert found[..., 0] == pytest.approx(np.array([*map(plain, strings)]), abs=1e-6)
                elif plain is not None:
                    assert [[known[x] for x in row] for row in found] == [*map(plain, strings)]
            changed += int((found != clean[base]).sum())
    assert changed or name.startswith("length")  # which all strings of a length share


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_labels_are_those_of_the_transformer_in_haiku(name):
    (program, vocab, longest, _), (case, ours, _) = PROGRAMS[name], read(name)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = compiling.compile_rasp_to_model(program, set(vocab), longest)
        assert model.input_encoder is not None
        assert model.output_encoder is not None
        run = jax.jit(lambda tokens: model.forward(model.params, tokens).unembedded_output)
        for length in range(1, longest + 1):
            strings = strings_of(ours.letters, length)
            found = labels_of(case, strings)[:, :length]
            given = [model.input_encoder.encode([BOS, *string]) for string in strings]
            theirs = np.asarray(run(jnp.array(given)))[:, 1:]
            if ours.numerical:
                assert theirs == pytest.approx(found[..., 0], abs=0.02)
                continue
            for row, decoded in zip(found, map(model.output_encoder.decode, theirs.tolist()), strict=True):
                # Where there is no value, the largest of outputs that are all 0 decides.
                known = [(*ours.values, None)[x] for x in row]
                assert all(x in (None, y) for x, y in zip(known, decoded, strict=True))


def test_labels_of_causal_attention_are_those_of_the_compiled_transformer():
    program = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)).named("so_far")
    case = siitjax.from_rasp(program, "ab", 4, causal=True)
    strings = strings_of("ab", 4)
    found = labels_of(case, strings)
    assert found.tolist() == [[s[: i + 1].count(x) for i, x in enumerate(s)] for s in strings]
    compiled = compile_program(program, "ab", 4)
    assert (compiled.read(compiled.run(compiled.embed(strings), causal=True)[0], range(5)) == found).all()
    assert case.config.attention_dir == "causal"
    check_labels(case)


def test_numbers_are_compared_as_rasp_does_where_tracr_takes_them_for_near_ones():
    """Of the shares of up to five, tracr knows 0 and 1/n alone: it takes 2/3 for 1/2, which is no more than a half."""
    most = (lib.make_frac_prevs(rasp.tokens == "a") > 0.5).named("most")
    case = siitjax.from_rasp(most, "ab", 5)
    strings = strings_of("ab", 5)
    found = labels_of(case, strings)
    assert found.tolist() == [[share > 0.5 for share in shares("a", string)] for string in strings]
    compiled = compile_program(most, "ab", 5)
    theirs = compiled.read(compiled.run(compiled.embed(strings))[0], (False, True))
    at = strings.index(tuple("aabba"))
    assert (found[at].tolist(), theirs[at].tolist()) == ([1, 1, 1, 0, 1], [1, 1, 0, 0, 0])


def test_variables_have_the_programs_names_and_live_behind_what_they_read():
    case = siitjax.from_rasp(lib.make_reverse(rasp.tokens), "abc", 5)
    assert [(v.name, v.reads, v.place) for v in case.variables] == [
        ("length_width", ("tokens",), "L0H0"),
        ("length", ("length_width",), "MLP0"),
        ("opp_idx", ("length",), "MLP1"),
        ("opp_idx-1", ("opp_idx",), "MLP2"),
        ("reverse", ("opp_idx-1", "tokens"), "L3H0"),
    ]
    assert (case.name, case.vocabulary, case.n_ctx) == ("reverse", ("BOS", "PAD", "a", "b", "c"), 6)
    assert case.counted_mask(case.tokens("ab")).tolist() == [False, True, True]
    twice = siitjax.from_rasp(lib.detect_pattern(rasp.tokens, "ab"), "ab", 3)
    assert [v.name for v in twice.variables] == ["map", "shift_by(1)", "map_2", "detect_pattern(ab)"]


def test_heads_read_where_strings_end_only_if_they_may():
    program = lib.make_frac_prevs(rasp.tokens == "a")
    whole, shorter = (siitjax.from_rasp(program, "ab", 3, min_seq_len=n) for n in (3, 1))
    assert [case.variables[1].reads for case in (whole, shorter)] == [("map",), ("map", "tokens")]
    every, all_lengths = whole.every(99), shorter.every(99)
    assert every is not None
    assert all_lengths is not None
    assert every.tolist() == tokens_of(whole, strings_of("ab", 3)).tolist()
    assert len(all_lengths) == 2 + 4 + 8
    lengths = (shorter.draw(300, 30, np.random.default_rng(0))[0] > siitjax.PAD).sum(1)
    assert Counter(lengths.tolist()) == {1: 100, 2: 100, 3: 100}


def test_a_program_gives_the_same_case_again():
    one, other = (siitjax.from_rasp(lib.make_hist(), vocab, 3) for vocab in ("ab", {"b", "a"}))
    assert one == other
    assert hash(one) == hash(other)


def test_a_variable_lives_where_it_is_wanted_and_what_reads_it_behind():
    program = lib.make_sort_unique(rasp.tokens, rasp.tokens)
    case = siitjax.from_rasp(program, (1, 2), 3, nodes={"target_pos_width": head(1, 5), "sort": head(2, 0)})
    assert [v.place for v in case.variables] == ["L1H5", "MLP1", "L2H0"]
    assert (case.n_layers, case.config.n_heads) == (3, 6)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (
            {"sort": mlp(2)},
            '"sort" cannot live on MLP2: it moves values between positions, which only heads do; place it on a head at '
            "depth 3 or later, such as L1H0",
        ),
        (
            {"sort": head(0, 1)},
            '"sort" cannot live on L0H1, at depth 1: what it reads lies at depth 2; place it deeper, such as on L1H0',
        ),
        (
            {"target_pos_width": head(3, 0), "target_pos": mlp(2)},
            '"target_pos" cannot live on MLP2, at depth 6: what it reads lies at depth 7; place it deeper, such as on '
            "MLP3",
        ),
        ({"sort": siitjax.EMBED}, r'"sort" is to live on Node\(.*; give a head or an MLP: head\(0, 1\), mlp\(0\)'),
        ({"srot": mlp(0)}, 'the variable to place is "srot"; did you mean "sort"?.*'),
    ],
)
def test_a_place_that_cannot_be_reached_is_told_in_one_line(nodes, words):
    with pytest.raises(UserError, match=f"^{words}$"):
        siitjax.from_rasp(lib.make_sort_unique(rasp.tokens, rasp.tokens), (1, 2), 3, nodes=nodes)


EQUAL = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
BEFORE = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LT)
NAMES = rasp.Map(str, rasp.tokens)
NUMBERS = rasp.numerical(rasp.Map(lambda x: x, rasp.tokens)).named("numbers")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (
            rasp.SelectorWidth(EQUAL & BEFORE),
            'tracr cannot compile the selector "selector_and", a SelectorAnd; combine',
        ),
        (rasp.length - rasp.indices, 'tracr cannot compile "length", a LengthType: an s-op is .*; use tracr.compiler'),
        (
            rasp.Map(lambda x: x, rasp.Full(3)),
            'tracr cannot compile "full", a Full: an s-op is the tokens, the indices',
        ),
        (
            rasp.Aggregate(BEFORE, rasp.tokens, default=1),
            'tracr cannot compile "aggregate": Categorical aggregate only',
        ),
        (
            rasp.SequenceMap(lambda x, y: x, NUMBERS, NUMBERS).named("sum"),
            r'tracr cannot compile "sum": \(Non-linear\) SequenceMap only supports categorical inputs/outputs\.$',
        ),
        (
            rasp.numerical(rasp.Aggregate(BEFORE, NUMBERS, default=0)).named("mean"),
            'tracr cannot compile "mean": Attention patterns can currently only average binary variables',
        ),
        (
            rasp.Aggregate(BEFORE, rasp.tokens).named("before"),
            '"before" is .* at position . of ".*" by RASP, but . where it must be one of 3 values; tracr compiles no',
        ),
        (rasp.indices + 1, 'the program "map" does not read the tokens'),
        (rasp.tokens, 'the program "tokens" computes nothing'),
        (
            (1 / (rasp.tokens - 2)).named("inverse"),
            r'the function of "inverse" fails at 2 \(ZeroDivisionError: .*\); mend it there',
        ),
        (
            rasp.numerical(rasp.Map(lambda x: float("nan"), rasp.tokens)).named("nan"),
            r'the function of "nan" fails at 1 \(ValueError: nan is not finite\); mend it there',
        ),
        (
            rasp.SelectorWidth(rasp.Select(rasp.tokens, NAMES, rasp.Comparison.LT)).named("less"),
            r'the predicate that "less" selects by fails at key 1, query .1. \(TypeError: .*\); mend it there',
        ),
        (rasp.Map(lambda x: None, rasp.tokens).named("nothing"), 'the function of "nothing" gives None for all'),
        (lib.make_nary_sequencemap(lambda *x: x, *[rasp.tokens, rasp.indices + 1] * 9), r"combinations of values, and"),
    ],
    ids=lambda x: "" if isinstance(x, str) else None,
)
def test_a_program_that_cannot_be_compiled_is_told_in_one_line(program, words):
    with pytest.raises(UserError, match=words) as refused:
        siitjax.from_rasp(program, (1, 2, 3), 4)
    assert "\n" not in str(refused.value)


def test_what_is_no_s_op_is_told(types_unchecked):
    with pytest.raises(UserError, match=r"the program is .*; give an s-op of tracr\.rasp\.rasp, such as"):
        siitjax.from_rasp(EQUAL, "ab", 3)


@pytest.mark.parametrize(
    ("vocab", "lengths", "words"),
    [
        ("", (3, 3), "the vocabulary is empty"),
        ((1, "1"), (3, 3), 'two tokens are called "1"'),
        (("a", "PAD"), (3, 3), 'two tokens are called "PAD", BOS and PAD counted'),
        ("ab", (3, 4), "strings are to be of 4 to 3 tokens; give 1 <= min_seq_len <= max_seq_len"),
        ("ab", (0, 0), "strings are to be of 0 to 0 tokens"),
    ],
)
def test_a_vocabulary_or_a_length_that_cannot_be_is_told(vocab, lengths, words):
    with pytest.raises(UserError, match=words):
        siitjax.from_rasp(lib.make_hist(), vocab, lengths[0], min_seq_len=lengths[1])


def test_longer_strings_than_the_program_was_read_for_are_told():
    case = siitjax.from_rasp(lib.make_hist(), "ab", 3)
    with pytest.raises(UserError, match=r"read for strings of 3 tokens at most, .*; call from_rasp with max_seq_len=5"):
        case.with_context(6).draw(10, 10, np.random.default_rng(0))


def test_without_tracr_it_says_what_to_install(monkeypatch):
    for name in ("placement", "program", "proof"):
        monkeypatch.delitem(sys.modules, f"siitjax.rasp.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "tracr", None)
    for name in [name for name in sys.modules if name.startswith("tracr.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"^tracr.* is not installed; type: pip install 'siitjax\[rasp\]'$"):
        siitjax.from_rasp(None, "ab", 3)


def test_two_programs_share_a_transformer():
    both = combine(
        [siitjax.from_rasp(lib.make_hist(), "ab", 4), siitjax.from_rasp(lib.shift_by(1, rasp.tokens), "ab", 3)]
    )
    samples = jnp.stack([both.tokens(x) for x in (("hist:", *"abaa"), ("shift_by_1:", *"bab", "PAD"))])
    labels = jax.jit(jax.vmap(lambda x: both.circuit(x)[0]))(samples)[:, 2:]
    assert (labels[0].tolist(), labels[1, :3].tolist()) == ([3, 1, 3, 3], [2, 1, 0])
    assert both.counted_mask(both.tokens(("hist:", "a"))).tolist() == [False, False, True]


def test_the_program_of_the_readme_is_what_it_says(monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "cases/README.md").read_text(), re.DOTALL)
    (shown,) = [text for text in blocks if "from_rasp" in text]
    called = []
    monkeypatch.setattr(siitjax, "train", lambda case: SimpleNamespace(save=lambda path: called.append((case, path))))
    monkeypatch.setattr(siitjax, "load", lambda path, case: called.append((case, path)))
    names: dict[str, Any] = {}
    exec(compile(shown, "README.md", "exec"), names)
    said = re.findall(r"# (target_pos_width.*|a b c d)$", shown, re.MULTILINE)
    assert [re.sub(r"[\[\]']", "", line) for line in capsys.readouterr().out.splitlines()] == [
        said[0],
        said[1].replace(" ", ", "),
    ]
    assert called == [(names["case"], "sort.safetensors")] * 2


def test_a_program_trains_and_its_model_comes_back(tmp_path):
    case = replace(siitjax.from_rasp(lib.shift_by(1, rasp.tokens), "ab", 4), attn_only=True, d_model=8, d_head=4)
    run = siitjax.train(case, samples=40, batch_size=16, epochs=2, progress=False)
    path = run.save(tmp_path / "mine.safetensors")
    again = siitjax.load(path, case=siitjax.from_rasp(lib.shift_by(1, rasp.tokens), "ab", 4))
    assert again.case.describe() == run.case.describe()
    assert again.model.config.attention_dir == "bidirectional"


@pytest.mark.parametrize("module", ["case", "compute", "values"])
def test_the_examples_are_true(module):
    said = doctest.testmod(import_module(f"siitjax.rasp.{module}"))
    assert said.attempted
    assert not said.failed
