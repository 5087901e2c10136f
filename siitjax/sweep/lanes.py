"""One bucket's compiled program on a number of lanes, each of which one member occupies.

A member enters a lane and leaves it without a new compilation. Lanes are split evenly over the devices of a mesh, and
devices do not wait for one another. On a device they run side by side ("vmap": what fills a GPU or TPU) or in turn
("map": what suits a CPU, and gives each member the bits that it has alone).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Int

from siitjax.base.choice import check_choice
from siitjax.base.compilation import quick_to_compile
from siitjax.base.errors import UserError
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.metrics import Metrics
from siitjax.siit.train import Data, State, Stop, make_train

Batching = Literal["map", "vmap"]


class Batch(eqx.Module):
    """The members in the lanes: every leaf has a leading lane axis. A lane whose member has stopped is free."""

    hyper: Hyperparams
    data: Data
    state: State


@dataclass(frozen=True)
class Program:
    """What was compiled; nothing that a member does later compiles again.

    Attributes:
        init: a member at its beginning, from its hyperparameters and its root key.
        blank: lanes that are all free.
        fill: the batch with a member put into a lane. The batch that is given cannot be read any more: its memory is
            the new one's.
        take: what one lane holds, on the host and without a lane axis.
        advance: trains the member of each lane until `until[lane]` epochs are done, or it stops. The state that is
            given cannot be read any more.
        measure: evaluates one member on validation pairs of their own, given its data and its model's state.
        memory: bytes a device needs at most to train, as the compiler counts them.
        seconds: time that the compilation took.
    """

    config: TrainConfig
    lanes: int
    init: Callable[[Hyperparams, Array], State]
    blank: Callable[[], Batch]
    fill: Callable[[Batch, Int[Array, ""], Hyperparams, Data, State], Batch]
    take: Callable[[Batch, Int[Array, ""]], Batch]
    advance: Callable[[Batch, Int[Array, " lane"]], State]
    measure: Callable[[Data, State], Metrics]
    memory: int
    seconds: float


def compile_program(
    config: TrainConfig, lanes: int = 1, *, batching: Batching = "map", devices: Sequence[Any] | None = None
) -> Program:
    """Compiles a bucket ahead of time.

    Args:
        lanes: members trained at once; a multiple of the devices.
        batching: how the lanes of one device run, "vmap" or "map".
        devices: those of the mesh; by default the first one.

    Raises:
        UserError: the lanes cannot be split evenly over the devices, or `batching` is unknown.
        AssertionError: training is traced more than once, which is a bug of ours.
    """
    check_choice("batching", batching, get_args(Batching))
    devices = jax.local_devices()[:1] if devices is None else devices
    if lanes < 1 or lanes % len(devices):
        raise UserError(
            f"lanes is {lanes}; it must be a multiple of the {len(devices)} device(s), so that each has as many"
        )
    start = time.perf_counter()
    train = make_train(config)
    mesh = Mesh(np.asarray(devices), ("lane",))
    # On one device without a mesh: what is traced for the shapes of a state is not traced again then.
    lane_axis = NamedSharding(mesh, PartitionSpec("lane")) if mesh.size > 1 else SingleDeviceSharding(devices[0])

    hyper, root = Hyperparams().traced(), jax.random.key(0)
    samples = lambda n: jnp.zeros((n, config.case.n_ctx), jnp.int32)
    data = Data(samples(config.n_train), samples(config.samples - config.n_train))
    quick = quick_to_compile()
    init = jax.jit(train.init, compiler_options=quick)
    state = jax.eval_shape(init, hyper, root)

    one = Batch(hyper, data, state)
    bare = jax.eval_shape(without_keys, one)

    def blank() -> Batch:
        zeros = jax.tree.map(lambda leaf: np.zeros((lanes, *leaf.shape), leaf.dtype), bare)
        no_one = eqx.tree_at(lambda batch: batch.state.stop, zeros, np.full(lanes, int(Stop.EXHAUSTED), np.int32))
        return with_keys(jax.device_put(no_one, lane_axis), one)

    def fill(batch: Batch, lane: Int[Array, ""], hyper: Hyperparams, data: Data, state: State) -> Batch:
        put = lambda all, own: own[None] if lanes == 1 else all.at[lane].set(own)  # half a second less to compile
        return jax.tree.map(put, batch, Batch(hyper, data, state))

    def take(batch: Batch, lane: Int[Array, ""]) -> Batch:
        return without_keys(jax.tree.map(lambda leaf: leaf[lane], batch))

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((lanes, *leaf.shape), leaf.dtype, sharding=lane_axis), one)
    lane = jax.ShapeDtypeStruct((), jnp.int32)
    taken = jax.jit(take).lower(shapes, lane).compile()
    until, last = (jax.ShapeDtypeStruct((lanes,), kind, sharding=lane_axis) for kind in (jnp.int32, jnp.bool_))
    traced: list[TrainConfig] = []

    def counted(*member):
        traced.append(config)
        return train.epoch(*member)

    of_lanes = lambda one: over_lanes(one, lanes // len(devices), batching, mesh)
    lowered = jax.jit(of_lanes(counted), donate_argnums=2).lower(shapes.hyper, shapes.data, shapes.state, until)
    # A second trace would take as long again. (`chex.assert_max_traces` counts the traces of all buckets together.)
    chex.assert_equal(len(traced), 1)
    epoch = lowered.compile()
    judge = jax.jit(of_lanes(train.judge), compiler_options=quick).lower(shapes.data, shapes.state, last).compile()

    def advance(batch: Batch, until: Int[Array, " lane"]) -> State:
        state, not_last = batch.state, jax.device_put(np.zeros(lanes, np.bool_), lane_axis)
        stop, begun, ends = (np.asarray(x) for x in (state.stop, state.epoch, until))
        until = jax.device_put(until, lane_axis)
        # The host waits for no epoch: a lane whose member stops meanwhile does nothing in the others.
        for _ in range(int(np.where(stop == int(Stop.RUNNING), ends - begun, 0).max())):
            state, _ = judge(batch.data, epoch(batch.hyper, batch.data, state, until), not_last)
        return state

    def judge_alone(data: Data, state: State) -> Metrics:
        _, metrics = judge(*jax.tree.map(lambda x: x[None], (data, state)), np.ones(1, np.bool_))
        return jax.tree.map(lambda x: x[0], metrics)

    measure: Callable[[Data, State], Metrics] = judge_alone
    if lanes > 1 or not train.measure_is_judge:
        measure = jax.jit(train.measure, compiler_options=quick).lower(data, state).compile()
    return Program(
        config=config,
        lanes=lanes,
        init=init.lower(hyper, root).compile(),
        blank=blank,
        fill=jax.jit(fill, out_shardings=lane_axis, donate_argnums=0).lower(shapes, lane, hyper, data, state).compile(),
        take=lambda batch, lane: with_keys(jax.device_get(taken(batch, lane)), batch),
        advance=advance,
        measure=measure,
        memory=max(_memory(epoch), _memory(judge)),
        seconds=time.perf_counter() - start,
    )


def over_lanes(one: Callable[..., Any], here: int, batching: Batching, mesh: Mesh) -> Callable[..., Any]:
    """`one` over a leading lane axis, of which each device of the mesh has `here` lanes."""

    def on_device(*batch):
        if here == 1:
            # The solo program itself: a lane axis of one would add its products up in another order.
            return jax.tree.map(lambda x: x[None], one(*jax.tree.map(lambda x: x[0], batch)))
        return jax.vmap(one)(*batch) if batching == "vmap" else jax.lax.map(lambda lane: one(*lane), batch)

    if mesh.size == 1:
        return on_device
    # Not left to the partitioner, which would have every device wait in every loop for the last one's lanes.
    spec = PartitionSpec("lane")
    return jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def _memory(compiled: Any) -> int:
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return held + analysis.temp_size_in_bytes


def without_keys(tree: Any) -> Any:
    """The tree with its random keys as the numbers that they are made of."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def with_keys(tree: Any, like: Any) -> Any:
    """What `without_keys` took apart, put together as in `like`."""
    return jax.tree.map(lambda x, own: jax.random.wrap_key_data(jnp.asarray(x)) if _is_key(own) else x, tree, like)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
