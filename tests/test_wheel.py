"""What is installed: one top-level name, everything that belongs to it, and the same answers as in the source tree. A
wheel and an editable install, each in an environment of its own, are proofs (`make proofs`)."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.commands import HANGS
from tests.test_train_command import TASK

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
OFFLINE = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
SMALL = ("--seeds=2", "--samples=200", "--batch_size=50", "--epochs=2", "--workers=2")
LOOK = """
import siitjax
from siitjax.causal import registry
trained = siitjax.load("1+2")
print(siitjax.__file__, registry.own_tasks().models, registry.own_tasks().package)
print(trained.case.name, trained.metrics.accuracy, siitjax.find_case("any_left").name)
try:
    siitjax.find_case("broken")
except ModuleNotFoundError as error:
    print(error)
"""


def copy_source(out: Path) -> Path:
    """The source tree, without what was built or trained in it."""
    out.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, out)
    for name in ("siitjax", "cases", "sweeps", "tests"):
        shutil.copytree(ROOT / name, out / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "results"))
    return out


def quietly(*command: str | Path, cwd: Path, **env: str) -> str:
    """What a command prints; it must end with 0."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**own, **env}, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def their_package(folder: Path) -> Path:
    """The source of another package, with a task that it declares and one that cannot be imported."""
    folder.mkdir()
    (folder / "their_names.py").write_text('VOCABULARY = ("BOS", "PAD", "(", ")")\n')
    (folder / "their_task.py").write_text(TASK.replace("from neighbour", "from their_names"))
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "their-tasks"\nversion = "1"\n'
        '[project.entry-points."siitjax.cases"]\nany_left = "their_task:CASE"\nbroken = "no_such_package:CASE"\n'
        '[tool.setuptools]\npy-modules = ["their_names", "their_task"]\n'
    )
    return folder


def build(source: Path, out: Path) -> Path:
    """The wheel of a source tree, built as pip builds it."""
    words = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    return out / quietly(sys.executable, "-c", words, out, cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return build(copy_source(folder / "source"), folder)


def test_a_wheel_holds_one_top_level_name_and_all_that_belongs_to_it(wheel):
    names = {name for name in ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
    kept = lambda folder: (path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".typed"))
    expected = {str(path.relative_to(ROOT)) for path in kept("siitjax")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "siitjax" / "io" / "explorer" / "static").iterdir()}
    cases = {*kept("cases"), *(ROOT / "cases" / "models").glob("*.safetensors")}
    expected |= {f"siitjax/_cases/{path.relative_to(ROOT / 'cases')}" for path in cases}
    assert names == expected  # a folder that is missing is to be listed in pyproject.toml


def test_it_finds_its_own_models_and_tasks_of_others_beside_a_foreign_cases_and_a_broken_one(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    theirs = build(their_package(tmp_path / "theirs"), tmp_path)
    for each in (wheel, theirs):
        ZipFile(each).extractall(site)
    (site / "cases").mkdir()
    (site / "cases" / "__init__.py").write_text("raise ImportError('a package of someone else')\n")
    said = quietly(sys.executable, "-W", "error", "-c", LOOK, cwd=empty, PYTHONPATH=str(site)).splitlines()
    assert said[0] == f"{site}/siitjax/__init__.py {site}/siitjax/_cases/models siitjax._cases"
    assert said[1:] == ["left_greater+paren_checker 1 any_left", "No module named 'no_such_package'"]


@pytest.fixture(params=["wheel", "editable"])
def installed(request, tmp_path_factory) -> Path:
    """An environment with siitjax and another package's task. What they need lies in the tests' own environment, of
    which a line in a .pth file adds the modules and no editable install."""
    tmp_path = tmp_path_factory.mktemp(request.param, numbered=False)
    quietly(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    source = copy_source(tmp_path / "source")
    pip = (*PIP, "--python", tmp_path / "venv" / "bin" / "python", "install", "--ignore-installed", *OFFLINE)
    if request.param == "wheel":
        quietly(*PIP, "wheel", *OFFLINE, ".", "-w", tmp_path, cwd=source)
        quietly(*pip, *tmp_path.glob("*.whl"), cwd=tmp_path)
        names = {path.name.split("-")[0] for path in site.iterdir()}
        assert names == {"shared.pth", "siitjax"}
    else:
        quietly(*pip, "--editable", ".", cwd=source)
    quietly(*pip, their_package(tmp_path / "theirs"), cwd=tmp_path)
    return tmp_path


@pytest.mark.slow
def test_what_is_installed_trains_measures_and_exports_from_an_empty_folder(installed):
    binaries, empty = installed / "venv" / "bin", installed / "empty"
    empty.mkdir()
    said = quietly(binaries / "python", "-W", "error", "-c", LOOK, cwd=empty).splitlines()
    assert said[0].endswith(" siitjax._cases")
    assert said[1:] == ["left_greater+paren_checker 1 any_left", "No module named 'no_such_package'"]
    words = "import siitjax; print(siitjax.train('paren_checker', epochs=2, samples=400, progress=False))"
    assert quietly(binaries / "python", "-c", words, cwd=empty).startswith("paren_checker, seed 0: exhausted after 2")
    assert "All stored figures hold." in quietly(binaries / "siitjax", "evaluate", "1+2", "--pairs=2000", cwd=empty)
    for case in ("left_greater", "any_left"):  # each in two worker processes
        quietly(binaries / "siitjax", "train", case, *SMALL, f"--out={case}", cwd=empty)
        file = f"{case}/members/0001.safetensors"
        quietly(binaries / "siitjax", "evaluate", file, "--pairs=100", cwd=empty)
        quietly(binaries / "siitjax", "export", file, f"{case}-hub", cwd=empty)
    if installed.name == "editable":
        quietly(binaries / "python", "-m", "sweeps.betas", *SMALL, "--out=out", cwd=installed / "source")
