"""Methods at one node of one transformer: a row for each variable, method, size and seed."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp

from siitjax.analysis.alignment.exam import Exam, prepare_exam, site_of, variables_at, wrong_variable
from siitjax.analysis.alignment.learn import Lanes, Training
from siitjax.analysis.alignment.methods import METHODS, SEEDED, sizes_of
from siitjax.analysis.alignment.score import score
from siitjax.analysis.discovery.pairs import draw_pairs
from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError
from siitjax.base.jsonl import Row
from siitjax.causal.case import Case
from siitjax.model.nodes import Node
from siitjax.model.transformer import Transformer, random_like

UNTRAINED, WRONG = "untrained", "wrong variable"
"""The controls: the same search in a transformer of random weights; and for a variable that lives elsewhere."""
CONTROLS = {UNTRAINED: ("DAS", "full vector", "non-linear"), WRONG: ("DAS",)}
"""Which methods each control is measured with."""


@dataclass(frozen=True)
class Plan:
    """What is measured at every node.

    Attributes:
        sizes: of the subspaces; empty for 1, 2, 4, ..., 64, below the node's width.
        seeds: first weights, or draws, of each.
        pairs: to learn from.
        held_out: pairs to choose the size and the seed on, and as many to score on.
        seed: decides the pairs, and the weights of the untrained transformer.

    Raises:
        UserError: a method is unknown, a number is not positive, or a batch has more pairs than there are.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    sizes: tuple[int, ...] = ()
    seeds: int = 1
    pairs: int = 1_000
    held_out: int = 300
    seed: int = 6_000_000
    training: Training = field(default_factory=Training)

    def __post_init__(self):
        for method in self.methods:
            check_choice("the method", method, tuple(METHODS))
        numbers = [(name, getattr(self, name)) for name in ("seeds", "pairs", "held_out")]
        for name, number in (*numbers, *(("a size", size) for size in self.sizes)):
            if number < 1:
                raise UserError(f"{name} is {number}; it must be at least 1")
        if self.training.batch_size > self.pairs:
            raise UserError(
                f"a batch has {self.training.batch_size} pairs, but there are {self.pairs}; lower it, or take more"
            )

    def sizes_at(self, case: Case, node: Node) -> tuple[int, ...]:
        """The sizes of a node's subspaces.

        Raises:
            UserError: one is larger than the node, or the node holds no variable.
        """
        width = site_of(case, node).width(case.config)
        if large := [size for size in self.sizes if size > width]:
            raise UserError(
                f"a size is {large[0]}, but {node} of {case.name} holds {width} numbers a token; choose sizes up to "
                "that"
            )
        return self.sizes or tuple(2**i for i in range(7) if 2**i < width)


class Exams(NamedTuple):
    """Pairs to learn from, to choose on, and to score on; the variables that do not live there come last."""

    train: Exam
    validation: Exam
    test: Exam
    own: int


def study(trained: Transformer, case: Case, node: Node, names: Sequence[str], plan: Plan) -> Iterator[Row]:
    """A row for each variable, method, size and seed, controls among them.

    Args:
        names: of the variables; empty for all that live there.

    Raises:
        UserError: the node holds no variable, or not these, a size is larger than the node, or the swap of a variable
            changes no label.
    """
    sizes, variables = plan.sizes_at(case, node), variables_at(case, node, names)
    pairs = [draw_pairs(case, n, plan.seed + i) for i, n in enumerate((plan.pairs, plan.held_out, plan.held_out))]
    wrong = wrong_variable(case, node, pairs[0])
    looked_for = [*variables, *([] if wrong is None else [wrong])]
    for control in ("", UNTRAINED):
        model = random_like(trained, key=jax.random.key(plan.seed)) if control else trained
        train, validation, test = (prepare_exam(model, case, node, looked_for, each) for each in pairs)
        exams = Exams(train, validation, test, len(variables))
        asked = CONTROLS[UNTRAINED] if control else [method for method in METHODS if method != "non-linear"]
        for method in plan.methods:
            if method in asked:
                yield from _rows(exams, method, sizes, plan, control)


def _rows(exams: Exams, method: str, sizes: Sequence[int], plan: Plan, control: str) -> Iterator[Row]:
    width = exams.train.width
    with_wrong = not control and method in CONTROLS[WRONG]
    variables = range(len(exams.train.names) if with_wrong else exams.own)
    seeds = range(plan.seeds if method in SEEDED else 1)
    each = [*product(variables, sizes_of(method, width, sizes), seeds)]
    lanes = Lanes(*(jnp.array(x, jnp.int32) for x in zip(*each, strict=True)))
    began = time.perf_counter()
    found = jax.block_until_ready(METHODS[method](exams.train, lanes, plan.training))
    seconds = time.perf_counter() - began
    validation, test = (jax.device_get(score(e, found, lanes.variables)) for e in (exams.validation, exams.test))
    for i, (variable, size, seed) in enumerate(each):
        share = lambda tally, i=i: float(tally.right[i] / tally.of[i]) if tally.of[i] else None
        yield {
            "variable": exams.train.names[variable],
            "control": control or (WRONG if variable >= exams.own else ""),
            "method": method,
            "size": size,
            "seed": seed,
            "width": width,
            "validation": float(validation.balanced[i]),
            "balanced": float(test.balanced[i]),
            "every": share(test.every),
            "caused": share(test.caused),
            "isolated": share(test.isolated),
            "tokens": [int(tally.of[i]) for tally in (test.every, test.caused, test.isolated)],
            "seconds": seconds / len(each),
        }
