"""What every test runs under: strict rank and dtype promotion. (Warnings are errors, and jaxtyping with beartype
checks every annotation: pyproject.toml.)"""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
