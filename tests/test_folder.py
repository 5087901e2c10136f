"""A model's folder: what is in it, that we load it bit for bit, the circuit as it tells it, and that its card's code
runs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import cases
from cases import left_greater
from siitjax.causal.case import BOS
from siitjax.causal.circuit import Variable
from siitjax.causal.ground_truth import edges, ground_truth, possible_edges
from siitjax.io.hub_folder import write_folder
from siitjax.io.trained import read_model
from siitjax.model.nodes import NodeList
from tests.folders import FILES, bits, trained
from tests.folders import folder as folder
from tests.test_loss import FRACTION

EDGES = {
    "duplicate_remover": "embed>L0H0 embed>MLP0 L0H0>MLP0 embed>MLP1 MLP0>MLP1 MLP1>logits",
    "left_greater": "embed>L0H1 L0H1>MLP0 MLP0>logits",
    "paren_checker": "embed>L0H3 L0H3>MLP0 MLP0>MLP1 MLP1>L2H3 MLP1>MLP2 L2H3>MLP2 MLP2>logits",
    "unique_extractor": "embed>L0H2 embed>MLP0 L0H2>MLP0 MLP0>MLP1 embed>MLP2 MLP1>MLP2 MLP2>logits",
    "1+2": "embed>L0H0 embed>L0H1 embed>L0H3 L0H1>MLP0 L0H3>MLP0 MLP0>MLP1 MLP1>L2H3 MLP1>MLP2 L2H3>MLP2 "
    "L0H0>MLP3 MLP0>MLP3 MLP2>MLP3 MLP3>logits",
}
"""By hand, from what each variable reads; MLP0 of 1+2 holds left_greater's comparison and paren_checker's elevation."""


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
    assert loaded.metrics.to_json() == ours.metrics.to_json()


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
    assert (truth["loss"], truth["tolerance"]) == ("CrossEntropy", None)
    assert dict(zip(truth["nodes"], truth["node_mask"], strict=True)) == {
        "embed": False,
        "L0H0": False,
        "L0H1": True,
        "L0H2": False,
        "L0H3": False,
        "MLP0": True,
    }
    assert truth["hooks"][-1] == "blocks.0.mlp.hook_post"
    assert truth["edges"] == [["embed", "L0H1"], ["L0H1", "MLP0"], ["MLP0", "logits"]]
    # Each swaps the one answer there is, whole, so that all change the same labels.
    assert len(set(truth["edge_effects"])) == 1
    assert 0.4 < truth["edge_effects"][0] < 0.5
    assert truth["silent_edges"] == []


def test_an_edge_that_no_sample_reveals_is_silent():
    asks_for_bos = lambda tokens, greater: jnp.where(tokens == BOS, 2, greater.astype(jnp.int32))
    read = Variable("answer", ("tokens", "left_greater"), asks_for_bos)
    case = replace(left_greater.CASE, variables=(*left_greater.CASE.variables[:2], read))
    truth = ground_truth(case)
    assert truth["silent_edges"] == [["embed", "logits"]]
    assert ["embed", "logits"] not in truth["edges"]


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_the_cards_code_runs_and_gives_what_the_model_gives(folder, monkeypatch, capsys):
    ours = trained("left_greater")
    found, printed = run_card(folder, monkeypatch, capsys)
    assert len(found) == 3
    tokens = found[0]["tokens"]
    logits, _ = ours.model(jnp.asarray(tokens[0].numpy(), jnp.int32))
    assert printed == f"tensor([{[*map(int, logits.argmax(-1))]}])\n"
    lens, plain = found[0]["model"](tokens)[0].detach(), found[1]["model"](tokens)[0][0].detach()
    for theirs in (lens, plain, found[2]["logits"]):
        np.testing.assert_allclose(theirs, logits, atol=1e-5)


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_the_card_of_a_regression_tells_its_loss_and_prints_numbers(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "model", ours := trained(FRACTION))
    truth = json.loads((tmp_path / "model" / "circuit.json").read_text())
    assert (truth["label"], truth["loss"], truth["tolerance"]) == ("fraction", "SquaredError", 0.1)
    text = (tmp_path / "model" / "README.md").read_text()
    sentence = (
        "The label of a token is `fraction`, a number. The loss is SquaredError; an answer is right when it is off "
    )
    assert f"\n{sentence}by no more than 0.1.\n" in text
    (found,), printed = run_card(tmp_path / "model", monkeypatch, capsys, blocks=1)
    logits, _ = ours.model(jnp.asarray(found["tokens"][0].numpy(), jnp.int32))
    shown = re.findall(r"-?\d+\.\d+(?:e-?\d+)?", printed)
    np.testing.assert_allclose([float(number) for number in shown], logits[:, 0], atol=1e-3)


def run_card(folder, monkeypatch, capsys, blocks: int | None = None) -> tuple[list[dict], str]:
    """What the card's blocks of code, run one after the other in the folder, hold after each, and what they print."""
    monkeypatch.chdir(folder)
    held: dict = {}
    found = []
    for block in re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[:blocks]:
        exec(block, held)
        found.append(dict(held))
    return found, capsys.readouterr().out


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
    assert "| accuracy | 50 |" in text
    assert "| L0H1 | 0 | 25 | - |" in text
    assert "| MLP0 | 1 | 100 | 100 |" in text
    assert "| beta2 | 0.9 |" in text


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(ValueError, match=r"^.*out cannot be written \(No space left on device\); choose another OUT$"):
        write_folder(tmp_path / "out", trained("left_greater"))
    assert list(tmp_path.iterdir()) == []
