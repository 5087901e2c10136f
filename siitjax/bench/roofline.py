"""What a device could reach at best: its peaks, and how much of a program's products its units spend on padding."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple

import jax

from siitjax.base.precision import MatmulPrecision

PASSES: dict[MatmulPrecision, int] = {"highest": 6, "high": 3, "default": 1}
"""Passes of bfloat16 that a TPU makes for a float32 product (jax.lax.Precision)."""
SUBLANES = 8
"""Rows of float32 that a TPU moves together."""


class Device(NamedTuple):
    """What the maker says of a device.

    Attributes:
        flops: of its matrix units, bfloat16, a second.
        bandwidth: bytes a second of its memory.
        memory: bytes of it.
        unit: width of a matrix unit.
    """

    flops: float
    bandwidth: float
    memory: float
    unit: int


DEVICES = {
    "TPU v4": Device(275e12, 1200e9, 32 * 2.0**30, 128),
    "TPU v5 lite": Device(197e12, 819e9, 16e9, 128),
    "TPU v5": Device(459e12, 2765e9, 95e9, 128),
    "TPU v6 lite": Device(918e12, 1638e9, 32e9, 256),
}
"""By `device_kind`: v4, v5e, v5p and v6e. Source: cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e."""


class Product(NamedTuple):
    """A product of matrices: `n` times (rows, inner) by (inner, columns)."""

    n: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """A multiplication and an addition are two."""
        return 2 * prod(self)

    def as_run(self, unit: int) -> int:
        """The same as matrix units run it, alone.

        A unit holds a block of the smaller matrix, `unit` by `unit`, and the rows of the larger pass it eight at a
        time: what is narrower is filled up with zeros.
        """
        few, many = sorted((self.rows, self.columns))
        return 2 * self.n * _up(many, SUBLANES) * _up(self.inner, unit) * _up(few, unit)


def _up(size: int, to: int) -> int:
    return -(-size // to) * to


def products(jaxpr: Any) -> Iterator[Product]:
    """The products in a jaxpr, those in a scan as often as it runs them, and those in a while loop once."""
    for eqn in jaxpr.eqns:
        if eqn.primitive is jax.lax.dot_general_p:
            yield _product(eqn)
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in _jaxprs(eqn.params.values()):
            yield from (found._replace(n=found.n * times) for found in products(inner))


def _product(eqn: Any) -> Product:
    (inner, _), (batch, _) = eqn.params["dimension_numbers"]
    left, right = (x.aval.shape for x in eqn.invars)
    n, k = prod(left[i] for i in batch), prod(left[i] for i in inner)
    return Product(n, prod(left) // (n * k), k, prod(right) // (n * k))


def _jaxprs(values: Iterable[Any]) -> Iterator[Any]:
    """Those among the parameters of an equation."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _jaxprs(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr


@dataclass(frozen=True)
class Roofline:
    """What bounds a program on a device.

    Attributes:
        flops: that it asks for.
        padding: how many operations the units run for each one that the products ask for.
        moved: bytes that its operations read and write.
        seconds: that it takes at least.
        bound: what takes that long, the units or the memory.
        share: of the device's peak at this precision.
    """

    flops: float
    padding: float
    moved: float
    seconds: float
    bound: Literal["units", "memory"]
    share: float

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.moved


def roofline(
    device: Device, precision: MatmulPrecision, flops: float, moved: float, found: Iterable[Product]
) -> Roofline:
    """The roofline of a program that has these products, asks for so many FLOPs, and moves so many bytes."""
    found = [*found]
    as_run = sum(product.as_run(device.unit) for product in found)
    peak = device.flops / PASSES[precision]
    units, memory = as_run / peak, moved / device.bandwidth
    seconds = max(units, memory)
    return Roofline(
        flops=flops,
        padding=as_run / sum(product.flops for product in found),
        moved=moved,
        seconds=seconds,
        bound="units" if units > memory else "memory",
        share=flops / seconds / peak,
    )
