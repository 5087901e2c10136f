"""How many tasks fit one MLP?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich import box
from rich.table import Table

import cases
from siitjax.base.command import flag, main
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
"""The share of seeds that have to converge where tasks are said to fit; fixed before the first run."""


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

    The rule: tasks fit where two thirds of the seeds converge. Supported: the widest MLP holds more of the listed
    models than the narrowest. Contradicted: it holds no more, and that not all of them. A model fits or does not where
    the whole 95% interval (Clopper and Pearson) of the share of seeds that converge lies above two thirds, or below,
    with Bonferroni's correction for the models at both widths; else it may or may not, and the verdict must hold
    either way. Where every seed converges, three models take 14 seeds to be said to fit.
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
        fits, unfit = zip(*(self._held(rows, d) for d in (narrow, wide)), strict=True)
        n = len(self.models)
        seen = ", ".join(
            f"{fit} of {n} models fit with {d} neurons and {no} do not"
            for d, fit, no in zip((narrow, wide), fits, unfit, strict=True)
        )
        because = f"in two thirds of the seeds, beyond chance, {seen}."
        if fits[1] > n - unfit[0]:
            return Verdict("supported", because)
        return Verdict("contradicted" if n - unfit[1] <= fits[0] and unfit[0] else "undecided", because)

    def _held(self, rows: Sequence[Row], d_mlp: int) -> tuple[int, int]:
        """How many models fit, and how many do not, beyond chance."""
        from scipy.stats import binomtest

        fits = unfit = 0
        for model in self.models:
            ours = by_seed(rows, _setting(model, d_mlp))
            interval = binomtest(sum(map(fitted, ours)), len(ours)).proportion_ci(
                1 - LEVEL / (2 * len(self.models)), method="exact"
            )
            fits, unfit = fits + bool(interval.low > FITS), unfit + bool(interval.high < FITS)
        return fits, unfit

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
        heat_map(shares, self.models, self.d_mlp, ("tasks", "neurons an MLP"), f"{self.title}\n{verdict}", path)


def fitted(row: Row) -> bool:
    """Whether a member's tasks fit: it holds under swaps of every kind, or converged where it was trained at nodes."""
    return row["holds"] if "holds" in row else row["stop"] == "converged"


def _setting(model: str, d_mlp: int) -> str:
    return f"{model}, d_mlp {d_mlp}"


if __name__ == "__main__":
    main(Capacity)
