"""Whether a case's variables are what its RASP program says, by tracr's own evaluator, on some strings."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from tracr.rasp import causal_eval, rasp

from siitjax.base.errors import UserError, one_line
from siitjax.causal.case import PAD, Case
from siitjax.rasp.program import Program, Step

STRINGS = 64
"""How many strings are compared at least."""
CLOSE = 1e-4
"""Numbers that differ by no more are the same."""
QUICKLY = {"xla_backend_optimization_level": 0}
"""How XLA compiles what runs once."""


def check_agrees(case: Case, program: Program, causal: bool) -> None:
    """Compares every variable on random strings; those on which RASP has no answer, as where it would take the mean of
    letters, are left out.

    Raises:
        UserError: a variable differs, or RASP has an answer on no string.
    """
    count = STRINGS + case.n_ctx  # some of each length
    samples, _ = case.draw(count, count, np.random.default_rng(0))
    _, values = jax.jit(jax.vmap(case.circuit), compiler_options=QUICKLY)(jnp.asarray(samples, jnp.int32))
    ours = dict(zip((v.name for v in case.circuit.ordered), map(np.asarray, values[1:]), strict=True))
    errors = []
    for i, sample in enumerate(samples):
        string = [program.letters[token - PAD - 1] for token in sample[1:] if token > PAD]
        evaluate = evaluator(causal)
        try:
            expected = [None if s.expression is None else evaluate(s.expression, string) for s in program.steps]
        except Exception as error:
            errors.append(f"{type(error).__name__}: {one_line(error)}")
            continue
        for step, says in zip(program.steps, expected, strict=True):
            if says is not None:
                _check(step, ours[step.variable.name][i], says, string)
    if len(errors) == len(samples):
        raise UserError(f"RASP has an answer on none of {len(samples)} strings ({errors[0]}); mend the program")


def evaluator(causal: bool) -> Callable[[rasp.RASPExpr, Sequence[Any]], Sequence[Any]]:
    """tracr's own evaluator for one string, which computes every expression once."""
    found = causal_eval.CausalEvaluator() if causal else rasp.DefaultRASPEvaluator()
    plain, known = found.evaluate, {}

    def evaluate(expr: rasp.RASPExpr, xs: Sequence[Any]) -> Sequence[Any]:
        if expr.label not in known:
            known[expr.label] = plain(expr, xs)
        return known[expr.label]

    found.evaluate = evaluate  # which it calls for what an expression is made of
    return evaluate


def _check(step: Step, ours: Int[np.ndarray, " seq"], says: Sequence[Any], string: Sequence[Any]) -> None:
    values = (*step.values, None)
    for i, expected in enumerate(says):
        found = values[ours[i + 1]]
        if isinstance(found, float) and expected is None:
            continue  # a number of nothing is 0 in tracr's transformer
        close = isinstance(found, float) and isinstance(expected, float | int) and abs(found - expected) <= CLOSE
        if not close and found != expected:
            raise UserError(
                f'"{step.variable.name}" is {expected} at position {i} of "{" ".join(map(str, string))}" by RASP, but '
                f"{found} where it must be one of {len(step.values)} values; tracr compiles no categorical Aggregate "
                "of several values: have its selector select one, or make it numerical"
            )
