"""What a bucket costs on devices that are not there: XLA compiles for a TPU on any machine that has libtpu."""

import os
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from siitjax.base.errors import UserError, one_line
from siitjax.model.forms import ROLLED
from siitjax.siit.train import Data, Hyperparams, TrainConfig, make_train
from siitjax.sweep.lanes import Batch, over_lanes

ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
"""What libtpu asks of its surroundings, where there are none."""


@dataclass(frozen=True)
class Compiled:
    """What XLA says of `advance`, compiled for some lanes on a mesh.

    Attributes:
        devices: of the mesh.
        lanes: members at once.
        trace_s, compile_s: seconds on this machine.
        arguments, temporaries, code: bytes a device.
    """

    devices: int
    lanes: int
    trace_s: float
    compile_s: float
    arguments: int
    temporaries: int
    code: int

    @property
    def bytes_a_lane(self) -> float:
        """What one more member takes of a device's memory."""
        return (self.arguments + self.temporaries) * self.devices / self.lanes


def mesh_of(name: str) -> Mesh:
    """The mesh called so: "tpu-v5e:2x2" is a platform and, after the dash, a topology as libtpu calls it.

    Raises:
        UserError: there is no such topology, or no compiler for it.
    """
    platform, _, topology = name.partition("-")
    if platform != "tpu" or not topology:
        raise UserError(f'the topology is "{name}"; give a TPU\'s, such as tpu-v5e:2x2')
    for variable, value in ALONE.items():
        os.environ.setdefault(variable, value)
    try:
        found: Any = topologies.get_topology_desc(platform=platform, topology_name=topology)
    except Exception as error:  # of many kinds, among them that libtpu is missing
        raise UserError(
            f'there is no compiler for "{name}" here ({one_line(error)[:200]}); pip install libtpu of the version that '
            "jax[tpu] asks for, and give a topology that it knows, such as tpu-v5e:2x2"
        ) from None
    return Mesh(np.asarray(found.devices), ("lane",))


def compile_for(config: TrainConfig, mesh: Mesh, lanes: int) -> Compiled:
    """Compiles a bucket's `advance`, as a sweep would run it there: lanes side by side, blocks in one loop.

    Raises:
        UserError: the lanes cannot be split evenly over the devices.
    """
    if lanes < 1 or lanes % mesh.size:
        raise UserError(f"--lanes is {lanes}; it must be a multiple of the {mesh.size} devices")
    train = make_train(config, ROLLED)
    axis = NamedSharding(mesh, PartitionSpec("lane"))
    hyper, root = Hyperparams().traced(), jax.random.key(0)
    samples = lambda n: jnp.zeros((n, config.case.n_ctx), jnp.int32)
    data = Data(samples(config.n_train), samples(config.samples - config.n_train))
    member = Batch(hyper, data, jax.eval_shape(train.init, hyper, root))
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((lanes, *x.shape), x.dtype, sharding=axis), member)
    until = jax.ShapeDtypeStruct((lanes,), jnp.int32, sharding=axis)
    began = time.perf_counter()
    advance = jax.jit(over_lanes(train.advance, lanes // mesh.size, "vmap", mesh), donate_argnums=2)
    lowered = advance.lower(many.hyper, many.data, many.state, until)
    traced = time.perf_counter()
    memory: Any = lowered.compile().memory_analysis()
    return Compiled(
        devices=mesh.size,
        lanes=lanes,
        trace_s=traced - began,
        compile_s=time.perf_counter() - traced,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
    )
