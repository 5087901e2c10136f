"""Matrix products: true float32 unless something else was asked for, in the model and in training; and 64 bits, where
jax is told to use them. Programs are lowered here and not compiled: what was asked of the compiler is in their text."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from siitjax.base.errors import UserError
from siitjax.model.forms import PLAIN
from siitjax.model.transformer import init_transformer
from siitjax.siit.train import make_train
from siitjax.sweep.engine import Member
from sweeps.betas import Betas
from tests.commands import HANGS
from tests.tiny import CASE, CONFIG, LEARNS


def asked(function, *arguments) -> set[str]:
    """What the products of a function ask for; "DEFAULT" of those that ask for nothing."""
    text = jax.jit(function).lower(*arguments).as_text()
    found = set()
    for line in text.splitlines():
        if "dot_general" in line:
            words = re.search(r"precision = \[(\w+), (\w+)\]", line)
            found |= {"DEFAULT"} if words is None else {*words.groups()}
    return found


def answer(tokens):
    return init_transformer(CASE.config, key=jax.random.key(0))(tokens)[0]


TOKENS = jnp.zeros(CASE.n_ctx, jnp.int32)


@pytest.mark.parametrize(("set_to", "precision"), [(None, "HIGHEST"), ("high", "HIGH"), ("default", "DEFAULT")])
def test_the_model_multiplies_in_float32_unless_jax_s_own_setting_says_otherwise(set_to, precision):
    with jax.default_matmul_precision(set_to):
        assert asked(answer, TOKENS) == {precision}
        assert jax.config.jax_default_matmul_precision == set_to  # type: ignore


@pytest.mark.parametrize(("matmul_precision", "precision"), [("highest", "HIGHEST"), ("default", "DEFAULT")])
def test_every_product_of_training_is_as_precise_as_its_config_says(matmul_precision, precision):
    """Forward and backward, in the form that GPUs and TPUs run, whatever jax is set to."""
    train = make_train(replace(CONFIG, matmul_precision=matmul_precision), PLAIN)
    hyper, root = LEARNS.traced(), jax.random.key(0)
    state = jax.eval_shape(train.init, hyper, root)
    batch = jnp.zeros((CONFIG.batch_size, CASE.n_ctx), jnp.int32)
    step = partial(train.step, hyper)
    with jax.default_matmul_precision("high"):
        assert asked(step, (state.model, state.opt_state), batch, batch, root) == {precision}


def test_the_precision_is_a_flag_and_decides_a_row():
    member = Betas(seeds=1, matmul_precision="high").members()[0]
    assert member.config.matmul_precision == "high"
    assert json.loads(json.dumps(member.describe()))["training"]["matmul_precision"] == "high"
    assert Member("", 0, CONFIG).describe()["training"]["dtype"] == "float32"


def test_a_precision_that_does_not_exist_is_refused_with_those_that_do(types_unchecked):
    with pytest.raises(UserError, match='matmul_precision is "hihgest"; did you mean "highest"'):
        replace(CONFIG, matmul_precision="hihgest")


IN_64_BITS = """
from dataclasses import replace
import jax, numpy as np
from siitjax.model.forms import BATCH_LAST, PLAIN, fastest
from siitjax.sweep.lanes import compile_program
from siitjax.sweep.engine import Engine, Member, Watcher
from siitjax.sweep.processes.launch import Waiting
from siitjax.siit.train import draw_data, make_train
from tests.tiny import CONFIG, STAYS, SLOW

assert fastest() is BATCH_LAST
config = replace(CONFIG, case=replace(CONFIG.case, n_layers=1), epochs=2)
member = Member("", 0, config, replace(SLOW, lr_start=1e-4, lr_end=1e-4))
outcomes = []
keep = lambda index, member, outcome: outcomes.append(outcome) or {}
engine = Engine([member], lambda *_: compile_program(config), keep, lambda spot, like: like, Watcher())
engine.run(Waiting([member], [0], {}))

hyper, data = member.hyper.traced(), draw_data(config, 0)
train = make_train(config, PLAIN)
alone = lambda: train.advance(hyper, data, train.init(hyper, jax.random.key(0)), 2)
state = jax.jit(alone)()
(outcome,) = outcomes
assert outcome.epochs == int(state.epoch) == 2
assert member.describe()["training"]["dtype"] == "float64"
for ours, theirs in zip(jax.tree.leaves(outcome.model), jax.tree.leaves(state.model), strict=True):
    assert ours.dtype == theirs.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
np.testing.assert_allclose(outcome.history.loss, state.history.loss, rtol=0, atol=1e-9)
print("trained in 64 bits")
"""


def test_with_64_bits_both_forms_train_and_agree_to_more_digits_than_float32_has():
    env = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", IN_64_BITS], env=env, capture_output=True, text=True, timeout=HANGS)
    assert done.stdout == "trained in 64 bits\n", done.stderr
