"""The transformer is TransformerLens' HookedTransformer: given the same weights, the logits, every activation, every
patched run and the gradients of a patched loss agree. Beyond that: causality, initial weights, refused sizes.

The reference runs in torch and swaps nodes by hooks of its own, head by head; it knows nothing of masks."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import kstest
from transformer_lens import HookedTransformer, HookedTransformerConfig

from siitjax.export import state_dict
from siitjax.loss import CrossEntropy
from siitjax.nodes import EMBED, Node
from siitjax.transformer import Activations, Transformer, TransformerConfig, init_transformer

TOLERANCE = 1e-5
"""Rounding of a few float32 layers, whose values are of the order of one."""
FELT = 100 * TOLERANCE
"""What a swap or a parameter must move at least, or agreement about it proves nothing."""
SEQ = 7
BATCH = SEQ - 1
"""Room for a change of every token but the first."""
SITES = ("hook_embed", "hook_resid_pre", "hook_z", "hook_post")

torch.set_num_threads(1)  # On matrices this small, threads do nothing but wait for each other.

RELU = TransformerConfig(n_layers=3, d_model=20, d_head=5, n_ctx=SEQ, d_vocab=8, d_vocab_out=3)
VARIANTS = {
    "relu": RELU,
    "one_layer": replace(RELU, n_layers=1, d_model=12, d_head=3),
    "gelu": replace(RELU, n_layers=2, act_fn="gelu"),
    "attn_only": replace(RELU, n_layers=2, attn_only=True),
    "no_layer_norm": replace(RELU, n_layers=2, layer_norm=False, d_mlp=7),
    "one_head": replace(RELU, n_layers=2, d_head=20, act_fn="gelu", d_mlp=33),
    "attn_only_no_layer_norm": replace(RELU, n_layers=1, attn_only=True, layer_norm=False),
}
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=tuple(VARIANTS))
Named = dict[str, np.ndarray]


def random_model(config: TransformerConfig) -> Transformer:
    """A transformer of which every weight, biases and LayerNorms included, is random, and of the initial size."""
    rng = np.random.default_rng(0)
    blank = init_transformer(config, key=jax.random.key(0))
    return jax.tree.map(lambda w: w + 0.1 * jnp.asarray(rng.standard_normal(w.shape, np.float32)), blank)


def random_tokens(config: TransformerConfig, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, config.d_vocab, shape).astype(np.int32)


def swaps_of(config: TransformerConfig) -> list[tuple[Node, ...]]:
    """Nothing, every node alone, all nodes, and some random sets."""
    nodes = config.nodes
    random = np.random.default_rng(2).random((5, len(nodes))) < 0.5
    return [(), *((node,) for node in nodes), tuple(nodes), *(nodes.named(mask) for mask in random)]


def hooked(config: TransformerConfig) -> HookedTransformer:
    """TransformerLens' transformer of the same shape, its weights not set yet."""
    sizes = {name: getattr(config, name) for name in ("n_layers", "d_model", "d_head", "n_heads", "n_ctx")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        return HookedTransformer(
            HookedTransformerConfig(
                **sizes,
                d_vocab=config.d_vocab,
                d_vocab_out=config.d_vocab_out,
                d_mlp=config.mlp_width,
                act_fn=config.act_fn,
                attn_only=config.attn_only,
                normalization_type="LN" if config.layer_norm else None,
                init_weights=False,
                device="cpu",
            )
        )


def hooked_twin(model: Transformer) -> HookedTransformer:
    """TransformerLens' transformer with the same weights."""
    reference = hooked(model.config)
    weights = {key: torch.tensor(weight) for key, weight in state_dict(model).items()}
    assert not reference.load_state_dict(weights, strict=False).unexpected_keys
    return reference


def patch(node: Node, source):
    """The hook that gives `node` its value in the source run."""
    if node.layer is None:
        name, part = "hook_embed", ...
    elif node.head is None:
        name, part = f"blocks.{node.layer}.mlp.hook_post", ...
    else:
        name, part = f"blocks.{node.layer}.attn.hook_z", (slice(None), slice(None), node.head)

    def hook(value, hook):
        value = value.clone()
        value[part] = source[name][part]
        return value

    return name, hook


def run_hooked(reference: HookedTransformer, tokens, swapped: Sequence[Node] = (), source=None):
    """Logits and activations by name, in torch; a swapped node takes its value from `source`."""
    with reference.hooks(fwd_hooks=[patch(node, source) for node in swapped]):
        logits, cache = reference.run_with_cache(torch.as_tensor(tokens).long())
    return {"logits": logits, **{name: cache[name] for name in cache if name.endswith(SITES)}}


def in_numpy(values) -> Named:
    return {key: value.detach().numpy() for key, value in values.items()}


def named(logits: jax.Array, activations: Activations, first: int = 0) -> dict[str, jax.Array]:
    """Our logits, and our activations from block `first` on, by TransformerLens' names."""
    assert activations.z is not None
    assert activations.stream is not None
    by_name = {"logits": logits} | ({} if activations.embed is None else {"hook_embed": activations.embed})
    for i in range(activations.z.shape[-4]):
        block = f"blocks.{first + i}"
        by_name[f"{block}.hook_resid_pre"] = activations.stream[..., i, :, :]
        by_name[f"{block}.attn.hook_z"] = activations.z[..., i, :, :, :]
        if activations.post is not None:
            by_name[f"{block}.mlp.hook_post"] = activations.post[..., i, :, :]
    return by_name


@jax.jit
def run_model(model: Transformer, tokens) -> dict[str, jax.Array]:
    return jax.vmap(lambda tokens: named(*model(tokens)))(tokens)


def assert_agree(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_allclose(value, theirs[key], rtol=0, atol=TOLERANCE, err_msg=key)


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


@every_variant
def test_a_later_token_never_changes_what_is_earlier(config):
    model, tokens = random_model(config), random_tokens(config, SEQ)
    changed = np.where(np.eye(SEQ, dtype=bool)[1:], (tokens + 1) % config.d_vocab, tokens)
    before = jax.device_get(run_model(model, np.tile(tokens, (BATCH, 1))))
    after = jax.device_get(run_model(model, changed))
    for key in before:
        for own, others, i in zip(before[key], after[key], range(1, SEQ), strict=True):
            np.testing.assert_array_equal(others[:i], own[:i], err_msg=f"{key}, token {i}")
            assert np.abs(others[i] - own[i]).max() > FELT, f"{key}, token {i}"


LARGE = TransformerConfig(n_layers=2, d_model=64, d_head=16, n_ctx=50, d_vocab=40, d_vocab_out=30, d_mlp=100)
FANS = {
    "embed.W_E": 40 + 64,
    "pos_embed.W_pos": 50 + 64,
    "attn.W_Q": 64 + 4 * 16,
    "attn.W_K": 64 + 4 * 16,
    "attn.W_V": 64 + 4 * 16,
    "attn.W_O": 16 + 4 * 64,
    "mlp.W_in": 64 + 100,
    "mlp.W_out": 100 + 64,
    "unembed.W_U": 64 + 30,
}
STANDARD_ERRORS = 5
P_VALUE = 1e-4


def init(config: TransformerConfig, seed: int = 0) -> Named:
    return state_dict(init_transformer(config, key=jax.random.key(seed)))


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_matrices_start_normal_with_xaviers_deviation_times_the_gain(gain):
    matrices = {key: weight for key, weight in init(replace(LARGE, init_gain=gain)).items() if "W_" in key}
    assert len(matrices) == 2 * 6 + 3
    for key, weight in matrices.items():
        fans = next(fans for name, fans in FANS.items() if key.endswith(name))
        standard = weight.ravel() / (gain * np.sqrt(2 / fans))
        assert abs(standard.std() - 1) < STANDARD_ERRORS / np.sqrt(2 * weight.size), key
        assert kstest(standard, "norm").pvalue > P_VALUE, key


def test_biases_start_at_zero_and_layer_norm_weights_at_one():
    others = {key: weight for key, weight in init(LARGE).items() if "W_" not in key}
    assert len(others) == 2 * (4 + 2 + 2 * 2) + 2 + 1
    for key, weight in others.items():
        np.testing.assert_array_equal(weight, float(key.endswith(".w")), err_msg=key)


def test_no_two_matrices_and_no_two_seeds_share_their_draws():
    matrices = [w.ravel() for seed in (0, 1) for key, w in init(LARGE, seed).items() if "W_" in key]
    shortest = min(map(len, matrices))
    correlations = np.corrcoef([matrix[:shortest] for matrix in matrices]) - np.eye(len(matrices))
    assert np.abs(correlations).max() < STANDARD_ERRORS / np.sqrt(shortest)


@pytest.mark.parametrize("change", [{"n_layers": 3}, {"attn_only": True}], ids=["a_layer_more", "no_mlps"])
def test_adding_or_removing_parts_leaves_the_other_initial_weights_as_they_were(change):
    before, after = init(LARGE), init(replace(LARGE, **change))
    assert before.keys() < after.keys() or after.keys() < before.keys()
    for key in before.keys() & after.keys():
        np.testing.assert_array_equal(after[key], before[key], err_msg=key)


SIZES = ("n_layers", "d_model", "d_head", "n_ctx", "d_vocab", "d_vocab_out", "d_mlp")
REFUSED = {
    **{f"{name} is 0; it must be greater than 0": {name: 0} for name in SIZES},
    "n_layers is -1; it must be greater than 0": {"n_layers": -1},
    "init_gain is 0.0; it must be greater than 0": {"init_gain": 0.0},
    "init_gain is nan; it must be greater than 0": {"init_gain": float("nan")},
    "d_head 6 does not divide d_model 20; choose one that does": {"d_head": 6},
    'act_fn is "gleu"; did you mean "gelu"? It must be one of relu, gelu': {"act_fn": "gleu"},
}


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(("message", "wrong"), REFUSED.items(), ids=tuple(REFUSED))
def test_a_shape_that_cannot_be_is_refused_in_one_line(message, wrong):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        replace(RELU, **wrong)
