"""A form of the transformer gives what the model as it is written gives: logits and gradients, under every swap, with
masks of a batch or of a sample, resumed or whole, alone or in lanes. Parts of a batch add up to the batch."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siitjax.model.config import TransformerConfig
from siitjax.model.forms import BATCH_LAST, PLAIN, ROLLED, Form, mean_over_parts
from tests.hooked import RELU, SEQ, VARIANTS, random_model, random_tokens

TOLERANCE = 1e-5
"""Rounding of values of the order of one, in logits, and of the largest gradient."""
BATCH, MASKS, LANES = 5, 4, 2
SMALL = VARIANTS["one_layer"]


def masks_of(config: TransformerConfig, *shape: int) -> jax.Array:
    """Random masks, the first of nothing."""
    masks = np.random.default_rng(4).random((*shape, MASKS, len(config.nodes))) < 0.5
    masks[..., 0, :] = False
    return jnp.asarray(masks)


@partial(jax.jit, static_argnums=(0, 1))
def logits_and_gradient(form: Form, first, model, base, source, masks):
    def loss(model):
        _, held = form.run(model, source)
        resume = None if first is None else (first, form.run(model, base)[1])
        logits, _ = form.run(model, base, (masks, jax.lax.stop_gradient(held)), resume=resume)
        # A direction of its own for every logit, so that none can stand for another.
        return (logits * jnp.sin(jnp.arange(logits.size, dtype=jnp.float32)).reshape(logits.shape)).sum(), logits

    gradient, logits = jax.grad(loss, has_aux=True)(model)
    return logits, gradient


def assert_agree(got, wanted):
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted[1]))
    chex.assert_trees_all_close(got[0], wanted[0], rtol=0, atol=TOLERANCE)
    chex.assert_trees_all_close(got[1], wanted[1], rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize(
    ("config", "own", "seq"),
    [*((config, (), SEQ) for config in VARIANTS.values()), (RELU, (BATCH,), SEQ), (SMALL, (), 1), (SMALL, (), 3)],
    ids=[*VARIANTS, "masks of each sample", "one token", "a token a block"],
)
def test_logits_and_gradients_are_those_of_the_model_as_written(config, own, seq):
    tokens = map(jnp.asarray, random_tokens(config, 2, BATCH, seq))
    given = (None, random_model(config), *tokens, masks_of(config, *own))
    wanted = logits_and_gradient(PLAIN, *given)
    for form in (BATCH_LAST, ROLLED):
        assert_agree(logits_and_gradient(form, *given), wanted)


@pytest.mark.parametrize(
    ("form", "depth"),
    [
        *((BATCH_LAST, depth) for depth in (1, 6)),
        *(pytest.param(BATCH_LAST, depth, marks=pytest.mark.slow) for depth in (2, 5)),
        (ROLLED, 5),
    ],
)
def test_resumed_from_a_site_they_are_too(form, depth):
    later = np.array([node.depth >= depth for node in RELU.nodes])
    masks = masks_of(RELU) & later[None]
    given = (depth, random_model(RELU), *map(jnp.asarray, random_tokens(RELU, 2, BATCH, SEQ)), masks)
    assert_agree(logits_and_gradient(form, *given), logits_and_gradient(PLAIN, *given))


@pytest.mark.parametrize("axes", [(0, 0, 0, None), (0, None, None, 0)], ids=["own samples", "own masks"])
def test_in_lanes_each_is_what_it_is_alone(axes):
    models = [jax.tree.map(lambda w, i=i: (1 + 0.1 * i) * w, random_model(RELU)) for i in range(LANES)]
    tokens, masks = jnp.asarray(random_tokens(RELU, 2 * LANES, BATCH, SEQ)), masks_of(RELU, LANES)
    given = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *models), tokens[:LANES], tokens[LANES:], masks]
    given = [x if axis == 0 else x[0] for x, axis in zip(given, axes, strict=True)]
    lanes = jax.vmap(partial(logits_and_gradient, BATCH_LAST, None), axes)(*given)
    for i in range(LANES):
        lane = lambda tree, i=i: jax.tree.map(lambda leaf: leaf[i], tree)
        own = [x if axis is None else lane(x) for x, axis in zip(given, axes, strict=True)]
        assert_agree(lane(lanes), logits_and_gradient(PLAIN, None, *own))


@pytest.mark.parametrize(
    ("at_once", "n", "part"), [(40, 256, 32), (40, 2000, 40), (40, 12, 12), (40, 251, 251), (None, 256, 256)]
)
def test_samples_are_cut_into_equal_parts_or_not_at_all(at_once, n, part):
    assert PLAIN._replace(at_once=at_once).part(n) == part


@pytest.mark.parametrize("size", [2, 3, 6])
def test_the_mean_over_parts_is_the_mean_over_all(size):
    x, y = jnp.arange(12.0).reshape(6, 2), None
    mean = mean_over_parts(lambda x, y: {"sum": x.sum(1).mean(), "rows": x.mean(0)}, size, x, y)
    chex.assert_trees_all_close(mean, {"sum": x.sum(1).mean(), "rows": x.mean(0)}, rtol=1e-6)
