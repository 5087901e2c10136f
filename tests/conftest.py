"""What every test runs under: strict rank and dtype promotion, and programs that are compiled fast and once. (Warnings
are errors, and jaxtyping with beartype checks every annotation: pyproject.toml.)
"""

import json
import os
import shutil
import tempfile

import hypothesis
import jax
import jaxtyping
import pytest

# A later jax ends at a flag that it does not know.
SIMPLER = " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
QUICK = "--xla_backend_optimization_level=0" + (SIMPLER if jax.__version_info__ < (0, 11) else "")
"""XLA compiles in a quarter of the time, to slower programs. XLA_FLAGS in the environment decides otherwise: empty, it
has the tests run what users run, as `make proofs` does."""

LONGEST = ("test_pool", "test_engine", "test_memory", "test_throughput", "test_front")
"""The files that take longest, which come first: else one process would run them while the others have ended."""

os.environ.setdefault("XLA_FLAGS", QUICK)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# A deadline says how loaded the machine is, not whether the code is right.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


def pytest_configure(config):
    """Programs are compiled once for all tests and all processes that they start. They lie in a folder of this run,
    or where JAX_COMPILATION_CACHE_DIR says."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = tempfile.TemporaryDirectory(prefix="siitjax-tests-", ignore_cleanup_errors=True)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        config.add_cleanup(folder.cleanup)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def commands():
    """Runs command lines, all tests' in one process."""
    from tests.commands import in_one_process  # which imports siitjax, once its annotations are to be checked

    with in_one_process() as commands:
        yield commands


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


@pytest.fixture(scope="session")
def member(tmp_path_factory):
    """A results folder as `python -m sweeps.table --swaps=edges` leaves it, of the shipped model as seeds 4 and 5, of
    which the first holds."""
    import cases  # which imports siitjax too
    from siitjax.sweep.rows import weights_file

    folder = tmp_path_factory.mktemp("sweep")
    (folder / "members").mkdir()
    rows = []
    for i, holds in enumerate((True, False)):
        shutil.copy(cases.shipped("1"), weights_file(folder, i))
        row = {"member": i, "setting": "1, causal", "seed": 4 + i, "stop": "converged", "accuracy": 1.0, "holds": holds}
        rows.append(json.dumps(row) + "\n")
    (folder / "rows.jsonl").write_text("".join(rows))
    return folder
