"""Do small first weights decide how fast, or whether, SIIT converges?"""

from collections.abc import Sequence
from dataclasses import dataclass

from siitjax.base.command import flag, main
from siitjax.base.errors import UserError
from siitjax.causal import registry
from siitjax.causal.case import Case
from siitjax.questions.question import Question
from siitjax.questions.report import Verdict
from siitjax.questions.statistics.paired import by_seed
from siitjax.questions.statistics.ranks import Differences
from siitjax.questions.statistics.speed import holm, ratio
from siitjax.siit.config import Hyperparams
from siitjax.siit.objective import DrawnPer
from siitjax.sweep.engine import Member
from siitjax.sweep.results import Row

QUICK = 2


@dataclass(frozen=True)
class Gain(Question):
    """Do small first weights decide how fast, or whether, SIIT converges?

    The gain multiplies the Xavier normal first weights: 1 is what the papers' code draws, 0.18 is what the shipped
    models began with. Each task is trained with each gain, on the same strings and in the same order.

    The rule: the gain decides where, of some task, another gain than the first is slower or faster (the whole 95%
    interval of the ratio of epochs lies above 1.25 or below 1 / 1.25). Supported: it does for some task. Contradicted:
    of every task all gains are as fast (the interval lies between). Undecided: neither. All comparisons are one family,
    with Holm's correction. The centre of the seeds' ratios and its interval are those of Wilcoxon's signed ranks, and
    take 6 seeds; a member that ran all its epochs needs more, one that diverged never converges, so that the ratio
    answers "whether" too (siitjax/questions/statistics/speed.py).
    """

    title = "Do small first weights decide how fast SIIT converges?"

    case: str = flag("tasks", "name of the results folder, in results/")
    models: tuple[str, ...] = flag(("0", "1", "2"), "the tasks, each trained alone, by name or number")
    gains: tuple[float, ...] = flag((0.18, 1.0), "gains of the first weights; all are compared with the first", least=0)
    epochs: int = 60
    drawn_per: DrawnPer = "example"
    quick: bool = flag(False, f"train {QUICK} seeds a setting")

    def members(self) -> Sequence[Member]:
        if len(self.gains) < 2:
            raise UserError(f"--gains lists {len(self.gains)}; give two or more, such as 0.18,1")
        configs = {(m, g): self.train_config(self._case(m, g)) for m in self.models for g in self.gains}
        return [
            Member(_setting(model, gain), seed, config, Hyperparams(p_unused=0.8))
            for (model, gain), config in configs.items()
            for seed in (self.every_seed[:QUICK] if self.quick else self.every_seed)
        ]

    def _case(self, model: str, gain: float) -> Case:
        return registry.build(model, width_factor=self.width_factor, init_gain=gain)

    def comparisons(self, rows: Sequence[Row]) -> dict[str, Differences]:
        first, *others = self.gains
        return {
            f"{model}: gain {gain:g} / {first:g}": ratio(
                by_seed(rows, _setting(model, gain)), by_seed(rows, _setting(model, first))
            )
            for model in self.models
            for gain in others
        }

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        found = holm(self.comparisons(rows))
        pairs = [(model, gain) for model in self.models for gain in self.gains[1:]]
        seen = [
            f"of {model}, {speed.words(f'gain {gain:g}', f'{self.gains[0]:g}')}"
            for (model, gain), speed in zip(pairs, found.values(), strict=True)
        ]
        kinds = {speed.kind for speed in found.values()}
        kind = "supported" if kinds & {"slower", "faster"} else "undecided" if "unclear" in kinds else "contradicted"
        return Verdict(kind, f"{'; '.join(seen)}.")


def _setting(model: str, gain: float) -> str:
    return f"{model}, gain {gain:g}"


if __name__ == "__main__":
    main(Gain)
