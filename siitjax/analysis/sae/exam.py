"""What a dictionary of one site is scored on: activations that it was not trained on, and what is known of them."""

from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from siitjax.analysis.sae.known import LEAST, Known, held, known_values, swappable, task_named
from siitjax.analysis.sae.site import Site
from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.model.transformer import Activations, Transformer


class Half(eqx.Module):
    """Activations of half of the tokens, and what is known of them, as numbers 0 and 1."""

    x: Float[Array, "token d_in"]
    holds: Float[Array, "token value"]
    counted: Float[Array, "token value"]


class Pairs(eqx.Module):
    """Bases and sources to interchange, and what the circuit then says.

    Attributes:
        base, activations, x: the base runs, and what the site holds in them.
        x_source: what the site holds in the source runs; a variable of one task has sources of that task, since on
            others the transformer need not compute it.
        labels: when a variable is swapped, and nothing else of its node.
        other: the source runs of node swaps.
        node_labels: when a node of the circuit is swapped.
        clean: when nothing is.
    """

    base: Int[Array, "pair seq"]
    activations: Activations
    x: Float[Array, "pair seq d_in"]
    x_source: Float[Array, "variable pair seq d_in"]
    labels: Shaped[Array, "variable pair seq *label"]
    other: Activations
    node_labels: Shaped[Array, "circuit_node pair seq *label"]
    clean: Shaped[Array, "pair seq *label"]


class Ground(eqx.Module):
    """All that a dictionary of one site is scored on. A dictionary's choices are made on one half, and measured on the
    other.

    Attributes:
        of: which variable each value is of.
    """

    model: Transformer
    choose: Half
    measure: Half
    pairs: Pairs
    of: Bool[Array, "variable value"]
    case: Case = eqx.field(static=True)
    site: Site = eqx.field(static=True)


@dataclass(frozen=True)
class Exam:
    """A site's ground truth.

    Attributes:
        known: the values that are looked for, on the first half of the tokens.
        swapped: names of the variables that can be swapped at the site.
    """

    ground: Ground
    known: Known
    swapped: tuple[str, ...]


def prepare_exam(
    model: Transformer, case: Case, site: Site, samples: Int[np.ndarray, "sample seq"], pairs: int, seed: int
) -> Exam:
    """Ground truth of a site on samples that no dictionary was trained on.

    Args:
        pairs: how many of these samples are interchanged, each with another one.

    Raises:
        UserError: the site holds no variable of which a value is seen often enough, or the transformer or the samples
            do not fit the case.
    """
    case.check_fits(model.config, samples)
    known = known_values(case, held(case, site), samples)
    own = np.asarray(case.token_mask(jnp.asarray(samples)))
    cut = int(own[: len(samples) // 2].sum())
    halves = known.at(slice(cut)), known.at(slice(cut, None))
    often = known.frequent(LEAST, *halves)
    if not often.any():
        raise UserError(f"{site} of {case.name} holds no value that {LEAST} tokens have; choose another site")
    first, second = (half.only(often) for half in halves)
    x = activations_at(model, site, jnp.asarray(samples))[jnp.asarray(own)]
    half = lambda x, known: Half(x, *(jnp.asarray(y, jnp.float32) for y in (known.holds, known.counted)))
    swapped = tuple(v.name for v in swappable(case, site))
    of = np.array([[owner == name for owner in first.variables] for name in swapped], bool)
    ground = Ground(
        model,
        half(x[:cut], first),
        half(x[cut:], second),
        _pairs(model, case, site, samples[:pairs], np.random.default_rng(seed)),
        jnp.asarray(of.reshape(len(swapped), len(first.names))),
        case,
        site,
    )
    return Exam(ground, first, swapped)


def activations_at(
    model: Transformer, site: Site, samples: Int[Array, "sample seq"]
) -> Float[Array, "sample seq d_in"]:
    """What the site holds on every sample."""
    return jax.jit(jax.vmap(lambda tokens: site.read(model, model(tokens)[1])))(samples)


def _pairs(
    model: Transformer, case: Case, site: Site, base: Int[np.ndarray, "pair seq"], rng: np.random.Generator
) -> Pairs:
    circuit, task = case.circuit, task_named(case, base)
    variables = swappable(case, site)
    whole, within = rng.permutation(len(base)), np.arange(len(base))
    for one in np.unique(task):
        within[task == one] = rng.permutation(within[task == one])
    sources = np.array([whole if case.task_of(v.name) is None else within for v in variables], int).reshape(
        -1, len(base)
    )
    order = [v.name for v in circuit.ordered]

    @jax.jit
    def runs(base, source, whole):
        run = jax.vmap(lambda tokens: model(tokens)[1])
        read = jax.vmap(partial(site.read, model))
        activations = run(base)
        x = read(activations)
        clean, values = jax.vmap(circuit)(base)
        other = jax.tree.map(lambda v: v[whole], values)

        def one_variable(variable: Variable, source):
            assert variable.nodes
            place, mask = 1 + order.index(variable.name), jnp.asarray(circuit.nodes.mask(variable.nodes))
            alone = tuple(v[source] if j == place and v is not None else None for j, v in enumerate(values))
            return jax.vmap(lambda base, values: circuit(base, (mask, values))[0])(base, alone)

        def one_node(mask):
            return jax.vmap(lambda base, values: circuit(base, (mask, values))[0])(base, (None, *other[1:]))

        labels = [one_variable(*both) for both in zip(variables, source, strict=True)]
        return Pairs(
            base,
            activations,
            x,
            x[source],
            jnp.stack(labels) if labels else clean[None][:0],
            eqx.tree_at(lambda a: a.embed, jax.tree.map(lambda a: a[whole], activations), None),
            jnp.stack([one_node(mask) for mask in circuit_masks(case)]),
            clean,
        )

    return runs(*map(jnp.asarray, (base, sources, whole)))


def circuit_masks(case: Case) -> Bool[Array, "circuit_node node"]:
    """One node of the circuit each."""
    return jnp.asarray(np.eye(len(case.circuit.nodes), dtype=bool)[case.circuit.circuit_mask])
