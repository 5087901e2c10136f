"""Command lines from dataclasses: every field is a flag, and bad input is one line."""

import contextlib
import inspect
import math
import os
import signal
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from itertools import pairwise
from typing import Any, cast, get_args, get_origin

import jax
from absl import flags

from siitjax.base.errors import UserError, one_line

BAD_INPUT = 2


MOST = 2**31 - 1
"""The greatest whole number that a flag accepts, where it does not say another: JAX's integers have 32 bits."""
MOST_SEEDS = 100_000
"""Seeds a setting at most: each is a member that is listed before any is trained."""


def flag(default: Any, about: str, *, least: float | int | None = None, most: int = MOST) -> Any:
    """A field that is a flag of the command line.

    Args:
        about: its help text.
        least, most: the least number that it accepts, and of whole numbers the greatest.
    """
    return field(default=default, metadata={"about": about, "least": least, "most": most})


def argument(about: str, default: Any = MISSING) -> Any:
    """A field that is given without a name, in the order of the fields; the last ones may have a default."""
    return field(default=default, metadata={"about": about, "least": None, "positional": True})


@dataclass(frozen=True)
class Command(ABC):
    """What a command line asks for: every field is a flag, or an argument; a tuple is a list with commas, empty only
    where its default is. A subclass may give a flag that it inherits another default (`seeds: int = 2`); the help text
    and the range stay.

    Raises:
        UserError: a value is out of its range.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        inherited = getattr(cls, "__dataclass_fields__", {})
        for name in inspect.get_annotations(cls).keys() & inherited.keys() & cls.__dict__.keys():
            about, default = inherited[name].metadata, cls.__dict__[name]
            if about and not isinstance(default, Field):
                setattr(cls, name, field(default=default, metadata=about))

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            for number in value if isinstance(value, tuple) else (value,):
                _check_number(f, number)
            if not isinstance(value, tuple):
                continue
            if len(set(value)) < len(value) or (not value and f.default != ()):
                what = "names a value twice" if value else "is empty"
                raise UserError(f"--{f.name} {what}; list one value or more, each once, with commas between")

    @abstractmethod
    def run(self) -> int:
        """Does it, and gives the exit code."""


def _check_number(f: Field, number: Any) -> None:
    """Raises UserError where a number is not in the range of its flag; what is no number is not looked at."""
    least = f.metadata.get("least")
    if isinstance(number, float) and not math.isfinite(number):
        raise UserError(f"--{f.name} is {number}; it must be a finite number")
    if least is not None and number < least:
        raise UserError(f"--{f.name} is {number}; it must be at least {least}")
    if isinstance(number, int) and number > (most := f.metadata.get("most", MOST)):
        raise UserError(f"--{f.name} is {number}; it must be at most {most}")


def main(command: type[Command], argv: Sequence[str] | None = None) -> None:
    """Runs a command, and exits with what it gives, with 2 on bad input, or with 130 on Ctrl-C.

    What the user can mend is one line; any other error is a bug, and keeps its traceback. Where nobody reads the
    output any more (`... | head -1`), it ends in silence, as other programs do.
    """
    try:
        code = parse(command, sys.argv if argv is None else argv).run()
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # what is left unwritten must not be tried again at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        code = _say(command, "interrupted", 128 + signal.SIGINT)
    except Exception as error:
        if (words := _blame(error)) is None:
            raise
        code = _say(command, words, BAD_INPUT)
    sys.exit(code)


def _say(command: type[Command], words: str, code: int) -> int:
    print(f"{command.__name__.lower()}: {one_line(words)}", file=sys.stderr)
    return code


def _blame(error: Exception) -> str | None:
    """What the user is told of an error that they can mend; None of a bug."""
    if isinstance(error, UserError | MemoryError | flags.Error):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used ({error.strerror or error})"
    if isinstance(error, RuntimeError | AssertionError) and (asked := os.environ.get("JAX_PLATFORMS")):
        try:
            jax.devices()
        except (RuntimeError, AssertionError):  # the latter where a plug-in finds no device
            why = f" ({error})" if str(error) else ""
            return f'JAX_PLATFORMS is "{asked}", and JAX finds no such device here{why}; unset it, or set it to cpu'
    return None


def as_flags(command: Command) -> list[str]:
    """The flags that make an equal command."""

    def words(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    given = [str(getattr(command, f.name)) for f in _arguments(type(command))]
    return [*given, *(f"--{f.name}={words(getattr(command, f.name))}" for f in _flags(type(command)))]


def _arguments(command: type[Command]) -> list[Field]:
    return [f for f in fields(command) if f.metadata.get("positional")]


def _flags(command: type[Command]) -> list[Field]:
    return [f for f in fields(command) if not f.metadata.get("positional")]


def parse(command: type[Command], argv: Sequence[str]) -> Command:
    """What the command line asks for. Prints the help and exits where that is asked for.

    Raises:
        UserError: an argument is missing or one too many, or a value cannot be read.
        absl.flags.Error: there is no such flag, or its value is of another kind.
    """
    values = flags.FlagValues()
    flags.DEFINE_boolean("help", False, "show this text", flag_values=values, short_name="h")
    readers = {f.name: _define(f, values) for f in _flags(command)}
    _check_values(command, argv)
    rest, wanted = values(argv)[1:], _arguments(command)
    if values["help"].value:
        print(usage(command))
        sys.exit(0)
    if len(rest) > len(wanted):
        kind = "an argument too many" if wanted else "not a flag"
        raise UserError(f'"{rest[len(wanted)]}" is {kind}; flags are given as --name=value, and --help lists them')
    if missing := [f for f in wanted[len(rest) :] if f.default is MISSING]:
        raise UserError(f"{missing[0].name.upper()} is missing: {missing[0].metadata['about']}")
    given = {f.name: word for f, word in zip(wanted, rest, strict=False)}
    return command(**given, **{name: read(values[name].value) for name, read in readers.items()})


def usage(command: type[Command]) -> str:
    """What --help prints: what the command does, then each argument and flag, with its default."""
    said = [inspect.cleandoc(command.__doc__ or ""), ""]
    for f in _arguments(command):
        said += [f.name.upper(), _indented(f.metadata["about"])]
    if _arguments(command):
        said.append("")
    said.append("Flags, each with its default:")
    for f in sorted(_flags(command), key=lambda f: f.name):
        if f.type is bool:
            name = f"--[no]{f.name}"
            default = "on" if f.default else "off"
        else:
            name = f"--{f.name}=" + (",".join(map(str, f.default)) if isinstance(f.default, tuple) else f"{f.default}")
            default = ""
        about = f.metadata["about"] + (" (a list)" if get_origin(f.type) is tuple else "")
        said += [f"  {name}", _indented(f"{about} ({default})" if default else about)]
    return "\n".join(said)


def _indented(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)


def _check_values(command: type[Command], argv: Sequence[str]) -> None:
    """Raises UserError where a flag that takes a value is followed by a flag, which would be taken for it."""
    names = {f"{dashes}{f.name}" for f in _flags(command) if f.type is not bool for dashes in ("-", "--")}
    for word, following in pairwise(argv):
        if word == "--":
            return
        if word in names and following.startswith("--"):
            raise UserError(f"{word} has no value, but {following} after it; write {word}=VALUE")


def _define(f: Field, values: flags.FlagValues) -> Callable[[Any], Any]:
    """Defines the flag of a field; gives the function that makes the field's value of the flag's."""
    if "about" not in f.metadata:
        raise TypeError(f"the field {f.name} of a command has no help text; declare it with flag()")
    about = f.metadata["about"]
    if get_origin(f.type) is tuple:
        kind = get_args(f.type)[0]
        default = ",".join(map(str, cast(tuple, f.default)))
        flags.DEFINE_string(f.name, default, f"{about} (a list)", flag_values=values)
        return lambda text: tuple(_element(f.name, kind, word.strip()) for word in text.split(",")) if text else ()
    define = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    # The words of a Literal are checked by the config that takes them, whose error names the nearest.
    define.get(f.type, flags.DEFINE_string)(f.name, f.default, about, flag_values=values)
    return lambda value: value


def _element(name: str, kind: Any, word: str) -> Any:
    if not word:
        raise UserError(f"--{name} has a comma with nothing beside it; list one value or more, with commas between")
    try:
        return kind(word) if kind in (int, float) else word
    except ValueError:
        raise UserError(f'--{name} holds "{word}"; it must be a list of numbers, such as 0.9,0.999') from None
