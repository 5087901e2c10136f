"""Combined cases: where everything lies, what a sample is, and counterfactual labels against a walk over the graph in
plain Python, whose nodes are written out by hand.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import find_all
from siitjax.causal.combine import combine
from siitjax.causal.loss import SquaredError
from tests.test_counterfactuals import WALK, as_ids

PAIRS = 200

# names: (context of each, width factor, {variable: node} for what its own case does not say)
COMBINED = {
    "left_greater+paren_checker": ((8, 11), 1.0, {"task": "L0H0", "answer": "MLP3"}),
    "duplicate_remover+left_greater+unique_extractor": ((7, 9, 12), 1.0, {"task": "L0H3", "answer": "MLP3"}),
    "duplicate_remover+left_greater+paren_checker+unique_extractor": (
        (9, 6, 13, 10),
        1.25,
        {"task": "L0H4", "answer": "MLP3"},
    ),
    "left_greater+left_greater": (
        (7, 7),
        1.0,
        {"task": "L0H2", "answer": "MLP1", "left_greater#2.counts": "L0H0"},
    ),
}


def combined(names: str):
    contexts, width, _ = COMBINED[names]
    parts = [case.with_context(n) for case, n in zip(find_all(names), contexts, strict=True)]
    return combine(parts, width_factor=width), parts


def part_names(parts) -> list[str]:
    seen: list[str] = []
    for part in parts:
        copies = sum(name.split("#")[0] == part.name for name in seen)
        seen.append(part.name + (f"#{copies + 1}" if copies else ""))
    return seen


def folded(case, part, mark: str, tokens: list[str]) -> list[str]:
    """A combined sample as one task sees it, in the letters of the walk: the task token gone, a pad at the end."""
    own = {token + mark: token for token in part.vocabulary[2:]}
    letters = list(own.values())
    spelled = {"BOS": "^", "PAD": "_"}
    out = []
    for token in tokens[1:]:
        out.append(spelled.get(token) or own.get(token) or letters[0])
    return [*out, "_"]


def walk(case, parts, places, tokens, source=None, nodes: set[str] | None = None):
    """Every value of a combined case, those on `nodes` taken from `source`; and its labels."""
    values = {}

    def keep(name, node, value):
        values[name] = source[name] if nodes and source is not None and node in nodes else value
        return values[name]

    task = keep("task", places["task"], [case.tasks.index(tokens[0])] * len(tokens))
    answers = []
    for part, name in zip(parts, part_names(parts), strict=True):
        mark = "#" + name.split("#")[1] if "#" in name else ""
        own, variable = {"tokens": folded(case, part, mark, tokens)}, ""
        for variable, (node, reads, compute) in WALK[part.name].items():
            full = f"{name}.{variable}"
            own[variable] = keep(full, places.get(full, node), compute(*(own[read] for read in reads)))
        answers.append([0, *as_ids(own[variable]).tolist()[:-1]])
    return values, keep("answer", places["answer"], [answers[t][i] for i, t in enumerate(task)])


@pytest.fixture(scope="module", params=COMBINED)
def pairs(request):
    case, parts = combined(request.param)
    rng = np.random.default_rng(0)
    samples, _ = case.draw(4 * PAIRS, 40, rng)
    base, source = samples[:PAIRS], samples[PAIRS : 2 * PAIRS]

    @jax.jit
    @jax.vmap
    def labels(base, source, mask):
        return case.circuit(base, (mask, case.circuit(source)[1]))[0]

    spelled = lambda rows: [[case.vocabulary[t] for t in row] for row in rows.tolist()]
    return case, parts, COMBINED[request.param][2], (base, source), (spelled(base), spelled(source)), labels, rng


def check(pairs, masks):
    case, parts, places, (base, source), spelled, labels, _ = pairs
    found = np.asarray(labels(jnp.asarray(base), jnp.asarray(source), jnp.asarray(masks)))
    own = np.asarray(case.token_mask(jnp.asarray(base)))
    for i, (b, s) in enumerate(zip(*spelled, strict=True)):
        nodes = {str(node) for node in case.circuit.nodes.named(masks[i])}
        _, expected = walk(case, parts, places, b, walk(case, parts, places, s)[0], nodes)
        np.testing.assert_array_equal(found[i][own[i]], np.array(expected)[own[i]])
    return found, own


def test_every_variable_lies_where_it_should(pairs):
    case, parts, places, *_ = pairs
    expected = {
        f"{n}.{v}": node
        for p, n in zip(parts, part_names(parts), strict=True)
        for v, (node, *_) in WALK[p.name].items()
    }
    expected = {name: node for name, node in expected.items() if node} | places
    assert {v.name: str(v.node) for v in case.variables if v.node} == expected


def test_labels_under_each_nodes_swap_are_those_of_a_walk_in_plain_python(pairs):
    case = pairs[0]
    for node in case.circuit.nodes.named(case.circuit.circuit_mask):
        check(pairs, np.broadcast_to(case.circuit.nodes.mask([node]), (PAIRS, len(case.circuit.nodes))))


def test_labels_under_random_sets_of_nodes_are_those_of_a_walk_in_plain_python(pairs):
    case, *_, rng = pairs
    check(pairs, (rng.random((PAIRS, len(case.circuit.nodes))) < 0.3) & case.circuit.circuit_mask)


def test_every_node_of_a_circuit_changes_labels(pairs):
    case = pairs[0]
    clean, _ = check(pairs, np.zeros((PAIRS, len(case.circuit.nodes)), bool))
    for node in case.circuit.nodes.named(case.circuit.circuit_mask):
        mask = case.circuit.nodes.mask([node])
        found, own = check(pairs, np.broadcast_to(mask, (PAIRS, len(mask))))
        assert ((found != clean) & own).any(), node


def test_a_sample_is_a_task_token_a_sample_of_the_task_and_pads(pairs):
    case, parts, *_ = pairs
    train, validation = case.draw(400, 100, np.random.default_rng(1))
    assert train.shape == (400, case.n_ctx)
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in validation}
    tasks = [case.vocabulary[t] for t in train[:, 0].tolist()]
    for name, part in zip(part_names(parts), parts, strict=True):
        ours = train[[task == f"{name}:" for task in tasks]]
        assert abs(len(ours) - 400 / len(parts)) < 1
        assert (ours[:, 1] == 0).all()
        assert (ours[:, 1 + part.n_ctx :] == 1).all()
        assert (ours[:, 2 : 1 + part.n_ctx] > 1).all()
        counted = np.asarray(case.token_mask(jnp.asarray(ours))).sum(1)
        assert (counted == part.n_ctx).all()


def test_frozen_leaves_four_of_the_eight_nodes_of_1_and_2_without_effect():
    """The original's layout and rule: the answer is chosen by no node, and nothing downstream is computed again."""
    case = combine(find_all("1+2"), selection=False, counterfactual="frozen")
    nodes = case.circuit.nodes.named(case.circuit.circuit_mask)
    assert [*map(str, nodes)] == ["L0H0", "L0H1", "L0H3", "MLP0", "MLP1", "L2H3", "MLP2"]
    samples = jnp.asarray(case.draw(400, 40, np.random.default_rng(0))[0])

    def effect(rule, node):
        circuit = replace(case, counterfactual=rule).circuit
        mask = jnp.asarray(circuit.nodes.mask([node]))
        swap = jax.vmap(lambda b, s: circuit(b, (mask, circuit(s)[1]))[0] != circuit(b)[0])
        own = case.token_mask(samples[:200])
        return bool((swap(samples[:200], samples[200:]) & own).any())

    without = {str(node) for node in nodes if not effect("frozen", node)}
    assert without == {"L0H1", "L0H3", "MLP1", "L2H3"}
    assert all(effect("causal", node) for node in nodes)


def test_bad_combinations_are_refused(types_unchecked):
    left, paren = find_all("left_greater+2")
    with pytest.raises(ValueError, match="no cases were given"):
        combine([])
    everything = find_all("0+1+2+3")
    with pytest.raises(ValueError, match=r"1 missing; a width_factor of 1.25 \(d_model 40\) has them"):
        combine(everything)
    clash = replace(left, vocabulary=("BOS", "PAD", "(", "paren_checker:"))
    with pytest.raises(ValueError, match='"paren_checker:" is also the name of a task'):
        combine([clash, paren])
    with pytest.raises(ValueError, match="losses or initial gains of left_greater, paren_checker differ"):
        combine([left, replace(paren, init_gain=0.5)])
    assert SquaredError() != left.loss
    with pytest.raises(ValueError, match='counterfactual is "casual"'):
        combine([left, paren], counterfactual="casual")  # type: ignore


def test_share_heads_puts_all_tasks_into_the_first_heads_of_a_layer():
    case = combine(find_all("0+2+2"), share_heads=True)
    heads = {v.name: v.place for v in case.variables if any(node.head is not None for node in v.nodes)}
    assert heads == {
        "task": "L0H1",
        "duplicate_remover.previous": "L0H0",
        "paren_checker.counts": "L0H0",
        "paren_checker.horizon": "L2H0",
        "paren_checker#2.counts": "L0H0",
        "paren_checker#2.horizon": "L2H0",
    }


def test_a_sample_is_spelled_with_its_task_first():
    case = combine(find_all("1+2"))
    assert case.tokens(["paren_checker:", "(", ")"]).tolist() == [5, 0, 2, 3]
    with pytest.raises(ValueError, match="the first token must name the task; one of left_greater: paren_checker:"):
        case.tokens(["(", ")"])
