"""The transformer under swaps of edges: path patching by TransformerLens' hooks, which know nothing of masks, says what
each reader sees and what the logits become. The CPU form gives what the reference form gives, logits and gradients."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siitjax.base.errors import UserError
from siitjax.model.config import TransformerConfig
from siitjax.model.forms import BATCH_LAST, PLAIN, ROLLED, Form
from siitjax.model.swaps import EdgeSwaps
from siitjax.model.transformer import Activations
from tests.hooked import FELT, by_reader_twin, path_patched, random_model, random_tokens, written

TOLERANCE = 1e-5
"""Of the largest logit, or gradient."""
BATCH, MASKS, SOURCES, SEQ = 3, 3, 5, 4
TWO = TransformerConfig(n_layers=2, d_model=8, d_head=4, n_ctx=SEQ, d_vocab=5, d_vocab_out=3, d_mlp=6)
ONE = replace(TWO, n_layers=1)


@dataclass(frozen=True)
class Setting:
    """A transformer, and whether its senders are swapped at positions, and from source runs of their own."""

    config: TransformerConfig
    positions: bool
    sources: bool


SETTINGS = {
    "positions and sources": Setting(TWO, True, True),
    "no LayerNorm, MLPs of unequal parts": Setting(replace(TWO, layer_norm=False, mlp_parts=(2, 4)), True, True),
    "no MLPs, positions": Setting(replace(TWO, attn_only=True), True, False),
    "one layer, gelu, three parts, sources": Setting(replace(ONE, act_fn="gelu", mlp_parts=3), False, True),
    "bidirectional, two heads in a width of 10": Setting(
        replace(ONE, d_model=10, heads=2, attention_dir="bidirectional"), True, True
    ),
    "neither": Setting(ONE, False, False),
}


def swaps_of(setting: Setting) -> EdgeSwaps:
    """Random swaps. Of each example, the first mask is of nothing; the last, of all edges, at every position."""
    rng, nodes = np.random.default_rng(0), setting.config.nodes
    n = len(nodes)
    possible = nodes.edge_mask(nodes.possible_edges)
    edges = (rng.random((BATCH, MASKS, n, n)) < 0.4) & possible
    edges[:, 0], edges[:, -1] = False, possible
    positions = rng.random((BATCH, MASKS, n, SEQ)) < 0.6
    positions[:, -1] = True
    sources = rng.integers(0, SOURCES, (BATCH, MASKS, n)).astype(np.int32)
    return EdgeSwaps(
        jnp.asarray(edges),
        jnp.asarray(positions) if setting.positions else None,
        jnp.asarray(sources) if setting.sources else None,
    )


@partial(jax.jit, static_argnums=0)
def logits_and_gradient(form: Form, model, base, source, swaps):
    def loss(model):
        _, there = form.run(model, source)
        logits = form.run_edges(model, base, swaps, there)
        # A direction of its own for every logit, so that none can stand for another.
        return (logits * jnp.sin(jnp.arange(logits.size, dtype=jnp.float32)).reshape(logits.shape)).sum(), logits

    gradient, logits = jax.grad(loss, has_aux=True)(model)
    return logits, gradient


@pytest.fixture(scope="module", params=SETTINGS.values(), ids=tuple(SETTINGS))
def as_written(request):
    """A setting, the samples and swaps, and what the reference form makes of them."""
    setting: Setting = request.param
    model, tokens = random_model(setting.config), random_tokens(setting.config, 2, SOURCES, SEQ)
    base, source = tokens[0, :BATCH], tokens[1] if setting.sources else tokens[1, :BATCH]
    swaps = swaps_of(setting)
    found = logits_and_gradient(PLAIN, model, jnp.asarray(base), jnp.asarray(source), swaps)
    return setting, (model, base, source, swaps), jax.device_get(found)


def test_logits_are_those_of_path_patching_by_transformer_lens_hooks(as_written):
    setting, (model, base, source, swaps), (logits, _) = as_written
    reference, runs = by_reader_twin(model), []
    runs = [written(reference, tokens) for tokens in source]
    senders, edges = list(map(str, setting.config.nodes)), np.asarray(swaps.edges)
    readers, moved = [*senders[1:], "logits"], 0.0
    for b in range(BATCH):
        for m in range(MASKS):
            numbers = [b] * len(senders) if swaps.sources is None else swaps.sources[b, m].tolist()
            there = {sender: runs[number][sender] for sender, number in zip(senders, numbers, strict=True)}
            at = np.ones((len(senders), SEQ), bool) if swaps.positions is None else np.asarray(swaps.positions)[b, m]

            def swapped(sender, reader, b=b, m=m, at=at):
                i = senders.index(sender)
                return edges[b, m, readers.index(reader), i] & at[i]

            expected = path_patched(reference, base[b], swapped, there)
            scale = np.abs(expected).max()
            np.testing.assert_allclose(logits[b, m], expected, rtol=0, atol=TOLERANCE * scale, err_msg=f"{b} {m}")
            moved = max(moved, np.abs(expected - logits[b, 0]).max()) if 0 < m < MASKS - 1 else moved
    assert moved > FELT


@pytest.mark.parametrize("form", [BATCH_LAST, ROLLED], ids=["cpu", "rolled"])
def test_the_other_forms_give_the_same_logits_and_gradients(form, as_written):
    _, (model, base, source, swaps), (logits, gradient) = as_written
    found = logits_and_gradient(form, model, jnp.asarray(base), jnp.asarray(source), swaps)
    np.testing.assert_allclose(found[0], logits, rtol=0, atol=TOLERANCE * np.abs(logits).max())
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    for got, wanted in zip(jax.tree.leaves(found[1]), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE * scale)


def test_a_mask_of_all_of_a_nodes_edges_is_the_swap_of_the_node():
    config = ONE
    model, (base, source) = random_model(config), jnp.asarray(random_tokens(config, 2, BATCH, SEQ))
    nodes = np.random.default_rng(0).random((BATCH, MASKS, len(config.nodes))) < 0.4
    edges = np.stack([[config.nodes.as_edges(mask) for mask in row] for row in nodes])

    @jax.jit
    def both(model, base, source):
        _, there = PLAIN.run(model, source)
        by_node, _ = PLAIN.run(model, base, (jnp.asarray(nodes), there))
        by_edge = PLAIN.run_edges(model, base, EdgeSwaps(jnp.asarray(edges)), there)
        return by_node, by_edge, PLAIN.run(model, base)[0]

    by_node, by_edge, own = both(model, base, source)
    np.testing.assert_allclose(by_edge, by_node, rtol=0, atol=TOLERANCE * np.abs(by_node).max())
    assert np.abs(by_node - own).max() > FELT


def test_no_edge_swapped_is_the_run_itself_and_every_edge_is_the_source_run(as_written):
    setting, (model, base, source, _), (logits, _) = as_written
    reference = by_reader_twin(model)
    alone = lambda tokens: path_patched(reference, tokens, lambda *_: np.zeros(SEQ, bool), written(reference, tokens))
    for b in range(BATCH):
        tolerance = TOLERANCE * np.abs(logits[b]).max()
        np.testing.assert_allclose(logits[b, 0], alone(base[b]), rtol=0, atol=tolerance)
        if not setting.sources:
            np.testing.assert_allclose(logits[b, -1], alone(source[b]), rtol=0, atol=tolerance)


def test_no_gradient_flows_into_the_source_run():
    """Neither through what was run there, nor through the weights that say what was written. With every edge swapped,
    the logits are the source run's, and all that this run reads or writes is nothing to them."""
    model, (base, source) = random_model(ONE), jnp.asarray(random_tokens(ONE, 2, BATCH, SEQ))
    swaps = swaps_of(SETTINGS["neither"])

    @jax.jit
    def gradients(model):
        there = PLAIN.run(model, source)[1]
        under = lambda model, there, mask: PLAIN.run_edges(model, base, swaps, there)[:, mask, :, 0].sum()
        return jax.grad(under, 1)(model, there, 1), jax.grad(under)(model, there, -1)

    through, everything = jax.device_get(gradients(model))
    assert all(not leaf.any() for leaf in jax.tree.leaves(through))
    felt = np.abs(everything.unembed.W_U).max()
    assert felt > FELT
    (block,) = everything.blocks
    assert block.mlp is not None
    for weight in (everything.embed.W_E, block.attn.W_V, block.attn.W_O, block.mlp.W_in, block.mlp.W_out):
        assert np.abs(weight).max() < TOLERANCE * felt


@pytest.mark.usefixtures("types_unchecked")  # as users have it
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((4, 4, SEQ + 2), "^the mask has 6 positions, but the sample 4 tokens; give it as many$"),
        ((4, 4, 1), "^the mask has 1 positions, but the sample 4 tokens; give it as many$"),
        ((3, 3), "^the mask has 3 places, but the transformer has 4 nodes; give it one a node$"),
        ((4, 5, SEQ), "^the mask has 5 places, but the transformer has 4 nodes; give it one a node$"),
    ],
)
def test_a_mask_of_other_edges_or_positions_is_refused(shape, words):
    model = random_model(ONE)
    with pytest.raises(UserError, match=words):
        model(jnp.zeros(SEQ, jnp.int32), (jnp.zeros(shape, bool), Activations(None, None, None)))


def test_a_swap_of_edges_is_refused_where_a_run_is_resumed_or_its_source_lacks_a_site():
    model = random_model(ONE)
    n = len(model.config.nodes)
    tokens, mask = jnp.zeros(SEQ, jnp.int32), jnp.zeros((n, n), bool)
    _, source = model(tokens)
    assert source.stream is not None
    with pytest.raises(UserError, match="cannot be resumed; run it whole, without resume"):
        model(tokens, (mask, source), resume=(0, source.stream[0]))
    with pytest.raises(UserError, match="takes a source run with all its sites; embed or z is None"):
        model(tokens, (mask, replace(source, embed=None)))
