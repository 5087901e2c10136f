"""The transformer alone: causality, initial weights, refused sizes. That it is TransformerLens' is tested in
tests/test_transformer_lens.py."""

import re
import zlib
from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy.stats import kstest

from siitjax.model.config import TransformerConfig
from siitjax.model.transformer import TOGETHER, init_transformer
from siitjax.model.weights import state_dict
from tests.hooked import BATCH, FELT, RELU, SEQ, Named, every_variant, random_model, random_tokens, run_model


@every_variant
def test_a_later_token_never_changes_what_is_earlier_where_attention_is_causal(config):
    if not config.causal:
        return
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


@pytest.mark.parametrize("d_mlp", [100, 1100], ids=["all in one call", "the MLPs' alone"])
def test_a_weight_is_what_the_key_of_its_name_gives(d_mlp):
    config, key = replace(LARGE, d_mlp=d_mlp), jax.random.key(3)
    assert (config.d_model * d_mlp > TOGETHER) == (d_mlp == 1100)
    for name, weight in init(config, 3).items():
        if "W_" in name:
            normal = jax.random.normal(jax.random.fold_in(key, zlib.crc32(name.encode())), weight.shape)
            fans = 64 + d_mlp if ".mlp." in name else next(n for end, n in FANS.items() if name.endswith(end))
            np.testing.assert_allclose(weight, (2 / fans) ** 0.5 * normal, rtol=1e-6, atol=1e-7)


SIZES = ("n_layers", "d_model", "d_head", "n_ctx", "d_vocab", "d_vocab_out", "d_mlp", "heads")
REFUSED = {
    **{f"{name} is 0; it must be greater than 0": {name: 0} for name in SIZES},
    "n_layers is -1; it must be greater than 0": {"n_layers": -1},
    "init_gain is 0.0; it must be greater than 0": {"init_gain": 0.0},
    "init_gain is nan; it must be greater than 0": {"init_gain": float("nan")},
    "d_head 6 does not divide d_model 20; choose one that does, or say how many heads a layer has": {"d_head": 6},
    'act_fn is "gleu"; did you mean "gelu"? It must be one of relu, gelu, gelu_new': {"act_fn": "gleu"},
    'attention_dir is "casual"; did you mean "causal"? It must be one of causal, bidirectional': {
        "attention_dir": "casual"
    },
}


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(("message", "wrong"), REFUSED.items(), ids=tuple(REFUSED))
def test_a_shape_that_cannot_be_is_refused_in_one_line(message, wrong):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        replace(RELU, **wrong)
