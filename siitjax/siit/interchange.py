"""Interchange interventions: patched logits and counterfactual labels, both from one mask."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from siitjax.base.errors import UserError
from siitjax.causal.circuit import Circuit, edge_labels
from siitjax.model.checks import check_pair, check_tokens
from siitjax.model.forms import Form, Run, fastest
from siitjax.model.nodes import EMBED, Masks
from siitjax.model.swaps import EdgeSwaps
from siitjax.model.transformer import Transformer

Answers = tuple[Float[Array, "batch mask seq out"], Shaped[Array, "batch mask seq *label"]]
"""What the transformer answers, and what the circuit says it should."""


def interchange(
    model: Transformer,
    circuit: Circuit,
    base: Int[Array, "batch seq"],
    source: Int[Array, "batch seq"],
    masks: Masks,
    *,
    embedding: bool = False,
    form: Form | None = None,
) -> Answers:
    """What both answer when the masked nodes take the source run's values.

    The source runs once, and no gradient flows through it: its values are data, as in the papers' own code
    (Geiger et al. 2022, section 3; Gupta et al. 2024, Algorithm 1). Only what a mask can change is computed
    once a mask: the base run up to layer 0's `hook_z` is shared.

    Args:
        embedding: let masks swap the embedding too. Otherwise their first entry, the embedding's, has no effect.
        form: how the transformer is computed; None for the fastest.

    Raises:
        UserError: the transformer has other nodes than the circuit, or the tokens do not fit; see
            `siitjax.model.checks`.
    """
    check_fits(model, circuit, base, source)
    run = (form or fastest()).run
    activations = _source(run, model, source, embedding)
    with jax.named_scope("swapped_run"):
        logits, _ = run(model, base, (masks, activations))
    return logits, _labels(circuit, base, source, masks, embedding)


def interchange_by_depth(
    model: Transformer,
    circuit: Circuit,
    base: Int[Array, "batch seq"],
    source: Int[Array, "batch seq"],
    groups: Sequence[tuple[int, Bool[Array | np.ndarray, "..."]]],
    *,
    embedding: bool = False,
    form: Form | None = None,
) -> Answers:
    """`interchange` under masks of which is known where they begin: nothing is computed again before that.

    The first answer returned is the base run's, with nothing swapped; those of the groups' masks follow, in order.

    Args:
        groups: masks, each group with the depth of the first node that any of them swaps, or of one before it; see
            `Node.depth`.
    """
    check_fits(model, circuit, base, source)
    run = (form or fastest()).run
    activations = _source(run, model, source, embedding)
    with jax.named_scope("base_run"):
        logits, own = run(model, base)
    answers = [logits]
    swapped: list[Array | np.ndarray] = [np.zeros((1, len(circuit.nodes)), np.bool_)]
    for first, masks in groups:
        resume = None if first == EMBED.depth else (first, own)
        with jax.named_scope("swapped_run"):
            logits, _ = run(model, base, (masks, activations), resume=resume)
        answers.append(logits)
        swapped.append(masks)
    whole = [jnp.broadcast_to(masks, (len(base), *masks.shape[-2:])) for masks in swapped]
    labels = _labels(circuit, base, source, jnp.concatenate(whole, 1), embedding)
    return jnp.concatenate(answers, 1), labels


def check_fits(
    model: Transformer, circuit: Circuit, base: Int[Array, "batch seq"], source: Int[Array, "batch seq"]
) -> None:
    """Raises UserError where these do not belong together; see `siitjax.model.checks`."""
    if model.config.nodes != circuit.nodes:
        raise UserError(
            f"the circuit is on the nodes {', '.join(map(str, circuit.nodes))}, but the transformer has "
            f"{', '.join(map(str, model.config.nodes))}; give the circuit that it was trained on"
        )
    check_pair(base, source)
    for tokens in (base, source):
        check_tokens(tokens, model.config.d_vocab, model.config.n_ctx)


def interchange_edges(
    model: Transformer,
    circuit: Circuit,
    base: Int[Array, "batch seq"],
    source: Int[Array, "batch seq"],
    swaps: EdgeSwaps,
    *,
    form: Form | None = None,
) -> Answers:
    """What both answer when readers see what masked senders hold in the source runs; see `EdgeSwaps`.

    The first answer is the base run's, with nothing swapped; those of the swaps follow, in order. The source runs
    are data, as in `interchange`. Where the swaps number their sources, the base runs follow the sources, so that a
    sender may be held at what it has in a base run.

    Raises:
        UserError: these do not belong together; see `siitjax.model.checks` and `EdgeSwaps.check`.
    """
    check_fits(model, circuit, base, source)
    form = form or fastest()
    with jax.named_scope("source_run"):
        _, there = form.run(model, source)
    with jax.named_scope("base_run"):
        logits, own = form.run(model, base)
    runs = (there,)
    if swaps.sources is not None:
        source, runs = jnp.concatenate([source, base]), (there, own)
    swaps.check(len(circuit.nodes), base.shape, source.shape)
    with jax.named_scope("swapped_run"):
        swapped = form.run_edges(model, base, swaps, *jax.lax.stop_gradient(runs))
    labels = _own_labels(circuit, base)
    with jax.named_scope("causal_model"):
        swapped_labels = edge_labels(circuit, base, source, swaps)
    answers = (logits, labels[:, None]), (swapped, swapped_labels)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *answers)


@jax.named_scope("source_run")
def _source(run: Run, model: Transformer, source: Int[Array, "batch seq"], embedding: bool) -> Any:
    """What a swap takes from the source run; None at the embedding where that is not swapped."""
    _, activations = run(model, source)
    return jax.lax.stop_gradient(activations if embedding else eqx.tree_at(lambda a: a.embed, activations, None))


@jax.named_scope("causal_model")
def _own_labels(circuit: Circuit, base: Int[Array, "batch seq"]) -> Shaped[Array, "batch seq *label"]:
    return jax.vmap(lambda tokens: circuit(tokens)[0])(base)


@jax.named_scope("causal_model")
def _labels(
    circuit: Circuit, base: Int[Array, "batch seq"], source: Int[Array, "batch seq"], masks: Masks, embedding: bool
) -> Shaped[Array, "batch mask seq *label"]:
    def sample(base, source, masks):
        _, values = circuit(source)
        values = values if embedding else (None, *values[1:])
        return jax.vmap(lambda mask: circuit(base, (mask, values))[0])(masks)

    return jax.vmap(sample, (0, 0, 0 if masks.ndim == 3 else None))(base, source, masks)
