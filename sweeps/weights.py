"""Do the weights of the three loss terms decide how fast, or whether, SIIT converges?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from siitjax.base.command import flag, main
from siitjax.base.errors import UserError
from siitjax.questions.against_first import AgainstFirst
from siitjax.questions.report import Verdict
from siitjax.questions.statistics.paired import by_seed
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.sweep.results import Row


@dataclass(frozen=True)
class Weights(AgainstFirst):
    """Do the weights of the three loss terms decide how fast, or whether, SIIT converges?

    Compares the weights of Anders & Garriga-Alonso 2024 (0.4/1/0.4: base, IIT and SIIT) with those of Gupta et al.
    2024 (1/1/0.4), and with those that the former's code had where it applied the SIIT weight twice (0.4/1/0.16).

    The rule: other weights change the speed where they are slower or faster (the whole 95% interval of the ratio of
    epochs lies above 1.25 or below 1 / 1.25), and do not where they are as fast (it lies between). Supported: some of
    the others change it. Contradicted: all are as fast. The others are one family, with Holm's correction. The centre
    of the seeds' ratios and its interval are those of Wilcoxon's signed ranks, and take 6 seeds; a member that ran all
    its epochs needs more, one that diverged never converges, so that the ratio answers "whether" too
    (siitjax/questions/statistics/speed.py).
    """

    title = "Do the weights of the loss terms decide how fast SIIT converges?"

    weights: tuple[str, ...] = flag(
        ("0.4/1/0.4", "1/1/0.4", "0.4/1/0.16"), "base/IIT/SIIT weights of the loss; all are compared with the first"
    )

    def settings(self) -> Mapping[str, tuple[TrainConfig, Hyperparams]]:
        config = self.train_config(self.build())
        return {words: (config, _hyper(words)) for words in self.weights}

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        if len(self.weights) < 2:
            return Verdict("undecided", "the question needs two sets of weights or more.")
        found = self.speeds(rows)
        kinds = {speed.kind for speed in found.values()}
        seen = "; ".join(speed.words(name, self.weights[0]) for name, speed in found.items())
        counts = ", ".join(
            f"{sum(row['stop'] == 'converged' for row in by_seed(rows, name))} of {len(by_seed(rows, name))} at {name}"
            for name in self.weights
        )
        because = f"{seen}; converged: {counts}."
        if kinds & {"slower", "faster"}:
            return Verdict("supported", because)
        return Verdict("undecided" if "unclear" in kinds else "contradicted", because)


def _hyper(words: str) -> Hyperparams:
    """Hyperparams with the weights that "0.4/1/0.4" stands for."""
    try:
        base, iit, siit = map(float, words.split("/"))
    except ValueError:
        raise UserError(
            f'--weights holds "{words}"; it must be three numbers with / between, such as 0.4/1/0.4'
        ) from None
    return Hyperparams(w_base=base, w_iit=iit, w_siit=siit)


if __name__ == "__main__":
    main(Weights)
