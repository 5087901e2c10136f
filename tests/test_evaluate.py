"""Every metric, counted again token by token in plain Python; and models made by hand whose metrics are known.

The reference runs the transformer and the circuit under one swap at a time, then only compares, counts and divides.
"""

from dataclasses import replace
from fractions import Fraction

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import duplicate_remover, left_greater, paren_checker
from siitjax.causal.case import Case
from siitjax.causal.circuit import Variable
from siitjax.model.forms import BATCH_LAST
from siitjax.model.nodes import head
from siitjax.model.transformer import LayerNorm, Transformer
from siitjax.siit.evaluate import evaluate
from siitjax.siit.metrics import NAMES, shares
from tests.test_interchange import model_of, run_transformer

KEY = jax.random.key(5)
jitted = eqx.filter_jit(evaluate)


def evaluated(model, case, samples, key=KEY, embedding=False):
    return shares(jitted(model, case, samples, key=key, embedding=embedding))


def copy(tokens):
    return tokens


def zero(tokens):
    return 0 * tokens


def samples_of(case: Case, n: int) -> jax.Array:
    """Random samples of different lengths, PAD after their own tokens."""
    rng = np.random.default_rng(0)
    samples = rng.integers(2, len(case.vocabulary), (n, case.n_ctx)).astype(np.int32)
    samples[:, 0] = 0
    samples[np.arange(case.n_ctx) >= rng.integers(2, case.n_ctx + 1, (n, 1))] = 1
    return jnp.asarray(samples)


def runs(model: Transformer, case: Case, samples, embedding: bool):
    """Logits and labels of every sample under every mask: nothing, each node of the circuit, each unused node, all
    unused nodes, and a random subset of them drawn for the sample. Each is (sample, mask, ...)."""
    order_key, subset_key = jax.random.split(KEY)
    sources = samples[jax.random.permutation(order_key, len(samples))]
    nodes = list(case.config.nodes)
    used = {v.node for v in case.variables if v.node} | ({nodes[0]} if embedding else set())
    unused = [node for node in nodes[1:] if node not in used]
    subsets = np.asarray(jax.random.bernoulli(subset_key, 0.5, (len(samples), len(nodes))))
    swaps = [(), *((node,) for node in nodes if node in used), *((node,) for node in unused), unused]
    swaps_of = [[*swaps, [node for node in unused if subset[nodes.index(node)]]] for subset in subsets]

    @jax.jit
    @jax.vmap
    def labels(base, source, masks):
        return jax.vmap(lambda mask: case.circuit(base, (mask, case.circuit(source)[1]))[0])(masks)

    logits = [
        [run_transformer(model, base, swapped, values)[0] for swapped in row]
        for base, row, values in zip(samples, swaps_of, (run_transformer(model, s)[1] for s in sources), strict=True)
    ]
    masks = jnp.asarray([[case.config.nodes.mask(swapped) for swapped in row] for row in swaps_of])
    return np.array(logits), np.asarray(labels(samples, sources, masks)), len(used), len(unused)


def by_hand(model: Transformer, case: Case, samples, embedding: bool = False) -> dict:
    """The metrics by name."""
    logits, labels, n_used, n_unused = runs(model, case, samples, embedding)
    right = [[] for _ in range(logits.shape[1])]
    right_changed = [[] for _ in range(logits.shape[1])]
    whole = [[] for _ in range(logits.shape[1])]
    for i, tokens in enumerate(samples.tolist()):
        for j in range(logits.shape[1]):
            sample = []
            for position, token in enumerate(tokens):
                if token == 1:
                    continue
                scores = logits[i, j, position].tolist()
                sample.append(scores.index(max(scores)) == labels[i, j, position])
                if labels[i, j, position] != labels[i, 0, position]:
                    right_changed[j].append(sample[-1])
            right[j] += sample
            whole[j].append(all(sample))
    share = lambda hits: Fraction(sum(hits), len(hits)) if hits else None
    mean = lambda found: sum(found := [*found]) / len(found)
    used, unused = slice(1, 1 + n_used), slice(1 + n_used, 1 + n_used + n_unused)
    changed = [share(hits) for hits in right_changed[used]]
    return {
        "accuracy": share(right[0]),
        "iia": mean(map(share, right[used])),
        "changed_iia": mean(x for x in changed if x is not None),
        "worst_changed_iia": min(x for x in changed if x is not None),
        "sequence_iia": mean(map(share, whole[used])),
        "siia": mean(map(share, right[unused])),
        "joint_siia": share(right[unused.stop]),
        "subset_siia": share(right[unused.stop + 1]),
        "node_iia": tuple(map(share, right[used])),
        "node_changed_iia": tuple(changed),
        "node_changed": tuple(map(len, right_changed[used])),
        "node_siia": tuple(map(share, right[unused])),
        "perfect": all(map(all, right[: unused.stop])),
    }


def lively(case: Case) -> Transformer:
    """A transformer that is right at BOS and whose other answers move with every token and every swap: it is right
    here and there, and no share is 0 or 1, which would hide a wrong count."""
    model = jax.tree.map(lambda leaf: 2 * leaf, model_of(case, seed=2))
    label = case.circuit(jnp.zeros(case.n_ctx, jnp.int32))[0][0]
    towards_it = 100 * (model.unembed.W_U[:, label] - model.unembed.W_U.mean(1))
    return eqx.tree_at(
        lambda m: (m.pos_embed.W_pos, m.ln_final, m.unembed.b_U),
        model,
        (
            model.pos_embed.W_pos.at[0].set(towards_it),
            LayerNorm(jnp.ones(case.d_model), jnp.zeros(case.d_model)),
            jnp.zeros(case.n_outputs),
        ),
    )


def case_of(case: Case, *variables: Variable, **changed) -> Case:
    return replace(case, variables=variables or case.variables, **{"n_ctx": 6, **changed})


WITH_IDLE = case_of(
    left_greater.CASE, Variable("idle", ("tokens",), copy, head(0, 0)), *left_greater.CASE.variables, name="with_idle"
)
"""A case of which one node's variable is read by no other: its swap changes no label."""

PAREN_CHECKER = paren_checker.CASE.with_context(7)


@pytest.mark.parametrize(
    ("case", "embedding"),
    [(WITH_IDLE, False), (PAREN_CHECKER, True), (case_of(duplicate_remover.CASE), False)],
    ids=lambda x: getattr(x, "name", x),
)
def test_every_metric_is_what_counting_token_by_token_gives(case, embedding):
    model, samples = lively(case), samples_of(case, 40)
    got = evaluated(model, case, samples, embedding=embedding)
    wanted = by_hand(model, case, samples, embedding)
    assert {name: getattr(got, name) for name in NAMES} == wanted
    scores = [value for name, value in wanted.items() if name.endswith("a") and not name.startswith("node")]
    assert all(0 < share < 1 for share in scores)


def test_a_node_whose_swap_changes_no_label_is_none_there_and_left_out_of_the_mean_and_the_worst():
    metrics = evaluated(lively(WITH_IDLE), WITH_IDLE, samples_of(WITH_IDLE, 40))
    assert metrics.node_changed[0] == 0
    none, *others = metrics.node_changed_iia
    assert none is None
    first, second = (share or Fraction(0) for share in others)
    assert 0 < min(first, second) == metrics.worst_changed_iia
    assert metrics.changed_iia == (first + second) / 2


def test_where_no_swap_changes_a_label_no_node_is_the_worst():
    alike = jnp.repeat(samples_of(WITH_IDLE, 1), 40, axis=0)
    metrics = evaluated(lively(WITH_IDLE), WITH_IDLE, alike)
    assert metrics.node_changed == (0, 0, 0)
    assert metrics.changed_iia is metrics.worst_changed_iia is None


def test_without_unused_nodes_siia_is_whole_and_a_joint_swap_is_none():
    counts, *others = left_greater.CASE.variables
    case = case_of(left_greater.CASE, replace(counts, node=head(0, 0)), *others, d_model=6, d_head=6)
    metrics = evaluated(lively(case), case, samples_of(case, 40))
    assert metrics.node_siia == ()
    assert metrics.siia == 1
    assert 0 < metrics.accuracy < 1
    assert metrics.joint_siia == metrics.subset_siia == metrics.accuracy
    assert not metrics.perfect


def test_chunks_bound_the_memory_and_not_the_result():
    case = WITH_IDLE
    model, samples = lively(case), samples_of(case, 40)
    whole = jitted(model, case, samples, key=KEY)
    form = BATCH_LAST._replace(at_once=9)
    chex.assert_trees_all_equal(jitted(model, case, samples, key=KEY, form=form), whole)


@pytest.mark.parametrize(
    ("at_once", "enough", "measured"), [(9, 1, 9), (9, 10, 18), (9, 36, 36), (9, 37, 37), (50, 1, 37)]
)
def test_where_a_token_is_wrong_enough_chunks_are_measured_and_no_more(at_once, enough, measured):
    """37 is prime, so that a last chunk of one is left."""
    case, samples = ALWAYS_0, samples_of(ALWAYS_0, 37)
    form = BATCH_LAST._replace(at_once=at_once)
    metrics = jitted(answering(case, 1), case, samples, key=KEY, enough=enough, form=form)
    assert metrics.base.of == (samples[:measured] != 1).sum()
    assert metrics.whole.of == measured
    assert not metrics.perfect


def test_while_nothing_is_wrong_all_is_measured_and_a_late_error_is_found():
    case, form = ALWAYS_0, BATCH_LAST._replace(at_once=9)
    # The last position counts in the last sample alone.
    last = jnp.arange(case.n_ctx) == case.n_ctx - 1
    samples = jnp.where(last, 1, samples_of(case, 37)).at[-1].set(jnp.full(case.n_ctx, 2).at[0].set(0))
    right, late = answering(case, 0), answering(case, *(0,) * (case.n_ctx - 1), 1)
    metrics = jitted(right, case, samples, key=KEY, enough=1, form=form)
    assert metrics.perfect
    chex.assert_trees_all_equal(metrics, jitted(right, case, samples, key=KEY))
    metrics = jitted(late, case, samples, key=KEY, enough=1, form=form)
    assert metrics.whole.of == 37
    assert metrics.base.of - metrics.base.right == 1
    assert not metrics.perfect


def answering(case: Case, *classes: int) -> Transformer:
    """A transformer that gives the class `classes[i]` at position i, and the last of them from there on: its heads
    and its MLPs write nothing, and each class is a direction of the residual stream."""
    model = jax.tree.map(jnp.zeros_like, model_of(case))
    classes = (*classes, *(classes[-1] for _ in range(case.n_ctx - len(classes))))
    return eqx.tree_at(
        lambda m: (m.pos_embed.W_pos, m.ln_final.w, m.unembed.W_U),
        model,
        (jnp.eye(case.d_model)[np.array(classes)], jnp.ones(case.d_model), jnp.eye(case.d_model, case.n_outputs)),
    )


def test_every_sample_is_the_source_of_one_other_in_an_order_that_the_key_decides():
    """Where a swap makes the source's tokens the labels, constant answers are right as often as their token stands
    in the sample set, whatever the order."""
    case = case_of(left_greater.CASE, Variable("copy", ("tokens",), copy, head(0, 0)), n_outputs=4)
    tokens = np.random.default_rng(0).choice([2, 2, 2, 3], (40, case.n_ctx)).astype(np.int32)
    samples = jnp.asarray(tokens).at[:, 0].set(0)
    changed = set()
    for i in range(4):
        metrics = evaluated(answering(case, 0, 2), case, samples, key=jax.random.key(i))
        assert metrics.iia == Fraction(int((samples != 3).sum()), samples.size)
        changed.add(metrics.node_changed[0])
    assert len(changed) > 1


def test_always_answering_no_hides_in_iia_but_not_on_changed_labels():
    """No token is its own opposite, but one may be that of the source's token: under a swap `no` is wrong at just the
    tokens whose label changed. Each sample holds one ) at a place of its own, so that no swap changes more than 2."""
    opposite = Variable("opposite", ("tokens",), lambda tokens: 5 - tokens, head(0, 0))
    label = Variable("is_opposite", ("tokens", "opposite"), lambda tokens, other: (tokens == other).astype(int))
    case = replace(left_greater.CASE, variables=(opposite, label), n_outputs=2)
    samples = jnp.full((14, 15), 2, jnp.int32).at[:, 0].set(0).at[jnp.arange(14), 1 + jnp.arange(14)].set(3)
    metrics = evaluated(answering(case, 0), case, samples)
    assert metrics.accuracy == 1
    assert metrics.iia == 1 - Fraction(metrics.node_changed[0], 14 * 15)
    assert 1 - Fraction(2, 15) <= metrics.iia < 1
    assert metrics.changed_iia == metrics.worst_changed_iia == 0


def test_on_paren_checker_always_answering_no_is_half_right_on_labels_that_the_counts_change():
    """The swap of the counts gives each sample the labels of its source; sources being the samples in another order,
    as many tokens turn from yes to no as from no to yes."""
    case = PAREN_CHECKER
    validation = jnp.asarray(case.draw(8, 40, np.random.default_rng(0))[1])
    metrics = evaluated(answering(case, 2, 0), case, validation, embedding=True)
    assert min(metrics.accuracy, metrics.iia, metrics.siia) > 0.8
    embed, counts, *_ = metrics.node_changed_iia
    assert embed == counts == Fraction(1, 2)
    assert not metrics.perfect


ALWAYS_0 = case_of(left_greater.CASE, Variable("answer", ("tokens",), zero, head(0, 1)), n_outputs=2)


@pytest.mark.parametrize(("seed", "imperfect"), [(196, "iia"), (5, "siia")])
def test_perfect_is_no_token_wrong_under_any_one_swap_whatever_a_joint_swap_does(seed, imperfect):
    """The label is always 0, so that a bias on its logit moves every margin alike. It is put between the least margin
    under swaps of one node and the lesser one that all unused nodes together leave; and then too low for one token.
    The seeds are those of weights whose least margin falls under a circuit node, and under an unused one."""
    case = ALWAYS_0
    model, samples = model_of(case, seed), samples_of(case, 40)
    logits, _, n_used, n_unused = runs(model, case, samples, False)
    margins = np.where((samples != 1)[:, None], logits[..., 0] - logits[..., 1], np.inf)
    least, second = np.sort(margins[:, : 1 + n_used + n_unused].ravel())[:2]
    joint = margins[:, 1 + n_used + n_unused].min()
    assert joint < least

    def shifted(by):
        moved = eqx.tree_at(lambda m: m.unembed.b_U, model, replace_fn=lambda b: b.at[0].add(-by))
        return evaluated(moved, case, samples)

    metrics = shifted((joint + least) / 2)
    assert metrics.perfect
    assert metrics.accuracy == metrics.iia == metrics.siia == 1
    assert metrics.joint_siia < 1
    metrics = shifted((least + second) / 2)
    assert not metrics.perfect
    assert {name for name in ("accuracy", "iia", "siia") if getattr(metrics, name) < 1} == {imperfect}


def test_a_share_is_exactly_1_where_all_is_right_and_0_where_all_is_wrong():
    samples = samples_of(ALWAYS_0, 40)
    right, wrong = (evaluated(answering(ALWAYS_0, i), ALWAYS_0, samples) for i in (0, 1))
    for name in ("accuracy", "iia", "sequence_iia", "siia", "joint_siia", "subset_siia"):
        assert (getattr(right, name), getattr(wrong, name)) == (1, 0), name
    for name in ("node_iia", "node_siia"):
        assert (set(getattr(right, name)), set(getattr(wrong, name))) == ({1}, {0}), name
    assert right.perfect
    assert not wrong.perfect
