"""The transformer as a Flax module: the same weights, logits and activations as ours under every swap, and ours again
after Flax has trained it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import siitjax
from siitjax.base.errors import UserError
from siitjax.flax import from_nnx, to_nnx
from siitjax.model.config import TransformerConfig
from siitjax.model.transformer import Swap, Transformer
from siitjax.model.weights import state_dict
from tests.hooked import RELU, SEQ, VARIANTS, random_model, random_tokens

TOLERANCE = 1e-6
KINDS = ("gelu", "attn_only_no_layer_norm", "bidirectional")


def tokens_of(config: TransformerConfig, *shape: int) -> jax.Array:
    return jnp.asarray(random_tokens(config, *shape))


def swaps(model: Transformer) -> dict[str, Swap | None]:
    """No swap, one of nodes, one of edges, and one of edges at positions."""
    n, rng = len(model.config.nodes), np.random.default_rng(2)
    _, source = model(tokens_of(model.config, 2, SEQ)[1])
    drawn = {"nodes": (n,), "edges": (n, n), "positions": (n, n, SEQ)}
    return {"none": None, **{name: (jnp.asarray(rng.random(shape) < 0.5), source) for name, shape in drawn.items()}}


@pytest.mark.parametrize("config", [VARIANTS[name] for name in KINDS], ids=KINDS)
def test_logits_and_activations_are_ours_under_every_swap(config):
    model = random_model(config)
    module, tokens = to_nnx(model), tokens_of(config, SEQ)
    found = []
    for swap in swaps(model).values():
        ours, theirs = model(tokens, swap), module(tokens, swap)
        for own, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(other, own, rtol=0, atol=TOLERANCE)
        found.append(theirs[0])
    assert all(float(jnp.abs(logits - found[0]).max()) > 100 * TOLERANCE for logits in found[1:])


def test_weights_have_the_names_of_ours_and_are_ours_again_bit_for_bit():
    model = random_model(VARIANTS["gelu"])
    module = to_nnx(model)
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    named = {".".join(map(str, path)): np.asarray(weight[...]) for path, weight in flat}
    ours = state_dict(model)
    assert named.keys() == ours.keys()
    for name, weight in state_dict(from_nnx(module)).items():
        assert weight.tobytes() == ours[name].tobytes() == named[name].tobytes()


def test_flax_trains_it_and_what_it_trained_is_ours():
    """A step of gradient descent, the gradient taken by Flax, against the same step on ours."""
    model, tokens = random_model(RELU), tokens_of(RELU, 5, SEQ)
    loss = lambda model: (jax.vmap(lambda sample: model(sample)[0])(tokens) ** 2).mean()
    module = to_nnx(model)
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        optimizer.update(module, nnx.grad(loss)(module))

    step(module, optimizer)
    stepped = jax.tree.map(lambda weight, slope: weight - 0.1 * slope, model, jax.grad(loss)(model))
    for name, weight in state_dict(from_nnx(module)).items():
        np.testing.assert_allclose(weight, state_dict(stepped)[name], rtol=0, atol=TOLERANCE, err_msg=name)
    assert not np.array_equal(from_nnx(module).unembed.W_U, model.unembed.W_U)


def test_it_is_split_and_put_together_as_any_module():
    module, tokens = to_nnx("left_greater"), jnp.array([0, 2, 2, 3])
    graph, state = nnx.split(module)
    again = nnx.merge(graph, jax.tree.map(lambda weight: 2 * weight, state))
    np.testing.assert_array_equal(from_nnx(again).unembed.W_U, 2 * from_nnx(module).unembed.W_U)
    assert again.config == module.config
    logits, _ = nnx.jit(lambda module, tokens: module(tokens))(module, tokens)
    np.testing.assert_allclose(logits, siitjax.load("left_greater").model(tokens)[0], TOLERANCE, TOLERANCE)


def test_what_is_no_model_is_refused_in_one_line(types_unchecked):
    with pytest.raises(UserError, match='"left_greter"'):
        to_nnx("left_greter")
    with pytest.raises(UserError, match="from_nnx takes a module that to_nnx made, not Linear"):
        from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))  # type: ignore
    module: Any = to_nnx("left_greater")
    module.unembed.b_U = nnx.Param(jnp.zeros(5))
    with pytest.raises(UserError, match=r'weight "unembed\.b_U" has shape \(5,\); its config needs \(3,\)'):
        module(jnp.array([0, 2]))
    module.unembed.b_U = None
    with pytest.raises(UserError, match=r'the module has no weight "unembed\.b_U"'):
        from_nnx(module)
