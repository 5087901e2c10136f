"""Does Adam's beta2 decide whether one SIIT update a batch matches three?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from siitjax.command import flag, main
from siitjax.compare import lag
from siitjax.question import Question
from siitjax.report import Verdict
from siitjax.results import Row
from siitjax.sweep import Member
from siitjax.train import Hyperparams, Updates


@dataclass(frozen=True)
class Betas(Question):
    """Does Adam's beta2 decide whether one SIIT update a batch matches three?

    Gupta et al. 2024 (Algorithm 1) take three updates a batch, one for each loss term. Anders & Garriga-Alonso
    2024 take one, on the weighted sum, with Adam's betas at (0.9, 0.9) in place of (0.9, 0.999). This sweep
    trains both kinds under each beta2, on the same data from the same first weights, and compares how many
    epochs they need until accuracy, IIA and SIIA are 100% on validation.
    """

    title = "Does Adam's beta2 decide whether one SIIT update a batch matches three?"

    beta1: tuple[float, ...] = flag((0.9,), "Adam's beta1")
    beta2: tuple[float, ...] = flag((0.9, 0.999), "Adam's beta2")
    p_unused: float = flag(0.5, "probability of each unused node in the subset that the SIIT term swaps")
    updates: tuple[Updates, ...] = flag(("single", "three"), "updates a batch: single, three")

    def members(self) -> Sequence[Member]:
        case = self.build()
        settings = product(self.beta1, self.beta2, self.updates)
        return [
            Member(
                setting=f"{updates}, beta2 {beta2:g}" + (f", beta1 {beta1:g}" if len(self.beta1) > 1 else ""),
                seed=seed,
                config=self.train_config(case, updates),
                hyper=Hyperparams(beta1=beta1, beta2=beta2, p_unused=self.p_unused),
            )
            for beta1, beta2, updates in settings
            for seed in range(self.seeds)
        ]

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        if set(self.updates) != {"single", "three"} or len(self.beta2) < 2:
            return Verdict("undecided", "the question needs both kinds of update, each under two beta2 or more.")
        lags = {
            (beta1, beta2): lag(*(self._of(rows, beta1, beta2, updates) for updates in ("single", "three")))
            for beta1, beta2 in product(self.beta1, self.beta2)
        }
        seen = "; ".join(f"at {self._name(*betas)} {found.words('single', 'three')}" for betas, found in lags.items())
        kinds = {found.kind for found in lags.values()}
        if kinds == {"matches", "behind"}:
            return Verdict("supported", f"{seen}.")
        kind = "undecided" if "unclear" in kinds else "contradicted"
        return Verdict(kind, f"{seen}.")

    def _of(self, rows: Sequence[Row], beta1: float, beta2: float, updates: str) -> list[Row]:
        """The rows of one setting, by seed."""
        ours = [r for r in rows if (r["updates"], r["beta1"], r["beta2"]) == (updates, beta1, beta2)]
        return sorted(ours, key=lambda row: row["seed"])

    def _name(self, beta1: float, beta2: float) -> str:
        return f"beta2 {beta2:g}" + (f", beta1 {beta1:g}," if len(self.beta1) > 1 else "")


if __name__ == "__main__":
    main(Betas)
