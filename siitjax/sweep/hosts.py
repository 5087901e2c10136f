"""Many hosts on one sweep: each trains its share of the members, and nothing crosses between them but the folder.

Members are independent, so that a host waits for the others only at the beginning and at the end.
"""

import os
import threading
from collections.abc import Sequence

import jax
from jax.experimental import multihost_utils

from siitjax.base.errors import UserError, one_line

PATIENCE = 5.0
"""Seconds that an interrupted host waits for the others to end too; those that go on then are ended by JAX."""


def join(coordinator: str = "", count: int = 0, index: int = -1) -> None:
    """Makes this process one of several hosts; before JAX has touched a device.

    What is not given is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and else from the
    cluster that JAX finds (SLURM, TPU, Kubernetes, MPI).

    Raises:
        UserError: that does not say where the coordinator is, how many hosts there are, and which this is.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    count = count or _given("JAX_NUM_PROCESSES", 0)
    index = index if index >= 0 else _given("JAX_PROCESS_ID", -1)
    if index >= count > 0:
        raise UserError(f"--host is {index}, but there are {count} hosts, counted from 0; lower it")
    try:
        jax.distributed.initialize(coordinator or None, count or None, index if index >= 0 else None)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed found no cluster ({one_line(error)[:120]}); give --coordinator=host:port, "
            "--hosts=N and --host=I on each host"
        ) from None


def _given(variable: str, otherwise: int) -> int:
    """The number that an environment variable holds. Raises UserError where it holds none."""
    words = os.environ.get(variable, str(otherwise))
    try:
        return int(words)
    except ValueError:
        raise UserError(f'{variable} is "{words}"; it must be a whole number') from None


def leave() -> None:
    """Takes leave of the other hosts, and waits no longer than PATIENCE for theirs: they may be in training."""
    farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(PATIENCE)


def ours(waiting: Sequence[int]) -> list[int]:
    """This host's share of the members, the same however often it is asked: every n-th of n hosts."""
    return list(waiting[jax.process_index() :: jax.process_count()])


def wait(where: str) -> None:
    """Returns when every host has come here."""
    multihost_utils.sync_global_devices(where)
