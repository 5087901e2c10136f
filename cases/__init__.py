"""The cases: one file a task, and the one table of them."""

from cases import duplicate_remover, left_greater, paren_checker, unique_extractor
from siitjax.case import Case
from siitjax.choice import check_choice

CASES: tuple[Case, ...] = (duplicate_remover.CASE, left_greater.CASE, paren_checker.CASE, unique_extractor.CASE)
"""In the order of the numbers that Anders & Garriga-Alonso 2024 give them."""


def find(name: str) -> Case:
    """The case called `name`, or by its number in the table.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name.isdecimal() and int(name) < len(CASES):
        return CASES[int(name)]
    names = [case.name for case in CASES]
    check_choice("case", name, names)
    return CASES[names.index(name)]


def find_all(names: str) -> tuple[Case, ...]:
    """The cases that `names` lists, by name or number, with + between: "1+2", "left_greater+paren_checker".

    Raises:
        ValueError: one is none of the table's; the message names the nearest.
    """
    return tuple(find(name.strip()) for name in names.split("+"))
