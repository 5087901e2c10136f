"""Does it matter that the learning rate falls?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from siitjax.base.command import flag, main
from siitjax.base.errors import UserError
from siitjax.questions.against_first import AgainstFirst
from siitjax.questions.report import Verdict
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.sweep.results import Row


@dataclass(frozen=True)
class Schedules(AgainstFirst):
    """Does it matter that the learning rate falls?

    Anders & Garriga-Alonso 2024 let it fall linearly from 1e-3 to 2e-4. Compares that with both ends held constant,
    and with a fall to 1e-5. The fall ends with the last of --epochs, so a member that converges early sees little of
    it: that is part of the answer.

    The rule: supported where both constant rates are slower than the fall to 2e-4 (the whole 95% interval of the
    ratio of epochs lies above 1.25), contradicted where one of them is as fast (it lies between 1 / 1.25 and 1.25) or
    faster (below 1 / 1.25). The two are one family, with Holm's correction. The fall to 1e-5 is in the tables alone.
    The centre of the seeds' ratios and its interval are those of Wilcoxon's signed ranks, and take 6 seeds; a member
    that ran all its epochs needs more, one that diverged never converges (siitjax/questions/statistics/speed.py).
    """

    title = "Does it matter that the learning rate falls?"

    high: float = flag(1e-3, "learning rate of the first update")
    low: float = flag(2e-4, "learning rate after the last update, as published")
    lowest: float = flag(1e-5, "a lower learning rate after the last update", least=0)

    def settings(self) -> Mapping[str, tuple[TrainConfig, Hyperparams]]:
        config = self.train_config(self.build())
        rates = {
            f"linear {self.high:g} to {self.low:g}": (self.high, self.low),
            **{self._constant(rate): (rate, rate) for rate in (self.high, self.low)},
            f"linear {self.high:g} to {self.lowest:g}": (self.high, self.lowest),
        }
        if len(rates) < 4:
            raise UserError(
                f"--high is {self.high:g}, --low {self.low:g} and --lowest {self.lowest:g}; they must all differ"
            )
        return {name: (config, Hyperparams(lr_start=start, lr_end=end)) for name, (start, end) in rates.items()}

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        found = self.speeds(rows, [self._constant(rate) for rate in (self.high, self.low)])
        seen = "; ".join(speed.words(name, "the linear fall") for name, speed in found.items())
        kinds = {speed.kind for speed in found.values()}
        if kinds & {"as fast", "faster"}:
            return Verdict("contradicted", f"{seen}.")
        return Verdict("undecided" if "unclear" in kinds else "supported", f"{seen}.")

    def _constant(self, rate: float) -> str:
        return f"constant {rate:g}"


if __name__ == "__main__":
    main(Schedules)
