"""The export command; and configs and weights that are not of our kind, refused in one line that names all that is
wrong."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import cases
from siitjax.base.command import main
from siitjax.cli.export import Export
from siitjax.io.trained import read_model, save_trained
from siitjax.model.config import TransformerConfig
from siitjax.model.tl_config import from_lens_config, lens_config
from siitjax.model.weights import save_weights
from tests.commands import run
from tests.folders import FILES, bits, tally, trained
from tests.folders import folder as folder
from tests.hooked import VARIANTS


@pytest.mark.parametrize("config", VARIANTS.values(), ids=tuple(VARIANTS))
def test_a_shape_comes_back_from_transformer_lens_words(config):
    whole = replace(config, mlp_parts=1)  # TransformerLens has no words for parts of MLPs
    assert from_lens_config(lens_config(config), "it") == whole


REFUSED_CONFIGS = {
    "it does not say d_head, act_fn; a transformer needs n_layers, d_model, d_head, n_ctx, d_vocab, act_fn": {
        "d_head": None,
        "act_fn": None,
    },
    "it is not of our kind: it has act_fn silu, not relu or gelu or gelu_new; attention_dir left, "
    "not causal or bidirectional": {
        "act_fn": "silu",
        "attention_dir": "left",
    },
    "it is not of our kind: it has normalization_type LNPre, not LN or None (load it without folding LayerNorm)": {
        "normalization_type": "LNPre"
    },
    "it is not of our kind: it has attn_scale 1.0, not the root of d_head": {"attn_scale": 1.0},
}


@pytest.mark.parametrize(("message", "wrong"), REFUSED_CONFIGS.items())
def test_a_shape_that_is_not_of_our_kind_is_refused_and_all_of_it_named(message, wrong):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        from_lens_config({**lens_config(VARIANTS["relu"]), **wrong}, "it")


def edited(path: Path, edit) -> Path:
    """A copy of left_greater's weights file with some of its tensors changed."""
    save_trained(path, trained("left_greater"))
    with safe_open(path, "numpy") as saved:
        metadata = saved.metadata()
        weights = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118 (it is no mapping)
    edit(weights)
    save_file(weights, path, metadata)
    return path


def with_nan(weights):
    weights["unembed.b_U"] = np.array([0, np.nan, 0], np.float32)


def with_other_names(weights):
    weights["blocks.0.mlp.W_gate"] = weights["blocks.1.ln1.w"] = np.ones(3, np.float32)


def with_other_shapes(weights):
    weights["embed.W_E"] = weights["embed.W_E"].T.copy()
    weights["ln_final.b"] = weights["ln_final.b"][:-1].copy()


def renamed(weights):
    weights["unembed.W"] = weights.pop("unembed.W_U")


WRONG = {
    "they hold NaN or infinite numbers in unembed.b_U": with_nan,
    "they hold unknown blocks.0.mlp.W_gate, blocks.1.ln1.w": with_other_names,
    "they hold embed.W_E of shape (12, 4), not (4, 12), ln_final.b of shape (11,), not (12,)": with_other_shapes,
    "they lack unembed.W_U; they hold unknown unembed.W": renamed,
}


@pytest.mark.parametrize(("said", "edit"), WRONG.items(), ids=[edit.__name__ for edit in WRONG.values()])
def test_weights_that_are_not_the_transformers_are_refused_and_all_of_them_named(said, edit, tmp_path):
    path = edited(tmp_path / "model.safetensors", edit)
    message = f"the weights in {path} are not this transformer's: {said}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_model(tmp_path)


def test_the_command_exports_a_member_with_the_metrics_of_its_row_and_all_members_of_a_sweep(tmp_path, capsys):
    run, ours = tmp_path / "run", trained("left_greater", base=tally(3, 4))
    assert ours.metrics is not None
    (run / "members").mkdir(parents=True)
    for index in (0, 1):
        save_weights(run / "members" / f"{index:04d}.safetensors", ours.model, ours.about)
    rows = [{"member": index, **ours.metrics.to_json()} for index in (1, 0)]
    (run / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for argv in ((f"{run}/members/0001.safetensors", f"{tmp_path}/one"), ("--all", str(run), f"{tmp_path}/all")):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(Export, ["export", *argv])
    said = capsys.readouterr().out.splitlines()
    assert said[1] == f"2 members of {run} are exported to {tmp_path}/all"
    for out in (tmp_path / "one", tmp_path / "all" / "0000", tmp_path / "all" / "0001"):
        assert sorted(path.name for path in out.iterdir()) == FILES
        assert "| accuracy | 75 |" in (out / "README.md").read_text()
        loaded = cases.load(str(out))
        assert loaded.metrics is not None
        assert float(loaded.metrics.accuracy) == 0.75
    assert bits(read_model(tmp_path / "all" / "0001")) == bits(ours.model)


def test_bad_input_gets_one_line_and_creates_nothing(folder, tmp_path, capsys):
    torn, unnamed, empty = tmp_path / "torn.safetensors", tmp_path / "unnamed.safetensors", tmp_path / "empty"
    torn.write_bytes((folder / "model.safetensors").read_bytes()[:-40])
    save_file({"embed.W_E": np.ones((2, 2), np.float32)}, unnamed)
    empty.mkdir()
    wrong = edited(tmp_path / "wrong.safetensors", with_nan)
    out = str(tmp_path / "out")
    expected = {
        (): "MODEL is missing: a shipped model",
        (str(folder),): "OUT is missing: the folder to write",
        (str(folder), str(empty)): f"{empty} exists, and an export replaces nothing; choose another OUT",
        (str(folder), out, "more"): '"more" is an argument too many',
        ("left_greter", out): '"left_greter"; did you mean "left_greater"?',
        (str(tmp_path / "nothing"), out): "nothing is not a model: there is nothing of that name",
        (str(empty), out): "empty is not a model: there is no model.safetensors",
        (str(torn), out): "torn.safetensors is not a whole safetensors file (",
        (str(unnamed), out): "unnamed.safetensors says nothing of its transformer, so siitjax did not write it",
        (str(wrong), out): "they hold NaN or infinite numbers in unembed.b_U",
        ("--all", str(empty), out): "empty is not a sweep's results: it holds no members/*.safetensors",
        ("--all", str(tmp_path / "nothing"), out): "nothing is not a sweep's results",
    }
    before = sorted(tmp_path.rglob("*"))
    for argv, words in expected.items():
        with pytest.raises(SystemExit, match=r"^2$"):
            main(Export, ["export", *argv])
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("export: "), said.err
        assert said.err.count("\n") == 1, said.err
        assert words in said.err
    assert sorted(tmp_path.rglob("*")) == before


WITHOUT_TORCH = """
import runpy, sys
import siitjax.torch
sys.argv[1:] = ["export", "--help"]
try:
    runpy.run_module("siitjax", run_name="__main__")
finally:
    assert not {"torch", "transformer_lens", "transformers"} & sys.modules.keys()
"""


def test_the_command_is_there_and_needs_no_torch():
    ended = run("-c", WITHOUT_TORCH)
    assert (ended.code, ended.err) == (0, "")
    assert "OUT\n      the folder to write; it must not exist" in ended.out
    assert "--[no]all\n" in ended.out


def test_what_a_config_does_not_say_is_at_transformer_lens_defaults():
    published = {"act_fn": "relu", "d_head": 5, "d_model": 20, "d_vocab": 4, "n_ctx": 16, "n_layers": 3, "seed": None}
    assert from_lens_config(published, "it") == TransformerConfig(3, 20, 5, 16, 4, 4)
    assert from_lens_config(published | {"n_heads": -1, "d_vocab_out": -1}, "it").n_heads == 4
