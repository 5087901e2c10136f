"""Importing siitjax changes nothing outside of it, and is as quick as what only trains needs it."""

import subprocess
import sys

from tests.commands import HANGS, run

SLOW = ("matplotlib", "scipy.stats", "torch", "transformer_lens", "flax")
"""Each takes about as long to import as all that trains."""

LOOK = """
import ast, importlib, locale, logging, os, pkgutil, random, signal, sys, threading, warnings
from pathlib import Path

def modules():
    for package in ("siitjax", "cases", "sweeps"):
        place = importlib.util.find_spec(package).submodule_search_locations
        yield from (found.name for found in pkgutil.walk_packages(place, f"{package}."))

def imported(name):
    # What a module's own lines import, from elsewhere.
    for line in ast.parse(Path(importlib.util.find_spec(name).origin).read_text()).body:
        if isinstance(line, ast.Import):
            yield from (alias.name for alias in line.names)
        elif isinstance(line, ast.ImportFrom):
            yield line.module
            yield from (f"{line.module}.{alias.name}" for alias in line.names)

def state():
    import jax, matplotlib, numpy as np
    loggers = [logging.getLogger(), *(x for x in logging.Logger.manager.loggerDict.values() if hasattr(x, "level"))]
    return {
        "matplotlib": {key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams},
        "pyplot": "matplotlib.pyplot" in sys.modules,
        "jax": dict(jax.config.values),
        "devices": bool(jax._src.xla_bridge._backends),
        "hooks": [sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook],
        "loggers": {x.name: (x.level, x.disabled, x.propagate, [*x.handlers], [*x.filters]) for x in loggers},
        "logging off": logging.root.manager.disable,
        "warnings": [*warnings.filters],
        "environment": dict(os.environ),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "random": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "errors": np.geterr(),
        "place": os.getcwd(),
        "path": [*sys.path],
        "locale": locale.setlocale(locale.LC_ALL),
        "threads": {thread.name for thread in threading.enumerate()},
    }

ours = [*modules()]
assert len(ours) > 60, ours
for name in sorted({name for module in ours for name in imported(module)}):
    if name.split(".")[0] not in ("siitjax", "cases", "sweeps"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            pass  # a name in a module, or a package of an extra that is not installed
before = state()
for module in ours:
    if importlib.util.find_spec(module).origin:
        importlib.import_module(module)
after = state()
for what in before:
    assert after[what] == before[what], (what, before[what], after[what])
print("nothing changed")
"""


def test_no_module_has_an_effect_when_it_is_imported():
    """State is compared before and after, with the libraries that ours import imported before."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=HANGS)
    assert done.stdout.endswith("nothing changed\n"), done.stderr


def test_what_draws_and_what_tests_is_imported_where_it_is_used():
    words = "import sys, siitjax, siitjax.cli.main, sweeps.betas, sweeps.table; siitjax.train; print(*sys.modules)"
    found = run("-c", words).out.split()
    assert "siitjax.sweep.engine" in found
    assert not {*SLOW} & {*found}
