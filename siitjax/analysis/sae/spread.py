"""One function over many lanes, shared between the devices."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from siitjax.base.precision import matmul_precision
from siitjax.sweep.lanes import Batching


@matmul_precision()
def compile_spread(
    one: Callable[[Any, Any], Any],
    shared: Any,
    lanes: Any,
    *,
    batching: Batching | None = None,
    devices: Sequence[Any] | None = None,
) -> Callable[[Any, Any], Any]:
    """`one(shared, lane)` of every lane, compiled: a function of `shared` and `lanes`.

    Args:
        lanes: every leaf has a leading lane axis. Where the devices do not divide it, the last lane is run again.
        batching: lanes of a device in turn ("map": on CPU, each with the bits that it has alone) or side by side.
        devices: by default all.
    """
    count = len(jax.tree.leaves(lanes)[0])
    devices = (devices or jax.local_devices())[:count]
    batching = batching or ("map" if devices[0].platform == "cpu" else "vmap")
    whole, split = PartitionSpec(), PartitionSpec("lane")
    mesh = Mesh(np.asarray(devices), ("lane",))

    def on_device(shared: Any, lanes: Any) -> Any:
        lane = partial(one, shared)
        return jax.lax.map(lane, lanes) if batching == "map" else jax.vmap(lane)(lanes)

    def placed(shared: Any, lanes: Any) -> tuple[Any, Any]:
        evenly = lambda x: jnp.concatenate([x, *[x[-1:]] * (-count % len(devices))])
        on = lambda spec: NamedSharding(mesh, spec)
        return jax.device_put(shared, on(whole)), jax.device_put(jax.tree.map(evenly, lanes), on(split))

    run = on_device
    if len(devices) > 1:
        run = jax.shard_map(on_device, mesh=mesh, in_specs=(whole, split), out_specs=split, check_vma=False)
    compiled = jax.jit(run).lower(*placed(shared, lanes)).compile()
    return lambda shared, lanes: jax.tree.map(lambda x: x[:count], compiled(*placed(shared, lanes)))
