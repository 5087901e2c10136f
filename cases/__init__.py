"""The cases: one file a task, and the one table of them, where siitjax finds them (see `siitjax.causal.registry`).

A task's file is imported when it is asked for, so that one with an error in it breaks no command about another.
"""

from pathlib import Path
from typing import Any

from siitjax.causal.case import Case
from siitjax.causal.registry import AT_NODES, Tasks, build, described, find, find_all, locate, number, shipped
from siitjax.io.trained import load

__all__ = (
    "AT_NODES",
    "FURTHER",
    "LARGE",
    "MODELS",
    "SHIPPED",
    "TABLE",
    "TASKS",
    "build",
    "described",
    "find",
    "find_all",
    "load",
    "locate",
    "number",
    "shipped",
)

TASKS = ("duplicate_remover", "left_greater", "paren_checker", "unique_extractor")
"""The tasks' names, which are those of their files, in the order of the numbers that Anders & Garriga-Alonso 2024 give
them."""
FURTHER = (
    "interpbench.share_of_x",
    "interpbench.paren_shares",
    "interpbench.token_frequency",
    "interpbench.adjacent_remover",
    "interpbench.first_occurrences",
    "interpbench.ioi",
    "interpbench.ioi_full",
    "more.modular_count",
    "more.induction",
    "more.sorting",
    "more.reversal",
    "more.most_frequent",
    "more.bracket_kinds",
    "more.addition",
    "more.two_hop",
    "more.three_bits",
    "more.flip_flop",
    "more.indirect_object",
    "more.below_maximum",
    "more.two_majorities",
)
"""The modules of the further tasks, whose names are those of their files too. They have no number and no shipped
model."""
LARGE = ("ioi", "ioi_full")
"""Those of them whose transformers are large: some hours on a CPU."""
SHIPPED = Path(__file__).parent / "models"
TABLE = Tasks(__name__, TASKS, SHIPPED, FURTHER)
CASES: tuple[Case, ...]
"""The four numbered cases; of all files that can be imported."""
MODELS = TABLE.subsets
"""The shipped models: every subset of those four tasks, by number."""


def __getattr__(name: str) -> Any:
    if name != "CASES":
        raise AttributeError(f"cases has no {name}")
    return TABLE.find_usable()
