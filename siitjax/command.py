"""A question as a command: flags from a dataclass, one line for bad input, a results folder, a verdict.

A question is a frozen dataclass, one field a flag (see sweeps/betas.py). `main` parses the flags and runs it: the
members that it lists are trained, and it ends with its table, its picture and its sentence.
"""

import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, cast, get_args, get_origin

import jax
from absl import flags
from rich.console import Console

from siitjax.objective import DrawnPer
from siitjax.progress import Progress
from siitjax.report import Verdict, picture, summarise, summary, table
from siitjax.results import Results, Row
from siitjax.sweep import Member, Outcome, run_sweep

BAD_INPUT = 2
INTERRUPTED = 130


def flag(default: Any, about: str, *, least: float | int | None = None) -> Any:
    """A field that is a flag of the command line; `about` is its help text, `least` the least number it accepts."""
    return field(default=default, metadata={"about": about, "least": least})


@dataclass(frozen=True)
class Command(ABC):
    """What a command line asks for: every field is a flag, and a tuple is given as a list with commas.

    Raises:
        ValueError: a value is out of its range.
    """

    def __post_init__(self):
        for f in fields(self):
            value, least = getattr(self, f.name), f.metadata["least"]
            for number in value if isinstance(value, tuple) else (value,):
                if least is not None and number < least:
                    raise ValueError(f"--{f.name} is {number}; it must be at least {least}")
            if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
                what = "names a value twice" if value else "is empty"
                raise ValueError(f"--{f.name} {what}; list one value or more, each once, with commas between")

    @abstractmethod
    def run(self) -> int:
        """Does it, and gives the exit code."""


@dataclass(frozen=True)
class Question(Command):
    """One research question: what to train, and what the rows say."""

    title: ClassVar[str]
    """The question, as the reports print it."""

    case: str = flag("left_greater", "the task, one of those in cases/")
    seeds: int = flag(16, "members a setting: seeds 0, 1, 2, ...", least=1)
    epochs: int = flag(100, "passes over the data at most; the learning rate reaches its end with the last", least=1)
    samples: int = flag(10_000, "strings a task, four fifths to train on and one fifth to validate on", least=1)
    batch_size: int = flag(256, "pairs a batch", least=1)
    init_gain: float = flag(1.0, "gain of the Xavier normal initialisation")
    drawn_per: DrawnPer = flag("batch", "draw the nodes to swap once a batch, or for every example: batch or example")
    embedding: bool = flag(False, "count the embedding as a circuit node, as the original did; its swap is trivial")
    workers: int = flag(0, "members trained at once; 0 for as many as there are cores, 4 at most", least=0)
    out: str = flag("", "folder of the results; by default results/QUESTION-CASE")
    resume: bool = flag(False, "go on with an unfinished results folder")
    config_only: bool = flag(False, "print the full config as JSON and stop")

    @property
    def folder(self) -> Path:
        return Path(self.out) if self.out else Path("results") / f"{type(self).__name__.lower()}-{self.case}"

    @abstractmethod
    def members(self) -> Sequence[Member]:
        """Everything to train."""

    @abstractmethod
    def verdict(self, rows: Sequence[Row]) -> Verdict:
        """What the rows say."""

    def run(self) -> int:
        """Trains what has no row yet, and reports."""
        members = tuple(self.members())
        results = Results(self.folder, self.title, members)
        if self.config_only:
            print(json.dumps(results.config(), indent=1))
            return 0
        rows = results.open(resume=self.resume)
        screen, log = Console(width=None if sys.stdout.isatty() else 160), Console(stderr=True, soft_wrap=True)
        if len(rows) == len(members) and results.is_finished():
            _show(self, rows, screen)
            screen.print(f"{results.folder} was finished before; nothing was changed.", soft_wrap=True, highlight=False)
            return 0
        try:
            _train(results, rows, self.workers or min(os.cpu_count() or 1, 4), log)
        except KeyboardInterrupt:
            log.print(
                f"Interrupted; {len(rows)} of {len(members)} members are finished and kept in {results.folder}. "
                "Go on with the same command and --resume.",
                highlight=False,
            )
            return INTERRUPTED
        verdict = _show(self, rows, screen)
        for name in ("figure.png", "figure.pdf"):
            picture(results, rows, f"{self.title} ({self.case})", verdict, results.folder / name)
        results.finish(summary(summarise(rows), verdict))
        screen.print(f"Results, weights and picture: {results.folder}", soft_wrap=True, highlight=False)
        return 0


def main(command: type[Command], argv: Sequence[str] | None = None) -> None:
    """Runs a command, and exits: 0 when done, 2 on bad input, 130 when interrupted."""
    try:
        sys.exit(_parse(command, sys.argv if argv is None else argv).run())
    except (ValueError, flags.Error) as error:
        print(f"{command.__name__.lower()}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def _train(results: Results, rows: list[Row], workers: int, log: Console) -> None:
    """Trains the members that have no row yet, and adds theirs to `rows` as they finish."""
    done = {row["member"] for row in rows}
    waiting = [(i, member) for i, member in enumerate(results.members) if i not in done]
    workers = max(1, min(workers, len(waiting)))
    log.print(f"{len(waiting)} members to train, {workers} at once, on {jax.devices()[0].device_kind}", highlight=False)

    class Keeper(Progress):
        def finished(self, index: int, member: Member, outcome: Outcome) -> None:
            with self.lock:
                rows[:] = results.add(rows, index, member, outcome)
            super().finished(index, member, outcome)

    with Keeper(log, len(results.members), len(rows)) as progress:
        run_sweep(waiting, progress, workers=workers)


def _show(question: Question, rows: Sequence[Row], screen: Console) -> Verdict:
    verdict = question.verdict(rows)
    screen.print(table(summarise(rows), f"{question.title} ({question.case})"))
    screen.print(str(verdict), soft_wrap=True, highlight=False)
    return verdict


def _parse(command: type[Command], argv: Sequence[str]) -> Command:
    """What the command line asks for. Prints the help and exits where that is asked for."""
    values = flags.FlagValues()
    flags.DEFINE_boolean("help", False, "show this text", flag_values=values, short_name="h")
    readers = {f.name: _define(f, values) for f in fields(command)}
    rest = values(argv)[1:]
    if rest:
        raise ValueError(f'"{rest[0]}" is not a flag; flags are given as --name=value, and --help lists them')
    if values["help"].value:
        print(f"{(command.__doc__ or '').strip()}\n\nFlags:{values.get_help(prefix='  ')}")
        sys.exit(0)
    return command(**{name: read(values[name].value) for name, read in readers.items()})


def _define(f: Field, values: flags.FlagValues) -> Callable[[Any], Any]:
    """Defines the flag of a field; gives the function that makes the field's value of the flag's."""
    if "about" not in f.metadata:
        raise TypeError(f"the field {f.name} of a command has no help text; declare it with flag()")
    about = f.metadata["about"]
    if get_origin(f.type) is tuple:
        kind = get_args(f.type)[0]
        default = ",".join(map(str, cast(tuple, f.default)))
        flags.DEFINE_string(f.name, default, f"{about} (a list)", flag_values=values)
        return lambda text: tuple(_element(f.name, kind, word.strip()) for word in text.split(",") if word.strip())
    define = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    # The words of a Literal are checked by the config that takes them, whose error names the nearest.
    define.get(f.type, flags.DEFINE_string)(f.name, f.default, about, flag_values=values)
    return lambda value: value


def _element(name: str, kind: Any, word: str) -> Any:
    try:
        return kind(word) if kind in (int, float) else word
    except ValueError:
        raise ValueError(f'--{name} holds "{word}"; it must be a list of numbers, such as 0.9,0.999') from None
