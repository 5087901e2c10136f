"""The versions of what trains and measures."""

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import jax

PACKAGES = ("siitjax", "jax", "jaxlib", "equinox", "optax", "numpy")


def versions() -> dict[str, str]:
    """Each package's version, and Python's."""
    return dict(_versions())


def machine() -> dict[str, str | int | None]:
    """The device and how many cores the machine has."""
    return {"device": jax.devices()[0].device_kind, "cores": os.cpu_count()}


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    return (*((name, _version(name)) for name in PACKAGES), ("python", platform.python_version()))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # siitjax itself, where it is run from its source
        return "unknown"
