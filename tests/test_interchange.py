"""One mask drives both models: an interchange is the transformer and the circuit, each run by hand with the same nodes
swapped. The reference here knows nothing of masks: it reads nodes by name and picks their values in plain Python."""

from collections.abc import Collection
from itertools import groupby

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import CASES, find, paren_checker
from siitjax.causal.case import Case
from siitjax.model.forms import BATCH_LAST, PLAIN, ROLLED
from siitjax.model.nodes import EMBED, Node, head, mlp
from siitjax.model.transformer import Transformer, init_transformer
from siitjax.siit.interchange import interchange, interchange_by_depth

TOLERANCE = 1e-5
"""Rounding of a few float32 layers, whose values are of the order of one."""

Sites = dict[Node, np.ndarray]
both_forms = pytest.mark.parametrize("form", [PLAIN, BATCH_LAST, ROLLED], ids=["plain", "batch_last", "rolled"])
all_cases = pytest.mark.parametrize("case", [case.with_context(6) for case in CASES], ids=lambda case: case.name)


def of_one_sample(function):
    """An interchange of a batch of one, compiled."""
    compiled = eqx.filter_jit(function)

    def swapped(model, circuit, base, source, masks, **options):
        answers = compiled(model, circuit, base[None], source[None], masks, **options)
        return jax.tree.map(lambda x: x[0], answers)

    return swapped


swap, swap_by_depth = of_one_sample(interchange), of_one_sample(interchange_by_depth)


def model_of(case: Case, seed: int = 0) -> Transformer:
    """A transformer of which every weight, biases and LayerNorms included, is random."""
    shapes = jax.eval_shape(lambda: init_transformer(case.config, key=jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape, np.float32)), shapes)


def pair_of(case: Case) -> tuple[jax.Array, jax.Array]:
    """A base and a source that differ at many tokens."""
    base, source = np.random.default_rng(1).integers(2, len(case.vocabulary), (2, case.n_ctx)).astype(np.int32)
    base[0] = source[0] = 0
    return jnp.asarray(base), jnp.asarray(source)


def run_transformer(model: Transformer, tokens, swapped: Collection[Node] = (), source: Sites | None = None):
    """Logits and the value at every node, in numpy, head by head; a swapped node takes its value from `source`."""
    model, sites = jax.tree.map(np.asarray, model), {}

    def at(node, own):
        sites[node] = source[node] if source is not None and node in swapped else own
        return sites[node]

    def norm(ln, x):
        x = x - x.mean(1, keepdims=True)
        return x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * ln.w + ln.b

    def z(attn, i, x):
        q, k, v = x @ attn.W_Q[i] + attn.b_Q[i], x @ attn.W_K[i] + attn.b_K[i], x @ attn.W_V[i] + attn.b_V[i]
        scores = np.exp(q @ k.T / np.sqrt(q.shape[1])) * np.tri(len(x))
        return scores / scores.sum(1, keepdims=True) @ v

    x = at(EMBED, model.embed.W_E[np.asarray(tokens)]) + model.pos_embed.W_pos[: len(tokens)]
    for layer, block in enumerate(model.blocks):
        read = norm(block.ln1, x)
        zs = [at(head(layer, i), z(block.attn, i, read)) for i in range(model.config.n_heads)]
        x = x + sum(z @ w for z, w in zip(zs, block.attn.W_O, strict=True)) + block.attn.b_O
        assert block.mlp is not None
        hidden = norm(block.ln2, x) @ block.mlp.W_in + block.mlp.b_in
        x = x + at(mlp(layer), np.maximum(hidden, 0)) @ block.mlp.W_out + block.mlp.b_out
    return norm(model.ln_final, x) @ model.unembed.W_U + model.unembed.b_U, sites


def labels_by_hand(case: Case, base, source, swapped: Collection[Node]):
    """The label variable, asked for what it reads and so on down; a swapped node answers from the source run."""
    variables = {v.name: v for v in case.variables}

    def value(name, tokens, swapped):
        if name == "tokens":
            return source if EMBED in swapped else tokens
        v = variables[name]
        if v.node in swapped:
            return value(name, source, ())
        return v.compute(*(value(read, tokens, swapped) for read in v.reads))

    return value(case.variables[-1].name, base, swapped)


def swaps_of(case: Case) -> list[tuple[Node, ...]]:
    """Nothing, every node alone, all nodes, and some random sets."""
    nodes = case.config.nodes
    random = np.random.default_rng(2).random((6, len(nodes))) < 0.5
    return [(), *((node,) for node in nodes), tuple(nodes), *(nodes.named(mask) for mask in random)]


def masks_of(case: Case, swaps) -> jax.Array:
    return jnp.stack([jnp.asarray(case.config.nodes.mask(swapped)) for swapped in swaps])


def assert_run_by_hand(case: Case, swaps, logits, labels):
    model, (base, source) = model_of(case), pair_of(case)
    _, values = run_transformer(model, source)
    for swapped, got_logits, got_labels in zip(swaps, logits, labels, strict=True):
        by_hand, _ = run_transformer(model, base, swapped, values)
        np.testing.assert_allclose(got_logits, by_hand, atol=TOLERANCE, err_msg=str(swapped))
        np.testing.assert_array_equal(got_labels, labels_by_hand(case, base, source, swapped), err_msg=str(swapped))


@both_forms
@all_cases
def test_it_is_both_models_run_by_hand_with_the_same_nodes_but_the_embedding_swapped(case, form):
    swaps = swaps_of(case)
    logits, labels = swap(model_of(case), case.circuit, *pair_of(case), masks_of(case, swaps), form=form)
    assert_run_by_hand(case, [[node for node in swapped if node != EMBED] for swapped in swaps], logits, labels)


@both_forms
def test_by_depth_it_is_the_same_with_the_embedding_too_and_the_base_run_first(form):
    case = paren_checker.CASE.with_context(7)
    swaps = sorted(filter(None, swaps_of(case)), key=first_depth)
    groups = [(i, masks_of(case, list(group))) for i, group in groupby(swaps, key=first_depth)]
    logits, labels = swap_by_depth(model_of(case), case.circuit, *pair_of(case), groups, embedding=True, form=form)
    assert_run_by_hand(case, [(), *swaps], logits, labels)


def first_depth(swapped: Collection[Node]) -> int:
    return min(node.depth for node in swapped)


def test_the_embedding_swaps_only_with_the_option_and_alone_makes_the_base_run_the_source_run():
    case = find("left_greater").with_context(6)
    model, (base, source), swaps = model_of(case), pair_of(case), swaps_of(case)
    masks = masks_of(case, swaps)
    chex.assert_trees_all_equal(
        *(swap(model, case.circuit, base, source, masks.at[:, 0].set(entry)) for entry in (False, True))
    )
    logits, labels = swap(model, case.circuit, base, source, masks, embedding=True)
    assert_run_by_hand(case, swaps, logits, labels)
    nothing, embed = swaps.index(()), swaps.index((EMBED,))
    np.testing.assert_allclose(logits[embed], run_transformer(model, source)[0], atol=TOLERANCE)
    np.testing.assert_array_equal(labels[embed], labels_by_hand(case, source, source, ()))
    assert np.abs(logits[embed] - logits[nothing]).max() > 0.1


@both_forms
def test_no_gradient_flows_through_the_source_run(form):
    case = find("left_greater").with_context(6)
    model, (base, source), swaps = model_of(case), pair_of(case), swaps_of(case)
    masks = masks_of(case, swaps)
    direction = jnp.asarray(np.random.default_rng(3).standard_normal((len(swaps), case.n_ctx, 3), np.float32))

    def loss(model):
        logits, _ = interchange(model, case.circuit, base[None], source[None], masks, embedding=True, form=form)
        return (logits[0] * direction).sum()

    def with_constants(model, values):
        return (jax.vmap(lambda mask: model(base, (mask, values))[0])(masks) * direction).sum()

    @jax.jit
    def gradients(model):
        constants = model(source)[1]
        through = jax.grad(lambda model: with_constants(model, model(source)[1]))(model)
        return jax.grad(loss)(model), jax.grad(with_constants)(model, constants), through

    got, wanted, through = jax.device_get(gradients(model))
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    chex.assert_trees_all_close(got, wanted, atol=TOLERANCE * scale)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(through, wanted, atol=0.01 * scale)
