"""Which cases there are: the tasks that come with siitjax, by name or number, and those that other packages bring.

siitjax' own are numbered, and their trained models are shipped. In the source tree they are the package `cases`. What
is installed has them as `siitjax._cases`, since a top-level `cases` might be anyone's, and finds them by the entry
point "cases" of the group `siitjax.cases`. Every other entry point of the group is a task of another package, called as
its case: `mine = "mine:CASE"`. A task is imported when it is asked for, so that one with an error in it breaks no
command about another.

A task that is listed nowhere is given by where it is: package.module:CASE, or path/to/file.py:CASE.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from itertools import combinations, product
from pathlib import Path
from typing import Any

from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError, one_line
from siitjax.causal.case import Case
from siitjax.causal.circuit import Counterfactual
from siitjax.causal.combine import combine
from siitjax.causal.places import at, is_place
from siitjax.model.config import with_tuples

GROUP = "siitjax.cases"
OWN = "cases"
INSTALLED = "siitjax._cases"
AT_NODES = "@nodes"
"""What the name of a shipped model ends in that was trained under swaps of single nodes alone."""


@dataclass(frozen=True)
class Tasks:
    """Tasks that are listed together.

    Attributes:
        package: of their modules, each of which declares its `CASE`.
        names: those of the tasks, and of their modules, in the order of their numbers.
        models: the folder of the trained models that are shipped with them.
        further: modules of tasks that have no number, below the package: "more.induction".
    """

    package: str
    names: tuple[str, ...]
    models: Path
    further: tuple[str, ...] = ()

    @cached_property
    def modules(self) -> dict[str, str]:
        """Every task's module below the package, by the task's name; the numbered ones come first."""
        return {module.rpartition(".")[2]: module for module in (*self.names, *self.further)}

    @cached_property
    def subsets(self) -> tuple[str, ...]:
        """Every subset of the numbered tasks, by number: "0+2". Each is a shipped model."""
        numbers = [str(i) for i in range(len(self.names))]
        return tuple("+".join(some) for n in range(1, len(numbers) + 1) for some in combinations(numbers, n))

    @property
    def shipped(self) -> tuple[str, ...]:
        """The models that lie in the folder, those of further tasks last: "1+2", "1+2@nodes", "induction"."""
        files = {path.stem for path in self.models.glob("*.safetensors")}
        names = (*self.subsets, *(module.rpartition(".")[2] for module in self.further))
        return tuple(name for kind in ("", AT_NODES) for name in (f"{each}{kind}" for each in names) if name in files)

    def find(self, name: str) -> Case:
        """The case of one of the tasks.

        Raises:
            UserError: its file declares a case of another name.
            Exception: of whatever kind, the file cannot be imported.
        """
        module = self.modules[name]
        case: Case = import_module(f"{self.package}.{module}").CASE
        if case.name != name:
            file = f"{self.package}/{module.replace('.', '/')}.py"
            raise UserError(f'{file} declares a case called "{case.name}"; give it the name of its file')
        return case

    def find_usable(self) -> tuple[Case, ...]:
        """The numbered cases whose files can be imported, with a warning for each that cannot."""
        found = []
        for name in self.names:
            try:
                found.append(self.find(name))
            except Exception as error:
                words = f"{self.package}/{name}.py cannot be used, and is left out"
                warnings.warn(f"{words}: {type(error).__name__}: {one_line(error)}", stacklevel=2)
        return tuple(found)


@cache
def own_tasks() -> Tasks:
    """The tasks that come with siitjax."""
    if _in_source_tree():
        return import_module(OWN).TABLE
    found = [point for point in entry_points(group=GROUP) if point.name == OWN]
    return found[0].load() if found else import_module(INSTALLED).TABLE


def _in_source_tree() -> bool:
    """Whether `import cases` gives the folder that lies beside siitjax in its source tree."""
    room = Path(__file__).parents[1]
    found = None if (room / "_cases").exists() else find_spec(OWN)  # which imports nothing
    return found is not None and found.origin is not None and Path(found.origin).parent == room.parent / OWN


@cache
def _others() -> Mapping[str, EntryPoint]:
    """The tasks of other packages, by name; not imported."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name != OWN}


_registered: dict[str, Case] = {}
_found_at: dict[str, str] = {}
"""Where cases were found that were given by where they are, by name."""


def register(case: Case) -> None:
    """Has the case found by its name, in this process.

    Raises:
        UserError: another case has that name.
    """
    if case.name in own_tasks().modules or _registered.get(case.name, case) != case:
        raise UserError(f'there is a case called "{case.name}" already; give this one another name')
    _registered[case.name] = case


def find(name: str) -> Case:
    """The case called `name`, by its number, or by where it is: "package.module:CASE", "path/to/file.py:CASE".

    A case that is found by where it is can be found by its name from then on, as after `register`.

    Raises:
        UserError: there is none; the message names the nearest.
        Exception: of whatever kind, the task's file cannot be imported.
    """
    own, others = own_tasks(), _others()
    if is_place(name):
        register(case := at(name))
        _found_at[case.name] = name
        return case
    if name.isdecimal() and int(name) < len(own.names):
        name = own.names[int(name)]
    check_choice("case", name, list({**own.modules, **others, **_registered}))
    if name in own.modules:
        return own.find(name)
    if name in _registered:
        return _registered[name]
    case = others[name].load()
    if not isinstance(case, Case) or case.name != name:
        said = f'a case called "{case.name}"' if isinstance(case, Case) else "no case"
        raise UserError(f'the entry point "{name}" of {GROUP} gives {said}; it must give the case of that name')
    return case


def places(names: str) -> dict[str, str]:
    """Where the cases that `names` lists are, as `find` takes it, by name; of those that lie outside siitjax and were
    found by where they are or by an entry point."""
    listed = [name.split("#")[0] for name in names.split("+")]
    known = {name: point.value for name, point in _others().items()} | _found_at
    return {name: known[name] for name in listed if name in known and name not in own_tasks().modules}


def short_name(names: str) -> str:
    """What names a folder of results: the cases' names, without where they are."""
    return "+".join(find(name.strip()).name if is_place(name) else name for name in names.split("+"))


def find_all(names: str) -> tuple[Case, ...]:
    """The cases that `names` lists, by name or number, with + between: "1+2", "left_greater+paren_checker".

    Raises:
        UserError: one is empty, or there is none of its name; the message names the nearest.
    """
    if not all(name.strip() for name in names.split("+")):
        raise UserError(
            f'"{names}" names no case, or an empty one; give one of {", ".join(own_tasks().modules)}, '
            "or several with + between"
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
    """The case that `names` lists: one task, or several in one transformer, see `siitjax.causal.combine`.

    Args:
        width_factor: of a combined case; 0 for a d_model of 32, or more where the heads need it.
        d_head: of a combined case; 0 for 8, or the largest part's.
        d_mlp: width of an MLP; None for a single case's own, and 4 d_model of a combined one.
        share_heads, selection: see `siitjax.causal.combine`; without a choice, the answer has a node of its own under
            the causal rule and none under the frozen one, as in the original.

    Raises:
        UserError: there is no case of a name, or the heads are too few.
    """
    parts = [replace(case, init_gain=init_gain) for case in find_all(names)]
    if len(parts) == 1:
        return replace(parts[0], counterfactual=counterfactual, d_mlp=d_mlp or parts[0].d_mlp)
    return combine(
        parts,
        width_factor=width_factor or None,
        d_head=d_head or max(8, *(part.d_head for part in parts)),
        d_mlp=d_mlp,
        share_heads=share_heads,
        selection=counterfactual == "causal" if selection is None else selection,
        counterfactual=counterfactual,
    )


def described(description: dict[str, Any]) -> Case:
    """The case of which `Case.describe` gave this.

    Raises:
        UserError: no case is called so, or the cases of this version make none that is described so.
    """
    names = str(description.get("name", "")).split("+")
    try:
        parts = find_all("+".join(name.split("#")[0] for name in names))
    except UserError as error:
        raise UserError(
            f"the model's case cannot be made again: {error}; a case of another place is found after "
            "siitjax.register(case), or give it: siitjax.load(path, case=case), or --case=path/to/file.py:CASE"
        ) from None
    try:
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
        makers.insert(0, partial(replace, parts[0], n_ctx=n_ctx, **layout, **_transformer(description)))
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


def resized(case: Case, description: dict[str, Any]) -> Case:
    """The case in a transformer of the sizes that `Case.describe` gave."""
    case = case.with_context(description.get("n_ctx", case.n_ctx))
    kept = ("d_model", "d_head", "d_mlp", "init_gain", "counterfactual")
    same = {name: description[name] for name in kept if name in description}
    return replace(case, **same, **_transformer(description))


def _transformer(description: dict[str, Any]) -> dict[str, Any]:
    """What `Case.describe` said of the transformer beside its sizes; nothing where it was not said."""
    kept = {name: description[name] for name in ("act_fn", "attn_only", "layer_norm") if name in description}
    later = {
        "n_heads": description.get("heads"),
        "attention_dir": description.get("attention_dir", "causal"),
        "mlp_parts": with_tuples(description).get("mlp_parts", 1),
    }
    return {**kept, **later} if kept else {}


def number(names: str) -> str:
    """The tasks that `names` lists, by name or number, as their numbers in order: "0+1"; "" where one has none."""
    tasks = own_tasks().names
    known = {str(i): str(i) for i in range(len(tasks))} | {name: str(i) for i, name in enumerate(tasks)}
    found = [known.get(word.strip(), "") for word in names.split("+")]
    return "+".join(sorted(found)) if all(found) else ""


def model_name(names: str) -> str:
    """What a model of the tasks that `names` lists is shipped as: their numbers in order, "0+1", or a further task's
    name; "" where a model of them has no such name."""
    return number(names) or (names if names in own_tasks().modules else "")


def shipped(name: str) -> Path:
    """The file of a shipped model, by numbers or names in any order; "1+2@nodes" is the one trained at nodes alone.

    Raises:
        UserError: none is called so; the message names the nearest.
    """
    tasks, at, kind = name.partition("@")
    code = model_name(tasks) + at + kind
    check_choice("the model", code, own_tasks().shipped)
    return own_tasks().models / f"{code}.safetensors"


def locate(name: str | Path) -> Path:
    """Where a trained transformer is.

    Args:
        name: of a shipped model, by numbers or names in any order ("0+1", "left_greater+duplicate_remover"), or by a
            further task's name, with "@nodes" at its end for the one that was trained under swaps of single nodes
            alone; also where a file or
            folder is called so; or else the path of a member's file
            ("results/table-all/members/0003.safetensors"), or of a folder with a model.safetensors. A `Path`, and a
            text with a slash ("./left_greater"), is always a path.

    Raises:
        UserError: it is no such name, and nothing is there.
    """
    own, path = own_tasks(), Path(name)
    tasks = name.partition("@")[0] if isinstance(name, str) else ""
    if number(tasks) or name in own.shipped:
        return shipped(str(name))
    if isinstance(name, str) and not (path.exists() or path.suffix or os.sep in name):
        if tasks in own.modules:
            raise UserError(f"no model of {name} is shipped; train one: siitjax train {tasks}")
        check_choice("the model", name, (*own.shipped, *own.names))
    return path
