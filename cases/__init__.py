"""The cases: one file a task, and the one table of them."""

from difflib import get_close_matches

from cases import duplicate_remover, left_greater, paren_checker, unique_extractor
from siitjax.case import Case

CASES: tuple[Case, ...] = (left_greater.CASE, paren_checker.CASE, duplicate_remover.CASE, unique_extractor.CASE)


def find(name: str) -> Case:
    """The case called `name`.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    names = [case.name for case in CASES]
    if name not in names:
        near = get_close_matches(name, names, 1, cutoff=0.0)[0]
        raise ValueError(f'no case is called "{name}"; did you mean "{near}"? There are {", ".join(names)}')
    return CASES[names.index(name)]
