"""Questions that compare settings with the first of them, seed by seed."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.table import Table

from siitjax.base.command import flag
from siitjax.questions.question import Question
from siitjax.questions.statistics.paired import by_seed, difference
from siitjax.questions.statistics.ranks import Differences
from siitjax.questions.statistics.speed import Speed, holm, ratio
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.objective import DrawnPer
from siitjax.sweep.engine import Member
from siitjax.sweep.results import Row

QUICK = 5
"""Seeds a setting of the quick form."""


@dataclass(frozen=True)
class AgainstFirst(Question):
    """A question that compares settings with the first of them, the recipe as published, seed by seed."""

    case: str = "paren_checker"
    seeds: int = 8
    epochs: int = 60
    init_gain: float = 0.18
    drawn_per: DrawnPer = "example"
    quick: bool = flag(False, f"train left_greater in place of --case, and {QUICK} seeds at most")

    @abstractmethod
    def settings(self) -> Mapping[str, tuple[TrainConfig, Hyperparams]]:
        """What is compared, by name; the first is what the others are compared with."""

    def members(self) -> Sequence[Member]:
        return [
            Member(name, seed, config, hyper)
            for name, (config, hyper) in self.settings().items()
            for seed in self.every_seed
        ]

    def run(self) -> int:
        if self.quick:
            return replace(self, quick=False, case="left_greater", seeds=min(self.seeds, QUICK)).run()
        return super().run()

    def comparisons(self, rows: Sequence[Row]) -> dict[str, Differences]:
        first, *_ = self.settings()
        return {f"{name} / {first}": found for name, found in self._ratios(rows).items()}

    def speeds(self, rows: Sequence[Row], names: Sequence[str] = ()) -> dict[str, Speed]:
        """How many times the epochs of the first setting others need: those of these names, or all; one family."""
        return holm(self._ratios(rows, names))

    def _ratios(self, rows: Sequence[Row], names: Sequence[str] = ()) -> dict[str, Differences]:
        first, *others = self.settings()
        return {name: ratio(by_seed(rows, name), by_seed(rows, first)) for name in names or others}

    def tables(self, rows: Sequence[Row]) -> Sequence[Table]:
        first, *_ = self.settings()
        table = Table(title=f"Beside {first}, seed by seed", box=box.SIMPLE_HEAD, title_justify="left")
        for column in ("setting", "times the epochs", "IIA", "changed IIA", "SIIA", "joint SIIA"):
            table.add_column(column, justify="left" if column == "setting" else "right")
        for name, found in self.speeds(rows).items():
            metrics = ("iia", "changed_iia", "siia", "joint_siia")
            gaps = (str(difference(by_seed(rows, name), by_seed(rows, first), metric)) for metric in metrics)
            table.add_row(name, str(found), *gaps)
        table.caption = (
            "times the epochs: the centre over the seeds; metrics: the median difference in points; in brackets the "
            "95% intervals, each without correction for the others"
        )
        table.caption_justify = "left"
        return [*super().tables(rows), table]
