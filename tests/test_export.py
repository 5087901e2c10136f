"""Weights on disk: what is saved is loaded bit for bit, by us and by TransformerLens' HookedTransformer under its own
names; and a file that is torn, foreign or of another shape is refused in one line."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file

from siitjax.model.config import TransformerConfig
from siitjax.model.weights import load_weights, save_weights, state_dict, with_weights
from tests.hooked import (
    BATCH,
    RELU,
    SEQ,
    assert_agree,
    every_variant,
    hooked,
    in_numpy,
    random_model,
    random_tokens,
    run_hooked,
    run_model,
)

SMALL = TransformerConfig(n_layers=1, d_model=4, d_head=2, n_ctx=3, d_vocab=5, d_vocab_out=2, d_mlp=3)
SHAPES = {
    "embed.W_E": (5, 4),
    "pos_embed.W_pos": (3, 4),
    "blocks.0.ln1.w": (4,),
    "blocks.0.ln1.b": (4,),
    "blocks.0.attn.W_Q": (2, 4, 2),
    "blocks.0.attn.W_K": (2, 4, 2),
    "blocks.0.attn.W_V": (2, 4, 2),
    "blocks.0.attn.W_O": (2, 2, 4),
    "blocks.0.attn.b_Q": (2, 2),
    "blocks.0.attn.b_K": (2, 2),
    "blocks.0.attn.b_V": (2, 2),
    "blocks.0.attn.b_O": (4,),
    "blocks.0.ln2.w": (4,),
    "blocks.0.ln2.b": (4,),
    "blocks.0.mlp.W_in": (4, 3),
    "blocks.0.mlp.b_in": (3,),
    "blocks.0.mlp.W_out": (3, 4),
    "blocks.0.mlp.b_out": (4,),
    "ln_final.w": (4,),
    "ln_final.b": (4,),
    "unembed.W_U": (4, 2),
    "unembed.b_U": (2,),
}
NOT_WEIGHTS = ("attn.mask", "attn.IGNORE")
"""The two constants of causal attention that TransformerLens keeps in its state dict."""


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "member.safetensors"


def edited(path: Path, edit) -> None:
    """Rewrites a saved file after `edit` has changed its weights, which it is given as a dictionary."""
    with safe_open(path, "numpy") as saved:
        metadata = saved.metadata()
        weights = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118 (it is no mapping)
    edit(weights)
    save_file(weights, path, metadata)


def test_the_keys_and_shapes_of_a_small_transformer_are_these():
    assert {key: weight.shape for key, weight in state_dict(random_model(SMALL)).items()} == SHAPES


@every_variant
def test_keys_shapes_and_types_are_transformer_lens(config):
    theirs = {key: w for key, w in hooked(config).state_dict().items() if not key.endswith(NOT_WEIGHTS)}
    ours = state_dict(random_model(config))
    assert {key: w.shape for key, w in ours.items()} == {key: tuple(w.shape) for key, w in theirs.items()}
    assert {w.dtype for w in ours.values()} == {np.dtype(np.float32)}


@every_variant
def test_a_saved_transformer_comes_back_bit_for_bit(config, file):
    model = random_model(config)
    save_weights(file, model)
    loaded = load_weights(file)
    chex.assert_trees_all_equal_structs(loaded, model)
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded, model)
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(loaded), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    assert loaded.config == config


@every_variant
def test_transformer_lens_loads_the_file_and_misses_no_weight(config, file):
    model, reference = random_model(config), hooked(config)
    save_weights(file, model)
    result = reference.load_state_dict(load_file(file), strict=False)
    assert result.unexpected_keys == []
    assert [key for key in result.missing_keys if not key.endswith(NOT_WEIGHTS)] == []
    loaded = dict(reference.named_parameters())
    for key, weight in state_dict(model).items():
        assert torch.equal(loaded.pop(key), torch.tensor(weight)), key
    assert not loaded


def test_transformer_lens_computes_from_the_file_what_we_compute(file):
    model, reference, tokens = random_model(RELU), hooked(RELU), random_tokens(RELU, BATCH, SEQ)
    save_weights(file, model)
    reference.load_state_dict(load_file(file), strict=False)
    assert_agree(run_model(load_weights(file), tokens), in_numpy(run_hooked(reference, tokens)))


def test_the_file_says_what_it_holds(file):
    save_weights(file, random_model(SMALL), {"member": {"seed": 3}})
    with safe_open(file, "numpy") as saved:
        metadata = saved.metadata()
    assert metadata.keys() == {"siitjax"}
    assert json.loads(metadata["siitjax"]) == {"config": asdict(SMALL), "member": {"seed": 3}}


def test_the_same_weights_make_the_same_file(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        save_weights(path, random_model(SMALL), {"member": 0, "task": "left_greater"})
    assert first.read_bytes() == second.read_bytes()


def test_a_write_leaves_nothing_but_the_file_and_replaces_the_old_one(file):
    save_weights(file, random_model(RELU))
    save_weights(file, random_model(SMALL))
    assert load_weights(file).config == SMALL
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_whole(file, step, monkeypatch):
    save_weights(file, random_model(SMALL))
    before = file.read_bytes()

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space left"):
        save_weights(file, random_model(RELU))
    assert file.read_bytes() == before


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.2, 0.5, 0.999])
def test_a_torn_file_is_refused(file, kept):
    save_weights(file, random_model(SMALL))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"^.*member\.safetensors is not a whole safetensors file \(.+\); train that"):
        load_weights(file)


def test_a_file_of_another_kind_is_refused(file):
    file.write_text("member,accuracy\n0,1.0\n")
    with pytest.raises(ValueError, match=r"^.*member\.safetensors is not a whole safetensors file \(.+\); train that"):
        load_weights(file)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"config": "gpt2"}], ids=["none", "torch", "config"])
def test_another_programs_weights_are_refused(file, metadata):
    save_file(state_dict(random_model(SMALL)), file, metadata)
    message = (
        r"^.*member\.safetensors says nothing of its transformer; only files written by siitjax can be loaded alone$"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(file)


@pytest.mark.parametrize("key", ["embed.W_E", "blocks.0.ln2.b", "blocks.0.attn.W_Q"])
def test_a_missing_weight_is_named_with_those_there_are(file, key):
    save_weights(file, random_model(SMALL))
    edited(file, lambda weights: weights.pop(key))
    others = ", ".join(sorted(SHAPES.keys() - {key}))
    with pytest.raises(ValueError, match=f'^the weights hold no "{key}"; they hold {others}$'):
        load_weights(file)


def test_no_weights_at_all_are_refused():
    with pytest.raises(ValueError, match=r'^the weights hold no "embed\.W_E"; they hold nothing$'):
        with_weights(random_model(SMALL), {})


def test_a_weight_of_another_shape_is_refused_with_both_shapes(file):
    save_weights(file, random_model(SMALL))
    edited(file, lambda weights: weights.update({"blocks.0.mlp.W_in": weights["blocks.0.mlp.W_in"].T.copy()}))
    message = r'^the weight "blocks\.0\.mlp\.W_in" has shape \(3, 4\); this transformer needs \(4, 3\)$'
    with pytest.raises(ValueError, match=message):
        load_weights(file)


def test_keys_that_the_transformer_does_not_have_are_left_unread():
    model = random_model(SMALL)
    theirs = hooked(SMALL)
    theirs.load_state_dict({key: torch.tensor(weight) for key, weight in state_dict(model).items()}, strict=False)
    from_torch = {key: value.numpy().astype(np.float32) for key, value in theirs.state_dict().items()}
    assert any(key.endswith("IGNORE") for key in from_torch)
    blank = jax.tree.map(np.zeros_like, model)
    chex.assert_trees_all_equal(with_weights(blank, from_torch), model)
