"""Whether a case's labels can be learned: where one cannot, the loss is nan, and nothing would say why."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Shaped

from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.causal.loss import CrossEntropy
from siitjax.model.checks import check_tokens

PAIRS = 500
"""Random pairs of a base and a source for each task; in every other one nothing is swapped."""


def check_labels(case: Case) -> None:
    """Looks at the labels of random samples, as they are and under swaps of random nodes of the circuit.

    Raises:
        UserError: one is a class that the transformer has no output for, or a number that is not finite; or attention
            is causal, and a label depends on a later token; or no token of a sample counts.
    """
    circuit, rng = case.circuit, np.random.default_rng(0)
    n = PAIRS * max(len(case.tasks), 1)
    base, _ = case.draw(n, n // 4, rng)
    source = rng.permutation(base)
    source = np.asarray(case.source_of(jnp.asarray(base), jnp.asarray(source), jax.random.key(0)))
    check_tokens(source, len(case.vocabulary), case.n_ctx)
    counted = np.asarray(case.counted_mask(jnp.asarray(base)))
    if not counted.any(1).all():
        sample = _spelled(case, base[int(counted.any(1).argmin())])
        raise UserError(f'no token of "{sample}" counts; the counted of {case.name} must be true at one of each sample')
    masks = (rng.random((n, len(circuit.nodes))) < 0.5) & circuit.circuit_mask
    masks[::2] = False
    label = jax.vmap(lambda base, source, mask: circuit(base, (mask, circuit(source)[1]))[0])
    labels = np.asarray(jax.jit(label)(*map(jnp.asarray, (base, source, masks))))
    wrong = np.argwhere(_impossible(labels, case) & counted).tolist()
    if not wrong:
        return check_causal(case, base, source)
    i, position = min(wrong, key=lambda at: masks[at[0]].sum())  # with nothing swapped, if there is such a one
    spelled = lambda sample: f'"{_spelled(case, sample)}"'
    under = f" with {'+'.join(map(str, circuit.nodes.named(masks[i])))} taken from {spelled(source[i])}"
    where = f"position {position} of {spelled(base[i])}{under if masks[i].any() else ''}"
    raise UserError(f"the label of {case.name} is {labels[i, position]} at {where}; {_advice(case)}")


def check_causal(case: Case, base: Int[np.ndarray, "sample seq"], other: Int[np.ndarray, "sample seq"]) -> None:
    """Whether labels stay as they are when all later tokens become those of another sample.

    Raises:
        UserError: one does not, and attention is causal.
    """
    if not case.config.causal:
        return
    n, seq = base.shape
    last = np.random.default_rng(1).integers(0, seq, (n, 1))
    kept = np.arange(seq)[None] <= last
    changed = np.where(kept, base, other)
    label = jax.jit(jax.vmap(lambda tokens: case.circuit(tokens)[0]))
    before, after = (np.asarray(label(jnp.asarray(x, jnp.int32))).reshape(n, seq, -1) for x in (base, changed))
    counted = np.asarray(case.counted_mask(jnp.asarray(base))) & np.asarray(case.counted_mask(jnp.asarray(changed)))
    differs = ~np.isclose(before, after, equal_nan=True).all(-1) & kept & counted
    if differs.any():
        i, position = np.argwhere(differs)[0].tolist()
        raise UserError(
            f"the label of {case.name} at position {position} is {before[i, position, 0]} of "
            f'"{_spelled(case, base[i])}" and {after[i, position, 0]} of "{_spelled(case, changed[i])}", which differ '
            'in later tokens alone; causal attention cannot see those: give attention_dir="bidirectional", or mend the '
            f'variable "{case.variables[-1].name}"'
        )


def _spelled(case: Case, sample: Int[np.ndarray, " seq"]) -> str:
    return " ".join(case.vocabulary[token] for token in sample)


def _impossible(labels: Shaped[np.ndarray, "sample seq *label"], case: Case) -> Bool[np.ndarray, "sample seq"]:
    if isinstance(case.loss, CrossEntropy):
        return (labels < 0) | (labels >= case.n_outputs)
    return np.asarray(~np.isfinite(labels).reshape(*labels.shape[:2], -1).all(-1))


def _advice(case: Case) -> str:
    variable = f'the variable "{case.variables[-1].name}"'
    if isinstance(case.loss, CrossEntropy):
        return f"classes are 0 to {case.n_outputs - 1}, as n_outputs is {case.n_outputs}: raise it, or mend {variable}"
    return f"it must be finite: mend {variable}"
