"""Trains a task: `siitjax train CASE`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from rich import box
from rich.table import Table

from siitjax.base.choice import check_choice
from siitjax.base.command import MOST_SEEDS, argument, flag
from siitjax.base.errors import UserError
from siitjax.base.share import percent
from siitjax.causal import registry
from siitjax.questions.question import Sweep
from siitjax.questions.report import Verdict
from siitjax.siit.metrics import share
from siitjax.siit.recipe import Recipe
from siitjax.sweep.engine import Member
from siitjax.sweep.results import Row
from siitjax.sweep.rows import read_rows, weights_file

Named = Literal["default", "published"]
FIGURES = {"accuracy": "accuracy", "IIA": "iia", "changed IIA": "changed_iia", "SIIA": "siia"}


@dataclass(frozen=True, kw_only=True)
class Train(Sweep):
    """Trains transformers so that they compute a task's circuit, a seed each, on all cores.

    The default recipe is the one that converges on every task here: small first weights, the swapped nodes drawn for
    every example, 60 epochs at most. Ctrl-C saves what is in training; the same command with --resume goes on.

    With --edges, a second stage follows: each seed goes on from its own weights, under swaps of every kind, edges
    among them, into a folder beside the first.
    """

    title = "Trained"

    case: str = argument(
        "a task, by name or number (left_greater, 1), several with + between (1+2), or where one of yours is: "
        "package.module:CASE or path/to/file.py:CASE"
    )
    seeds: int = flag(1, "members to train; their seeds count from --seed0", least=1, most=MOST_SEEDS)
    seed0: int = flag(0, "the first seed", least=0)
    recipe: Named = flag("default", "default (it converges) or published (that of Anders & Garriga-Alonso 2024)")
    epochs: int = flag(0, "passes over the training strings at most; 0: as the recipe says", least=0)
    samples: int = flag(
        0, "strings a task: four fifths are trained on, one fifth is validated on; 0: as the recipe says", least=0
    )
    batch_size: int = flag(0, "pairs of a base and a source a batch; 0: as the recipe says", least=0)
    edges: bool = flag(False, "then run a second stage, under swaps of every kind, into a folder beside the first")
    edge_epochs: int = flag(20, "passes over the training strings in the second stage", least=1)
    start: str = flag("", "run the second stage alone, from the weights in this folder of siitjax train")

    def __post_init__(self):
        super().__post_init__()
        check_choice("--recipe", self.recipe, get_args(Named))
        if self.edges and (self.start or self.distributed):
            raise UserError(
                "--edges runs two stages; with --start or --distributed, run the second one by --start alone"
            )

    @property
    def about(self) -> str:
        return registry.short_name(self.case) + ("-edges" if self.start else "")

    @property
    def chosen(self) -> Recipe:
        """The recipe, with the flags that are given."""
        if self.start:
            recipe = Recipe.edges().changed(epochs=self.edge_epochs)
        else:
            recipe = Recipe.published() if self.recipe == "published" else Recipe()
        given = {name: getattr(self, name) for name in ("epochs", "samples", "batch_size")}
        return recipe.changed(**{name: value for name, value in given.items() if value})

    def members(self) -> Sequence[Member]:
        recipe, case = self.chosen, registry.build(self.case)
        config = recipe.config(case)
        seeds = range(self.seed0, self.seed0 + self.seeds)
        return [Member(case.name, seed, config, recipe.hyper, self._start(seed)) for seed in seeds]

    def _start(self, seed: int) -> Path | None:
        """The file of the weights that a seed goes on from.

        Raises:
            UserError: --start is no results folder that has it.
        """
        if not self.start:
            return None
        folder, rows = Path(self.start), read_rows(Path(self.start))
        for row in rows:
            if row["seed"] == seed:
                return weights_file(folder, row["member"])
        has = ", ".join(str(row["seed"]) for row in rows) or "none"
        raise UserError(f"--start is {folder}, which has no seed {seed}; its seeds are: {has}")

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        if self.start:
            good = sum(row["holds"] and share(row, "accuracy") == 1 for row in rows)
            said = f"{good} of {len(rows)} seeds hold their circuit under every kind of swap."
        else:
            good = sum(row["stop"] == "converged" for row in rows)
            said = f"{good} of {len(rows)} seeds converged: accuracy, IIA and SIIA were 100% on the validation pairs."
        return Reached("supported" if good == len(rows) else "contradicted", said)

    def tables(self, rows: Sequence[Row]) -> Sequence[Table]:
        table = Table(title=f"{self.title} ({self.about})", box=box.SIMPLE_HEAD, title_justify="left")
        for column in ("seed", "stopped", "epochs", "seconds", *FIGURES, "weights"):
            table.add_column(column, justify="left" if column in ("stopped", "weights") else "right", no_wrap=True)
        for row in rows:
            figures = [percent(share(row, name)) for name in FIGURES.values()]
            file = weights_file(Path(), row["member"]).name
            table.add_row(f"{row['seed']}", row["stop"], f"{row['epochs']}", f"{row['seconds']:.1f}", *figures, file)
        table.caption = "metrics in %, on validation pairs drawn after the end"
        table.caption_justify = "left"
        return [table]

    def run(self) -> int:
        if code := super().run():
            return code
        if self.config_only:
            return 0
        self._say_where()
        if not self.edges:
            return 0
        beside = self.folder.with_name(f"{self.folder.name}-edges")
        return replace(self, edges=False, start=str(self.folder), epochs=0, out=str(beside)).run()

    def _say_where(self) -> None:
        """Prints where the best weights are, what they reach, and what to type next."""
        best = max(read_rows(self.folder), key=quality)
        file = weights_file(self.folder, best["member"])
        said = ", ".join(f"{words} {percent(share(best, name))}" for words, name in FIGURES.items())
        print(f"Weights: {file} (seed {best['seed']}: {said})")
        own = f" --case={self.case}" if registry.is_place(self.case) else ""
        print(f"Next: siitjax evaluate {file} --nodes{own}")


@dataclass(frozen=True)
class Reached(Verdict):
    """A verdict on no question: how many seeds got there."""

    def __str__(self) -> str:
        return self.because


def quality(row: Row) -> tuple[bool, float, float]:
    """What is greater for a better member."""
    number = lambda name: float(share(row, name) or 0)
    return bool(row.get("holds", row["stop"] == "converged")), number("accuracy"), number("iia") + number("siia")
