"""The circuit: which declarations it refuses and with what words, that the order of declaration means nothing but
for the label, and what a swap does, in arithmetic small enough to read.

The circuit used throughout, on a transformer of two layers with two heads:

    tens (L0H0) = 10 tokens    sum (no node) = tens + tokens    sign (MLP0) = -sum    label (no node) = sign + 2 tens
"""

from itertools import permutations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siitjax.causal.circuit import Circuit, Variable
from siitjax.model.nodes import EMBED, Node, NodeList, head, mlp

NODES = NodeList(n_layers=2, n_heads=2)

TENS = Variable("tens", ("tokens",), lambda tokens: 10 * tokens, head(0, 0))
SUM = Variable("sum", ("tens", "tokens"), lambda tens, tokens: tens + tokens)
SIGN = Variable("sign", ("sum",), lambda sum: -sum, mlp(0))
LABEL = Variable("label", ("sign", "tens"), lambda sign, tens: sign + 2 * tens)
CIRCUIT = Circuit((TENS, SUM, SIGN, LABEL), NODES)

BASE, SOURCE = jnp.array([1, 2]), jnp.array([3, 5])


def var(name: str, *reads: str, node: Node | None = None) -> Variable:
    """A variable of which only the declaration matters."""
    return Variable(name, reads or ("tokens",), lambda *values: values[0], node)


def swapped(circuit: Circuit, *nodes: Node):
    """Labels, and values by name, of BASE when `nodes` take SOURCE's values."""
    labels, (tokens, *values) = circuit(BASE, (jnp.asarray(circuit.nodes.mask(nodes)), circuit(SOURCE)[1]))
    by_name = {v.name: np.asarray(value).tolist() for v, value in zip(circuit.ordered, values, strict=True)}
    return labels.tolist(), {"tokens": np.asarray(tokens).tolist(), **by_name}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ((), "the circuit has no variables; it needs at least one"),
        ((var("a"), var("b"), var("a")), 'the variable "a" is declared twice'),
        ((var("tokens"),), 'the variable "tokens" is declared twice'),
        ((var("a"), var("b", "x")), 'the variable "b" reads "x", which is not declared; it can read tokens, a, b'),
        ((var("a", "a"),), "in a circle: a -> a"),
        ((var("a"), var("b", "c"), var("c", "a", "b")), "in a circle: (b -> c -> b|c -> b -> c)"),
        ((var("a", node=head(0, 2)),), "there is no node L0H2; the nodes are embed, L0H0, L0H1, MLP0"),
        ((var("a", node=mlp(2)),), "there is no node MLP2"),
        ((var("a", node=EMBED),), 'the variable "a" is placed on the embedding'),
    ],
)
def test_a_declaration_without_meaning_is_refused(variables, words):
    with pytest.raises(ValueError, match=words):
        Circuit(variables, NODES)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (head(0, 0), head(0, 1)),
        (mlp(0), head(0, 0)),
        (head(1, 0), head(0, 1)),
        (head(1, 1), mlp(0)),
        (mlp(1), mlp(0)),
    ],
    ids=str,
)
@pytest.mark.parametrize("through", ["directly", "through plumbing"])
def test_a_variable_whose_node_is_not_after_the_nodes_it_reads_is_refused(earlier, later, through):
    plumbing = (var("p", "a"), var("q", "tokens", "p")) if through == "through plumbing" else ()
    read = "q" if plumbing else "a"
    with pytest.raises(ValueError, match=f'the variable "b" on {later} reads what {earlier} holds, which comes no'):
        Circuit((var("a", node=earlier), *plumbing, var("b", read, node=later)), NODES)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [(head(0, 1), mlp(0)), (mlp(0), head(1, 0)), (head(0, 0), head(1, 0)), (mlp(0), mlp(1)), (mlp(0), mlp(0))],
    ids=str,
)
def test_a_variable_on_a_later_node_or_on_the_same_is_accepted(earlier, later):
    circuit = Circuit((var("a", node=earlier), var("b", "a", node=later)), NODES)
    assert circuit.circuit_mask.sum() == len({earlier, later})


def test_without_a_swap_every_variable_is_computed_from_the_tokens():
    labels, (tokens, *values) = CIRCUIT(BASE)
    assert [v.name for v in CIRCUIT.ordered] == ["tens", "sum", "sign", "label"]
    assert [np.asarray(value).tolist() for value in (tokens, *values)] == [
        [1, 2],
        [10, 20],
        [11, 22],
        [-11, -22],
        [9, 18],
    ]
    assert labels.tolist() == [9, 18]


@pytest.mark.parametrize(
    ("nodes", "values"),
    [
        ([], {"tokens": [1, 2], "tens": [10, 20], "sum": [11, 22], "sign": [-11, -22], "label": [9, 18]}),
        ([head(0, 0)], {"tokens": [1, 2], "tens": [30, 50], "sum": [31, 52], "sign": [-31, -52], "label": [29, 48]}),
        ([mlp(0)], {"tokens": [1, 2], "tens": [10, 20], "sum": [11, 22], "sign": [-33, -55], "label": [-13, -15]}),
        (
            [head(0, 0), mlp(0)],
            {"tokens": [1, 2], "tens": [30, 50], "sum": [31, 52], "sign": [-33, -55], "label": [27, 45]},
        ),
        ([EMBED], {"tokens": [3, 5], "tens": [30, 50], "sum": [33, 55], "sign": [-33, -55], "label": [27, 45]}),
        (
            [EMBED, head(0, 0), mlp(0)],
            {"tokens": [3, 5], "tens": [30, 50], "sum": [33, 55], "sign": [-33, -55], "label": [27, 45]},
        ),
        (
            [head(0, 1), head(1, 0), head(1, 1), mlp(1)],
            {"tokens": [1, 2], "tens": [10, 20], "sum": [11, 22], "sign": [-11, -22], "label": [9, 18]},
        ),
    ],
    ids=lambda x: "+".join(map(str, x)) if isinstance(x, list) else "",
)
def test_swapped_variables_take_the_sources_values_and_all_downstream_is_computed_again(nodes, values):
    """The plumbing, sum and label, is always computed again: with every node swapped, sum still reads base's tokens."""
    assert swapped(CIRCUIT, *nodes) == (values["label"], values)


def test_variables_on_one_node_are_swapped_together():
    """b would be 100 times the swapped a; it takes its own value of the source run, from which it was not computed."""
    a = Variable("a", ("tokens",), lambda tokens: tokens + 1, mlp(0))
    b = Variable("b", ("a", "tokens"), lambda a, tokens: 100 * a + tokens, mlp(0))
    circuit = Circuit((a, b), NODES)
    assert circuit.at(mlp(0)) == (a, b)
    assert swapped(circuit, mlp(0)) == ([403, 605], {"tokens": [1, 2], "a": [4, 6], "b": [403, 605]})


def test_a_value_that_the_source_leaves_out_is_not_swapped():
    _, values = CIRCUIT(SOURCE)
    everything = jnp.ones(len(NODES), bool)
    no_tokens, _ = CIRCUIT(BASE, (everything, (None, *values[1:])))
    no_tens, _ = CIRCUIT(BASE, (everything, (None, None, *values[2:])))
    assert no_tokens.tolist() == [-33 + 60, -55 + 100]
    assert no_tens.tolist() == [-33 + 20, -55 + 40]


def test_the_order_of_declaration_changes_nothing_while_the_label_stays_last():
    everything = {
        nodes: swapped(CIRCUIT, *(node for node, there in zip(NODES, nodes, strict=True) if there))
        for nodes in product([False, True], repeat=len(NODES))
    }
    for order in permutations((TENS, SUM, SIGN)):
        circuit = Circuit((*order, LABEL), NODES)
        for nodes, expected in everything.items():
            assert swapped(circuit, *circuit.nodes.named(np.array(nodes))) == expected


def test_the_last_variable_declared_is_the_label_wherever_it_stands_in_the_graph():
    assert Circuit((LABEL, SIGN, TENS, SUM), NODES)(BASE)[0].tolist() == [11, 22]
    assert Circuit((SUM, LABEL, SIGN, TENS), NODES)(BASE)[0].tolist() == [10, 20]


def test_a_mask_may_be_traced():
    masks = jnp.asarray(np.stack([NODES.mask([]), NODES.mask([mlp(0)]), NODES.mask([EMBED])]))
    _, values = CIRCUIT(SOURCE)
    labels = jax.jit(jax.vmap(lambda mask: CIRCUIT(BASE, (mask, values))[0]))(masks)
    assert labels.tolist() == [[9, 18], [-13, -15], [27, 45]]


def test_circuit_and_unused_nodes_are_all_nodes_but_the_embedding():
    assert CIRCUIT.circuit_mask.tolist() == [False, True, False, True, False, False, False]
    assert CIRCUIT.unused_mask.tolist() == [False, False, True, False, True, True, True]


def test_a_node_names_the_variables_that_live_on_it():
    assert CIRCUIT.at(head(0, 0)) == (TENS,)
    assert CIRCUIT.at(mlp(0)) == (SIGN,)
    assert CIRCUIT.at(head(0, 1)) == CIRCUIT.at(EMBED) == ()
