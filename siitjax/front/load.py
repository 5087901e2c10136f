"""`siitjax.load`, `siitjax.register` and `siitjax.find_case`: trained models and cases by their names."""

from pathlib import Path
from typing import Any

from siitjax.base.errors import UserError
from siitjax.causal import registry
from siitjax.causal.case import Case
from siitjax.io.trained import MODEL_FILE, Trained, members_instead, read_trained


def load(name: str | Path, case: Case | str | None = None) -> Trained:
    """A trained transformer, with its case and its metrics.

    Args:
        name: a shipped model, by numbers or names in any order ("1+2", "left_greater"), with "@nodes" at its end for
            the one that was trained under swaps of single nodes alone; or the path of a file that `Run.save` or a
            sweep wrote, or of a folder that `siitjax export` wrote.
        case: the case that it was trained on, where that is one of yours and not registered.

    Raises:
        UserError: there is no such model, it is torn, it is of another case, or its case cannot be found; the message
            says what to do.

    Example:
        >>> import siitjax
        >>> trained = siitjax.load("1+2")
        >>> trained.case.name, trained.model.config.n_layers
        ('left_greater+paren_checker', 4)
        >>> print(trained.metrics.accuracy)
        1
    """
    path = registry.locate(name)
    if case is None:
        return read_trained(path, registry.described)
    own = find_case(case)

    def same(description: dict[str, Any]) -> Case:
        return registry.resized(own, description)

    return read_trained(path, same)


def find_case(case: Case | str) -> Case:
    """A case by its name; a case is what it is.

    Args:
        case: "left_greater", its number "1", several with + between, or where it is: "package.module:CASE",
            "path/to/file.py:CASE".

    Raises:
        UserError: there is none; the message names the nearest.

    Example:
        >>> import siitjax
        >>> siitjax.find_case("2").name
        'paren_checker'
    """
    return registry.build(case) if isinstance(case, str) else case


def register(case: Case) -> Case:
    """Has a case found by its name in this process: by `train`, `load`, `sweep` and `evaluate`. Gives the case.

    A package makes its cases known to every process with an entry point of the group `siitjax.cases`.

    Args:
        case: the same case again is no error.

    Raises:
        UserError: another case has that name.

    Example:
        >>> from dataclasses import replace
        >>> import siitjax
        >>> mine = siitjax.register(replace(siitjax.find_case("left_greater"), name="my_left_greater"))
        >>> siitjax.find_case("my_left_greater") == mine
        True
    """
    registry.register(case)
    return case


def file_of(name: str | Path) -> Path:
    """The weights file of a model.

    Raises:
        UserError: there is none.
    """
    path = registry.locate(name)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path} is not a model: {members_instead(path) or 'there is nothing of that name'}")
    return file
