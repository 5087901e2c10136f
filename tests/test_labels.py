"""A label that no output can match is told before anything trains: in one line, with the sample and what to mend."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from cases import CASES, build, left_greater
from siitjax.base.command import main
from siitjax.base.errors import UserError
from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Variable
from siitjax.causal.combine import combine
from siitjax.causal.data import Uniform
from siitjax.causal.loss import CrossEntropy, SquaredError
from siitjax.causal.validate import check_labels
from siitjax.model.nodes import head
from siitjax.model.transformer import init_transformer
from siitjax.siit.evaluate import evaluate
from siitjax.siit.objective import term_losses
from sweeps.betas import Betas

HELD = (Variable("lefts", ("tokens",), lambda tokens: (tokens == 2).astype(int), head(0, 1)),)


def case_of(compute, *reads: str, **changes) -> Case:
    """A case of two letters whose label is computed so from the tokens and from whether they are "(", which L0H1 holds.

    Two classes, 0 and 1.
    """
    answer = Variable("answer", reads, compute)
    return replace(
        left_greater.CASE, variables=(*HELD, answer), strata=(Uniform((2, 3)),), n_ctx=4, **{"n_outputs": 2, **changes}
    )


@pytest.mark.parametrize("case", [*CASES, build("1+2"), build("0+1", counterfactual="frozen")], ids=lambda c: c.name)
def test_labels_that_outputs_can_match_are_accepted(case):
    check_labels(case)


@pytest.mark.parametrize("label", [2, 7, -1])
def test_a_class_that_there_is_no_output_for_is_refused_in_one_line(label):
    case = case_of(lambda tokens, lefts: jnp.where(tokens == 3, label, lefts), "tokens", "lefts", name="mine")
    with pytest.raises(ValueError, match=f"^the label of mine is {label} at position ") as refused:
        check_labels(case)
    ((position, sample, advice),) = re.findall(r'at position (\d) of "(.*?)"; (.*)', str(refused.value))
    assert sample.split()[int(position)] == ")"
    assert advice == 'classes are 0 to 1, as n_outputs is 2: raise it, or mend the variable "answer"'


def test_a_class_that_only_a_swap_brings_is_refused_with_the_swap():
    """Each token is either ( or ): the sum of both is 1, but for BOS, unless one of them is another sample's."""
    case = case_of(lambda tokens, lefts: lefts + (tokens == 3).astype(int), "tokens", "lefts")
    words = r'is 2 at position (\d) of "(.*)" with L0H1 taken from "(.*)"; classes are 0 to 1'
    with pytest.raises(ValueError, match=words) as refused:
        check_labels(case)
    ((position, base, source),) = re.findall(words, str(refused.value))
    assert (base.split()[int(position)], source.split()[int(position)]) == (")", "(")
    check_labels(replace(case, n_outputs=3))


def test_a_class_at_a_pad_does_not_matter():
    case = case_of(lambda tokens, lefts: jnp.where(tokens == PAD, 99, lefts), "tokens", "lefts")
    check_labels(replace(case, strata=(Uniform((PAD, 2, 3)),)))


def test_of_several_tasks_the_sample_names_the_one():
    wrong = case_of(lambda lefts: 9 * lefts, "lefts", name="nines")
    with pytest.raises(ValueError, match=r'the label of left_greater\+nines is 9 at .* of "nines: BOS .*"'):
        check_labels(combine([left_greater.CASE, wrong]))


def test_a_number_that_is_not_finite_is_refused():
    share = lambda lefts: (jnp.cumsum(lefts) / jnp.arange(4)).astype(jnp.float32)[:, None]
    case = case_of(share, "lefts", n_outputs=1, loss=SquaredError())
    with pytest.raises(
        ValueError, match=r'is \[nan\] at position 0 .*; it must be finite: mend the variable "answer"$'
    ):
        check_labels(case)


class Slip(Betas):
    """A question about a case with too few outputs."""

    def build(self, **layout):
        return replace(super().build(**layout), n_outputs=2)


def test_the_command_says_so_in_one_line_and_creates_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(Slip, ["slip", f"--out={tmp_path / 'results'}"])
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("slip: the label of left_greater is 2 at position 0 of ")
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bool_is_the_classes_1_and_0():
    """The natural way to write whether: it is trained and measured as the integers are."""
    case = case_of(lambda tokens, lefts: (tokens == 2) & (lefts > 0), "tokens", "lefts")
    check_labels(case)
    labels, (_, _, answer) = case.circuit(case.tokens("()("))
    assert answer is not None
    assert (labels.dtype, labels.tolist()) == (jnp.int32, [0, 1, 0, 1])
    assert answer.dtype == bool  # what other variables read of it
    model = init_transformer(case.config, key=jax.random.key(0))
    base = jnp.stack([case.tokens("()("), case.tokens("(()")])
    metrics = jax.eval_shape(lambda base: evaluate(model, case, base, key=jax.random.key(0)), base)
    masks = jnp.asarray(case.circuit.circuit_mask)[None]
    losses = jax.eval_shape(lambda base: term_losses(model, case, base, base, masks), base)
    assert (metrics.base.right.shape, losses.shape) == ((), (1,))


@pytest.mark.parametrize(
    ("loss", "dtype", "words"),
    [
        (
            CrossEntropy(),
            jnp.float32,
            r"the label is of float32, but CrossEntropy\(\) takes classes, of an integer dtype or",
        ),
        (
            SquaredError(),
            jnp.int32,
            r"the label is of int32, but SquaredError\(tolerance=0.05\) takes numbers, of a float",
        ),
    ],
)
def test_a_label_of_another_kind_than_the_loss_takes_is_refused_when_the_case_is_made(loss, dtype, words):
    shaped = (lambda x: x[:, None]) if loss == SquaredError() else (lambda x: x)
    with pytest.raises(UserError, match=words):
        case_of(lambda tokens, lefts: shaped(lefts.astype(dtype)), "tokens", "lefts", loss=loss, n_outputs=1)


def test_what_a_variable_raises_keeps_its_traceback_and_names_the_variable():
    with pytest.raises(AttributeError, match="no attribute sumz") as raised:
        case_of(lambda tokens, lefts: lefts.sumz(), "tokens", "lefts")
    note = 'It was raised by the variable "answer", which is computed from tokens, lefts.'
    assert note in raised.value.__notes__
    assert raised.traceback[-1].name == "<lambda>"


def test_a_variable_that_is_not_of_every_token_is_refused():
    with pytest.raises(
        UserError, match=r'the variable "answer" has shape \(\), but what it reads has 4 tokens; it must'
    ):
        case_of(lambda tokens, lefts: lefts.sum(), "tokens", "lefts")


def test_a_text_where_a_node_belongs_is_told_how_to_be_one(types_unchecked):
    with pytest.raises(UserError, match=r'^the node "MLP0" is a text; write Node.parse\("MLP0"\)'):
        replace(left_greater.CASE, variables=(replace(HELD[0], node="MLP0"),), n_outputs=15)
