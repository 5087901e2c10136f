"""What a bucket costs on devices that are not there: XLA compiles for a TPU on any machine that has libtpu, and for a
GPU where jax's plug-in lies."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from siitjax.base.errors import UserError, one_line
from siitjax.bench.roofline import DEVICES, Roofline, products, roofline
from siitjax.model.forms import ROLLED, UNROLLED
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.train import Data, State, make_train
from siitjax.sweep.lanes import over_lanes

ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
"""What libtpu asks of its surroundings, where there are none."""

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""A GPU as XLA describes it (GpuTargetConfigProto), as openxla/xla#25919 has it."""

NEEDS = {
    "tpu": "pip install libtpu of the version that jax[tpu] asks for, and give a topology that it knows, such as "
    "tpu-v5e:2x2",
    "cuda": "pip install jax-cuda12-plugin and jax-cuda12-pjrt of jax's version, and ask for cuda-h100:1x1x1",
}
"""What a compiler takes, by platform."""

MEMORY = {kind: device.memory for kind, device in DEVICES.items()} | {"NVIDIA H100 80GB HBM3": 84929347584.0}
"""Bytes of a device, by `device_kind`."""


@dataclass(frozen=True)
class Compiled:
    """What XLA says of the two programs that train, compiled for some lanes on a mesh.

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

    def fit(self, memory: float) -> int:
        """Lanes that a device of so many bytes holds."""
        return int((memory - self.code) // self.bytes_a_lane)


def mesh_of(name: str) -> Mesh:
    """The mesh called so: "tpu-v5e:2x2" is a platform and, after the dash, a topology as libtpu calls it; after
    "cuda-h100:" stand partitions, hosts in each and GPUs in each.

    Raises:
        UserError: there is no such topology, or no compiler for it.
    """
    platform, _, topology = name.partition("-")
    gpu, _, shape = topology.partition(":")
    if (platform != "tpu" or not topology) and (platform, gpu) != ("cuda", "h100"):
        raise UserError(f'the topology is "{name}"; give a TPU\'s, such as tpu-v5e:2x2, or cuda-h100:1x1x1')
    try:
        found: Any
        if platform == "tpu":
            for variable, value in ALONE.items():
                os.environ.setdefault(variable, value)
            found = topologies.get_topology_desc(platform=platform, topology_name=topology)
        else:
            found = topologies.get_topology_desc(platform=platform, topology=shape, target_config=H100)
    except Exception as error:  # of many kinds, among them that the compiler is missing
        raise UserError(
            f'there is no compiler for "{name}" here ({one_line(error)[:200]}); {NEEDS[platform]}'
        ) from None
    return Mesh(np.asarray(found.devices), ("lane",))


def compile_for(config: TrainConfig, mesh: Mesh, lanes: int) -> Compiled:
    """Compiles a bucket's epoch and its evaluation, as a sweep would run them there: lanes side by side, blocks in one
    loop.

    Raises:
        UserError: the lanes cannot be split evenly over the devices.
    """
    began = time.perf_counter()
    train = make_train(config, ROLLED)
    state = _state(config)
    samples = lambda n: jnp.zeros((n, config.case.n_ctx), jnp.int32)
    data = Data(samples(config.n_train), samples(config.samples - config.n_train))
    until, last = (jax.ShapeDtypeStruct((), kind) for kind in (jnp.int32, jnp.bool_))
    lowered = [
        _traced(train.epoch, mesh, lanes, Hyperparams().traced(), data, state, until, donate=2).lower(),
        _traced(train.judge, mesh, lanes, data, state, last).lower(),
    ]
    traced = time.perf_counter()
    memory: list[Any] = [program.compile().memory_analysis() for program in lowered]
    return Compiled(
        devices=mesh.size,
        lanes=lanes,
        trace_s=traced - began,
        compile_s=time.perf_counter() - traced,
        arguments=max(one.argument_size_in_bytes for one in memory),
        temporaries=max(one.temp_size_in_bytes for one in memory),
        code=sum(one.generated_code_size_in_bytes for one in memory),
    )


def step_roofline(config: TrainConfig, mesh: Mesh, lanes: int) -> Roofline | None:
    """What bounds one training step of a device's lanes; None where XLA counts nothing, as for GPUs.

    Bytes are those that each operation reads and writes, as XLA lays them out, also where they stay on the chip.

    Raises:
        UserError: the lanes cannot be split evenly over the devices.
    """
    device = DEVICES.get(mesh.devices.flat[0].device_kind)
    if device is None:
        return None
    state, batch = _state(config), jax.ShapeDtypeStruct((config.batch_size, config.case.n_ctx), jnp.int32)
    step = make_train(config, UNROLLED).step
    one = lambda *given: step(*given)  # without `done`, which lanes do not differ in
    given = (Hyperparams().traced(), (state.model, state.opt_state), batch, batch, state.root)
    traced = _traced(one, mesh, lanes, *given)
    counted = count_of(traced.lower().compile())
    if counted is None:
        return None
    return roofline(device, config.matmul_precision, *counted, products(traced.jaxpr))


def count_of(compiled: Any) -> tuple[float, float] | None:
    """The FLOPs of a compiled program and the bytes that its operations move, as XLA counts them, if it does.

    What is in a loop is counted once.
    """
    counted = compiled.cost_analysis()
    return (counted["flops"], counted["bytes accessed"]) if counted else None


def _state(config: TrainConfig) -> State:
    """The shapes of a member's state."""
    return jax.eval_shape(make_train(config, ROLLED).init, Hyperparams().traced(), jax.random.key(0))


def _traced(one: Callable[..., Any], mesh: Mesh, lanes: int, *member: Any, donate: int | tuple[int, ...] = ()) -> Any:
    """`one`, which takes what a member has, traced on lanes that are split over the mesh."""
    if lanes < 1 or lanes % mesh.size:
        raise UserError(f"--lanes is {lanes}; it must be a multiple of the {mesh.size} devices")
    axis = NamedSharding(mesh, PartitionSpec("lane"))
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((lanes, *x.shape), x.dtype, sharding=axis), member)
    return jax.jit(over_lanes(one, lanes // mesh.size, "vmap", mesh), donate_argnums=donate).trace(*many)
