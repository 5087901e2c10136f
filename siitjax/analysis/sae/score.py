"""Do a dictionary's latents find what is known? Scores against the values of the site's variables.

Two questions, two answers. Do latents say which value a variable has (F1, AUROC, coverage)? And does the transformer
use them so (interchange interventions on the latents that were matched to a variable, and only those)?
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from siitjax.analysis.sae.dictionary import Dictionary
from siitjax.analysis.sae.exam import Exam, Ground, Half, circuit_masks
from siitjax.analysis.sae.train import adam
from siitjax.base.precision import matmul_precision
from siitjax.siit.metrics import Tally

FRACTIONS = tuple(i / 10 for i in range(10))
"""A latent says yes where it is above this share of its largest activation: the best one counts. (Karvonen et al. 2024,
"Measuring progress in dictionary learning", who call the share of what is found at F1 0.95 coverage.)"""
FOUND = 0.95
"""F1 at which a value is found."""
ACTIVE = 1
"""The fraction, by its index, above which a latent counts as active where several are taken together."""
TOGETHER = 4
"""Latents at most that are taken together."""
PROBE_STEPS, PROBE_LR = 1_000, 0.03


class Found(eqx.Module):
    """How well latents tell values, shares from 0 to 1. All is chosen on one half of the tokens, and measured on the
    other.

    Attributes:
        f1: of each value, that of its best latent.
        auroc: of each value, the area under the ROC curve of the latent where it is largest. The curve is drawn
            through the fractions.
        latent: of each value, which latent that with the best F1 is.
        purity: of the latents that are active, the share that are one value, at an F1 of `FOUND`.
        split: values that no one latent finds, and several together do, of which the best one finds less than half.
        absorbed: the same, of which the best one finds half or more: others stand in for it (Chanin et al. 2024).
    """

    f1: Float[Array, " value"]
    auroc: Float[Array, " value"]
    latent: Int[Array, " value"]
    purity: Float[Array, ""]
    split: Float[Array, ""]
    absorbed: Float[Array, ""]


class Scores(eqx.Module):
    """What a dictionary is worth: `explained` is a share of 1, answers are counted.

    Attributes:
        explained: share of variance.
        l0: latents active at a token.
        live: how many latents are active at some token.
        base: tokens that the transformer answers right with the reconstruction in the site's place.
        node: the same when a circuit node is swapped, one at a time.
        variable: of each variable that can be swapped at the site: tokens answered as the circuit says when it is
            swapped, while in the transformer only the latents matched to it are.
        changed: of these, the tokens whose label that changed.
    """

    found: Found
    explained: Float[Array, ""]
    l0: Float[Array, ""]
    live: Int[Array, ""]
    base: Tally
    node: Tally
    variable: Tally
    changed: Tally


def score(ground: Ground, dictionary: Dictionary) -> Scores:
    """Every score of one dictionary; `siitjax.analysis.sae.spread` runs it over many."""
    choose, measure = (dictionary.encode(half.x) for half in (ground.choose, ground.measure))
    found = find(choose, ground.choose, measure, ground.measure)
    latents = jnp.concatenate([choose, measure])
    x = jnp.concatenate([ground.choose.x, ground.measure.x])
    unexplained = jnp.square(x - dictionary.decode(latents)).sum() / jnp.square(x - x.mean(0)[None]).sum()
    matched = (ground.of.astype(jnp.float32) @ jax.nn.one_hot(found.latent, latents.shape[1])) > 0
    return Scores(
        found,
        1 - unexplained,
        (latents > 0).sum(1).mean(),
        (latents > 0).any(0).sum(),
        *_spliced(ground, dictionary),
        *interchange_latents(ground, dictionary, matched),
    )


def find(choose: Float[Array, "token latent"], half: Half, measure: Float[Array, "other latent"], other: Half) -> Found:
    """How well the latents of one half's tokens tell values on the other half."""
    largest = choose.max(0)
    chosen, measured = _table(choose, largest, half), _table(measure, largest, other)
    fractions, n_latents, n_values = chosen.f1.shape
    latents, values = jnp.arange(n_latents), jnp.arange(n_values)
    fraction, latent = jnp.unravel_index(chosen.f1.reshape(-1, n_values).argmax(0), (fractions, n_latents))
    f1 = measured.f1[fraction, latent, values]

    by_latent = lambda table: table.f1.swapaxes(0, 1).reshape(n_latents, -1)
    own = by_latent(measured)[latents, by_latent(chosen).argmax(1)]
    live = largest > 0

    active = lambda latents: (latents > FRACTIONS[ACTIVE] * largest[None]).astype(jnp.float32)
    recall, together = _together(active(choose), half, active(measure), other)
    several = (f1 < FOUND) & (together >= FOUND)
    return Found(
        f1,
        measured.area[chosen.area.argmax(0), values],
        latent,
        (live & (own >= FOUND)).sum() / jnp.maximum(live.sum(), 1),
        (several & (recall < 0.5)).mean(),
        (several & (recall >= 0.5)).mean(),
    )


@matmul_precision()
def probe(exam: Exam) -> Found:
    """What a linear probe finds: a softmax regression for each number of a variable. The ceiling of what is there."""
    choose, measure = exam.ground.choose, exam.ground.measure
    asked = [name.partition(" = ")[0] for name in exam.known.names]
    same = jnp.asarray(np.array(asked)[:, None] == np.array(asked)[None])
    centre, spread = choose.x.mean(0)[None], choose.x.std(0)[None] + 1e-6
    optimiser = adam(PROBE_LR)

    def told(weights, x):
        """The logarithm of each value's probability among those of the same number."""
        held = (x - centre) / spread @ weights[0] + weights[1][None]
        top = held.max(1, keepdims=True)
        return held - top - jnp.log(jnp.exp(held - top) @ same.astype(jnp.float32))

    def loss(weights):
        return -(told(weights, choose.x) * choose.holds).sum() / choose.holds.sum()

    @jax.jit
    def found():
        def step(state, _):
            updates, opt_state = optimiser.update(jax.grad(loss)(state[0]), state[1])
            return (optax.apply_updates(state[0], updates), opt_state), None

        first = jnp.zeros((choose.x.shape[1], len(same))), jnp.zeros(len(same))
        (weights, _), _ = jax.lax.scan(step, (first, optimiser.init(first)), None, PROBE_STEPS)

        return find(jnp.exp(told(weights, choose.x)), choose, jnp.exp(told(weights, measure.x)), measure)

    return found()


class _Table(eqx.Module):
    """How well each latent tells each value: F1 at each fraction, and the area under the ROC curve."""

    f1: Float[Array, "fraction latent value"]
    area: Float[Array, "latent value"]


def _table(latents: Float[Array, "token latent"], largest: Float[Array, " latent"], half: Half) -> _Table:
    def at(fraction):
        yes = (latents > fraction * largest[None]).astype(jnp.float32)
        return yes.T @ half.holds, yes.T @ half.counted

    hits, yes = jax.lax.map(at, jnp.asarray(FRACTIONS, jnp.float32))
    positive, counted = half.holds.sum(0)[None, None], half.counted.sum(0)[None, None]
    # The curve from (0, 0), where no token is above, to (1, 1), where all are.
    ends = lambda shares: jnp.concatenate([jnp.ones_like(shares[:1]), shares, jnp.zeros_like(shares[:1])])
    right = ends(hits / jnp.maximum(positive, 1))
    wrong = ends((yes - hits) / jnp.maximum(counted - positive, 1))
    area = ((wrong[:-1] - wrong[1:]) * (right[:-1] + right[1:]) / 2).sum(0)
    return _Table(2 * hits / jnp.maximum(yes + positive, 1), area)


def _together(
    choose: Float[Array, "token latent"], half: Half, measure: Float[Array, "other latent"], other: Half
) -> tuple[Float[Array, " value"], Float[Array, " value"]]:
    """Latents put together one by one, so that the F1 of "any of them is active" grows most; chosen on one half.

    Gives, on the other half, the share of a value's tokens that the first one finds, and the F1 of all together.
    """
    any_of, any_there = jnp.zeros_like(half.holds), jnp.zeros_like(other.holds)
    f1, recall = jnp.zeros(half.holds.shape[1]), jnp.zeros(half.holds.shape[1])
    positive = half.holds.sum(0)
    for turn in range(TOGETHER):
        hits = (any_of * half.holds).sum(0)[None] + choose.T @ ((1 - any_of) * half.holds)
        yes = (any_of * half.counted).sum(0)[None] + choose.T @ ((1 - any_of) * half.counted)
        each = 2 * hits / jnp.maximum(yes + positive[None], 1)
        best, better = each.argmax(0), each.max(0) > f1
        f1 = jnp.maximum(f1, each.max(0))
        any_of = jnp.maximum(any_of, jnp.where(better[None], choose[:, best], 0.0))
        any_there = jnp.maximum(any_there, jnp.where(better[None], measure[:, best], 0.0))
        if turn == 0:
            recall = (any_there * other.holds).sum(0) / jnp.maximum(other.holds.sum(0), 1)
    hits, yes = (any_there * other.holds).sum(0), (any_there * other.counted).sum(0)
    return recall, 2 * hits / jnp.maximum(yes + other.holds.sum(0), 1)


def _each(function, x: Float[Array, "pair seq in_"]) -> Float[Array, "pair seq out_"]:
    """`function`, which takes tokens, of every sample's."""
    return function(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], -1)


def interchange_latents(
    ground: Ground, dictionary: Dictionary, matched: Bool[Array, "variable latent"]
) -> tuple[Tally, Tally]:
    """Tokens answered as the circuit says, and those whose label changed, of each variable swapped at the site.

    The matched latents take the source's values; what the dictionary does not rebuild stays the base's.
    """
    pairs, case = ground.pairs, ground.case
    own = case.counted_mask(pairs.base)
    latents = _each(dictionary.encode, pairs.x)

    def one(x_source, labels, matched):
        change = jnp.where(matched[None, None], _each(dictionary.encode, x_source) - latents, 0.0)
        value = pairs.x + change @ dictionary.W_dec
        logits = jax.vmap(partial(ground.site.replaced, ground.model))(pairs.base, pairs.activations, value)
        right = case.loss.correct(logits, labels) & own
        changed = ~case.loss.same(labels, pairs.clean) & own
        return Tally(right.sum(), own.sum()), Tally((right & changed).sum(), changed.sum())

    found = [one(*three) for three in zip(pairs.x_source, pairs.labels, matched, strict=True)]
    if not found:
        none = Tally(jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32))
        return none, none
    return jax.tree.map(lambda *each: jnp.stack(each), *found)


def _spliced(ground: Ground, dictionary: Dictionary) -> tuple[Tally, Tally]:
    """Tokens answered right with the reconstruction in the site's place: nothing swapped, and each circuit node."""
    pairs, case, model, site = ground.pairs, ground.case, ground.model, ground.site
    own = case.counted_mask(pairs.base)

    def right(activations, swap, labels):
        rebuilt = _each(
            lambda x: dictionary.decode(dictionary.encode(x)), jax.vmap(partial(site.read, model))(activations)
        )
        put = lambda base, activations, x, source: site.replaced(
            model, base, activations, x, None if swap is None else (swap[0], source)
        )
        logits = jax.vmap(put)(pairs.base, activations, rebuilt, None if swap is None else swap[1])
        return Tally((case.loss.correct(logits, labels) & own).sum(), own.sum())

    def under(mask_and_labels):
        mask, labels = mask_and_labels
        run = lambda base, source: model(base, (mask, source))[1]
        return right(jax.vmap(run)(pairs.base, pairs.other), (mask, pairs.other), labels)

    each = jax.lax.map(under, (circuit_masks(case), pairs.node_labels))
    return right(pairs.activations, None, pairs.clean), each
