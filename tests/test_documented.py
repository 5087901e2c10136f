"""Every public name of siitjax says what it is, explains no argument that it has not, names each UserError that it
raises itself, and refers to nothing that is not there. The files are read, not imported, so this takes a second."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import siitjax

ROOT = Path(__file__).parents[1]
ERRORS = {"UserError", "ResultsError", "CheckpointError", "TornError", "WorkerError"}
"""What users are told; a function that raises others inside catches them, or they are bugs."""
ELSEWHERE = {"siitjax.cases", "siitjax._cases"}
"""A group of entry points, and what cases/ is called where siitjax is installed."""


class Thing(NamedTuple):
    """A public function, class or method.

    Attributes:
        name: with its class.
        owner: the class that it is a method of, or None.
    """

    file: Path
    name: str
    node: ast.FunctionDef | ast.ClassDef
    owner: ast.ClassDef | None
    words: str


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def things(folder: Path) -> list[Thing]:
    """The public names of every module of a folder; a name, a file or a folder that begins with _ is nobody's."""

    def within(path: Path, tree: ast.Module | ast.ClassDef, prefix: str) -> Iterator[Thing]:
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                owner = tree if isinstance(tree, ast.ClassDef) else None
                yield Thing(path, prefix + node.name, node, owner, ast.get_docstring(node) or "")
                if isinstance(node, ast.ClassDef):
                    yield from within(path, node, f"{prefix}{node.name}.")

    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if not any(part.startswith("_") and not part.startswith("__") for part in parts):
            found += within(path, parsed(path), "")
    return found


def section(words: str, title: str) -> str:
    """What stands beneath a title of a docstring; "" where it has none."""
    found = re.search(rf"^{title}\b.*:\n((?:^(?: .*)?\n?)*)", words, re.MULTILINE)
    return found[1] if found else ""


def explained(words: str, title: str) -> list[str]:
    """The names that a section explains; `low, high: ...` are two."""
    lines = re.findall(r"^    ([*\w][*\w, ]*):", section(words, title), re.MULTILINE)
    return [name.strip().lstrip("*") for line in lines for name in line.split(",")]


def parameters(function: ast.FunctionDef) -> list[str]:
    args = function.args
    found = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
    return [each.arg for each in found if each.arg not in ("self", "cls")]


def fields(of: ast.ClassDef) -> list[str]:
    """The fields that a class declares, or sets on itself."""
    declared = [
        line.target.id for line in of.body if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    ]
    stored = [x for x in ast.walk(of) if isinstance(x, ast.Attribute) and isinstance(x.ctx, ast.Store)]
    return [*declared, *(x.attr for x in stored if isinstance(x.value, ast.Name) and x.value.id == "self")]


def raised(node: ast.AST) -> set[str]:
    """The errors of users that a function raises itself: not within another function, and not to catch them again."""
    found = set()
    for line in ast.iter_child_nodes(node):
        if isinstance(line, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(line, ast.Raise) and isinstance(line.exc, ast.Call) and isinstance(line.exc.func, ast.Name):
            found |= {line.exc.func.id} & ERRORS
        elif isinstance(line, ast.Try):
            kept = [*line.handlers, *line.orelse, *line.finalbody]
            found |= {error for each in kept for error in raised(each)}
        else:
            found |= raised(line)
    return found


def lacking(folder: Path) -> list[str]:
    """What is not documented in the modules of a folder, a line each."""
    known = things(folder)
    classes = {thing.node.name: thing for thing in known if isinstance(thing.node, ast.ClassDef)}
    methods = {(thing.owner.name, thing.node.name): thing.words for thing in known if thing.owner}

    def bases(of: ast.ClassDef) -> Iterator[Thing]:
        for base in of.bases:
            thing = classes.get(base.id) if isinstance(base, ast.Name) else None
            if thing is not None and isinstance(thing.node, ast.ClassDef) and thing.node is not of:
                yield thing
                yield from bases(thing.node)

    def inherited(thing: Thing) -> str:
        """What the classes above say, of a method or of themselves."""
        if isinstance(thing.node, ast.ClassDef):
            return "".join(base.words for base in bases(thing.node))
        above = [*bases(thing.owner)] if thing.owner else []
        said = "".join(methods.get((base.name, thing.node.name), "") for base in above)
        return said and said + "".join(base.words for base in above)

    said = []
    for thing in known:
        where = f"{thing.file.relative_to(folder)}: {thing.name}"
        words = thing.words + inherited(thing)
        if not words:
            said.append(f"{where} has no docstring")
        if isinstance(thing.node, ast.FunctionDef):
            title, there, errors = "Args", parameters(thing.node), raised(thing.node)
        else:
            made = [x for x in thing.node.body if isinstance(x, ast.FunctionDef)]
            title = "Attributes"
            there = [*fields(thing.node), *(x.name for x in made)]
            errors = {e for x in made if x.name in ("__init__", "__post_init__") for e in raised(x)}
        said += [
            f"{where} explains {name}, which it has not" for name in explained(thing.words, title) if name not in there
        ]
        # A subclass may be told by the class that it is of.
        said += [
            f"{where} raises {error}, which it does not say"
            for error in errors
            if not {error, "UserError"} & {*re.findall(r"\w+", words)}
        ]
    return said


def test_every_public_name_says_what_it_is_and_which_errors_it_raises():
    assert lacking(ROOT / "siitjax") == []


@pytest.mark.parametrize("name", [name for name in siitjax.__all__ if callable(getattr(siitjax, name))])
def test_the_front_door_explains_every_argument(name):
    home = next((home for home, names in siitjax._HOMES.items() if name in names), "front.grid")
    wanted = "train_grid" if name == "sweep" else name
    file = ROOT / "siitjax" / f"{home.replace('.', '/')}.py"
    (thing,) = [thing for thing in things(file.parent) if thing.file == file and thing.name == wanted]
    if isinstance(thing.node, ast.FunctionDef):
        title, there = "Args", parameters(thing.node)
    elif any(base.id == "IntEnum" for base in thing.node.bases if isinstance(base, ast.Name)):
        return  # the words of its members stand beneath them
    else:
        title = "Attributes"
        there = [
            x.target.id for x in thing.node.body if isinstance(x, ast.AnnAssign) and isinstance(x.target, ast.Name)
        ]
    known = {*explained(thing.words, title), *re.findall(r"`(\w+)`", thing.words)}
    assert [each for each in there if each not in known] == []


def references(text: str) -> set[str]:
    """What `siitjax.room.module.name` in text refers to."""
    return set(re.findall(r"`(siitjax(?:\.\w+)+)[`(]", text)) - ELSEWHERE


def is_there(reference: str, folder: Path) -> bool:
    """Whether a module of siitjax/, or a name that one assigns, defines or imports, is called so."""
    parts = reference.split(".")[1:]
    place = folder
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    if not parts:
        return True
    if (place / f"{parts[0]}.py").exists():
        file, names = place / f"{parts[0]}.py", parts[1:]
    else:
        file, names = place / "__init__.py", parts
    tree: ast.AST = parsed(file)
    for name in names:
        found = [x for x in ast.iter_child_nodes(tree) if name in _names(x)]
        if not found and not (file.name == "__init__.py" and f'"{name}"' in file.read_text()):
            return False
        tree = found[0] if found else ast.Module([], [])
    return True


def _names(line: ast.AST) -> set[str]:
    """The names that a line of a module or a class makes."""
    if isinstance(line, ast.FunctionDef | ast.ClassDef):
        return {line.name}
    if isinstance(line, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in line.names}
    return {x.id for x in ast.walk(line) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}


def test_what_docstrings_and_readmes_refer_to_is_there():
    files = [*(ROOT / "siitjax").rglob("*.py"), *ROOT.glob("*/README.md"), ROOT / "README.md"]
    found = {(path.relative_to(ROOT), name) for path in files for name in references(path.read_text())}
    assert len(found) > 50
    assert [each for each in sorted(found) if not is_there(each[1], ROOT / "siitjax")] == []


WRONG = '''
class Holder:
    """Holds.

    Attributes:
        size: how many.
    """

    def take(self):
        """Takes."""
        raise UserError("there is none; wait")

class Own(Holder):
    def take(self):
        pass

def draw(n):
    """Draws.

    Args:
        count: how many.
    """

def bare(): ...

def fine(n):
    """Is fine, and `siitjax.a.nothing` is not."""
    try:
        raise UserError("which is caught")
    except UserError:
        return n
'''


def test_what_is_not_documented_is_told(tmp_path):
    (tmp_path / "a.py").write_text(WRONG)
    (tmp_path / "_own.py").write_text("def bare(): ...")
    assert lacking(tmp_path) == [
        "a.py: Holder explains size, which it has not",
        "a.py: Holder.take raises UserError, which it does not say",
        "a.py: draw explains count, which it has not",
        "a.py: bare has no docstring",
    ]
    assert references(WRONG) == {"siitjax.a.nothing"}
    assert [is_there(f"siitjax.a{name}", tmp_path) for name in ("", ".Own.take", ".nothing", ".Own.give")] == [
        1,
        1,
        0,
        0,
    ]
