"""What swaps of edges do to the labels: tables worked out by hand, and graphs walked in plain Python with a view for
each reader, under random edges, positions and sources. Which edges a circuit has, what they are called, and which of
them no swap can reveal."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import build, find, left_greater
from siitjax.base.errors import UserError
from siitjax.causal import ground_truth as truth
from siitjax.causal.circuit import Circuit, Variable, edge_labels
from siitjax.model.nodes import LOGITS, Node, NodeList, edge_name, head, mlp, parse_edge
from siitjax.model.swaps import EdgeSwaps
from tests.graphs import BOTH, LEFT_GREATER, PAREN_CHECKER, TWO_MAJORITIES, label, seen, swap_of
from tests.test_circuit import BASE, CIRCUIT, SOURCE

BATCH, MASKS, SOURCES = 30, 2, 7
GRAPHS = {
    "1": (LEFT_GREATER, 6),
    "2": (PAREN_CHECKER, 6),
    "1+2": (BOTH, 8),
    "two_majorities": (TWO_MAJORITIES, 6),
}
"""The plain graph of a case, and how many tokens its samples have here."""
NODES = NodeList(n_layers=2, n_heads=2)

# On the circuit of tests/test_circuit.py, of which the base is (1, 2) and the source (3, 5):
#     tens (L0H0) = 10 tokens    sum = tens + tokens    sign (MLP0) = -sum    label = sign + 2 tens
# The labels when these edges are swapped at these positions; both positions where none is given.
BY_HAND = [
    ("", None, [9, 18]),
    ("L0H0->MLP0", None, [-31 + 20, -52 + 40]),
    ("L0H0->logits", None, [-11 + 60, -22 + 100]),
    ("embed->MLP0", None, [-13 + 20, -25 + 40]),
    ("embed->L0H0", None, [-31 + 60, -52 + 100]),
    ("MLP0->logits", None, [-33 + 20, -55 + 40]),
    ("L0H0->MLP0 embed->MLP0", None, [-33 + 20, -55 + 40]),
    ("L0H0->MLP0 MLP0->logits", None, [-33 + 20, -55 + 40]),
    ("L0H0->MLP0 L0H0->logits", None, [-31 + 60, -52 + 100]),
    ("embed->L0H0 MLP0->logits", None, [-33 + 60, -55 + 100]),
    ("embed->logits L0H1->MLP0 L0H0->L1H0 MLP0->MLP1 MLP1->logits", None, [9, 18]),
    ("L0H0->MLP0", 1, [9, -52 + 40]),
    ("L0H0->MLP0", 0, [-31 + 20, 18]),
    ("embed->L0H0", 0, [-31 + 60, 18]),
    ("embed->MLP0 MLP0->logits", 1, [9, -55 + 40]),
]


# The same with a source run for each sender: L0H0's on (3, 5), MLP0's on (4, 6).
OWN_BY_HAND = [
    ("L0H0->logits MLP0->logits", [-44 + 60, -66 + 100]),
    ("L0H0->MLP0 MLP0->logits", [-44 + 20, -66 + 40]),
    ("L0H0->MLP0 L0H0->logits", [-31 + 60, -52 + 100]),
]


def mask_of(edges: str, position: Any = None) -> np.ndarray:
    """The mask of some edges at one of two positions, or at both."""
    mask = NODES.edge_mask(map(parse_edge, edges.split()))
    return mask[..., None] & np.array([position in (None, i) for i in range(2)])


def test_labels_are_those_of_the_table_by_hand():
    masks = jnp.asarray(np.stack([mask_of(*row[:-1]) for row in (*BY_HAND, *OWN_BY_HAND)]))
    # What no node holds has no value in a source run.
    own = (SOURCE, jnp.array([30, 50]), None, jnp.array([-44, -66]), None)

    @jax.jit
    def labels(masks):
        _, same = CIRCUIT(SOURCE)
        under = lambda held: jax.vmap(lambda mask: CIRCUIT(BASE, (mask, held))[0])(masks)
        return under(same), under(own)

    same, each_its_own = (np.asarray(found).tolist() for found in labels(masks))
    for row, found in zip(BY_HAND, same, strict=False):
        assert found == row[-1], row
    for row, found in zip(OWN_BY_HAND, each_its_own[len(BY_HAND) :], strict=True):
        assert found == row[-1], row


# In words: the base and the source, the edge, at which position, and the labels of paren_checker.
WRITTEN = [
    ("()()", ")(()", "MLP1->MLP2", None, "20101"),
    ("()()", "(())", "MLP1->MLP2", None, "20001"),
    ("()()", ")(()", "MLP1->L2H3", None, "20000"),
    ("()()", ")(()", "MLP1->L2H3", 1, "20000"),
    ("()()", ")(()", "MLP1->L2H3", 3, "20101"),
    (")(()", "()()", "MLP1->L2H3", None, "20101"),
    (")(()", "()()", "L2H3->MLP2", None, "20101"),
    (")(()", "()()", "L2H3->MLP2", 4, "20001"),
    ("()()", ")(()", "MLP0->MLP1", None, "20000"),
    ("()()", ")(()", "MLP0->MLP2", None, "20101"),
    ("()()", ")(()", "L0H3->logits", None, "20101"),
]


def test_labels_of_a_task_are_those_of_the_table_by_hand():
    case = find("paren_checker")
    nodes = case.circuit.nodes
    base, source = (jnp.stack([case.tokens(row[i]) for row in WRITTEN]) for i in (0, 1))
    edges = np.stack([nodes.edge_mask([parse_edge(row[2])]) for row in WRITTEN])[:, None]
    positions = np.array([[[row[3] in (None, i) for i in range(5)]] for row in WRITTEN]).repeat(len(nodes), 1)
    swaps = EdgeSwaps(jnp.asarray(edges), jnp.asarray(positions[:, None]))
    found = jax.jit(partial(edge_labels, case.circuit))(base, source, swaps)[:, 0]
    assert ["".join(map(str, labels.tolist())) for labels in found] == [row[4] for row in WRITTEN]


@partial(jax.jit, static_argnums=0)
def answers(circuit: Circuit, base, sources, edges, positions, numbers, nodes):
    """Labels with sources and positions for each sender, then with neither; values; labels by nodes and by columns."""
    _, held = jax.vmap(circuit)(sources[: len(base)])
    under = jax.vmap(lambda tokens, mask, held: circuit(tokens, (mask, held)))
    labels, values = under(base, edges[:, 0], held)
    return (
        edge_labels(circuit, base, sources, EdgeSwaps(edges, positions, numbers)),
        edge_labels(circuit, base, sources[: len(base)], EdgeSwaps(edges)),
        (labels, values),
        under(base, nodes, held)[0],
        under(base, jax.vmap(circuit.nodes.as_edges)(nodes), held)[0],
    )


def samples_of(name: str, n: int, seq: int, rng: np.random.Generator) -> np.ndarray:
    """Strings of two letters after BOS, or of two_majorities' four; of several tasks, after the task's token, and with
    a pad at the end."""
    tokens = rng.integers(2, 6 if name == "two_majorities" else 4, (n, seq)).astype(np.int32)
    tokens[:, 0] = 0
    if "+" in name:
        tokens[:, 0], tokens[:, 1], tokens[:, -1] = rng.integers(4, 6, n), 0, 1
    return tokens


@pytest.fixture(scope="module", params=GRAPHS)
def random_swaps(request):
    """A case's graph and circuit, random swaps, and what the circuit answers."""
    graph, seq = GRAPHS[request.param]
    circuit = build(request.param).circuit
    n, rng = len(circuit.nodes), np.random.default_rng(0)
    base = samples_of(request.param, BATCH, seq, rng)
    sources = samples_of(request.param, BATCH + SOURCES, seq, rng)
    share = rng.random((BATCH, MASKS, 1, 1))
    edges = (rng.random((BATCH, MASKS, n, n)) < share) & circuit.nodes.edge_mask(circuit.nodes.possible_edges)
    positions = rng.random((BATCH, MASKS, n, seq)) < 0.7
    numbers = rng.integers(0, len(sources), (BATCH, MASKS, n)).astype(np.int32)
    nodes = rng.random((BATCH, n)) < 0.4
    found = jax.device_get(answers(circuit, base, sources, edges, positions, numbers, nodes))
    return graph, circuit, (base, sources, edges, positions, numbers, nodes), found


def test_the_plain_graph_is_that_of_the_case(random_swaps):
    graph, circuit, *_ = random_swaps
    assert [(name, v.node, v.reads) for name, v in graph.items()] == [
        (v.name, v.node and str(v.node), v.reads) for v in circuit.variables
    ]


def test_labels_are_those_of_a_walk_in_plain_python_with_a_view_for_each_reader(random_swaps):
    graph, circuit, (base, sources, edges, positions, numbers, _), (own, same, *_) = random_swaps
    names, changed = list(map(str, circuit.nodes)), 0
    for b in range(BATCH):
        clean = label(graph, base[b].tolist())
        for m in range(MASKS):
            swap = swap_of(names, edges[b, m], positions[b, m], sources[numbers[b, m]])
            assert own[b, m].tolist() == label(graph, base[b].tolist(), swap), (b, m)
            changed += own[b, m].tolist() != clean
            swap = swap_of(names, edges[b, m], None, sources[[b] * len(names)])
            assert same[b, m].tolist() == label(graph, base[b].tolist(), swap), (b, m)
            changed += same[b, m].tolist() != clean
    assert changed > BATCH, "swaps that change nothing prove nothing"


def test_every_variables_own_value_is_that_of_the_walk(random_swaps):
    graph, circuit, (base, sources, edges, *_), (_, same, (labels, (tokens, *values)), *_) = random_swaps
    names = list(map(str, circuit.nodes))
    np.testing.assert_array_equal(labels, same[:, 0])
    np.testing.assert_array_equal(tokens, base)
    for v, value in zip(circuit.ordered, values, strict=True):
        for b in range(BATCH):
            swap = swap_of(names, edges[b, 0], None, sources[[b] * len(names)])
            walked = seen(graph, v.name, graph[v.name].node or "logits", base[b].tolist(), swap)
            np.testing.assert_array_equal(value[b], walked, err_msg=v.name)


def test_a_mask_of_all_of_a_nodes_edges_is_the_swap_of_the_node(random_swaps):
    *_, (*_, by_nodes, by_columns) = random_swaps
    np.testing.assert_array_equal(by_nodes, by_columns)


def test_a_batch_of_masks_of_nodes_is_one_of_edges():
    nodes = np.array([[True, False, False, True, False, False, False], [False] * 7])
    expected = np.stack([NODES.as_edges(mask) for mask in nodes])
    assert {edge_name(edge) for edge in NODES.edges_in(expected[0])} == {
        *(f"embed->{reader}" for reader in NODES.readers),
        *(f"MLP0->{reader}" for reader in ("L1H0", "L1H1", "MLP1", "logits")),
    }
    np.testing.assert_array_equal(NODES.as_edges(jnp.asarray(nodes)), expected)


@pytest.mark.parametrize(
    ("name", "edges"),
    [
        ("left_greater", "embed->L0H1 L0H1->MLP0 MLP0->logits"),
        ("paren_checker", "embed->L0H3 L0H3->MLP0 MLP0->MLP1 MLP1->L2H3 MLP1->MLP2 L2H3->MLP2 MLP2->logits"),
        ("duplicate_remover", "embed->L0H0 embed->MLP0 L0H0->MLP0 embed->MLP1 MLP0->MLP1 MLP1->logits"),
        ("unique_extractor", "embed->L0H2 embed->MLP0 L0H2->MLP0 MLP0->MLP1 embed->MLP2 MLP1->MLP2 MLP2->logits"),
    ],
)
def test_a_tasks_edges_are_those_that_it_reads_over(name, edges):
    circuit = find(name).circuit
    assert " ".join(map(edge_name, circuit.edges)) == edges
    assert set(circuit.nodes.edges_in(circuit.edge_mask)) == set(circuit.edges)
    others = circuit.nodes.edges_in(circuit.outside_mask)
    assert set(others) == set(circuit.nodes.possible_edges) - set(circuit.edges)


def test_an_edge_that_no_sample_can_reveal_is_silent(monkeypatch):
    """Whether a token is BOS is known by its position: the answer's look at the tokens is never seen."""
    monkeypatch.setattr(truth, "PAIRS", 40)
    monkeypatch.setattr(truth, "SAMPLES", 40)
    *others, _ = left_greater.CASE.variables
    asks = lambda tokens, more: jnp.where(tokens == 0, 2, more.astype(jnp.int32))
    case = replace(left_greater.CASE, variables=(*others, Variable("answer", ("tokens", "left_greater"), asks)))
    found = truth.ground_truth(case)
    assert found["silent_edges"] == [["embed", "logits"]]
    assert found["edges"] == [["embed", "L0H1"], ["L0H1", "MLP0"], ["MLP0", "logits"]]
    # They lie on one path: whichever is swapped, the answer is the source's.
    effects = found["edge_effects"]
    assert effects[0] == effects[1] == effects[2] > 0.1


def test_edges_are_from_each_node_to_all_that_are_deeper_and_read_back_by_name():
    small = NodeList(1, 2)
    names = [edge_name(edge) for edge in small.possible_edges]
    assert names == [
        *("embed->L0H0", "embed->L0H1", "embed->MLP0", "embed->logits"),
        *("L0H0->MLP0", "L0H0->logits", "L0H1->MLP0", "L0H1->logits", "MLP0->logits"),
    ]
    assert tuple(map(parse_edge, names)) == small.possible_edges
    assert parse_edge(" L0H1 -> logits ") == (head(0, 1), LOGITS)
    mask = small.edge_mask([(head(0, 1), mlp(0)), (mlp(0), LOGITS)])
    assert mask.tolist() == [[False] * 4, [False] * 4, [False, False, True, False], [False, False, False, True]]


@pytest.mark.parametrize("name", ["L0H1", "L0H1-MLP0", "", "L0H1>MLP0"])
def test_what_is_no_edge_is_refused_with_examples(name):
    with pytest.raises(UserError, match=f'^"{name}" is no edge; write a sender, -> and a reader: "L0H1->MLP0", .*$'):
        parse_edge(name)


@pytest.mark.parametrize("name", ["->MLP0", "L0H1->", "L0H1->MLP", "a->b"])
def test_an_edge_between_what_is_no_node_is_refused(name):
    with pytest.raises(UserError, match=r'^no node is called ".*"; write "embed", "L0H3"'):
        parse_edge(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("L0H0->L0H1", "L0H0->L1H1"), ("MLP0->L0H0", "MLP0->L1H0"), ("L0H0->L7H0", "L0H0->L1H0"), ("logits->MLP0", "")],
)
def test_an_edge_that_the_transformer_has_not_is_refused_on_one_line_with_the_nearest(name, nearest):
    with pytest.raises(UserError, match=f'^the edge is "{name}"; did you mean "{nearest}.*"') as error:
        NODES.edge_mask([parse_edge(name)])
    assert "\n" not in str(error.value)


def test_the_logits_hold_no_variable():
    with pytest.raises(UserError, match="there is no node logits"):
        Circuit((Variable("a", ("tokens",), lambda tokens: tokens, LOGITS),), NODES)
    assert Node.parse("logits") == LOGITS


def test_the_frozen_rule_refuses_edges():
    frozen = Circuit(CIRCUIT.variables, NODES, "frozen")
    mask = jnp.asarray(NODES.edge_mask([]))
    with pytest.raises(
        UserError, match=r'^the rule "frozen" knows swaps of nodes alone; swap edges under the rule "causal"'
    ):
        jax.eval_shape(lambda: frozen(BASE, (mask, frozen(SOURCE)[1])))


@pytest.mark.usefixtures("types_unchecked")  # as users have it
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((7, 7, 3), "^the mask has 3 positions, but the sample 2 tokens; give it as many$"),
        ((7, 7, 1), "^the mask has 1 positions, but the sample 2 tokens; give it as many$"),
        ((6, 6), "^the mask has 6 places, but the transformer has 7 nodes; give it one a node$"),
        ((7, 6, 2), "^the mask has 6 places, but the transformer has 7 nodes; give it one a node$"),
    ],
)
def test_a_mask_of_other_nodes_or_positions_is_refused(shape, words):
    with pytest.raises(UserError, match=words):
        CIRCUIT(BASE, (jnp.zeros(shape, bool), CIRCUIT(SOURCE)[1]))


def swaps_of(batch=3, masks=2, nodes=7, seq=2, **parts) -> EdgeSwaps:
    """Swaps of nothing."""
    whole = EdgeSwaps(
        jnp.zeros((batch, masks, nodes, nodes), bool),
        jnp.zeros((batch, masks, nodes, seq), bool),
        jnp.zeros((batch, masks, nodes), jnp.int32),
    )
    return replace(whole, **parts)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("swaps", "sources", "words"),
    [
        (swaps_of(), jnp.zeros((4, 3), jnp.int32), "the sources have 3 tokens, the bases 2; a swap needs"),
        (swaps_of(seq=5), jnp.zeros((4, 2), jnp.int32), r"positions have shape \(3, 2, 7, 5\), .* take \(3, 2, 7, 2\)"),
        (swaps_of(nodes=6), jnp.zeros((4, 2), jnp.int32), r"edges have shape \(3, 2, 6, 6\), .* take \(3, 2, 7, 7\)"),
        (swaps_of(batch=1), jnp.zeros((4, 2), jnp.int32), r"edges have shape \(1, 2, 7, 7\), .* take \(3, 2, 7, 7\)"),
        (
            swaps_of(sources=jnp.full((3, 2, 7), 4, jnp.int32)),
            jnp.zeros((4, 2), jnp.int32),
            "the swaps take a sender from source run 4, but there are 4, counted from 0",
        ),
        (
            swaps_of(sources=jnp.full((3, 2, 7), -1, jnp.int32)),
            jnp.zeros((4, 2), jnp.int32),
            "the swaps take a sender from source run -1, but there are 4, counted from 0",
        ),
        (swaps_of(sources=None), jnp.zeros((4, 2), jnp.int32), "there are 4 sources of 3 samples; give one for each"),
    ],
    ids=lambda x: "" if not isinstance(x, str) else x[:30],
)
def test_swaps_of_other_samples_are_refused_on_one_line(swaps, sources, words):
    with pytest.raises(UserError, match=words) as error:
        edge_labels(CIRCUIT, jnp.ones((3, 2), jnp.int32), sources, swaps)
    assert "\n" not in str(error.value)
