"""Nodes, their names and their masks."""

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siitjax.model.nodes import EMBED, Node, NodeList, head, mlp

NODES = NodeList(n_layers=2, n_heads=2)


def test_mask_order_is_embedding_then_each_layers_heads_and_mlp():
    assert [str(node) for node in NODES] == ["embed", "L0H0", "L0H1", "MLP0", "L1H0", "L1H1", "MLP1"]
    assert [str(node) for node in NodeList(2, 1, has_mlp=False)] == ["embed", "L0H0", "L1H0"]


def test_names_are_read_back():
    assert all(Node.parse(str(node)) == node for node in NODES)


@pytest.mark.parametrize("name", ["", "L0", "H1", "l0h1", "MLP", "L0H1 ", "L-1H0"])
def test_other_names_are_refused_with_examples(name):
    with pytest.raises(ValueError, match=f'no node is called "{name}"; write "embed", "L0H3"'):
        Node.parse(name)


def test_hooks_are_transformer_lens_names():
    assert [EMBED.hook, head(1, 3).hook, mlp(2).hook] == [
        "hook_embed",
        "blocks.1.attn.hook_z[3]",
        "blocks.2.mlp.hook_post",
    ]


def test_a_mask_is_true_at_its_nodes_alone():
    mask = NODES.mask([mlp(0), head(1, 1)])
    assert mask.tolist() == [False, False, False, True, False, True, False]


@given(st.builds(NodeList, st.integers(1, 4), st.integers(1, 4), st.booleans()), st.data())
def test_masks_nodes_and_names_are_each_others_inverse(nodes, data):
    chosen = data.draw(st.sets(st.sampled_from(list(nodes))))
    assert set(nodes.named(nodes.mask(chosen))) == chosen
    assert [Node.parse(str(node)) for node in nodes] == list(nodes)


def test_a_mask_is_cut_up_by_site():
    sites = NODES.sites(jnp.array([True, False, True, False, True, False, True]))
    assert bool(sites.embed)
    assert sites.z.tolist() == [[False, True], [True, False]]
    assert sites.post is not None
    assert sites.post.tolist() == [[False], [True]]


def test_an_absent_node_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="there is no node L0H7; the nodes are embed, L0H0, L0H1, MLP0, L1H0"):
        NODES.mask([head(0, 7)])


def test_depth_orders_nodes_along_the_residual_stream():
    assert [node.depth for node in NODES] == [0, 1, 1, 2, 3, 3, 4]
