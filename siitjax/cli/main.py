"""`siitjax COMMAND ...`, which is `python -m siitjax COMMAND ...` too."""

import sys
from collections.abc import Sequence
from importlib import import_module

from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError, one_line

BAD_INPUT = 2
COMMANDS = {
    "train": ("Train", "train a transformer so that it computes a task's circuit; a seed or several, on all cores"),
    "evaluate": ("Evaluate", "does a trained transformer hold its circuit? measured again, on fresh strings"),
    "export": ("Export", "write a trained model as a folder: weights, config, circuit, vocabulary, a model card"),
    "explore": ("Explore", "write a page to look into a model: strings, swaps, both models' answers, in any browser"),
    "ship": ("Ship", "put a sweep's best members among the shipped models; for those who maintain siitjax"),
}
"""Each command's class, in the module of siitjax.cli that is called as the command, and what it does, in a line."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that the words name, and exits as it does; with 2 where there is none of that name."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_usage())
        sys.exit(0)
    try:
        check_choice("the command", name, [*COMMANDS])
    except UserError as error:
        print(f"siitjax: {one_line(error)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    # Imported here: JAX takes seconds.
    from siitjax.base.command import main as run

    run(getattr(import_module(f"siitjax.cli.{name}"), COMMANDS[name][0]), [f"siitjax {name}", *rest])


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: siitjax COMMAND ...",
            "",
            *lines,
            "",
            "siitjax COMMAND --help lists a command's flags; python -m sweeps.betas --help, and so on, a sweep's.",
        ]
    )
