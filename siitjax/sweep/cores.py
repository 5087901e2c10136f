"""The CPU's cores: which this process may use, and how a process is kept on one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """What this thread starts meanwhile runs on one core; where the system has no such thing, on any."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
