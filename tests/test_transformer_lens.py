"""The transformer is TransformerLens' HookedTransformer: given the same weights, the logits, every activation, every
patched run and the gradients of a patched loss agree."""

from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from siitjax.causal.loss import CrossEntropy
from siitjax.model.config import TransformerConfig
from siitjax.model.nodes import EMBED, Node
from siitjax.model.transformer import Transformer
from siitjax.model.weights import state_dict
from tests.hooked import (
    BATCH,
    FELT,
    RELU,
    SEQ,
    VARIANTS,
    Named,
    assert_agree,
    every_variant,
    hooked_twin,
    in_numpy,
    named,
    random_model,
    random_tokens,
    run_hooked,
    run_model,
)


def swaps_of(config: TransformerConfig) -> list[tuple[Node, ...]]:
    """Nothing, every node alone, all nodes, and some random sets."""
    nodes = config.nodes
    random = np.random.default_rng(2).random((5, len(nodes))) < 0.5
    return [(), *((node,) for node in nodes), tuple(nodes), *(nodes.named(mask) for mask in random)]


class Runs(NamedTuple):
    """What one transformer does under each swap, and the gradient of its loss there; a swap a row."""

    values: Named
    gradients: Named


@jax.jit
def run_patched(model: Transformer, base, source, labels, masks):
    def loss(model, mask):
        def patched(tokens, other):
            values = jax.lax.stop_gradient(model(other)[1])
            return named(*model(tokens, (mask, values)))

        values = jax.vmap(patched)(base, source)
        return CrossEntropy().per_token(values["logits"], labels).mean(), values

    return jax.vmap(jax.grad(loss, has_aux=True), (None, 0))(model, masks)


def our_runs(model: Transformer, base, source, labels, swaps) -> Runs:
    masks = np.stack([model.config.nodes.mask(swapped) for swapped in swaps])
    gradients, values = run_patched(model, *map(jnp.asarray, (base, source, labels, masks)))
    return Runs(jax.device_get(values), state_dict(gradients))


def their_runs(model: Transformer, base, source, labels, swaps) -> Runs:
    reference = hooked_twin(model)
    parameters = dict(reference.named_parameters())
    from_source = {key: value.detach() for key, value in run_hooked(reference, source).items()}
    values, gradients = [], []
    for swapped in swaps:
        run = run_hooked(reference, base, swapped, from_source)
        loss = torch.nn.functional.cross_entropy(run["logits"].flatten(0, 1), torch.as_tensor(labels).long().flatten())
        gradient = torch.autograd.grad(loss, list(parameters.values()))
        values.append(in_numpy(run))
        gradients.append(in_numpy(dict(zip(parameters, gradient, strict=True))))
    return Runs(*({key: np.stack([row[key] for row in rows]) for key in rows[0]} for rows in (values, gradients)))


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=tuple(VARIANTS))
def runs(request) -> tuple[Runs, Runs]:
    """Ours, and TransformerLens'."""
    config = request.param
    base, source = random_tokens(config, 2, BATCH, SEQ)
    labels = np.random.default_rng(3).integers(0, config.d_vocab_out, (BATCH, SEQ)).astype(np.int32)
    given = random_model(config), base, source, labels, swaps_of(config)
    return our_runs(*given), their_runs(*given)


@every_variant
def test_logits_and_every_activation_agree(config):
    model, tokens = random_model(config), random_tokens(config, BATCH, SEQ)
    assert_agree(run_model(model, tokens), in_numpy(run_hooked(hooked_twin(model), tokens)))


def test_they_agree_under_every_swap(runs):
    ours, theirs = runs
    assert_agree(ours.values, theirs.values)


def test_the_gradients_of_a_patched_loss_agree_for_every_parameter_and_swap(runs):
    ours, theirs = runs
    assert_agree(ours.gradients, theirs.gradients)


def test_every_swap_and_every_parameter_is_felt(runs):
    _, theirs = runs
    unswapped, *swapped = theirs.values["logits"]
    assert min(np.abs(logits - unswapped).max() for logits in swapped) > FELT
    # A key's bias adds the same to all scores of a query, which softmax does not see.
    felt = {key: np.abs(gradient).max() for key, gradient in theirs.gradients.items() if not key.endswith("b_K")}
    assert min(felt.values()) > FELT


def test_a_batch_is_a_vmap_of_the_call():
    model, tokens = random_model(RELU), random_tokens(RELU, BATCH, SEQ)
    batch = jax.jit(jax.vmap(model))(jnp.asarray(tokens))
    assert_agree(named(*batch), in_numpy(run_hooked(hooked_twin(model), tokens)))


def test_the_epsilon_of_layer_norm_agrees_where_it_is_felt():
    model = eqx.tree_at(
        lambda m: (m.embed.W_E, m.pos_embed.W_pos), random_model(RELU), replace_fn=lambda weight: 0.01 * weight
    )
    tokens = random_tokens(RELU, BATCH, SEQ)
    assert_agree(run_model(model, tokens), in_numpy(run_hooked(hooked_twin(model), tokens)))


@pytest.mark.parametrize("length", [1, 2, 4, SEQ - 1])
def test_sequences_shorter_than_the_context_agree(length):
    model, tokens = random_model(RELU), random_tokens(RELU, BATCH, length)
    assert_agree(run_model(model, tokens), in_numpy(run_hooked(hooked_twin(model), tokens)))


@pytest.mark.parametrize(
    ("site", "kept"),
    [
        ("embed", lambda node: node != EMBED),
        ("z", lambda node: node.head is None),
        ("post", lambda node: node == EMBED or node.head is not None),
    ],
    ids=["embed", "z", "post"],
)
def test_a_site_that_the_source_leaves_out_is_not_swapped(site, kept):
    model, (base, source) = random_model(RELU), random_tokens(RELU, 2, BATCH, SEQ)

    @jax.jit
    @jax.vmap
    def swap_all(base, source):
        values = replace(model(source)[1], **{site: None})
        return named(*model(base, (jnp.ones(len(RELU.nodes), bool), values)))

    reference = hooked_twin(model)
    nodes = [node for node in RELU.nodes if kept(node)]
    assert_agree(swap_all(base, source), in_numpy(run_hooked(reference, base, nodes, run_hooked(reference, source))))


@pytest.mark.parametrize("first", range(RELU.n_layers))
def test_resuming_from_a_block_gives_what_the_whole_run_gives_from_there_on(first):
    model, (base, source) = random_model(RELU), random_tokens(RELU, 2, BATCH, SEQ)
    later = [node for node in RELU.nodes if node.layer is not None and node.layer >= first]
    nodes = later[1::2]
    mask = jnp.asarray(RELU.nodes.mask(nodes))

    @jax.jit
    @jax.vmap
    def resumed(base, source):
        stream = model(base)[1].stream
        assert stream is not None
        return named(*model(base, (mask, model(source)[1]), resume=(first, stream[first])), first)

    reference = hooked_twin(model)
    whole = in_numpy(run_hooked(reference, base, nodes, run_hooked(reference, source)))
    skipped = ("hook_embed", *(f"blocks.{i}." for i in range(first)))
    assert_agree(resumed(base, source), {key: value for key, value in whole.items() if not key.startswith(skipped)})
