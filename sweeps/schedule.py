"""Does it matter that the learning rate falls?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from siitjax.against import AgainstFirst
from siitjax.command import flag, main
from siitjax.errors import UserError
from siitjax.report import Verdict
from siitjax.results import Row
from siitjax.train import Hyperparams, TrainConfig


@dataclass(frozen=True)
class Schedules(AgainstFirst):
    """Does it matter that the learning rate falls?

    Anders & Garriga-Alonso 2024 let it fall linearly from 1e-3 to 2e-4. Compares that with both ends held constant,
    and with a fall to 1e-5. The fall ends with the last of --epochs, so a member that converges early sees little of
    it: that is part of the answer.

    The rule, fixed before the first run: supported where both constant rates fall behind the fall to 2e-4 (the whole
    95% interval of the ratio of epochs lies above 1.25), contradicted where one of them matches it (the whole
    interval lies below). The fall to 1e-5 is in the tables alone.
    """

    title = "Does it matter that the learning rate falls?"

    high: float = flag(1e-3, "the learning rate at the first update")
    low: float = flag(2e-4, "the learning rate that the published schedule ends at")
    lowest: float = flag(1e-5, "a lower end", least=0)

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
        lags = self.lags(rows)
        constant = {name: lags[name] for name in map(self._constant, (self.high, self.low))}
        seen = "; ".join(found.words(name, "the linear fall") for name, found in constant.items())
        kinds = {found.kind for found in constant.values()}
        if "matches" in kinds:
            return Verdict("contradicted", f"{seen}.")
        return Verdict("undecided" if "unclear" in kinds else "supported", f"{seen}.")

    def _constant(self, rate: float) -> str:
        return f"constant {rate:g}"


if __name__ == "__main__":
    main(Schedules)
