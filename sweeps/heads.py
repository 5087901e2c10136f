"""Can unrelated tasks share a head?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import track
from rich.table import Table

from siitjax.base.command import flag, main
from siitjax.base.errors import UserError
from siitjax.questions.kinds_table import kinds_scores, kinds_table
from siitjax.questions.question import Question
from siitjax.questions.report import Verdict
from siitjax.questions.statistics.paired import by_seed
from siitjax.questions.statistics.ranks import Differences
from siitjax.questions.statistics.speed import holm, ratio
from siitjax.siit.config import Hyperparams
from siitjax.siit.objective import DrawnPer
from siitjax.sweep.engine import Member
from siitjax.sweep.results import Results, Row


@dataclass(frozen=True)
class Heads(Question):
    """Can unrelated tasks share a head, and how wide must it be?

    Trains several tasks with heads of their own, and with all of them in the same head of each layer (`share_heads`),
    at each width of a head. A shared head has to carry one task's variable and the other's, on whatever it attends to.
    Then each member is measured under swaps of every kind, which training does not draw.

    The rule: supported where, at some width, the tasks that share a head are as fast as those with heads of their own
    (the whole 95% interval of the ratio of epochs lies between 1 / 1.25 and 1.25) or faster (it lies below 1 / 1.25);
    contradicted where they are slower at every width (it lies above 1.25). The widths are one family, with Holm's
    correction. The centre of the seeds' ratios and its interval are those of Wilcoxon's signed ranks, and take 6 seeds;
    a member that ran all its epochs needs more, one that diverged never converges
    (siitjax/questions/statistics/speed.py).
    """

    title = "Can unrelated tasks share a head?"

    case: str = flag("0+1", "the tasks, by name or number, with + between")
    d_head: tuple[int, ...] = flag((4, 8), "d_head: numbers in each head", least=1)
    seeds: int = 8
    epochs: int = 40
    samples: int = 5_000
    init_gain: float = 0.18
    drawn_per: DrawnPer = "example"
    quick: bool = flag(False, "train two seeds a setting")

    def members(self) -> Sequence[Member]:
        if "+" not in self.case:
            raise UserError(f"--case is {self.case}, but one task shares its heads with none; give two, such as 0+1")
        return [
            Member(_setting(share, d_head), seed, self.train_config(case), Hyperparams(p_unused=0.8))
            for d_head in self.d_head
            for share in (False, True)
            for case in [self.build(d_head=d_head, share_heads=share)]
            for seed in (self.every_seed[:2] if self.quick else self.every_seed)
        ]

    def comparisons(self, rows: Sequence[Row]) -> dict[str, Differences]:
        return {f"shared / own, d_head {d}": found for d, found in self._ratios(rows).items()}

    def measure(self, rows: Sequence[Row], results: Results) -> Iterator[Row]:
        for row in track(rows, "measuring what was trained", console=Console(stderr=True)):
            yield {"member": row["member"], "kinds": kinds_scores(row, results)}

    def tables(self, rows: Sequence[Row]) -> Sequence[Table]:
        pairs = {_setting(True, d): _setting(False, d) for d in self.d_head}
        measured = all("kinds" in row for row in rows)
        return [*super().tables(rows), *([kinds_table(rows, pairs)] if measured else [])]

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        found = holm(self._ratios(rows))
        seen = "; ".join(f"at d_head {d} {speed.words('shared', 'own')}" for d, speed in found.items())
        kinds = {speed.kind for speed in found.values()}
        kind = "supported" if kinds & {"as fast", "faster"} else "contradicted" if kinds == {"slower"} else "undecided"
        return Verdict(kind, f"{seen}.")

    def _ratios(self, rows: Sequence[Row]) -> dict[int, Differences]:
        return {d: ratio(by_seed(rows, _setting(True, d)), by_seed(rows, _setting(False, d))) for d in self.d_head}


def _setting(share: bool, d_head: int) -> str:
    return f"{'shared' if share else 'own'} heads, d_head {d_head}"


if __name__ == "__main__":
    main(Heads)
