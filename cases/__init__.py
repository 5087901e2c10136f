"""The cases: one file a task, and the one table of them.

A task's file is imported when it is asked for, so that one with an error in it breaks no command about another.
"""

import os
import warnings
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import combinations, product
from pathlib import Path
from typing import Any

from siitjax.case import Case
from siitjax.choice import check_choice
from siitjax.circuit import Counterfactual
from siitjax.combine import combine
from siitjax.errors import UserError, one_line
from siitjax.trained import Trained, read_trained

TASKS = ("duplicate_remover", "left_greater", "paren_checker", "unique_extractor")
"""The tasks' names, which are those of their files, in the order of the numbers that Anders & Garriga-Alonso 2024 give
them."""
CASES: tuple[Case, ...]
"""Their cases; of all files that can be imported."""
MODELS = tuple("+".join(names) for n in range(1, 5) for names in combinations("0123", n))
"""The shipped models: every subset of those four tasks, by number."""
AT_NODES = "@nodes"
"""What the name of a shipped model ends in that was trained under swaps of single nodes alone."""
SHIPPED = Path(__file__).parent / "models"


def find(name: str) -> Case:
    """The case called `name`, or by its number in the table.

    Raises:
        UserError: there is none; the message names the nearest.
        Exception: of whatever kind, the task's file cannot be imported.
    """
    if name.isdecimal() and int(name) < len(TASKS):
        name = TASKS[int(name)]
    check_choice("case", name, TASKS)
    case: Case = import_module(f"cases.{name}").CASE
    if case.name != name:
        raise UserError(f'cases/{name}.py declares a case called "{case.name}"; give it the name of its file')
    return case


def __getattr__(name: str) -> Any:
    if name != "CASES":
        raise AttributeError(f"cases has no {name}")
    found = []
    for task in TASKS:
        try:
            found.append(find(task))
        except Exception as error:
            words = f"cases/{task}.py cannot be used, and is left out: {type(error).__name__}: {one_line(error)}"
            warnings.warn(words, stacklevel=2)
    return tuple(found)


def find_all(names: str) -> tuple[Case, ...]:
    """The cases that `names` lists, by name or number, with + between: "1+2", "left_greater+paren_checker".

    Raises:
        UserError: one is empty, or none of the table's; the message names the nearest.
    """
    if not all(name.strip() for name in names.split("+")):
        raise UserError(
            f'"{names}" names no case, or an empty one; give one of {", ".join(TASKS)}, or several with + between'
        )
    return tuple(find(name.strip()) for name in names.split("+"))


def build(
    names: str,
    *,
    width_factor: float = 0.0,
    d_head: int = 0,
    d_mlp: int | None = None,
    share_heads: bool = False,
    selection: bool | None = None,
    counterfactual: Counterfactual = "causal",
    init_gain: float = 1.0,
) -> Case:
    """The case that `names` lists: one of the table, or several in one transformer, see `siitjax.combine`.

    Args:
        width_factor: of a combined case; 0 for a d_model of 32, or more where the heads need it.
        d_head: of a combined case; 0 for 8, or the largest part's.
        d_mlp: width of an MLP; None for 4 d_model.
        share_heads, selection: see `siitjax.combine`; without a choice, the answer has a node of its own under the
            causal rule and none under the frozen one, as in the original.

    Raises:
        UserError: a name is none of the table's, or the heads are too few.
    """
    parts = [replace(case, init_gain=init_gain) for case in find_all(names)]
    if len(parts) == 1:
        return replace(parts[0], counterfactual=counterfactual, d_mlp=d_mlp)
    return combine(
        parts,
        width_factor=width_factor or None,
        d_head=d_head or max(8, *(part.d_head for part in parts)),
        d_mlp=d_mlp,
        share_heads=share_heads,
        selection=counterfactual == "causal" if selection is None else selection,
        counterfactual=counterfactual,
    )


def number(names: str) -> str:
    """The tasks that `names` lists, by name or number, as their numbers in order: "0+1"; "" where one is unknown."""
    known = {str(i): str(i) for i in range(len(TASKS))} | {name: str(i) for i, name in enumerate(TASKS)}
    found = [known.get(word.strip(), "") for word in names.split("+")]
    return "+".join(sorted(found)) if all(found) else ""


def shipped(name: str) -> Path:
    """The file of a shipped model, by numbers or names in any order; "1+2@nodes" is the one trained at nodes alone.

    Raises:
        UserError: none is called so; the message names the nearest.
    """
    tasks, at, kind = name.partition("@")
    code = number(tasks) + at + kind
    check_choice("the model", code, [*MODELS, *(model + AT_NODES for model in MODELS)])
    return SHIPPED / f"{code}.safetensors"


def load(name: str | Path) -> Trained:
    """A trained transformer, with its case and metrics.

    Args:
        name: what `locate` takes.

    Raises:
        UserError: it is no such thing.
    """
    return read_trained(locate(name), described)


def locate(name: str | Path) -> Path:
    """Where a trained transformer is.

    Args:
        name: of a shipped model, by numbers or names in any order ("0+1", "left_greater+duplicate_remover"), with
            "@nodes" at its end for the one that was trained under swaps of single nodes alone; also where a file or
            folder is called so; or else the path of a member's file
            ("results/table-all/members/0003.safetensors"), or of a folder with a model.safetensors. A `Path`, and a
            text with a slash ("./left_greater"), is always a path.

    Raises:
        UserError: it is no such name, and nothing is there.
    """
    if isinstance(name, str) and number(name.partition("@")[0]):
        return shipped(name)
    path = Path(name)
    if isinstance(name, str) and not (path.exists() or path.suffix or os.sep in name):
        check_choice("the model", name, (*MODELS, *TASKS))
    return path


def described(description: dict[str, Any]) -> Case:
    """The case of which `Case.describe` gave this.

    Raises:
        UserError: the cases of this version make none that is described so.
    """
    names = str(description.get("name", "")).split("+")
    try:
        parts = find_all("+".join(name.split("#")[0] for name in names))
        parts = [replace(part, init_gain=description["init_gain"]) for part in parts]
        layout = {name: description[name] for name in ("d_mlp", "counterfactual")}
        width, d_head = description["d_model"] / max(part.d_model for part in parts), description["d_head"]
        n_ctx = description["n_ctx"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the model's case cannot be made again: {error}") from None

    def together(share_heads: bool, selection: bool) -> Case:
        choices = {"share_heads": share_heads, "selection": selection, **layout}
        return combine(parts, width_factor=width, d_head=d_head, **choices).with_context(n_ctx)

    makers = [partial(together, a, b) for a, b in product((False, True), (True, False))]
    if len(parts) == 1:  # which may also be combined with no other, as the least that sweeps.capacity trains
        makers.insert(0, partial(replace, parts[0], n_ctx=n_ctx, **layout))
    for make in makers:
        try:
            case = make()
        except UserError:
            continue
        if case.describe() == description:
            return case
    raise UserError(
        f'the model was trained on a "{"+".join(names)}" whose circuit, vocabulary or sizes are not those of cases/'
    )
