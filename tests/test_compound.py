"""Counts under swaps of every kind, made again by single runs of a graph walked by hand and of TransformerLens under
hooks; which kinds there are and what each swaps; what counts come to, and that they survive a file."""

import json
from dataclasses import replace
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import left_greater
from siitjax.model.forms import BATCH_LAST, PLAIN
from siitjax.model.nodes import edge_name, parse_edge
from siitjax.siit.edge_metrics import AT_NODES, BASE, OWN, PAIR, by_edge, count_edges, holding, kinds, rows
from siitjax.siit.edge_metrics import _swaps as swaps_of_kinds
from siitjax.siit.metrics import EdgeMetrics, Metrics, Tally, read_shares, shares
from tests.graphs import LEFT_GREATER, label, swap_of
from tests.hooked import by_reader_twin, path_patched, random_model, written

CASE = replace(left_greater.CASE, n_ctx=5, d_model=6, d_head=2)
"""Small: the nodes are embed, L0H0, L0H1, L0H2 and MLP0; the circuit's are L0H1 and MLP0."""
NODES = CASE.circuit.nodes
NAMES = list(map(str, NODES))
PAIRS = 4
KEY = jax.random.key(7)

OUTSIDE = (
    *("embed->L0H0", "embed->L0H2", "embed->MLP0", "embed->logits"),
    *("L0H0->MLP0", "L0H0->logits", "L0H1->logits", "L0H2->MLP0", "L0H2->logits"),
)
LAYOUT = [
    ("one node", ("L0H1", "MLP0")),
    ("two nodes", ("L0H1, MLP0",)),
    ("random nodes, own sources", ("drawn",)),
    ("all nodes but the last, own sources", ("all",)),
    ("random nodes at random positions, own sources", ("drawn",)),
    ("one node, unused ones held at the base's", ("L0H1", "MLP0")),
    ("all unused nodes", ("all",)),
    ("one edge of the circuit", ("embed->L0H1", "L0H1->MLP0", "MLP0->logits")),
    ("one edge outside", OUTSIDE),
    ("random edges outside", ("drawn",)),
    ("all edges outside", ("all",)),
    ("random edges, all outside too, own sources", ("drawn",)),
    ("random edges at random positions, own sources", ("drawn",)),
]
"""What each kind is called, and each of its swaps, in order."""
WORDS = [words for words, _ in LAYOUT]
TOTAL = sum(len(names) for _, names in LAYOUT)

L0H1 = ("L0H1->MLP0", "L0H1->logits")
MLP0 = ("MLP0->logits",)
UNUSED = ("L0H0->MLP0", "L0H0->logits", "L0H2->MLP0", "L0H2->logits")
CIRCUIT = ("embed->L0H1", "L0H1->MLP0", "MLP0->logits")
SWAPPED = {
    "one node": [L0H1, MLP0],
    "two nodes": [L0H1 + MLP0],
    "random nodes, own sources": [L0H1 + MLP0],
    "all nodes but the last, own sources": [L0H1],
    "random nodes at random positions, own sources": [L0H1 + MLP0],
    "one node, unused ones held at the base's": [L0H1 + UNUSED, MLP0 + UNUSED],
    "all unused nodes": [UNUSED],
    "one edge of the circuit": [(edge,) for edge in CIRCUIT],
    "one edge outside": [(edge,) for edge in OUTSIDE],
    "random edges outside": [OUTSIDE],
    "all edges outside": [OUTSIDE],
    "random edges, all outside too, own sources": [CIRCUIT],
    "random edges at random positions, own sources": [CIRCUIT + OUTSIDE],
}
"""The edges that each swap swaps, or, where it is drawn, may swap."""


def test_the_kinds_and_their_swaps_are_those_of_the_list():
    assert [(kind.words, kind.names) for kind in kinds(CASE)] == LAYOUT
    for kind in kinds(CASE):
        edges = [{edge_name(edge) for edge in NODES.edges_in(mask)} for mask in kind.masks]
        assert edges == [set(swapped) for swapped in SWAPPED[kind.words]], kind.words
        assert kind.sources.shape == (len(kind.names), len(NODES))
        assert (kind.p is not None) == ("random" in kind.words)
        assert kind.by_edge == ("random edges" in kind.words)
        assert kind.positions == ("positions" in kind.words)
        assert (kind.sources == OWN).all() == ("own sources" in kind.words)
        if kind.words == "one node, unused ones held at the base's":
            # embed, L0H0, L0H1, L0H2, MLP0
            assert kind.sources.tolist() == [[PAIR, BASE, PAIR, BASE, PAIR]] * 2
        elif "own" not in kind.words:
            assert (kind.sources == PAIR).all()
        assert (kind.fixed_too is None) == ("outside too" not in kind.words)
    (beside,) = (kind for kind in kinds(CASE) if kind.fixed_too is not None)
    assert beside.fixed_too is not None
    assert {edge_name(edge) for edge in NODES.edges_in(beside.fixed_too)} == set(OUTSIDE)


@pytest.fixture(scope="module")
def pairs():
    """Bases, sources, and every swap of each pair."""
    rng = np.random.default_rng(0)
    base, source = rng.integers(2, 4, (2, PAIRS, CASE.n_ctx)).astype(np.int32)
    base[:, 0] = source[:, 0] = 0
    base[1, 3:] = 1  # pads, which are not counted
    draw = partial(swaps_of_kinds, CASE, kinds(CASE), base.shape, True)
    swaps = jax.device_get(jax.jit(draw)(jax.random.split(KEY, PAIRS)[0]))
    return base, source, (swaps.edges, swaps.positions, swaps.sources)


def test_fixed_swaps_are_every_pairs_and_drawn_ones_of_their_kind(pairs):
    *_, (edges, positions, sources) = pairs
    assert edges.shape[:2] == positions.shape[:2] == sources.shape[:2] == (PAIRS, TOTAL)
    m, pair = 0, np.arange(PAIRS)[:, None]
    for words, names in LAYOUT:
        for i in range(len(names)):
            mask = NODES.edge_mask(map(parse_edge, SWAPPED[words][i]))
            fixed = NODES.edge_mask(map(parse_edge, OUTSIDE if "outside too" in words else ()))
            if "random" in words:
                assert (edges[:, m] <= (mask | fixed)).all(), words
                assert (edges[:, m] >= fixed).all(), words
            else:
                assert (edges[:, m] == mask).all(), words
            if "random nodes" in words:
                senders = edges[:, m].any(1)
                assert (edges[:, m] == NODES.as_edges(senders)).all(), words
            assert positions[:, m].all() == ("positions" not in words), words
            if "own sources" in words:
                assert ((sources[:, m] >= 0) & (sources[:, m] < PAIRS)).all(), words
                assert (sources[:, m] != pair).any(), words
            else:
                held = "held" in words
                unused = np.array([name in ("L0H0", "L0H2") for name in NAMES])
                assert (sources[:, m] == np.where(held & unused, pair + PAIRS, pair)).all(), words
            m += 1
    assert m == TOTAL


def test_counts_are_those_of_single_runs(pairs):
    """Numbers of sources beyond the pairs' are those of the bases."""
    base, source, (edges, positions, numbers) = pairs
    model = random_model(CASE.config)
    run = jax.jit(partial(count_edges, case=CASE, each=True, form=PLAIN))
    found = jax.device_get(run(model, base=jnp.asarray(base), source=jnp.asarray(source), key=KEY))

    reference, both = by_reader_twin(model), np.concatenate([source, base])
    readers, runs = [*NAMES[1:], "logits"], [written(reference, tokens) for tokens in both]
    counts = np.zeros((4, TOTAL), int)
    for b, tokens in enumerate(base):
        own = tokens != 1
        clean = np.array(label(LEFT_GREATER, tokens.tolist()))
        for m in range(TOTAL):
            here = edges[b, m], positions[b, m]
            labels = np.array(label(LEFT_GREATER, tokens.tolist(), swap_of(NAMES, *here, both[numbers[b, m]])))
            there = {name: runs[numbers[b, m, i]][name] for i, name in enumerate(NAMES)}

            def swapped(sender, reader, here=here):
                i = NAMES.index(sender)
                return here[0][readers.index(reader), i] & here[1][i]

            right = path_patched(reference, tokens, swapped, there).argmax(-1) == labels
            changed = labels != clean
            counts[:, m] += [(x & own).sum() for x in (right, own, right & changed, changed)]
    tallies = (found.tokens.right, found.tokens.of, found.changed.right, found.changed.of)
    np.testing.assert_array_equal(tallies, counts)
    assert (counts[1] == (base != 1).sum()).all()
    assert 0 < counts[0].sum() < counts[1].sum()
    assert 0 < counts[2].sum() < counts[3].sum()
    of_edges = {name: int(changed.of) for name, _, changed in by_edge(CASE, found)}
    assert tuple(of_edges) == CIRCUIT
    assert set(of_edges.values()) == {int(counts[3, 1])}, "on a chain, every edge's swap gives the answer's"


def test_a_sample_of_the_swaps_is_one_of_each_kind_for_each_pair(pairs):
    base, *_ = pairs
    model = jax.eval_shape(lambda: random_model(CASE.config))
    run = partial(count_edges, case=CASE, each=False, form=BATCH_LAST)
    as_given = [jax.ShapeDtypeStruct(base.shape, jnp.int32)] * 2
    shapes = jax.eval_shape(lambda model, base, source: run(model, base=base, source=source, key=KEY), model, *as_given)
    assert {leaf.shape for leaf in jax.tree.leaves(shapes)} == {(len(LAYOUT),)}
    swaps = jax.jit(partial(swaps_of_kinds, CASE, kinds(CASE), (40, 2), False))(KEY)
    for kind, edges in zip(kinds(CASE), np.moveaxis(np.asarray(swaps.edges), 1, 0), strict=True):
        if kind.p is None:
            drawn = {mask.tobytes() for mask in edges}
            assert drawn <= {mask.tobytes() for mask in kind.masks}, kind.words
            assert len(drawn) >= min(len(kind.names), 5), kind.words


def counted(
    right: dict[str, list[int]] | None = None, changed: dict[str, list[list[int]]] | None = None
) -> EdgeMetrics:
    """1,000 tokens under each swap, all right but where `right` says otherwise; no label changed but in `changed`,
    which has how many are right, and of how many."""
    tokens, pairs = [], []
    for words, names in LAYOUT:
        tokens += (right or {}).get(words, [1000] * len(names))
        pairs += (changed or {}).get(words, [[0, 0]] * len(names))
    whole, (some, of) = np.array(tokens), np.array(pairs).T
    return EdgeMetrics(Tally(whole, np.full(TOTAL, 1000)), Tally(some, of))


def test_rows_are_the_worst_swap_and_the_shares_of_all():
    metrics = counted(
        {"one node": [999, 998], "one edge of the circuit": [1000, 999, 999]},
        {"one node": [[3, 4], [0, 0]], "one edge of the circuit": [[200, 200], [199, 200], [0, 0]]},
    )
    found = {row.words: row for row in rows(CASE, metrics)}
    assert list(found) == WORDS
    node, edge, outside = (found[words] for words in ("one node", "one edge of the circuit", "one edge outside"))
    assert (node.mean, node.worst, node.worst_swap) == (Fraction(1997, 2000), Fraction(998, 1000), "MLP0")
    assert (node.changed, node.worst_changed, node.worst_changed_swap) == (Fraction(3, 4), Fraction(3, 4), "L0H1")
    assert not node.holds
    assert (edge.mean, edge.worst, edge.worst_swap) == (Fraction(2998, 3000), Fraction(999, 1000), "L0H1->MLP0")
    assert (edge.changed, edge.worst_changed) == (Fraction(399, 400), Fraction(199, 200))
    assert edge.worst_changed_swap == "L0H1->MLP0"
    assert edge.holds, "999 of 1,000 tokens, and 199 of 200 changed ones, are enough"
    assert (outside.mean, outside.worst, outside.worst_swap) == (1, 1, OUTSIDE[0])
    assert (outside.changed, outside.worst_changed, outside.worst_changed_swap) == (None, None, "")
    assert outside.holds
    assert json.loads(json.dumps(edge.to_json())) == {
        "words": "one edge of the circuit",
        "mean": 2998 / 3000,
        "worst": 0.999,
        "worst_swap": "L0H1->MLP0",
        "changed": 0.9975,
        "worst_changed": 0.995,
        "worst_changed_swap": "L0H1->MLP0",
        "holds": True,
    }


@pytest.mark.parametrize(
    ("right", "changed", "holds"),
    [([999], [[0, 0]], True), ([998], [[0, 0]], False), ([1000], [[995, 1000]], True), ([1000], [[994, 1000]], False)],
)
def test_a_swap_holds_from_999_of_1000_tokens_and_995_of_1000_changed_ones_on(right, changed, holds):
    found = rows(CASE, counted({"two nodes": right}, {"two nodes": changed}))
    assert {row.words: row.holds for row in found} == {words: holds or words != "two nodes" for words in WORDS}


def test_a_model_holds_or_holds_at_nodes_or_does_not():
    assert set(AT_NODES) == {"one node", "all unused nodes"}
    assert holding(CASE, counted()) == "holds its circuit under every kind of swap"
    short = counted({"two nodes": [998], "all edges outside": [0]})
    assert holding(CASE, short) == "holds at nodes, and not under two nodes, all edges outside"
    at_nodes = counted({"one node": [1000, 998], "two nodes": [998]})
    assert holding(CASE, at_nodes) == "does not hold its circuit under one node, two nodes"


def metrics_of(edges: EdgeMetrics | None) -> Metrics:
    """Everything right, and edges."""
    tally = lambda *of: Tally(np.array(of), np.array(of))
    one = Tally(np.array(100), np.array(100))
    return Metrics(one, tally(100, 100), tally(40, 0), tally(20, 20), tally(100, 100), one, one, edges)


def test_a_file_keeps_the_counts_of_edges():
    edges = counted({"two nodes": [998]}, {"one node": [[3, 4], [0, 0]]})
    metrics = metrics_of(edges)
    written_down = json.loads(json.dumps(shares(metrics).to_json()))
    read = read_shares(written_down)
    assert read.counts is not None
    assert read.counts.edges is not None
    assert rows(CASE, read.counts.edges) == rows(CASE, edges)
    assert read.to_json() == written_down
    without = json.loads(json.dumps(shares(metrics_of(None)).to_json()))
    assert "edges" not in without["counts"]
    again = read_shares(without)
    assert again.counts is not None
    assert again.counts.edges is None
    assert again.to_json() == without


def test_perfect_is_with_every_swap_of_edges_right_if_any_was_measured():
    assert metrics_of(None).perfect
    assert metrics_of(counted()).perfect
    assert not metrics_of(counted({"all edges outside": [999]})).perfect
    assert not metrics_of(counted({"one node": [1000, 999]})).perfect
    wrong = replace(metrics_of(counted()), base=Tally(np.array(99), np.array(100)))
    assert not wrong.perfect
    assert not shares(metrics_of(counted({"two nodes": [999]}))).perfect
