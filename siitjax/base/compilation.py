"""How much XLA is to do for a program."""

from typing import Any

import jax


def quick_to_compile() -> dict[str, Any]:
    """Compiler options of a program that takes little of a run's time: on a CPU XLA's lower level, elsewhere its own.

    The lower level takes down to half as long to compile, and what it gives ran as fast where that was timed.

    >>> sorted(quick_to_compile()) in ([], ["xla_backend_optimization_level"])
    True
    """
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}
