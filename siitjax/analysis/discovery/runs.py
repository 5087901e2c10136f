"""What every method begins with: the base runs of some pairs, and what their senders are replaced by."""

from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from siitjax.analysis.discovery.pairs import Pairs
from siitjax.analysis.discovery.relaxed import relaxed
from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.causal.loss import CrossEntropy
from siitjax.model.checks import check_pair
from siitjax.model.transformer import Transformer

Ablation = Literal["resample", "mean", "zero"]
"""A patched edge carries what its sender wrote in the source run; on average over all sources, at each position; or
nothing."""


class Runs(eqx.Module):
    """The base runs of some pairs.

    Attributes:
        base: their tokens.
        counted: the tokens that answers are asked of.
        logits: the base runs' answers.
        here: what each sender wrote.
        there: what it is replaced by where an edge is patched.
    """

    base: Int[Array, "pair seq"]
    counted: Bool[Array, "pair seq"]
    logits: Float[Array, "pair seq out"]
    here: Float[Array, "pair sender seq d_model"]
    there: Float[Array, "pair sender seq d_model"]


def run_pairs(model: Transformer, case: Case, pairs: Pairs, ablation: Ablation = "resample") -> Runs:
    """The runs that methods start from.

    Args:
        ablation: what a patched edge carries.

    Raises:
        UserError: the model, the case and the pairs do not fit each other, or the labels are numbers.
    """
    check_choice("the ablation", ablation, get_args(Ablation))
    if not isinstance(case.loss, CrossEntropy):
        raise UserError(f"the labels of {case.name} are numbers; discovery measures the log-odds of classes")
    base, source = jnp.asarray(pairs.base), jnp.asarray(pairs.source)
    check_pair(base, source)
    case.check_fits(model.config, base, source)
    logits, here, there = _both(model, base, source)
    if ablation == "mean":
        there = jnp.broadcast_to(there.mean(0, keepdims=True), there.shape)
    elif ablation == "zero":
        there = jnp.zeros_like(there)
    return Runs(base, case.counted_mask(base), logits, here, there)


@jax.jit
def _both(model: Transformer, base, source):
    n = len(model.config.nodes)
    none = jnp.zeros((n, n))

    def run(tokens):
        return relaxed(model, tokens, none, jnp.zeros((n, len(tokens), model.config.d_model)))

    logits, here = jax.vmap(run)(base)
    return logits, here, jax.vmap(run)(source)[1]
