"""How many tasks fit one MLP?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich import box
from rich.table import Table

import cases
from siitjax.base.command import flag, main
from siitjax.base.errors import UserError
from siitjax.causal.combine import combine
from siitjax.questions.question import Question
from siitjax.questions.report import Verdict
from siitjax.questions.start import start_from
from siitjax.questions.statistics.paired import by_seed
from siitjax.questions.statistics.ranks import LEVEL
from siitjax.siit.objective import DrawnPer, Swaps
from siitjax.siit.recipe import Recipe
from siitjax.sweep.engine import Member
from siitjax.sweep.results import Row

FITS = 2 / 3
"""A model of which fewer of the seeds fit is crowded."""
MORE = 1 / 3
"""How many more of the seeds count as more; both fixed before the first run that they judge."""


@dataclass(frozen=True)
class Capacity(Question):
    """How many tasks fit one MLP?

    Puts more and more tasks, copies of one or mixtures, into a transformer of the same d_model whose MLPs are narrower
    and narrower. Each task has heads of its own; all share the MLPs, so what breaks is the MLPs.

    The learning rate and beta2 are not those of the published recipe, at which two copies of left_greater with 32
    neurons were tried first: their MLP ended up computing the answer of the task at hand alone.

    With --swaps=edges, models are trained under swaps of every kind, from the weights that a sweep under swaps of nodes
    left in --start=FOLDER; a seed then counts where it holds (99.9% of all tokens and 99.5% of the changed ones under
    each swap of each kind, on 1,000 validation pairs), not where it converges.

    The rule: a model's tasks fit in a seed that converges within --epochs. Supported: of some model more seeds fit in
    the widest MLPs than in the narrowest, beyond chance (Fisher's exact test at 2.5%, one-sided, with Bonferroni's
    correction for the models). Contradicted: of no model a third more of the seeds fit (the whole 99% interval of the
    difference of the shares, Newcombe 1998, method 10, lies below 1/3; that takes 14 seeds), and of some model fewer
    than two thirds fit in the widest: where all fit, nothing was narrow.
    """

    title = "Do more tasks fit a wider MLP?"

    case: str = flag("copies", "name of the results folder, in results/")
    models: tuple[str, ...] = flag(("1", "1+1", "1+1+1"), "the models to train: tasks with + between, from few to many")
    d_mlp: tuple[int, ...] = flag((2, 4, 8, 16, 32), "neurons in each MLP", least=1)
    width_factor: float = 2.6
    d_head: int = flag(4, "d_head: numbers in each head", least=1)
    seeds: int = 2
    epochs: int = 80
    samples: int = 5_000
    batch_size: int = flag(0, "pairs of a base and a source a batch; 0: 256, or 64 with --swaps=edges", least=0)
    init_gain: float = 0.18
    drawn_per: DrawnPer = "example"
    lr_start: float = flag(2e-3, "learning rate of the first update; it falls linearly to --lr_end", least=0)
    lr_end: float = flag(1e-5, "learning rate after the last update", least=0)
    beta2: float = flag(0.999, "Adam's beta2", least=0)
    swaps: Swaps = flag("nodes", "what training swaps: nodes, or edges and every other kind: nodes or edges")
    start: str = flag("", "first weights: the results folder of this question under swaps of nodes; empty: drawn")
    quick: bool = flag(False, "train one seed a setting")

    def members(self) -> Sequence[Member]:
        if self.swaps == "edges" and not self.start:
            raise UserError(
                "--start is empty, but --swaps=edges goes on from weights that hold at nodes; give the results folder "
                "that the same command without --swaps left"
            )
        members = []
        recipe = Recipe.edges() if self.swaps == "edges" else Recipe()
        hyper = replace(recipe.hyper, lr_start=self.lr_start, lr_end=self.lr_end, beta2=self.beta2)
        sized = replace(self, batch_size=self.batch_size or recipe.batch_size)
        for model in self.models:
            parts = [cases.build(name, init_gain=self.init_gain) for name in model.split("+")]
            for d_mlp in self.d_mlp:
                case = combine(parts, width_factor=self.width_factor, d_head=self.d_head, d_mlp=d_mlp)
                config = sized.train_config(case, swaps=self.swaps)
                seeds = self.every_seed[:1] if self.quick else self.every_seed
                setting = _setting(model, d_mlp)
                members += [Member(setting, seed, config, hyper, self._start(setting, seed)) for seed in seeds]
        return members

    def _start(self, setting: str, seed: int) -> Path | None:
        """The file of the weights that a member begins with."""
        return start_from(Path(self.start), setting, seed) if self.start else None

    def share(self, rows: Sequence[Row], model: str, d_mlp: int) -> float:
        """The share of seeds in which the tasks fit."""
        ours = by_seed(rows, _setting(model, d_mlp))
        return sum(map(fitted, ours)) / max(len(ours), 1)

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        narrow, wide = min(self.d_mlp), max(self.d_mlp)
        seen, chances, most = [], [], []
        for model in self.models:
            few, many = (self._fitted(rows, model, d) for d in (narrow, wide))
            chances.append(chance_of(many, few))
            most.append(most_more(many, few))
            seen.append(f"{model}: {many} with {wide} neurons, {few} with {narrow} (p {chances[-1]:.2g})")
        because = f"seeds that fit, of {'; of '.join(seen)}."
        if min(chances) <= LEVEL / 2 / len(self.models):
            return Verdict("supported", because)
        crowded = any(self.share(rows, model, wide) < FITS for model in self.models)
        return Verdict("contradicted" if crowded and max(most) < MORE else "undecided", because)

    def _fitted(self, rows: Sequence[Row], model: str, d_mlp: int) -> "Seeds":
        ours = by_seed(rows, _setting(model, d_mlp))
        return Seeds(sum(map(fitted, ours)), len(ours))

    def tables(self, rows: Sequence[Row]) -> Sequence[Table]:
        seeds = "hold under swaps of every kind" if self.swaps == "edges" else "converge"
        table = Table(title=f"Share of seeds that {seeds}, by tasks and neurons an MLP", box=box.SIMPLE_HEAD)
        table.add_column("tasks")
        for d_mlp in self.d_mlp:
            table.add_column(f"{d_mlp}", justify="right")
        for model in self.models:
            table.add_row(model, *(f"{100 * self.share(rows, model, d):.0f}%" for d in self.d_mlp))
        return [*super().tables(rows), table]

    def picture(self, rows: Sequence[Row], verdict: Verdict, path: Path) -> None:
        from siitjax.questions.pictures import heat_map

        shares = [[self.share(rows, model, d) for d in self.d_mlp] for model in self.models]
        title = f"{self.title} ({self.about})\n{verdict.kind.capitalize()}"
        heat_map(shares, self.models, self.d_mlp, ("tasks", "neurons an MLP"), title, path)


@dataclass(frozen=True)
class Seeds:
    """How many seeds fit, of how many."""

    right: int
    of: int

    def __str__(self) -> str:
        return f"{self.right} of {self.of}"


def chance_of(many: Seeds, few: Seeds) -> float:
    """How often the first would have as many of the seeds that fit, or more, by chance: Fisher's exact test, one-sided.

    Example:
        >>> round(chance_of(Seeds(3, 4), Seeds(1, 4)), 4)  # Fisher's lady, who tastes the milk in tea: 17 of 70
        0.2429
    """
    from scipy.stats import hypergeom

    return float(hypergeom.sf(many.right - 1, many.of + few.of, many.right + few.right, many.of))


def most_more(many: Seeds, few: Seeds, level: float = 0.01) -> float:
    """How much larger the first share of seeds is at most: the upper end of the 99% interval of their difference.

    The interval is that of Newcombe 1998 (Statistics in Medicine 17, 873), method 10, from Wilson's of either share.

    Example:
        >>> round(most_more(Seeds(56, 70), Seeds(48, 80), level=0.05), 4)  # his table II (a): 0.0524 to 0.3339
        0.3339
    """
    from scipy.stats import binomtest

    high = binomtest(many.right, many.of).proportion_ci(1 - level, method="wilson").high
    low = binomtest(few.right, few.of).proportion_ci(1 - level, method="wilson").low
    one, other = many.right / many.of, few.right / few.of
    return one - other + ((high - one) ** 2 + (other - low) ** 2) ** 0.5


def fitted(row: Row) -> bool:
    """Whether a member's tasks fit: it holds under swaps of every kind, or converged where it was trained at nodes."""
    return row["holds"] if "holds" in row else row["stop"] == "converged"


def _setting(model: str, d_mlp: int) -> str:
    return f"{model}, d_mlp {d_mlp}"


if __name__ == "__main__":
    main(Capacity)
