"""Variables that several nodes hold together: what swaps of all of them, and of the edges from and to them, make of the
labels is what a walk in plain Python says; training and metrics swap them together; everything written names them."""

import json
import re
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siitjax import Case, Uniform, UserError, Variable, head, mlp
from siitjax.causal.behaviour import behaviour
from siitjax.causal.circuit import Circuit
from siitjax.causal.combine import combine
from siitjax.causal.ground_truth import edge_effects, ground_truth
from siitjax.io.model_card import card
from siitjax.model.nodes import LOGITS
from siitjax.model.transformer import init_transformer
from siitjax.siit.config import Hyperparams
from siitjax.siit.edge_metrics import BASE, PAIR, kinds
from siitjax.siit.edge_sampling import draw_swaps
from siitjax.siit.evaluate import count
from siitjax.siit.fresh_pairs import held_by_node, node_names
from siitjax.siit.interchange import interchange
from siitjax.siit.objective import CircuitNodes, Sampling, draw_masks
from tests import graphs
from tests.graphs import Plain

HEADS, BOTH = (head(0, 0), head(0, 1)), (head(1, 1), mlp(1))
LENGTH = 5


def so_far(tokens):
    return jnp.cumsum(tokens)


CASE = Case(
    name="joint",
    vocabulary=("BOS", "PAD", "a", "b"),
    variables=(
        Variable("so_far", ("tokens",), so_far, HEADS),
        Variable("odd", ("so_far", "tokens"), lambda so_far, tokens: (so_far + tokens) % 2, mlp(0)),
        Variable("mixed", ("odd", "so_far"), lambda odd, so_far: so_far % 3 + 3 * odd, BOTH),
        Variable("answer", ("mixed", "so_far"), lambda mixed, so_far: (mixed + so_far) % 5),
    ),
    strata=(Uniform((2, 3)),),
    n_layers=2,
    d_model=8,
    d_head=4,
    n_outputs=5,
    n_ctx=LENGTH + 1,
    d_mlp=6,
)
CIRCUIT, NODES = CASE.circuit, CASE.circuit.nodes
FIRST, SECOND = "L0H0+L0H1", "L1H1+MLP1"
GRAPH = {
    "so_far": Plain(FIRST, ("tokens",), lambda tokens: [sum(tokens[: i + 1]) for i in range(len(tokens))]),
    "odd": Plain("MLP0", ("so_far", "tokens"), lambda s, t: [(a + b) % 2 for a, b in zip(s, t, strict=True)]),
    "mixed": Plain(SECOND, ("odd", "so_far"), lambda o, s: [b % 3 + 3 * a for a, b in zip(o, s, strict=True)]),
    "answer": Plain(None, ("mixed", "so_far"), lambda m, s: [(a + b) % 5 for a, b in zip(m, s, strict=True)]),
}
"""The same in plain Python, with a name for each set of nodes that are swapped together."""
UNITS = {FIRST: HEADS, "MLP0": (mlp(0),), SECOND: BOTH}
EDGES = [("embed", FIRST), (FIRST, "MLP0"), ("embed", "MLP0"), ("MLP0", SECOND), (FIRST, SECOND)]
EDGES += [(SECOND, "logits"), (FIRST, "logits")]


def strings(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.pad(rng.integers(2, 4, (n, LENGTH)), ((0, 0), (1, 0))).astype(np.int32)


def walked(base, source, swapped) -> list[int]:
    """The labels of a base in plain Python; `swapped` says of which sets of nodes, or which edges of sets."""
    swap = graphs.Swap(lambda sender, reader, _: swapped(sender, reader), lambda _: list(map(int, source)))
    return graphs.label(GRAPH, list(map(int, base)), swap)


@jax.jit
@jax.vmap
def run(base, source, mask):
    return CIRCUIT(base, (mask, CIRCUIT(source)[1]))[0]


def test_under_swaps_of_nodes_a_variable_is_swapped_when_all_of_its_nodes_are():
    n = 60
    bases, sources = strings(n, 0), strings(n, 1)
    masks = np.random.default_rng(2).random((n, len(NODES))) < 0.6
    masks[:, 0] = False
    found = run(bases, sources, masks)
    seen = set()
    for base, source, mask, label in zip(bases, sources, masks, np.asarray(found), strict=True):
        nodes = {*NODES.named(mask)}
        whole = {name for name, unit in UNITS.items() if {*unit} <= nodes}
        seen.add(tuple(sorted(whole)))
        assert label.tolist() == walked(base, source, lambda sender, _, whole=whole: sender in whole)
    assert len(seen) == 8


def test_under_swaps_of_edges_a_reader_sees_a_variable_swapped_when_it_sees_all_of_its_nodes_so():
    n, rng = 60, np.random.default_rng(3)
    bases, sources = strings(n, 0), strings(n, 1)
    chosen, masks = [], []
    outside = NODES.edges_in(CIRCUIT.outside_mask)
    for _ in range(n):
        units = [i for i in range(len(CIRCUIT.edge_units)) if rng.random() < 0.5]
        free = [edge for edge in outside if rng.random() < 0.5]
        chosen.append({names(CIRCUIT.edge_units[i]) for i in units})
        masks.append(NODES.edge_mask([*chain(*(CIRCUIT.edge_units[i] for i in units)), *free]))
    for base, source, edges, label in zip(bases, sources, chosen, run(bases, sources, np.stack(masks)), strict=True):
        expected = walked(base, source, lambda sender, reader, edges=edges: (sender, reader) in edges)
        assert np.asarray(label).tolist() == expected


def names(edges) -> tuple[str, str]:
    """The two sets of nodes that edges lie between."""
    of = {node: name for name, unit in UNITS.items() for node in unit}
    ((sender, reader),) = {tuple(of.get(node, str(node)) for node in edge) for edge in edges}
    return sender, reader


def test_edges_between_the_same_two_sets_are_swapped_together_and_none_within_a_set():
    assert {names(unit) for unit in CIRCUIT.edge_units} == {*EDGES}
    assert [len(unit) for unit in CIRCUIT.edge_units if names(unit) == (FIRST, SECOND)] == [4]
    within = NODES.edge_mask([BOTH])
    assert not (within & (CIRCUIT.edge_mask | CIRCUIT.outside_mask)).any()
    np.testing.assert_array_equal(within, CIRCUIT.within_mask)


def promised(mask) -> bool:
    """Whether a mask of edges swaps edges that belong together alike, and none within a set of nodes."""
    whole = all(len({bool(mask[at]) for at in map(place, unit)}) == 1 for unit in CIRCUIT.edge_units)
    return whole and not (mask & CIRCUIT.within_mask).any()


def place(edge) -> tuple[int, int]:
    return NODES.readers.index(edge[1]), NODES.nodes.index(edge[0])


def test_training_draws_no_swap_that_is_not_promised():
    hyper: Any = Hyperparams(p_own=1.0, p_positions=1.0).traced()
    draw = jax.jit(lambda key: draw_swaps(CIRCUIT, hyper, jnp.asarray(True), 160, LENGTH, key=key))
    swaps = jax.device_get(draw(jax.random.key(0)))
    masks = swaps.edges.reshape(-1, *swaps.edges.shape[2:])
    assert all(map(promised, masks))
    assert len({mask.tobytes() for mask in masks}) > 40
    first = CIRCUIT.first_of_unit
    for drawn in (swaps.positions, swaps.sources):
        np.testing.assert_array_equal(drawn, drawn[:, :, first])
        assert (drawn[:, :, 1] != drawn[:, :, 3]).any()
    ways: tuple[CircuitNodes, ...] = ("one", "subset")
    for how in ways:
        sampling = Sampling(circuit_nodes=how)
        one = partial(draw_masks, CIRCUIT, sampling, jnp.float32(0.5), jnp.float32(0.5))
        masks = jax.vmap(lambda key, one=one: one(key=key))(jax.random.split(jax.random.key(1), 300))
        iit = np.asarray(masks[:, 1])
        np.testing.assert_array_equal(iit, iit[:, first])
        drawn = {tuple(map(str, NODES.named(mask))) for mask in iit}
        assert len(drawn) == (3 if how == "one" else 8)


def test_metrics_swap_together_what_is_one():
    for kind in kinds(CASE):
        fixed = kind.masks & (True if kind.p is None else CIRCUIT.edge_mask)
        assert all(promised(mask) for mask in fixed), kind.words
        own = ~np.isin(kind.sources, (PAIR, BASE))
        np.testing.assert_array_equal(own, own[:, CIRCUIT.first_of_unit])
    by_words = {kind.words: kind.names for kind in kinds(CASE)}
    assert by_words["one node"] == (FIRST, "MLP0", SECOND)
    assert by_words["one edge of the circuit"] == tuple(f"{a}->{b}" for a, b in map(names, CIRCUIT.edge_units))

    model = init_transformer(CASE.config, key=jax.random.key(0))
    base, source = (jnp.asarray(strings(9, seed)) for seed in (4, 5))
    found = jax.jit(lambda m: count(m, CASE, base, source, key=jax.random.key(0)))(model)
    masks = np.stack([NODES.mask(unit) for unit in UNITS.values()])
    outputs, labels = interchange(model, CIRCUIT, base, source, masks)
    np.testing.assert_array_equal(found.node.right, (outputs.argmax(-1) == labels).sum((0, 2)))


def test_everything_written_names_them():
    assert CASE.describe()["circuit"] == {"so_far": FIRST, "odd": "MLP0", "mixed": SECOND, "answer": None}
    assert node_names(CASE) == ([*UNITS], ["L1H0"])
    assert held_by_node(CASE) == {FIRST: ["so_far"], "MLP0": ["odd"], SECOND: ["mixed"]}
    truth = json.loads(json.dumps(ground_truth(CASE)))
    assert [v["node"] for v in truth["variables"]] == [["L0H0", "L0H1"], "MLP0", ["L1H1", "MLP1"], None]
    effects = edge_effects(CASE)
    assert len(effects) == len(CIRCUIT.edges) == sum(map(len, CIRCUIT.edge_units))
    assert effects["L0H0", "MLP0"] == effects["L0H1", "MLP0"] > 0
    assert "| so_far | tokens | L0H0+L0H1 | `blocks.0.attn.hook_z[0]` `blocks.0.attn.hook_z[1]` |" in card(
        CASE, None, {}, 1, ("BOS",), {}
    )
    assert behaviour(CASE).computed.swaps.keys() == UNITS.keys()


def test_combined_each_task_has_its_own_heads():
    both = combine([CASE, CASE], width_factor=None)
    placed = {v.name: v.place for v in both.variables}
    assert [placed[f"joint{mark}.so_far"] for mark in ("", "#2")] == ["L0H0+L0H1", "L0H2+L0H3"]
    assert placed["task"] == "L0H4"
    assert placed["joint#2.mixed"] == "L1H0+MLP1"
    assert [len(unit) for unit in both.circuit.units] == [2, 2, 1, 1, 3, 1]  # both tasks share MLP1


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (
            (),
            'the variable "x" is placed on no node; name each of its nodes once, or give node=None where none holds it',
        ),
        ((mlp(0), mlp(0)), 'the variable "x" is placed on MLP0+MLP0; name each of its nodes once'),
        ((head(0, 0), mlp(7)), 'the variable "x" cannot live on MLP7: there is no node MLP7; the nodes are embed, '),
    ],
)
def test_a_place_that_cannot_be_is_told_in_one_line(nodes, words):
    with pytest.raises(UserError, match=f"^{re.escape(words)}"):
        Circuit((Variable("x", ("tokens",), lambda tokens: tokens, nodes),), NODES)


def test_what_is_read_must_be_whole_before_the_last_of_the_nodes():
    early = Variable("early", ("late",), lambda late: late, (head(0, 0), mlp(0)))
    late = Variable("late", ("tokens",), lambda tokens: tokens, (head(0, 1), head(1, 0)))
    words = r'"early" on L0H0\+MLP0 reads what L1H0 holds, which comes no earlier \(MLP0 is at depth 2, L1H0 at 3\)'
    with pytest.raises(UserError, match=words):
        Circuit((late, early), NODES)
    assert LOGITS in dict.fromkeys(b for _, b in Circuit((late,), NODES).edges)
