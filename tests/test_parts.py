"""MLPs that are cut into parts, each of which is a node: their names, sites and edges; a case on parts trains and comes
back from its file and its folder; and what cannot be cut, or placed, so.

Their numbers in every form, under swaps of nodes and edges, and in TransformerLens and torch, are tested where those of
whole MLPs are: some transformers of tests/hooked.py have parts."""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import siitjax
from siitjax import Case, Uniform, UserError, Variable, head, mlp
from siitjax.analysis.alignment.exam import site_of
from siitjax.analysis.neurons import ablation_effects
from siitjax.analysis.sae.site import Site, find_sites
from siitjax.bench.torch_peer import patch
from siitjax.causal import registry
from siitjax.causal.combine import combine
from siitjax.front.train import make_member
from siitjax.io.eap_folder import write_eap
from siitjax.io.hub_folder import write_folder
from siitjax.io.trained import Trained
from siitjax.model.nodes import LOGITS, Node
from siitjax.model.weights import load_weights, save_weights, state_dict, with_weights
from siitjax.siit.recipe import Recipe
from tests.hooked import FELT, TOLERANCE, hooked_twin, in_numpy, random_model, random_tokens, run_hooked

TWO = siitjax.find_case("two_majorities")


def answer(some, several):
    return jnp.where(several, 2, some.astype(jnp.int32))


UNEQUAL = Case(
    name="unequal",
    vocabulary=("BOS", "PAD", "a", "b"),
    variables=(
        Variable("count", ("tokens",), lambda tokens: jnp.cumsum(tokens == 2), head(0, 0)),
        Variable("some", ("count",), lambda count: count > 0, mlp(0, part=0)),
        Variable("several", ("count",), lambda count: count > 2, mlp(0, part=2)),
        Variable(
            "answer",
            ("some", "several"),
            lambda some, several: jnp.where(several, 2, some.astype(jnp.int32)),
            mlp(1, part=1),
        ),
    ),
    strata=(Uniform((2, 3)),),
    n_layers=2,
    d_model=8,
    d_head=4,
    n_outputs=3,
    n_ctx=6,
    d_mlp=10,
    mlp_parts=(2, 5, 3),
)
SHALLOW = replace(
    UNEQUAL, n_layers=1, variables=(*UNEQUAL.variables[:3], Variable("answer", ("some", "several"), answer))
)
CONFIG = UNEQUAL.config
PARTS = [mlp(layer, part) for layer in (0, 1) for part in (0, 1, 2)]


def test_a_part_is_a_node_with_a_name_a_site_and_neurons():
    names = ["embed", "L0H0", "L0H1", "MLP0.0", "MLP0.1", "MLP0.2", "L1H0", "L1H1", "MLP1.0", "MLP1.1", "MLP1.2"]
    assert [str(node) for node in CONFIG.nodes] == names
    assert [Node.parse(name) for name in names] == list(CONFIG.nodes)
    post = [f"blocks.{layer}.mlp.hook_post[{neurons}]" for layer in (0, 1) for neurons in ("0:2", "2:7", "7:10")]
    assert [CONFIG.hook(node) for node in PARTS] == post
    assert CONFIG.hook(head(1, 1)) == "blocks.1.attn.hook_z[1]"
    assert [str(node) for node in TWO.config.nodes][-2:] == ["MLP0.0", "MLP0.1"]
    with pytest.raises(UserError, match=r'^no node is called "MLP0\.x"'):
        Node.parse("MLP0.x")


def test_parts_read_and_send_side_by_side():
    possible = CONFIG.nodes.possible_edges
    for one in PARTS:
        assert {b for a, b in possible if a == one} == {n for n in CONFIG.nodes if n.depth > one.depth} | {LOGITS}
        assert {a for a, b in possible if b == one} == {n for n in CONFIG.nodes if n.depth < one.depth}
    assert [tuple(map(str, edge)) for edge in TWO.circuit.edges] == [
        ("embed", "L0H0"),
        ("embed", "L0H1"),
        ("L0H0", "MLP0.0"),
        ("L0H1", "MLP0.1"),
        ("MLP0.0", "logits"),
        ("MLP0.1", "logits"),
    ]


def test_uncut_the_same_weights_give_the_same_and_a_swap_of_all_parts_is_one_of_the_mlp():
    cut = random_model(CONFIG)
    blank = random_model(replace(CONFIG, mlp_parts=1))
    whole = with_weights(blank, state_dict(cut))
    base, source = map(jnp.asarray, random_tokens(CONFIG, 2, 6))

    @jax.jit
    def both(cut, whole):
        there = whole(source)[1]
        mask = lambda model, nodes: jnp.asarray(model.config.nodes.mask(nodes))
        under = lambda model, nodes: model(base, (mask(model, nodes), there))[0]
        parts = (under(cut, [mlp(1, 0)]), under(cut, PARTS[3:]))
        return whole(base)[0], cut(base)[0], under(whole, [mlp(1)]), *parts

    own, uncut, swapped, one, every = both(cut, whole)
    np.testing.assert_array_equal(uncut, own)
    np.testing.assert_allclose(every, swapped, rtol=0, atol=TOLERANCE)
    assert min(np.abs(one - own).max(), np.abs(one - swapped).max()) > FELT


def test_the_torch_peer_swaps_the_same_neurons():
    model, tokens = random_model(CONFIG), random_tokens(CONFIG, 2, 3, 6)
    reference = hooked_twin(model)
    nodes = [mlp(0, 2), mlp(1, 0), mlp(0, 0), head(1, 1)]
    base, source = (torch.as_tensor(x).long() for x in tokens)
    _, cache = reference.run_with_cache(source)
    found = reference.run_with_hooks(base, fwd_hooks=patch(CONFIG, nodes, cache))
    expected = run_hooked(reference, base, nodes, run_hooked(reference, source))["logits"]
    np.testing.assert_allclose(*(in_numpy({"": x})[""] for x in (found, expected)), rtol=0, atol=TOLERANCE)


def test_neurons_are_ablated_in_a_cut_mlp_as_in_a_whole_one():
    case = replace(UNEQUAL, variables=(Variable("count", ("tokens",), lambda tokens: tokens == 2, head(0, 0)),))
    uncut, model = replace(case, mlp_parts=1), random_model(CONFIG)
    samples = jnp.asarray(case.draw(12, 4, np.random.default_rng(0))[0])
    grounds = jnp.asarray(np.random.default_rng(1).random((2, 2, 10)) < 0.5)
    whole = with_weights(random_model(uncut.config), state_dict(model))
    found, expected = ablation_effects(model, case, samples, grounds), ablation_effects(whole, uncut, samples, grounds)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=0, atol=TOLERANCE)
    assert np.abs(expected.loss).max() > FELT


@pytest.fixture(scope="module")
def run():
    found = siitjax.train(SHALLOW, samples=250, batch_size=40, epochs=2, progress=False)
    return replace(found, model=jax.tree.map(jnp.asarray, found.model))


def test_a_case_on_parts_trains_and_comes_back_from_its_file_and_its_folder(run, tmp_path):
    assert run.history["loss_base"][-1] < run.history["loss_base"][0]
    assert len(run.metrics.node_iia) == 3
    assert len(run.metrics.node_siia) == 2
    back = siitjax.load(run.save(tmp_path / "it.safetensors"), case=SHALLOW)
    write_folder(tmp_path / "folder", back)
    for found in (back, siitjax.load(tmp_path / "folder", case=SHALLOW)):
        assert found.model.config == found.case.config == run.case.config
        assert found.model.config.part_sizes == (2, 5, 3)
        for ours, theirs in zip(*map(jax.tree.leaves, (run.model, found.model)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    truth = json.loads((tmp_path / "folder" / "circuit.json").read_text())
    assert [(v["node"], v["hook"]) for v in truth["variables"]][1:] == [
        ("MLP0.0", "blocks.0.mlp.hook_post[0:2]"),
        ("MLP0.2", "blocks.0.mlp.hook_post[7:10]"),
        (None, None),
    ]
    assert truth["roles"]["MLP0.1"].startswith("unused")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "| several | count | MLP0.2 | `blocks.0.mlp.hook_post[7:10]` |" in card
    assert 'data-node="MLP0.2"' in (tmp_path / "folder" / "circuit.svg").read_text()


def test_a_description_makes_the_case_again():
    for parts in ((40, 56), 2):
        case = replace(TWO, mlp_parts=parts)
        assert registry.described(json.loads(json.dumps(case.describe()))) == case
    assert "mlp_parts" not in siitjax.find_case("left_greater").describe()


def test_weights_of_whole_mlps_can_be_the_start(tmp_path):
    whole = random_model(replace(CONFIG, mlp_parts=1))
    save_weights(tmp_path / "whole.safetensors", whole)
    recipe = Recipe.edges().changed(samples=250)
    member = make_member(UNEQUAL, 0, recipe, tmp_path / "whole.safetensors")
    assert (load_weights(tmp_path / "whole.safetensors").config.n_parts, member.config.case.config.n_parts) == (1, 3)
    with pytest.raises(UserError, match=r"^the transformer does not fit the case unequal: it has n_parts 1, not 3; "):
        UNEQUAL.check_fits(whole.config)


def test_combined_tasks_share_the_parts_and_the_answer_has_a_whole_mlp():
    both = combine([TWO, TWO], width_factor=None)
    placed = {v.name: v.place for v in both.variables}
    assert [placed[f"two_majorities{mark}.c_ahead"] for mark in ("", "#2")] == ["MLP0.1", "MLP0.1"]
    assert placed["answer"] == "MLP1.0+MLP1.1"
    assert registry.described(json.loads(json.dumps(both.describe()))).describe() == both.describe()
    with pytest.raises(UserError, match=r"^the cases differ in mlp_parts: 1, 2; give all of them the same$"):
        combine([TWO, siitjax.find_case("left_greater")])


@pytest.mark.parametrize("parts", [0, -1, 5, 97, (48, 49), (96, 0), (), (95,)])
def test_parts_that_an_mlp_cannot_be_cut_into_are_told_in_one_line(parts):
    words = (
        f"mlp_parts is {parts}, but an MLP has 96 neurons; give a number of equal parts, or the neurons of each part, "
        "which must add up to 96"
    )
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        replace(TWO.config, mlp_parts=parts)


def test_a_part_that_is_not_there_is_told_in_one_line():
    there = "the nodes are embed, L0H0, L0H1, L0H2, L0H3, MLP0.0, MLP0.1"
    for node in (mlp(0, part=2), mlp(0)):
        words = f'the variable "a_ahead" cannot live on {node}: there is no node {node}; {there}'
        moved = (*TWO.variables[:2], replace(TWO.variables[2], node=node), *TWO.variables[3:])
        with pytest.raises(UserError, match=f"^{re.escape(words)}"):
            replace(TWO, variables=moved)
    with pytest.raises(UserError, match=r'^the variable "a_ahead" cannot live on MLP0.0: there is no node MLP0.0; '):
        replace(TWO, mlp_parts=1)


def test_what_knows_whole_mlps_alone_says_so_in_one_line(tmp_path):
    words = "^two_majorities cuts its MLPs into parts, and EAP-IG's graphs have one node for each MLP$"
    with pytest.raises(UserError, match=words):
        write_eap(tmp_path / "eap", Trained(TWO, random_model(TWO.config), None, {}))
    with pytest.raises(
        UserError, match=r"^the transformer's MLPs are cut into parts; dictionaries are trained on those "
    ):
        find_sites(TWO, ["hook_post"])
    with pytest.raises(UserError, match=r"^MLP0\.1 is a part of an MLP; variables are looked for in whole nodes$"):
        site_of(TWO, mlp(0, part=1))


def test_a_head_s_values_are_replaced_beside_a_swapped_part():
    """A dictionary's rebuilding of a head, while a part of the MLP after it is a source run's: as one swap of both."""
    model, (base, source) = random_model(CONFIG), map(jnp.asarray, random_tokens(CONFIG, 2, 6))
    there, site = model(source)[1], Site("hook_z", 0, 1)
    mask = lambda *nodes: jnp.asarray(CONFIG.nodes.mask(nodes))
    under = mask(mlp(0, 2), mlp(1, 0)), there
    own = model(base, under)[1]
    replaced = site.replaced(model, base, own, site.read(model, there), under)
    expected, _ = model(base, (mask(head(0, 1), mlp(0, 2), mlp(1, 0)), there))
    np.testing.assert_allclose(replaced, expected, rtol=0, atol=TOLERANCE)
