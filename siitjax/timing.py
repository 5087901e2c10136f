"""Work to be timed: forms of the training step, and medians taken turn by turn."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import siitjax.forms
from siitjax.train import Hyperparams, Purpose, TrainConfig, draw_data, draw_key, make_train

ROWS = 1536
LARGE_GFLOP = 2 * ROWS**3 / 1e9
"""Of the matrix product that stands for what the device can reach."""

PARTS = ("step", "evaluation")


class Form:
    """One form of the training step and of the evaluation, compiled for a number of lanes."""

    def __init__(self, config: TrainConfig, form: siitjax.forms.Form | None, lanes: int):
        train = make_train(config, form)
        hyper, data = Hyperparams().traced(), draw_data(config, 0)
        roots = jax.random.split(jax.random.key(0), lanes)
        states = jax.jit(jax.vmap(partial(train.init, hyper)))(roots)
        base, source = data.train[: config.batch_size], data.train[-config.batch_size :]
        step = lambda learner, root: train.step(hyper, learner, base, source, draw_key(root, Purpose.MASKS))
        evaluation = lambda state: train.measure(data, state)
        self.learners, self.roots, self.states = (states.model, states.opt_state), roots, states
        began = time.perf_counter()
        self.compiled_step = _lanes(step, lanes).lower(self.learners, self.roots).compile()
        self.compiled_evaluation = _lanes(evaluation, lanes).lower(self.states).compile()
        self.compile_s = time.perf_counter() - began
        self.counted_flops = (self.compiled_step.cost_analysis() or {}).get("flops", 0.0) / lanes

    def step(self) -> Any:
        return self.compiled_step(self.learners, self.roots)

    def evaluation(self) -> Any:
        return self.compiled_evaluation(self.states)


def _lanes(function: Callable[..., Any], lanes: int) -> Any:
    """`function` over lanes; one lane is the function itself, as a worker on a CPU runs it."""
    alone = lambda *lane: function(*jax.tree.map(lambda x: x[0], lane))
    return jax.jit(alone if lanes == 1 else jax.vmap(function))


def medians(work: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Median seconds of each, run turn by turn so that all see the same machine."""
    seconds = {name: [] for name in work}
    for _ in range(runs):
        for name, function in work.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def large_product() -> Callable[[], Any]:
    """One large float32 matrix product, compiled."""
    x = jnp.ones((ROWS, ROWS), jnp.float32)
    return partial(jax.jit(jnp.matmul).lower(x, x).compile(), x, x)
