"""A RASP program, read by tracr's own rules, as the variables that no node holds yet. Needs the extra `rasp`.

Each s-op that is computed is a variable, under its own name: a Map or SequenceMap one that an MLP holds, an Aggregate
one on a head. A SelectorWidth is two, as in tracr: a head finds how many are selected, and an MLP makes a class of it.
Selectors are no variables: they say where a head looks.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tracr.compiler import basis_inference, rasp_to_graph, validating
from tracr.rasp import rasp

from siitjax.base.errors import UserError, one_line
from siitjax.causal.circuit import TOKENS, Variable
from siitjax.rasp.compute import Input, Lookup, Mean, MostSelected, Number, Selector, Values, Width
from siitjax.rasp.values import in_order, means, numbers, predicate_table, table_of

COMPUTED = (rasp.Map, rasp.SequenceMap, rasp.SelectorWidth, rasp.Aggregate)
"""The s-ops that tracr compiles, beside the tokens and the indices."""


@dataclass(frozen=True)
class Step:
    """A variable of a program, before it has a node.

    Attributes:
        variable: without a node.
        values: what it can be.
        on_head: whether it moves values between positions, which only attention does.
        expression: the s-op whose value it has; None of a head's part of a SelectorWidth.
    """

    variable: Variable
    values: Values
    on_head: bool
    expression: rasp.SOp | None


@dataclass(frozen=True)
class Program:
    """A program, read.

    Attributes:
        steps: its variables, each after what it reads; the last is the program's output.
        name: what it may be called.
        letters: its vocabulary, in order.
        numerical: whether its output is numbers, not classes.
    """

    steps: tuple[Step, ...]
    name: str
    letters: Values
    numerical: bool

    @property
    def values(self) -> Values:
        """What its output can be."""
        return self.steps[-1].values

    def label(self) -> Variable:
        """The label of each token, where it is not the output itself: its number."""
        output = self.steps[-1].variable.name
        return Variable(
            _free(f"{output}_number", {s.variable.name for s in self.steps}), (output,), Number(self.values)
        )


def read_program(
    program: rasp.SOp, vocab: Collection[Any], max_seq_len: int, *, causal: bool, shorter: bool
) -> Program:
    """The variables of a program.

    Args:
        program: an s-op.
        vocab: the tokens' values.
        max_seq_len: tokens a string at most, BOS not counted.
        causal: whether no position sees a later one.
        shorter: whether strings may be shorter; then heads read the tokens, which say where a string ends.

    Raises:
        UserError: tracr cannot compile the program, or a function in it fails.
    """
    if not isinstance(program, rasp.SOp):
        raise UserError(
            f"the program is {one_line(repr(program))}; give an s-op of tracr.rasp.rasp, such as "
            "tracr.compiler.lib.make_hist()"
        )
    expressions = _ordered(program)
    _check(program, expressions)
    reader = _Reader(in_order(vocab), max_seq_len, causal, shorter)
    for expression in expressions:
        reader.read(expression)
    _check_bases(program, vocab, max_seq_len)
    name = re.sub(r"\W+", "_", program.name).strip("_") or "program"
    return Program(tuple(reader.steps), name, reader.letters, rasp.is_numerical(program))


def _ordered(program: rasp.SOp) -> list[rasp.RASPExpr]:
    """Every expression once, by its label, as tracr does, after those that it is made of."""
    found: dict[str, rasp.RASPExpr] = {}

    def visit(expression: rasp.RASPExpr) -> None:
        if expression.label not in found:
            for child in expression.children:
                visit(child)
            found[expression.label] = expression

    visit(program)
    return list(found.values())


def _check(program: rasp.SOp, expressions: Sequence[rasp.RASPExpr]) -> None:
    """Raises UserError where tracr cannot compile the program."""
    for expression in expressions:
        kind = type(expression).__name__
        if isinstance(expression, rasp.Selector):
            if not isinstance(expression, rasp.Select):
                raise UserError(
                    f'tracr cannot compile the selector "{expression.name}", a {kind}; combine selectors of the same '
                    "keys and queries, which makes one Select of them"
                )
        elif not isinstance(expression, (*COMPUTED, rasp.TokensType, rasp.IndicesType)):
            instead = "; use tracr.compiler.lib.length" if isinstance(expression, rasp.LengthType) else ""
            raise UserError(
                f'tracr cannot compile "{expression.name}", a {kind}: an s-op is the tokens, the indices, or a '
                f"{', '.join(c.__name__ for c in COMPUTED[:-1])} or {COMPUTED[-1].__name__}{instead}"
            )
        if problems := [x for x in validating.static_validate(expression) if x.expr is expression]:
            raise UserError(f'tracr cannot compile "{expression.name}": {one_line(problems[0].reason)}')
    if not isinstance(program, COMPUTED):
        raise UserError(f'the program "{program.name}" computes nothing; give an s-op that is made of it')
    if rasp.tokens.label not in {expression.label for expression in expressions}:
        raise UserError(f'the program "{program.name}" does not read the tokens; tracr compiles none such')


def _check_bases(program: rasp.SOp, vocab: Collection[Any], max_seq_len: int) -> None:
    """Raises UserError where tracr finds no values for an s-op, all of which have few."""
    graph = rasp_to_graph.extract_rasp_graph(program)
    try:
        basis_inference.infer_bases(graph.graph, graph.sink, set(vocab), max_seq_len)
    except Exception as error:  # of whatever kind: it calls the program's functions
        raise UserError(f'tracr cannot compile "{program.name}": {one_line(" ".join(map(str, error.args)))}') from None


class _Source(NamedTuple):
    """Where the value of an s-op is found: in the tokens, in where they stand, or in the variable of that name."""

    kind: Literal["token", "index", "variable"]
    name: str
    values: Values


class _Reader:
    """Makes steps of expressions, one after another."""

    def __init__(self, letters: Values, length: int, causal: bool, shorter: bool):
        self.letters, self.length, self.causal, self.shorter = letters, length, causal, shorter
        self.steps: list[Step] = []
        self.sources: dict[str, _Source] = {}

    def read(self, expression: rasp.RASPExpr) -> None:
        """Takes the next expression; what it is made of was taken before."""
        if isinstance(expression, rasp.TokensType):
            self.sources[expression.label] = _Source("token", TOKENS, self.letters)
        elif isinstance(expression, rasp.IndicesType):
            self.sources[expression.label] = _Source("index", "", tuple(range(self.length)))
        elif isinstance(expression, rasp.Map):
            self._lookup(expression, expression.f, [expression.inner])
        elif isinstance(expression, rasp.SequenceMap):
            self._lookup(expression, expression.f, [expression.fst, expression.snd])
        elif isinstance(expression, rasp.SelectorWidth):
            self._width(expression)
        elif isinstance(expression, rasp.Aggregate):
            self._aggregate(expression)

    def _lookup(self, expression: rasp.SOp, f: Callable[..., Any], read: Sequence[rasp.SOp]) -> None:
        same = len({each.label for each in read}) == 1
        names, inputs = self._inputs(read)
        table, values = table_of(
            expression.name,
            f,
            [each.values for each in inputs],
            same=same,
            from_numbers=all(map(rasp.is_numerical, read)),
            to_numbers=rasp.is_numerical(expression),
        )
        self._add(expression, names, Lookup(tuple(inputs), table, values))

    def _width(self, expression: rasp.SelectorWidth) -> None:
        names, _, selector = self._selector(expression, expression.selector, [])
        values = tuple(range(self.length + 1))
        head = self._name(f"{expression.name}_width")
        self.steps.append(Step(Variable(head, names, Width(selector, values)), values, True, None))
        if rasp.is_numerical(expression):
            values = numbers(values)
        self._add(expression, (head,), Lookup((Input("variable", values),), tuple(range(len(values) + 1)), values))

    def _aggregate(self, expression: rasp.Aggregate) -> None:
        names, inputs, selector = self._selector(expression, expression.selector, [expression.sop])
        of = inputs[-1]
        if rasp.is_numerical(expression):
            values = means(expression.name, of.values, self.length)
            self._add(expression, names, Mean(selector, of, values))
        else:
            self._add(expression, names, MostSelected(selector, of, of.values))

    def _selector(
        self, expression: rasp.SOp, select: rasp.Selector, more: Sequence[rasp.SOp]
    ) -> tuple[tuple[str, ...], list[Input], Selector]:
        assert isinstance(select, rasp.Select)
        names, inputs = self._inputs([select.keys, select.queries, *more], tokens=self.shorter)
        keys, queries = inputs[:2]
        table = predicate_table(expression.name, select.predicate, keys.values, queries.values)
        token_at = names.index(TOKENS) if self.shorter else None
        return names, inputs, Selector(keys, queries, table, self.length, self.causal, token_at)

    def _inputs(self, read: Sequence[rasp.SOp], tokens: bool = False) -> tuple[tuple[str, ...], list[Input]]:
        """The variables that are read, and how each s-op is computed from them. What reads no other reads the tokens,
        of which there are as many."""
        sources = [self.sources[each.label] for each in read]
        named = [source.name for source in sources if source.kind != "index"]
        if tokens or not named:
            named.append(TOKENS)
        names = tuple(dict.fromkeys(named))
        place = lambda source: 0 if source.kind == "index" else names.index(source.name)
        return names, [Input(source.kind, source.values, place(source)) for source in sources]

    def _name(self, wanted: str) -> str:
        return _free(wanted, {TOKENS, *(step.variable.name for step in self.steps)})

    def _add(self, expression: rasp.SOp, names: tuple[str, ...], compute: Lookup | Mean | MostSelected) -> None:
        name = self._name(expression.name)
        on_head = not isinstance(compute, Lookup)
        self.steps.append(Step(Variable(name, names, compute), compute.values, on_head, expression))
        self.sources[expression.label] = _Source("variable", name, compute.values)


def _free(wanted: str, taken: Collection[str]) -> str:
    """The name, with a number behind it where it is taken."""
    name, n = wanted, 1
    while name in taken:
        n += 1
        name = f"{wanted}_{n}"
    return name
