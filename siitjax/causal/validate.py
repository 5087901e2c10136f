"""Whether a case's labels can be learned: where one cannot, the loss is nan, and nothing would say why."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Shaped

from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.causal.loss import CrossEntropy

PAIRS = 500
"""Random pairs of a base and a source for each task; in every other one nothing is swapped."""


def check_labels(case: Case) -> None:
    """Looks at the labels of random samples, as they are and under swaps of random nodes of the circuit.

    Raises:
        UserError: one is a class that the transformer has no output for, or a number that is not finite.
    """
    circuit, rng = case.circuit, np.random.default_rng(0)
    n = PAIRS * max(len(case.tasks), 1)
    base, _ = case.draw(n, n // 4, rng)
    source = rng.permutation(base)
    masks = (rng.random((n, len(circuit.nodes))) < 0.5) & circuit.circuit_mask
    masks[::2] = False
    label = jax.vmap(lambda base, source, mask: circuit(base, (mask, circuit(source)[1]))[0])
    labels = np.asarray(jax.jit(label)(*map(jnp.asarray, (base, source, masks))))
    wrong = np.argwhere(_impossible(labels, case) & np.asarray(case.token_mask(jnp.asarray(base)))).tolist()
    if not wrong:
        return
    i, position = min(wrong, key=lambda at: masks[at[0]].sum())  # with nothing swapped, if there is such a one
    spelled = lambda sample: f'"{" ".join(case.vocabulary[token] for token in sample)}"'
    under = f" with {'+'.join(map(str, circuit.nodes.named(masks[i])))} taken from {spelled(source[i])}"
    where = f"position {position} of {spelled(base[i])}{under if masks[i].any() else ''}"
    raise UserError(f"the label of {case.name} is {labels[i, position]} at {where}; {_advice(case)}")


def _impossible(labels: Shaped[np.ndarray, "sample seq *label"], case: Case) -> Bool[np.ndarray, "sample seq"]:
    if isinstance(case.loss, CrossEntropy):
        return (labels < 0) | (labels >= case.n_outputs)
    return np.asarray(~np.isfinite(labels).reshape(*labels.shape[:2], -1).all(-1))


def _advice(case: Case) -> str:
    variable = f'the variable "{case.variables[-1].name}"'
    if isinstance(case.loss, CrossEntropy):
        return f"classes are 0 to {case.n_outputs - 1}, as n_outputs is {case.n_outputs}: raise it, or mend {variable}"
    return f"it must be finite: mend {variable}"
