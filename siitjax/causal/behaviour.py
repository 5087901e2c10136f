"""What a case computes and draws, in a few short digests: they tell a sweep, or a model's file, from those of an edited
case that has the same name, circuit and sizes.

Integers and booleans count exactly. Of numbers, whose last bits may differ between machines, a few weighted sums do,
rounded: they are the same wherever the numbers are.
"""

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from siitjax.causal.case import Case
from siitjax.causal.circuit import unit_name

SAMPLES = 64
"""Of each task, those that variables are computed on; four times as many are drawn."""
PAIRS = 16
"""Of each task, those that each node is swapped in."""
SUMS, STEP, OFFSET = 4, 0.01, 0.3819660
"""Of an array of numbers: how many sums, to what they are rounded, and the shift that keeps simple fractions away from
where rounding would be decided by the last bit."""
COUNTED, SOURCES = "the tokens that count", "the sources"
"""What stands beside the variables where a case says which tokens count, and which sources a base has."""
QUICKLY = {"xla_backend_optimization_level": 0}
"""How XLA compiles what runs once."""

Samples = tuple[str, ...]
"""The tokens' numbers in each sample, with spaces between, as a model's file has them."""


@dataclass(frozen=True)
class Computed:
    """What a case computes on some samples.

    Attributes:
        variables: a digest of each placed variable, and of the label, in the circuit's order.
        swaps: a digest of the labels when a node takes the values of other samples, for each node of the circuit.
    """

    variables: dict[str, str]
    swaps: dict[str, str]

    def change(self, before: "Computed") -> str | None:
        """How this differs from what was computed before, in words; None where it does not."""
        for name, digest in self.variables.items():
            if before.variables.get(name) != digest:
                return f'its variable "{name}" was computed otherwise'
        for node, digest in self.swaps.items():
            if before.swaps.get(node) != digest:
                return f"its labels under a swap of {node} were others"
        return None


@dataclass(frozen=True)
class Behaviour:
    """What a case draws from a fixed seed, and what it computes of that.

    Attributes:
        draws: a digest of the strings drawn.
        computed: of the first of them, which are `samples`.
    """

    draws: str
    computed: Computed
    samples: Samples

    def describe(self) -> dict[str, Any]:
        """The digests, as JSON has them."""
        return {"draws": self.draws, "variables": self.computed.variables, "swaps": self.computed.swaps}


@lru_cache(maxsize=256)
def behaviour(case: Case) -> Behaviour:
    """What the case draws and computes.

    Raises:
        UserError: it cannot draw.
    """
    n = SAMPLES * max(len(case.tasks), 1)
    train, validation = case.draw(4 * n, n, np.random.default_rng(0))
    samples = tuple(" ".join(map(str, sample)) for sample in train[:n].tolist())
    return Behaviour(_digest(train, validation), compute(case, samples), samples)


def change(before: dict[str, Any], now: Behaviour) -> str | None:
    """How a case differs from the one whose `Behaviour.describe` gave `before`, in words; None where it does not."""
    if before["draws"] != now.draws:
        return "it drew other strings from the same seed"
    return now.computed.change(Computed(before["variables"], before["swaps"]))


@lru_cache(maxsize=256)
def compute(case: Case, samples: Samples) -> Computed:
    """What the case computes on `samples`, each of them the source of the next one in swaps."""
    circuit, tokens = (
        case.circuit,
        jnp.array([[int(token) for token in sample.split()] for sample in samples], jnp.int32),
    )
    pairs = PAIRS * max(len(case.tasks), 1)
    run = jax.jit(jax.vmap(circuit), compiler_options=QUICKLY)
    swap = jax.vmap(lambda base, mask, source: circuit(base, (mask, source))[0], (0, None, 0))
    swapped = jax.jit(swap, compiler_options=QUICKLY)
    with _on_cpu():
        labels, values = run(tokens)
        source = jax.tree.map(lambda x: jnp.roll(x, 1, 0)[:pairs], values)
        of = {v.name: x for v, x in zip(circuit.ordered, values[1:], strict=True) if v.node is not None}
        variables = {**of, circuit.variables[-1].name: labels}
        if case.counted is not None:
            variables |= {COUNTED: case.counted_mask(tokens)}
        if case.sources is not None:
            variables |= {SOURCES: case.source_of(tokens, jnp.roll(tokens, 1, 0), jax.random.key(0))}
        swaps = {unit_name(u): swapped(tokens[:pairs], circuit.nodes.mask(u), source) for u in circuit.units}
        return Computed(*({name: _digest(np.asarray(x)) for name, x in d.items()} for d in (variables, swaps)))


def _on_cpu() -> Any:
    """Where numbers come out the same on every machine, or nearly so; nothing where JAX was told to leave it out."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return nullcontext()


def _digest(*arrays: Shaped[np.ndarray, "..."]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(str(array.shape).encode())
        for part in _exact(array):
            found.update(part.astype("<i8").tobytes())
    return found.hexdigest()[:12]


def _exact(array: Shaped[np.ndarray, "..."]) -> list[Shaped[np.ndarray, "..."]]:
    """The array in integers that are the same on every machine."""
    if array.dtype.kind in "biu":
        return [array]
    numbers = array.astype(np.float64).ravel()
    kinds = np.select([np.isnan(numbers), np.isposinf(numbers), np.isneginf(numbers)], [1, 2, 3], 0)
    # Their size counts by its logarithm: what is rounded is as exact for large numbers as for those about 1.
    numbers = np.arcsinh(np.where(kinds == 0, numbers, 0))
    bits = np.frombuffer(hashlib.shake_128(b"weights").digest(SUMS * len(numbers)), np.uint8)
    weights = bits.reshape(SUMS, len(numbers)).astype(np.float64) / 127.5 - 1
    return [kinds, np.floor(weights @ numbers / STEP + OFFSET)]
