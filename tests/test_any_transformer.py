"""The transformer is the case's to choose: attention in both directions, heads of any number, no MLPs. Such a case
trains, is measured at nodes and edges alike in both forms, and comes back from its file and its folder."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import siitjax
from siitjax import Case, Uniform, UserError, Variable, head, mlp
from siitjax.causal.combine import combine
from siitjax.causal.validate import check_labels
from siitjax.io.hub_folder import write_folder
from siitjax.model.forms import BATCH_LAST, PLAIN
from siitjax.siit.edge_metrics import count_edges
from siitjax.siit.evaluate import count

A, B = 2, 3


def after(tokens):
    """How many a's stand at each position and after it."""
    return jnp.cumsum((tokens == A)[::-1])[::-1]


def several(after):
    return after > 2


SEVERAL = Case(
    name="several_after",
    vocabulary=("BOS", "PAD", "a", "b"),
    variables=(
        Variable("after", ("tokens",), after, head(0, 2)),
        Variable("several", ("after",), several, mlp(0)),
    ),
    strata=(Uniform((A, B)),),
    n_layers=1,
    d_model=10,
    d_head=4,
    n_outputs=2,
    n_ctx=6,
    d_mlp=12,
    n_heads=3,
    act_fn="gelu_new",
    layer_norm=False,
    attention_dir="bidirectional",
)
SMALL = {"samples": 250, "batch_size": 40, "epochs": 2, "progress": False}


@pytest.fixture(scope="module")
def run():
    found = siitjax.train(SEVERAL, **SMALL)
    return replace(found, model=jax.tree.map(jnp.asarray, found.model))


def test_labels_may_depend_on_later_tokens_where_attention_sees_them():
    check_labels(SEVERAL)
    with pytest.raises(UserError, match=r'^the label of several_after at position \d is .*"bidirectional", or mend'):
        check_labels(replace(SEVERAL, attention_dir="causal"))


def test_it_trains_and_comes_back_from_its_file_and_its_folder(run, tmp_path):
    assert run.history["loss_base"][-1] < run.history["loss_base"][0]
    config = run.model.config
    assert (config.n_heads, config.d_model, config.mlp_width, config.causal) == (3, 10, 12, False)
    back = siitjax.load(run.save(tmp_path / "it.safetensors"), case=SEVERAL)
    write_folder(tmp_path / "folder", back)
    for found in (back, siitjax.load(tmp_path / "folder", case=SEVERAL)):
        assert found.case.describe() == run.case.describe()
        for ours, theirs in zip(*map(jax.tree.leaves, (run.model, found.model)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    said = json.loads((tmp_path / "folder" / "config.json").read_text())
    wanted = {"attention_dir": "bidirectional", "act_fn": "gelu_new", "n_heads": 3, "normalization_type": None}
    assert said | wanted == said


def test_the_cards_code_loads_it_into_transformer_lens(run, tmp_path, monkeypatch):
    write_folder(tmp_path / "folder", siitjax.load(run.save(tmp_path / "it.safetensors"), case=SEVERAL))
    monkeypatch.chdir(tmp_path / "folder")
    code = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[0]
    here = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TransformerLens 3 says that this class is not in 4
        exec(code.replace("print", "#"), here)
    tokens = here["tokens"]
    theirs = here["model"](tokens).detach().numpy()[0]
    np.testing.assert_allclose(run.model(jnp.asarray(tokens[0], jnp.int32))[0], theirs, rtol=0, atol=1e-5)


def test_both_forms_count_the_same_at_nodes_and_edges(run):
    base, _ = SEVERAL.draw(12, 12, np.random.default_rng(1))
    pairs = jnp.asarray(base), jnp.asarray(np.roll(base, 1, 0))
    for counter in (count, count_edges):
        measure = jax.jit(counter, static_argnames=("case", "form"))
        found = [measure(run.model, SEVERAL, *pairs, key=jax.random.key(0), form=form) for form in (PLAIN, BATCH_LAST)]
        for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_where_there_are_no_mlps_none_holds_a_variable():
    words = r'the variable "several" cannot live on MLP0: there is no node MLP0; the nodes are embed, L0H0, L0H1, L0H2'
    with pytest.raises(UserError, match=f"^{words}"):
        replace(SEVERAL, attn_only=True)
    alone = replace(SEVERAL, attn_only=True, variables=(SEVERAL.variables[0], Variable("label", ("after",), several)))
    assert [str(node) for node in alone.circuit.nodes] == ["embed", "L0H0", "L0H1", "L0H2"]
    assert combine([alone, alone], selection=False, width_factor=None).config.attn_only
    assert not combine([alone, alone], width_factor=None).config.attn_only


def test_a_shape_that_cannot_be_is_told_in_one_line():
    with pytest.raises(UserError, match=r"^d_head 4 does not divide d_model 10; choose one that does, or say "):
        replace(SEVERAL, n_heads=None)
    with pytest.raises(UserError, match=r"^heads is 0; it must be greater than 0"):
        replace(SEVERAL, n_heads=0)
    with pytest.raises(UserError, match=r"^the cases differ in act_fn: gelu_new, relu; give all of them the same"):
        combine([SEVERAL, replace(SEVERAL, act_fn="relu")])


def test_what_a_case_did_not_choose_stands_in_no_description():
    described = siitjax.find_case("left_greater").describe()
    assert not {"heads", "attention_dir"} & described.keys()
    assert {"heads", "attention_dir"} <= SEVERAL.describe().keys()
