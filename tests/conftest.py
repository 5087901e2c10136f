"""What every test runs under: strict rank and dtype promotion. (Warnings are errors, and jaxtyping with beartype
checks every annotation: pyproject.toml.)"""

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def types_unchecked():
    """Lets a wrong word past the annotation, as it comes from a command line or a file."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True, scope="module")
def programs_freed():
    """Frees what a module compiled: each program holds memory maps, of which a process may have some 65,000."""
    yield
    jax.clear_caches()
