"""How much XLA is to do for a program."""

from typing import Any

import jax


def for_one_call() -> dict[str, Any]:
    """Compiler options of a program that runs once or a few times: on a CPU XLA's lower level, elsewhere its own.

    The lower level takes down to half as long to compile, and what it gives ran as fast where that was timed.

    >>> sorted(for_one_call()) in ([], ["xla_backend_optimization_level"])
    True
    """
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}
