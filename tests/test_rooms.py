"""The rooms of siitjax/: each imports only from those before it, no modules import each other in a circle, siitjax
imports neither cases nor sweeps, and each room says what it holds."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    "base",
    "model",
    "causal",
    "rasp",
    "siit",
    "sweep",
    "questions",
    "analysis",
    "io",
    "torch",
    "flax",
    "bench",
    "front",
    "cli",
)
"""In order: a room may import from those before it, and from itself."""
PEERS = {"torch", "flax"}
"""Rooms of the same line in the list, which import each other neither way."""
PROGRAMS = ("cases", "sweeps")


def modules(root: Path) -> dict[str, Path]:
    """Every module of siitjax, by name."""
    found = {}
    for path in sorted((root / "siitjax").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules that one imports, wherever in the file it does: a name within a module counts as the module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for line in ast.walk(ast.parse(path.read_text())):
        if isinstance(line, ast.Import):
            yield from (alias.name for alias in line.names)
        elif isinstance(line, ast.ImportFrom):
            module = resolve_name("." * line.level + (line.module or ""), package)
            inner = [f"{module}.{alias.name}" for alias in line.names]
            yield from (each if each in known else module for each in inner)


def graph(root: Path) -> dict[str, set[str]]:
    known = modules(root)
    return {name: {*imported(name, path, known)} - {name} for name, path in known.items()}


def upward(found: Mapping[str, set[str]]) -> list[str]:
    """The imports of a room from one that comes after it, and those of programs."""
    said = []
    for name, targets in found.items():
        room = name.split(".")[1] if name.count(".") else ""
        for target in sorted(targets):
            top, _, rest = target.partition(".")
            other = rest.split(".")[0]
            if top in PROGRAMS:
                said.append(f"{name} imports {target}")
            elif top == "siitjax" and room in ROOMS and other != room:
                late = other not in ROOMS or ROOMS.index(other) > ROOMS.index(room)
                if late or {room, other} == PEERS:
                    said.append(f"{name} imports {target}")
    return said


def circle(found: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, if any do."""
    try:
        TopologicalSorter({name: targets & set(found) for name, targets in found.items()}).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_each_room_imports_only_from_those_before_it():
    assert upward(graph(ROOT)) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(graph(ROOT)) == []


def test_each_room_is_listed_and_says_what_it_holds():
    for name, path in modules(ROOT).items():
        if path.name != "__init__.py" or name == "siitjax":
            assert name.count(".") > 1 or name in ("siitjax", "siitjax.__main__"), f"{name} lies in no room"
            continue
        assert name.split(".")[1] in ROOMS
        words = ast.get_docstring(ast.parse(path.read_text()))
        assert words and len(words.splitlines()) > 1, name  # noqa: PT018


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("model/nodes.py", "from siitjax.siit import train\n", "siitjax.model.nodes imports siitjax.siit.train"),
        ("model/nodes.py", "def f():\n    import cases.one\n", "siitjax.model.nodes imports cases.one"),
        ("cli/ship.py", "from sweeps import betas\n", "siitjax.cli.ship imports sweeps"),
        ("base/files.py", "from siitjax import model\n", "siitjax.base.files imports siitjax.model"),
        ("base/files.py", "import siitjax\n", "siitjax.base.files imports siitjax"),
        ("base/files.py", "from ..model.nodes import head\n", "siitjax.base.files imports siitjax.model.nodes"),
        ("torch/hooked.py", "import siitjax.flax.nnx\n", "siitjax.torch.hooked imports siitjax.flax.nnx"),
        ("flax/nnx.py", "import siitjax.torch.plain\n", "siitjax.flax.nnx imports siitjax.torch.plain"),
    ],
)
def test_what_lies_wrong_is_told(tmp_path, file, text, words):
    for name in (*(f"{room}/__init__.py" for room in ROOMS), "siit/train.py", "model/nodes.py", "__init__.py"):
        (tmp_path / "siitjax" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "siitjax" / name).touch()
    assert upward(graph(tmp_path)) == []
    (tmp_path / "siitjax" / file).write_text(text)
    assert upward(graph(tmp_path)) == [words]


def test_a_circle_is_told(tmp_path):
    (tmp_path / "siitjax" / "model").mkdir(parents=True)
    for one, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / "siitjax" / "model" / f"{one}.py").write_text(f"def f():\n    from siitjax.model import {other}\n")
    assert sorted({*circle(graph(tmp_path))}) == [f"siitjax.model.{name}" for name in "abc"]
