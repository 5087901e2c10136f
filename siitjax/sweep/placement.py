"""How members are spread over the hardware, by backend; every choice can be overridden, and gives the same
rows but for the order in which XLA adds.

On CPU one member a worker process, each process pinned to a core: vectorising over members makes a CPU slower. On
GPU and TPU members are the lanes of one program, over all devices, as many as memory holds.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jax

from siitjax.base.errors import UserError
from siitjax.siit.config import TrainConfig
from siitjax.sweep.cores import cores
from siitjax.sweep.lanes import Batching, Program, compile_program
from siitjax.sweep.memory import limit_of, ran_out, too_large

MOST_LANES = 512
"""Lanes a device at most: more gain nothing where the device is full."""
MEMORY_SHARE = 0.9
"""Of a device's memory that lanes may fill."""


@dataclass(frozen=True)
class Policy:
    """Where members run.

    Attributes:
        workers: processes with a core each; 0 for the lanes of this process.
        lanes: members at once in one program; 0 for as many as the device's memory holds.
        devices: those that the lanes of this process are split over.
        batching: how lanes run on one device, see `siitjax.sweep.lanes`.
    """

    workers: int
    lanes: int
    devices: int
    batching: Batching

    def words(self, waiting: int) -> str:
        """How `waiting` members are trained, for the log."""
        device = jax.local_devices()[0].device_kind
        if self.workers:
            return f"{min(self.workers, waiting)} at once, each on a core of its own ({device})"
        return f"{self.lanes or 'as many as memory holds'} at once, on {self.devices} device(s) ({device})"


def choose_policy(workers: int = 0, lanes: int = 0, devices: int = 0) -> Policy:
    """The policy for this process's backend; 0 leaves a choice to it.

    Raises:
        UserError: there are fewer devices, or the numbers do not go together.
    """
    have = len(jax.local_devices())
    if devices > have:
        raise UserError(f"--devices is {devices}, but this process has {have}; lower it")
    if workers and devices:
        raise UserError("--workers and --devices exclude each other: workers are processes with a core each")
    cpu = jax.default_backend() == "cpu"
    if workers and not cpu:
        raise UserError(f"--workers is for CPUs, and this is a {jax.default_backend()}; leave it out")
    if cpu and not devices and (workers or not lanes):
        return Policy(workers or len(cores()), lanes or 1, 1, "map")
    devices = devices or (1 if cpu else have)
    if lanes % devices:
        raise UserError(f"--lanes is {lanes}; it must be a multiple of the {devices} devices")
    return Policy(0, lanes or (devices if cpu else 0), devices, "map" if cpu else "vmap")


@dataclass
class Compiler:
    """Compiles each bucket once, on as many lanes as the policy and the memory allow.

    Attributes:
        waiting: how many members wait for a bucket; more lanes would stay empty.
    """

    policy: Policy
    waiting: Callable[[TrainConfig], int]
    programs: dict[TrainConfig, Program] = field(default_factory=dict)

    def __call__(self, config: TrainConfig, most: int | None = None) -> Program:
        """The program of a bucket, on `most` lanes at most, but for one on each device.

        Raises:
            MemoryError: memory does not even hold the compilation of those.
        """
        known = self.programs.get(config)
        if known is None or (most is not None and known.lanes > most):
            self.programs[config] = self._compiled(config, most)
        return self.programs[config]

    def _compiled(self, config: TrainConfig, most: int | None) -> Program:
        devices = jax.local_devices()[: self.policy.devices]
        whole = lambda lanes: max(lanes // len(devices), 1) * len(devices)
        wanted = self.policy.lanes or min(MOST_LANES * len(devices), self.waiting(config) + len(devices) - 1)
        lanes = whole(min(wanted, most or wanted))
        limit = limit_of(devices[0]) * MEMORY_SHARE
        while True:
            try:
                program = compile_program(config, lanes, batching=self.policy.batching, devices=devices)
            except jax.errors.JaxRuntimeError as error:
                if not ran_out(error):
                    raise
                if lanes == len(devices):
                    raise too_large(config.case) from None
                lanes = whole(lanes // 2)
                continue
            if not limit or program.memory <= limit or lanes == len(devices):
                return program
            lanes = whole(int(lanes * limit / program.memory))


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, for every later process; JAX_COMPILATION_CACHE_DIR says where."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "siitjax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
