"""Work to be timed: forms of the training step and of the evaluation, compiled for a number of lanes."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from siitjax.model.forms import Form
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.train import Purpose, draw_data, draw_key, make_train
from siitjax.sweep.lanes import Batching, over_lanes

ROWS = 1536
LARGE_GFLOP = 2 * ROWS**3 / 1e9
"""Of the matrix product that stands for what the device can reach."""

PARTS = ("step", "evaluation")
STEPS = 8
"""Training steps a timed call."""


class Timed:
    """One form of the training step and of the evaluation, on lanes that are split over the devices; each of the two is
    compiled when it is first called."""

    def __init__(self, config: TrainConfig, form: Form, lanes: int, batching: Batching = "map", devices: int = 1):
        train = make_train(config, form)
        hyper, data = Hyperparams().traced(), draw_data(config, 0)
        mesh = Mesh(np.asarray(jax.local_devices()[:devices]), ("lane",))
        states = jax.jit(jax.vmap(partial(train.init, hyper)))(jax.random.split(jax.random.key(0), lanes))
        states = jax.device_put(states, NamedSharding(mesh, PartitionSpec("lane")))
        base, source = data.train[: config.batch_size], data.train[-config.batch_size :]

        def steps(state):
            # As an epoch runs them: a step alone would pay for memory that the next one finds at hand.
            def one(learner, count):
                return train.step(hyper, learner, base, source, draw_key(state.root, Purpose.MASKS, count))

            return jax.lax.scan(one, (state.model, state.opt_state), jnp.arange(STEPS))[0]

        def evaluation(state):
            return train.validate(data, state)

        compiled = lambda one: jax.jit(over_lanes(one, lanes // devices, batching, mesh))
        self.states, self.compiled_step, self.compiled_evaluation = states, compiled(steps), compiled(evaluation)

    def step(self) -> Any:
        """`STEPS` steps of every lane."""
        return self.compiled_step(self.states)

    def evaluation(self) -> Any:
        """Runs the evaluation once; gives its metrics, which may still be computing."""
        return self.compiled_evaluation(self.states)


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Seconds a call, over `repeats` of them."""
    began = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(function())
    return (time.perf_counter() - began) / repeats


def large_product() -> Callable[[], Any]:
    """One large float32 matrix product, compiled."""
    x = jnp.ones((ROWS, ROWS), jnp.float32)
    return partial(jax.jit(jnp.matmul).lower(x, x).compile(), x, x)
