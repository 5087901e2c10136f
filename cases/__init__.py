"""The cases: one file a task, and the one table of them."""

from dataclasses import replace

from cases import duplicate_remover, left_greater, paren_checker, unique_extractor
from siitjax.case import Case
from siitjax.choice import check_choice
from siitjax.circuit import Counterfactual
from siitjax.combine import combine

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


def build(
    names: str, *, width_factor: float = 0.0, counterfactual: Counterfactual = "causal", init_gain: float = 1.0
) -> Case:
    """The case that `names` lists: one of the table, or several in one transformer, see `siitjax.combine`.

    Args:
        width_factor: of a combined case; 0 for a d_model of 32 or more, a quarter above the largest part's at least.

    Raises:
        ValueError: a name is none of the table's, or the heads are too few.
    """
    parts = [replace(case, init_gain=init_gain) for case in find_all(names)]
    if len(parts) == 1:
        return replace(parts[0], counterfactual=counterfactual)
    auto = max(32 / max(part.d_model for part in parts), 1.25)
    # The original's rule goes with the original's layout, in which no node chooses the answer.
    selection = counterfactual == "causal"
    return combine(parts, width_factor=width_factor or auto, selection=selection, counterfactual=counterfactual)
