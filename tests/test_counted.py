"""Labels where a task has them: of what a case does not count, no label reaches a loss, a metric or a table."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import siitjax
from siitjax import UserError, Variable
from siitjax.causal.behaviour import behaviour
from siitjax.causal.case import PAD
from siitjax.causal.combine import combine
from siitjax.causal.ground_truth import edge_effects, ground_truth
from siitjax.causal.validate import check_labels
from siitjax.io.model_card import card
from siitjax.model.swaps import EdgeSwaps
from siitjax.model.transformer import init_transformer
from siitjax.siit.edge_metrics import count_edges
from siitjax.siit.evaluate import count
from siitjax.siit.objective import edge_term_losses, term_losses

WHOLE = replace(siitjax.find_case("left_greater"), n_ctx=6, d_model=6, d_head=2, init_gain=1.0)
N = 8


def at_brackets_that_open(tokens):
    return tokens == 2


LAST = replace(WHOLE, counted="last")
SOME = replace(WHOLE, counted=at_brackets_that_open)


def spoilt(case):
    """The same case, in which what does not count has the class 2 for a label."""
    answer = case.variables[-1]

    def other(tokens, *read):
        return jnp.where(case.counted_mask(tokens), answer.compute(*read), 2)

    reads = ("tokens", *answer.reads)
    return replace(case, variables=(*case.variables[:-1], Variable(answer.name, reads, other, answer.node)))


def pairs(case):
    base, _ = case.draw(N, N, np.random.default_rng(0))
    base[:, 1] = 2  # so that each sample has one that opens
    return jnp.asarray(base), jnp.asarray(np.roll(base, 1, 0))


def test_no_loss_and_no_metric_sees_a_label_that_does_not_count():
    model = init_transformer(SOME.config, key=jax.random.key(0))
    base, source = pairs(SOME)
    masks = np.eye(len(SOME.circuit.nodes), dtype=bool)[1:]  # the tokens themselves stay
    edges = EdgeSwaps.of_all(np.asarray(SOME.circuit.nodes.as_edges(masks)), N)

    def all_of(case):
        return (
            term_losses(model, case, base, source, jnp.asarray(masks)),
            edge_term_losses(model, case, base, source, edges, jnp.float32(1.0)),
            count(model, case, base, source, key=jax.random.key(0)),
        )

    ours, others = (jax.jit(all_of, static_argnums=0)(each) for each in (SOME, spoilt(SOME)))
    for a, b in zip(*map(jax.tree.leaves, (ours, others)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(ours[2].base.of) == int((base == 2).sum())


def test_swaps_of_edges_are_counted_where_labels_count():
    base, source = pairs(LAST)
    model = init_transformer(LAST.config, key=jax.random.key(0))
    found = jax.jit(lambda m: count_edges(m, LAST, base, source, key=jax.random.key(0)))(model)
    assert set(np.asarray(found.tokens.of).tolist()) == {N}


def test_the_last_token_is_the_last_before_the_pads():
    tokens = jnp.array([[0, 2, 3, PAD, PAD, PAD], [0, 2, 3, 2, 3, 3]], jnp.int32)
    assert LAST.counted_mask(tokens).tolist() == [[False, False, True, *3 * [False]], [*5 * [False], True]]
    assert WHOLE.counted_mask(tokens).tolist() == WHOLE.token_mask(tokens).tolist()


def test_a_combined_case_counts_what_the_named_task_counts():
    both = combine([LAST, SOME, WHOLE], width_factor=None)
    samples, _ = both.draw(60, 6, np.random.default_rng(0))
    counted = np.asarray(both.counted_mask(jnp.asarray(samples)))
    task = samples[:, 0] - (len(both.vocabulary) - 3)
    assert counted.shape[1] == WHOLE.n_ctx + 1
    assert (counted[task == 0].sum(1) == 1).all()
    assert counted[task == 0, -1].all()
    own = samples[task == 1]
    np.testing.assert_array_equal(counted[task == 1], np.char.startswith(np.array(both.vocabulary)[own], "("))
    np.testing.assert_array_equal(counted[task == 2], np.arange(WHOLE.n_ctx + 1)[None].repeat(20, 0) > 0)
    assert combine([WHOLE, WHOLE], width_factor=None).counted is None


def test_what_is_said_of_a_case_says_what_counts():
    assert "counted" not in WHOLE.describe()
    assert "counted" not in ground_truth(WHOLE)
    assert LAST.describe()["counted"] == ground_truth(LAST)["counted"] == "last tokens"
    assert "The loss and the metrics are of last tokens alone." in card(LAST, None, {}, 1, ("BOS",), {})
    assert behaviour(LAST).computed.change(behaviour(SOME).computed) is not None
    assert behaviour(WHOLE).computed.variables.items() <= behaviour(LAST).computed.variables.items()


def test_the_effect_of_an_edge_is_on_labels_that_count():
    """Swapped from the strings before, in plain Python: the last answer alone."""
    base, _ = LAST.draw(2_000, 500, np.random.default_rng(0))
    more = [sum(+1 if t == 2 else -1 for t in row[1:].tolist()) > 0 for row in base]
    changed = np.mean([a != b for a, b in zip(more, more[-1:] + more[:-1], strict=True)])
    assert edge_effects(LAST)["L0H1", "MLP0"] == pytest.approx(changed)


def test_what_counts_nothing_or_is_no_mask_is_told_in_one_line():
    with pytest.raises(UserError, match=r'^no token of "BOS [()] .*" counts; the counted of left_greater must be '):
        check_labels(replace(WHOLE, counted=lambda tokens: tokens < 0))
    with pytest.raises(UserError, match=r"^counted gives int32 of shape \(6,\) for 6 tokens; it must give a bool of "):
        replace(WHOLE, counted=lambda tokens: tokens)
    check_labels(LAST)


@pytest.mark.usefixtures("types_unchecked")
def test_another_word_is_told():
    with pytest.raises(UserError, match=r'^counted is "lst"; did you mean "last"'):
        replace(WHOLE, counted="lst")
