"""The pages of `make docs`, which stand nowhere as files: READMEs, pictures and the notebook at their own paths, so
that their links lead on, and pages of the code: the front door, one a room, and the commands.

A hook of mkdocs, which calls `on_files`; mkdocstrings makes text of each `::: name`.
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
OWN = (
    "README.md",
    "*/README.md",
    "sweeps/report.md",
    "sweeps/results/README.md",
    "sweeps/pictures/*.png",
    "cases/*.ipynb",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for pattern in OWN:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    pages = {"siitjax": _front_door(), "commands": _commands()}
    for path in sorted(ROOT.glob("siitjax/*/__init__.py")):
        pages[path.parent.name] = _room(path.parent)
    for name, text in pages.items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def _front_door() -> str:
    import siitjax

    places = {name: f"siitjax.{home}.{name}" for home, names in siitjax._HOMES.items() for name in names}
    places["sweep"] = "siitjax.front.grid.train_grid"
    short = {"show_root_full_path": "false", "heading_level": "2"}
    options = "".join(f"\n      {name}: {value}" for name, value in short.items())
    listed = [f"- [`siitjax.{name}`][{places[name]}]" for name in siitjax.__all__]
    return "\n".join([f"# siitjax\n\n::: siitjax\n    options:\n      members: false{options}\n", *listed])


def _room(folder: Path) -> str:
    """A room's own words, and every public module of it."""
    name = f"siitjax.{folder.name}"
    inner = sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py" and path.stem[0] != "_")
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in inner]
    own = f"::: {name}\n    options:\n      members: false\n      show_root_heading: false\n"
    return "\n".join([f"# {name}\n", own, *(f"::: {module}\n" for module in modules)])


def _commands() -> str:
    """What each command says to --help."""
    said = [f"## {name}\n\n```text\n{help}\n```\n" for name, help in _helps()]
    return "\n".join(["# Commands\n", *said])


def _helps() -> Iterator[tuple[str, str]]:
    from siitjax.base.command import Command, parse
    from siitjax.cli.main import COMMANDS

    classes = {f"siitjax {name}": getattr(import_module(f"siitjax.cli.{name}"), COMMANDS[name][0]) for name in COMMANDS}
    for path in sorted(ROOT.glob("sweeps/*.py")):
        module = import_module(f"sweeps.{path.stem}")
        own = [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, Command)]
        classes |= {f"python -m sweeps.{path.stem}": x for x in own if x.__module__ == module.__name__}
    for name, command in classes.items():
        with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
            parse(command, [name, "--help"])
        yield name, text.getvalue().strip()
