"""How exactly matrix products are computed: a context, or a decorator, and nothing that is set for the process.

Left to itself jax multiplies float32 numbers with the 11 bits of TF32 on an H100, and with the 8 of bfloat16 on a TPU;
a share of 100% that was trained or measured so would mean something else there. On a CPU products are float32 anyway.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import jax

MatmulPrecision = Literal["highest", "high", "default"]
"""As jax has them: "highest" is float32 itself, "high" TF32 or three passes of bfloat16, "default" what is fastest."""


@contextmanager
def matmul_precision(precision: MatmulPrecision | None = None) -> Iterator[None]:
    """What is computed or traced here multiplies so precisely; where None is given, as jax_default_matmul_precision
    says, or in float32 itself where that says nothing."""
    set_already: Any = jax.config.jax_default_matmul_precision  # type: ignore  (jax does not declare it)
    with jax.default_matmul_precision(precision or set_already or "highest"):
        yield
