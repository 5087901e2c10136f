"""The cases: one file a task, and the one table of them."""

from cases import duplicate_remover, left_greater, paren_checker, unique_extractor
from siitjax.case import Case
from siitjax.choice import check_choice

CASES: tuple[Case, ...] = (left_greater.CASE, paren_checker.CASE, duplicate_remover.CASE, unique_extractor.CASE)


def find(name: str) -> Case:
    """The case called `name`.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    names = [case.name for case in CASES]
    check_choice("case", name, names)
    return CASES[names.index(name)]
