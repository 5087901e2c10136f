"""Does Adam's beta2 decide whether one SIIT update a batch matches three?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from siitjax.base.command import flag, main
from siitjax.questions.question import Question
from siitjax.questions.report import Verdict
from siitjax.questions.statistics.ranks import Differences
from siitjax.questions.statistics.speed import holm, interaction, ratio
from siitjax.siit.config import Hyperparams, Updates
from siitjax.sweep.engine import Member
from siitjax.sweep.results import Row


@dataclass(frozen=True)
class Betas(Question):
    """Does Adam's beta2 decide whether one SIIT update a batch matches three?

    Gupta et al. 2024 (Algorithm 1) take three updates a batch, one for each loss term. Anders & Garriga-Alonso
    2024 take one, on the weighted sum, with Adam's betas at (0.9, 0.9) in place of (0.9, 0.999). This sweep
    trains both kinds under each beta2, on the same data from the same first weights, and compares how many
    epochs they need until accuracy, IIA and SIIA are 100% on validation.

    The rule: beta2 decides by how it changes the ratio of single's epochs to those of three, seed by seed. Supported
    where the whole 95% interval of (single / three at another beta2) / (single / three at the first) lies above 1.25
    or below 1 / 1.25; contradicted where it lies between the two. Of several such comparisons, as under more than
    two beta2, one suffices to support and all must contradict, with Holm's correction. Whether single is as fast as
    three at each beta2 is told beside it and decides nothing. The centre of the seeds' ratios and its interval are
    those of Wilcoxon's signed ranks, and take 6 seeds; a member that ran all its epochs needs more, one that diverged
    never converges (siitjax/questions/statistics/speed.py).
    """

    title = "Does Adam's beta2 decide whether one SIIT update a batch matches three?"

    beta1: tuple[float, ...] = flag((0.9,), "Adam's beta1")
    beta2: tuple[float, ...] = flag((0.9, 0.999), "Adam's beta2")
    p_unused: float = flag(0.5, "probability of each unused node in the subset that the SIIT term swaps")
    updates: tuple[Updates, ...] = flag(
        ("single", "three"), "updates a batch: single (on the weighted sum) or three (one a loss term)"
    )

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
            for seed in self.every_seed
        ]

    def comparisons(self, rows: Sequence[Row]) -> dict[str, Differences]:
        if set(self.updates) != {"single", "three"}:
            return {}
        each = {f"single / three at {self._name(*betas)}": found for betas, found in self._each(rows).items()}
        first = f"at {self.beta2[0]:g}"
        return each | {f"that at {self._name(*b)} / {first}": found for b, found in self._changes(rows).items()}

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        if set(self.updates) != {"single", "three"} or len(self.beta2) < 2:
            return Verdict("undecided", "the question needs both kinds of update, each under two beta2 or more.")
        each, changes, first = holm(self._each(rows)), holm(self._changes(rows)), self.beta2[0]
        seen = [f"at {self._name(*betas)} {found.words('single', 'three')}" for betas, found in each.items()]
        seen += [found.change(f"that ratio at {self._name(*b)}", f"that at {first:g}") for b, found in changes.items()]
        kinds = {found.kind for found in changes.values()}
        because = f"{'; '.join(seen)}."
        if kinds & {"slower", "faster"}:
            return Verdict("supported", because)
        return Verdict("undecided" if "unclear" in kinds else "contradicted", because)

    def _each(self, rows: Sequence[Row]) -> dict[tuple[float, float], Differences]:
        """The ratio of single to three, at each pair of betas."""
        return {betas: ratio(*self._pair(rows, *betas)) for betas in product(self.beta1, self.beta2)}

    def _changes(self, rows: Sequence[Row]) -> dict[tuple[float, float], Differences]:
        """How many times larger that ratio is than at the first beta2, at each pair of betas with another."""
        first, *others = self.beta2
        return {
            (beta1, beta2): interaction(*self._pair(rows, beta1, first), *self._pair(rows, beta1, beta2))
            for beta1, beta2 in product(self.beta1, others)
        }

    def _pair(self, rows: Sequence[Row], beta1: float, beta2: float) -> tuple[list[Row], list[Row]]:
        return self._of(rows, beta1, beta2, "single"), self._of(rows, beta1, beta2, "three")

    def _of(self, rows: Sequence[Row], beta1: float, beta2: float, updates: str) -> list[Row]:
        """The rows of one setting, by seed."""
        ours = [r for r in rows if (r["updates"], r["beta1"], r["beta2"]) == (updates, beta1, beta2)]
        return sorted(ours, key=lambda row: row["seed"])

    def _name(self, beta1: float, beta2: float) -> str:
        return f"beta2 {beta2:g}" + (f", beta1 {beta1:g}," if len(self.beta1) > 1 else "")


if __name__ == "__main__":
    main(Betas)
