"""Cases by where they are: package.module:CASE, of a module that can be imported, or path/to/file.py:CASE."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType

from siitjax.base.errors import UserError
from siitjax.causal.case import Case


def is_place(name: str) -> bool:
    """Whether it says where a case is, not what it is called."""
    return ":" in name or name.endswith(".py")


def at(place: str) -> Case:
    """The case at "package.module:CASE" or "path/to/file.py:CASE"; CASE where no name is given.

    Raises:
        UserError: nothing is there, or it is no case.
    """
    where, _, attribute = place.rpartition(":") if not place.endswith(".py") else (place, ":", "")
    attribute = attribute or "CASE"
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise UserError(f"there is no file {where}; give the case as path/to/file.py:CASE")
        module = _file_module(Path(where).resolve())
    else:
        try:
            with _on_path(Path.cwd()):
                module = import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{where}.".startswith(f"{error.name}."):
                raise
            raise UserError(
                f'there is no module "{error.name}" here; give the case as package.module:CASE, of a package that is '
                "installed or lies in this folder, or as path/to/file.py:CASE"
            ) from None
    case = getattr(module, attribute, None)
    if not isinstance(case, Case):
        raise UserError(
            f"{where} declares no case called {attribute}; give the name that it has there, as {where}:NAME"
        )
    return case


@cache
def _file_module(path: Path) -> ModuleType:
    """The module that a file is, which may import its neighbours."""
    name = f"siitjax_case_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with _on_path(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Here modules that lie in the folder can be imported, where no other has their name."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
