"""A model's folder: what is in it, that its card's code runs, that it is read without trust, and what is refused."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import cases
from siitjax.command import main
from siitjax.evaluate import Metrics
from siitjax.export import save_weights
from siitjax.exporting import Export
from siitjax.folder import read_model, write_folder
from siitjax.lens import from_lens_config, lens_config
from siitjax.nodes import NodeList
from siitjax.trained import Trained, metrics_as_json, save_trained
from siitjax.transformer import TransformerConfig
from siitjax.truth import edges, ground_truth, possible_edges
from tests.parity import random_model
from tests.test_transformer import VARIANTS

FILES = ["README.md", "circuit.json", "config.json", "metrics.json", "model.safetensors", "vocab.json"]
EDGES = {
    "duplicate_remover": "embed>L0H0 embed>MLP0 L0H0>MLP0 embed>MLP1 MLP0>MLP1 MLP1>logits",
    "left_greater": "embed>L0H1 L0H1>MLP0 embed>logits MLP0>logits",
    "paren_checker": "embed>L0H3 L0H3>MLP0 MLP0>MLP1 MLP1>L2H3 embed>MLP2 MLP1>MLP2 L2H3>MLP2 MLP2>logits",
    "unique_extractor": "embed>L0H2 embed>MLP0 L0H2>MLP0 MLP0>MLP1 embed>MLP2 MLP1>MLP2 MLP2>logits",
    "1+2": "embed>L0H0 embed>L0H1 embed>L0H3 L0H1>MLP0 L0H3>MLP0 MLP0>MLP1 MLP1>L2H3 embed>MLP2 MLP1>MLP2 L2H3>MLP2 "
    "embed>MLP3 L0H0>MLP3 MLP0>MLP3 MLP2>MLP3 MLP3>logits",
}
"""By hand, from what each variable reads; MLP0 of 1+2 holds left_greater's comparison and paren_checker's elevation."""


def trained(name: str, **metrics) -> Trained:
    """A case's transformer with random weights, metrics made up, and a member's description."""
    case = cases.build(name)
    n_circuit, n_unused = (int(mask.sum()) for mask in (case.circuit.circuit_mask, case.circuit.unused_mask))
    made_up = {
        f.name: jnp.float32(0.5) for f in fields(Metrics) if not f.name.startswith("node") and f.name != "perfect"
    }
    shares = jnp.linspace(0.25, 1, n_circuit, dtype=jnp.float32)
    measured = Metrics(
        **(made_up | metrics),
        node_iia=shares,
        node_changed_iia=shares.at[0].set(jnp.nan),
        node_changed=jnp.arange(n_circuit),
        node_siia=jnp.ones(n_unused),
        perfect=jnp.bool(False),
    )
    member = {"setting": "made up", "seed": 3, "hyperparams": {"beta2": 0.9}, "training": {"epochs": 7}}
    about = {"member": {**member, "case": case.describe()}}
    return Trained(case, random_model(case.config), measured, about)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """That of left_greater."""
    out = tmp_path_factory.mktemp("folders") / "left_greater"
    write_folder(out, trained("left_greater"))
    return out


def bits(model) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model)]


def test_the_folder_holds_what_a_hub_shows(folder):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    config, vocabulary, metrics = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("config", "vocab", "metrics")
    )
    assert vocabulary == {"BOS": 0, "PAD": 1, "(": 2, ")": 3}
    sizes = {"n_layers": 1, "d_model": 12, "n_heads": 4, "d_head": 3, "d_mlp": 48, "n_ctx": 15}
    assert config == sizes | {
        "d_vocab": 4,
        "d_vocab_out": 3,
        "act_fn": "relu",
        "attn_only": False,
        "normalization_type": "LN",
        "positional_embedding_type": "standard",
        "attention_dir": "causal",
        "eps": 1e-5,
        "init_weights": False,
    }
    assert metrics["metrics"]["node_changed_iia"] == [None, 1.0]
    assert metrics["member"]["seed"] == 3


def test_we_load_it_again_bit_for_bit(folder):
    ours, loaded = trained("left_greater"), cases.load(str(folder))
    assert bits(loaded.model) == bits(read_model(folder)) == bits(ours.model)
    assert bits(read_model(folder / "model.safetensors")) == bits(ours.model)
    assert loaded.case.describe() == ours.case.describe()
    assert loaded.metrics is not None
    assert ours.metrics is not None
    assert metrics_as_json(loaded.metrics) == metrics_as_json(ours.metrics)


@pytest.mark.parametrize("name", EDGES)
def test_the_edges_are_those_that_the_variables_read_along(name):
    found = edges(cases.build(name).circuit)
    assert [">".join(edge) for edge in found] == EDGES[name].split()
    assert set(found) <= set(possible_edges(cases.build(name).config.nodes))


def test_possible_edges_are_all_that_the_residual_stream_allows():
    found = possible_edges(NodeList(2, 2))
    later = {
        "embed": "L0H0 L0H1 MLP0 L1H0 L1H1 MLP1",
        "L0H0": "MLP0 L1H0 L1H1 MLP1",
        "L0H1": "MLP0 L1H0 L1H1 MLP1",
        "MLP0": "L1H0 L1H1 MLP1",
        "L1H0": "MLP1",
        "L1H1": "MLP1",
        "MLP1": "",
    }
    assert found == tuple((begin, end) for begin, ends in later.items() for end in [*ends.split(), "logits"])


def test_the_ground_truth_says_what_each_variable_reads_where_it_lives_and_what_it_takes():
    truth = ground_truth(cases.find("left_greater"))
    assert truth["variables"][0] == {
        "name": "counts",
        "reads": ["tokens"],
        "node": "L0H1",
        "hook": "blocks.0.attn.hook_z[1]",
        "values": {"kind": "int", "shape": [2], "least": 0, "greatest": 14},
    }
    assert [v["values"]["kind"] for v in truth["variables"]] == ["int", "bool", "int"]
    assert (truth["label"], truth["variables"][2]["node"]) == ("answer", None)
    assert dict(zip(truth["nodes"], truth["node_mask"], strict=True)) == {
        "embed": False,
        "L0H0": False,
        "L0H1": True,
        "L0H2": False,
        "L0H3": False,
        "MLP0": True,
    }
    assert truth["hooks"][-1] == "blocks.0.mlp.hook_post"


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_the_cards_code_runs_and_gives_what_the_model_gives(folder, monkeypatch, capsys):
    ours = trained("left_greater")
    monkeypatch.chdir(folder)
    text = Path("README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    found: dict = {}
    for block in blocks:
        exec(block, found)
    logits, _ = ours.model(jnp.asarray(found["tokens"][0].numpy(), jnp.int32))
    assert capsys.readouterr().out == f"tensor([{[*map(int, logits.argmax(-1))]}])\n"
    np.testing.assert_allclose(found["logits"], logits, atol=1e-5)


def test_the_card_of_several_tasks_spells_a_sample_as_the_tokenizer_and_the_case_do(tmp_path):
    write_folder(tmp_path / "model", ours := trained("1+2"))
    text = (tmp_path / "model" / "README.md").read_text()
    (with_bos,), (string,) = (re.findall(pattern, text) for pattern in (r'in "(.*)".split', r'tokens\("(.*)".split'))
    spelled = [ours.case.vocabulary[token] for token in ours.case.tokens(string.split())]
    assert spelled == with_bos.split()
    assert spelled[0] in ours.case.tasks


def test_the_card_draws_the_circuit_and_tells_the_metrics(folder):
    text = (folder / "README.md").read_text()
    for edge in EDGES["left_greater"].split():
        assert f"    {edge.replace('>', ' --> ')}\n" in text
    assert "| counts | tokens | L0H1 | `blocks.0.attn.hook_z[1]` |" in text
    assert "| accuracy | 50.00 |" in text
    assert "| L0H1 | 0 | 25.00 | - |" in text
    assert "| MLP0 | 1 | 100 | 100 |" in text
    assert "| beta2 | 0.9 |" in text


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(ValueError, match=r"^.*out cannot be written \(No space left on device\); choose another OUT$"):
        write_folder(tmp_path / "out", trained("left_greater"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", VARIANTS.values(), ids=tuple(VARIANTS))
def test_a_shape_comes_back_from_transformer_lens_words(config):
    assert from_lens_config(lens_config(config), "it") == config


REFUSED_CONFIGS = {
    "it does not say d_head, act_fn; a transformer needs n_layers, d_model, d_head, n_ctx, d_vocab, act_fn": {
        "d_head": None,
        "act_fn": None,
    },
    "it is not of our kind: it has attention_dir bidirectional, not causal; act_fn silu, not relu or gelu": {
        "act_fn": "silu",
        "attention_dir": "bidirectional",
    },
    "it is not of our kind: it has normalization_type LNPre, not LN or None (load it without folding LayerNorm)": {
        "normalization_type": "LNPre"
    },
    "it is not of our kind: it has 3 heads of 5 in a d_model of 20": {"n_heads": 3},
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
    run, ours = tmp_path / "run", trained("left_greater", accuracy=jnp.float32(0.75))
    assert ours.metrics is not None
    (run / "members").mkdir(parents=True)
    for index in (0, 1):
        save_weights(run / "members" / f"{index:04d}.safetensors", ours.model, ours.about)
    rows = [{"member": index, **metrics_as_json(ours.metrics)} for index in (1, 0)]
    (run / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for argv in ((f"{run}/members/0001.safetensors", f"{tmp_path}/one"), ("--all", str(run), f"{tmp_path}/all")):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(Export, ["export", *argv])
    said = capsys.readouterr().out.splitlines()
    assert said[1] == f"2 members of {run} are exported to {tmp_path}/all"
    for out in (tmp_path / "one", tmp_path / "all" / "0000", tmp_path / "all" / "0001"):
        assert sorted(path.name for path in out.iterdir()) == FILES
        assert "| accuracy | 75.00 |" in (out / "README.md").read_text()
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
sys.argv[1:] = ["--help"]
try:
    runpy.run_module("siitjax.export", run_name="__main__")
finally:
    assert not {"torch", "transformer_lens", "transformers"} & sys.modules.keys()
"""


def test_the_command_is_there_and_needs_no_torch():
    ended = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "OUT: the folder to write; it must not exist" in ended.stdout
    assert "--[no]all: " in ended.stdout


def test_what_a_config_does_not_say_is_at_transformer_lens_defaults():
    published = {"act_fn": "relu", "d_head": 5, "d_model": 20, "d_vocab": 4, "n_ctx": 16, "n_layers": 3, "seed": None}
    assert from_lens_config(published, "it") == TransformerConfig(3, 20, 5, 16, 4, 4)
    assert from_lens_config(published | {"n_heads": -1, "d_vocab_out": -1}, "it").n_heads == 4
