"""The names in a lowered training step, by which a profile is read: layers, loss terms, draws, the evaluation."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp

from siitjax.model.forms import BATCH_LAST, PLAIN, ROLLED
from siitjax.siit.config import Hyperparams
from siitjax.siit.objective import Sampling
from siitjax.siit.train import make_train
from tests.tiny import CONFIG

SMALL = replace(CONFIG, batch_size=4, samples=10)
EDGES = replace(SMALL, sampling=Sampling(swaps="edges", drawn_per="example"))
LAYERS = {"embed", "blocks.0.attn", "blocks.0.mlp", "unembed"}
RUNS = {"source_run", "swapped_run", "causal_model"}
STEP = {"draw_swaps", "optimizer"}
TOKENS = jnp.zeros((4, SMALL.case.n_ctx), jnp.int32)


def names(function, *arguments) -> set[str]:
    """The parts of the paths at which a function's operations lie, as its lowered program says them."""
    lowered = jax.jit(function).lower(*arguments)
    paths = re.findall(r'loc\("([^"]+)"', lowered.as_text(debug_info=True))
    # What is derived or mapped is called "transpose(jvp(embed))", "vmap(embed)".
    return {re.sub(r".*\(|\)+$", "", part) for path in paths for part in path.split("/")}


def of_step(config, form) -> set[str]:
    train, hyper, key = make_train(config, form), Hyperparams().traced(), jax.random.key(0)
    state = jax.eval_shape(train.init, hyper, key)
    return names(train.step, hyper, (state.model, state.opt_state), TOKENS, TOKENS, key)


def test_the_layers_of_a_step_have_names():
    found = of_step(SMALL, BATCH_LAST)
    assert found >= {*LAYERS, *RUNS, *STEP, "loss_base_iit_siit"}
    assert "source_writes" not in found


def test_under_swaps_of_edges_they_have_the_same_and_those_of_what_is_swapped_in():
    assert of_step(EDGES, BATCH_LAST) >= {*LAYERS, *RUNS, *STEP, "base_run", "source_writes", "loss_base_iit_siit"}


def test_where_blocks_run_in_one_loop_all_layers_have_one_name():
    found = of_step(EDGES, ROLLED)
    assert found >= {"embed", "blocks.attn", "blocks.mlp", "unembed", "source_writes", *RUNS, *STEP}
    assert not found & {"blocks.0.attn", "blocks.0.mlp"}


def test_of_three_updates_each_has_the_name_of_its_term():
    found = of_step(replace(SMALL, updates="three"), PLAIN)
    assert found >= {*LAYERS, *RUNS, *STEP, "loss_base", "loss_iit", "loss_siit"}
    assert "loss_base_iit_siit" not in found
