"""Does swapping one unused node at a time in training leave backup behaviour that single swaps do not show?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from siitjax.analysis.ablation import ablate
from siitjax.base.choice import check_choice
from siitjax.base.command import flag, main
from siitjax.base.errors import UserError
from siitjax.base.share import percent
from siitjax.model.weights import load_weights
from siitjax.questions.against_first import AgainstFirst
from siitjax.questions.kinds_table import kinds_scores, kinds_table
from siitjax.questions.report import Verdict, mean
from siitjax.questions.statistics.paired import by_seed, difference, points
from siitjax.questions.statistics.ranks import LEAST
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.evaluate import evaluate
from siitjax.siit.metrics import share, shares
from siitjax.siit.train import Purpose, draw_data, draw_key
from siitjax.sweep.results import Results, Row

SUBSETS = "random subsets"
ONE = "unused: one"
HELD = Fraction("0.999")
"""SIIA at which a member holds single swaps, in a comparison of what these do not show; fixed before the first run."""
MARGIN = Fraction("0.1")
"""Points of accuracy that count as backup behaviour; fixed before the first run."""
MEASURED = 500
"""Validation strings, at most, on which a member is ablated."""
METRICS = {
    "siia": "SIIA",
    "joint_siia": "joint SIIA",
    "subset_siia": "random subset",
    "worst_siia": "worst subset",
    "zero": "zero ablation",
    "mean": "mean ablation",
}


@dataclass(frozen=True)
class Samplings(AgainstFirst):
    """Does swapping one unused node at a time in training leave backup behaviour that single swaps do not show?

    Gupta et al. 2024 swap one unused node at a time. Anders & Garriga-Alonso 2024 swap random subsets of them, since
    nodes that stand in for each other would pass otherwise. This sweep trains with one, with random subsets and with
    all unused nodes swapped, and with circuit nodes drawn one a batch (the unused ones too are then drawn once a
    batch), one an example, and in random subsets. Then each member's unused nodes are swapped one at a time, together
    and in every subset, and ablated, on validation strings in pairs that no epoch has seen; and it is measured under
    swaps of every kind, edges among them, which no way of sampling here draws.

    The rule: a member hides the points by which its SIIA under the worst subset of the unused nodes lies below its
    SIIA. What it hides with one node at a time is compared with what it hides with random subsets, over the seeds whose
    SIIA is 99.9 or more both ways. Supported: the whole 95% interval of the median difference (of the sign test,
    siitjax/questions/statistics/paired.py) lies above 0.1 points. Contradicted: it lies below. Undecided: neither,
    fewer than 6 such seeds, or differences that are all the same.
    """

    title = "Does single-node sampling leave backup behaviour?"

    only: tuple[str, ...] = flag((), f'the settings to train, by name, "{SUBSETS}" among them; none: all')

    def settings(self) -> Mapping[str, tuple[TrainConfig, Hyperparams]]:
        case = self.build()
        sampled = {
            SUBSETS: {},
            ONE: {"unused_nodes": "one"},
            "unused: all": {"unused_nodes": "all"},
            "drawn per batch": {"drawn_per": "batch"},
            "circuit: subsets": {"circuit_nodes": "subset"},
        }
        for name in self.only:
            check_choice("the setting", name, tuple(sampled))
        if self.only and SUBSETS not in self.only:
            raise UserError(f'--only is {", ".join(self.only)}; name "{SUBSETS}" too, with which others are compared')
        chosen = {name: how for name, how in sampled.items() if not self.only or name in self.only}
        return {name: (self.train_config(case, **how), Hyperparams()) for name, how in chosen.items()}

    def measure(self, rows: Sequence[Row], results: Results) -> Iterator[Row]:
        return ablated(rows, results)

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        return backup(rows)

    def tables(self, rows: Sequence[Row]) -> Sequence[Table]:
        ours = self._ours(rows)
        measured = all("kinds" in row for row in ours) and all(by_seed(ours, name) for name in (ONE, SUBSETS))
        return [*super().tables(ours), ablations(ours), *([kinds_table(ours, {ONE: SUBSETS})] if measured else [])]

    def picture(self, rows: Sequence[Row], verdict: Verdict, path: Path) -> None:
        from siitjax.questions.pictures import strips

        hidden = {name: [100 * row["hidden"] for row in by_seed(rows, name)] for name in self.settings()}
        title = f"{self.title} ({self.about})\n{verdict.kind.capitalize()}"
        strips(hidden, "points hidden under the worst subset of unused nodes", float(MARGIN), title, path)

    def _ours(self, rows: Sequence[Row]) -> list[Row]:
        names = self.settings()
        return [row for row in rows if row["setting"] in names]


def backup(rows: Sequence[Row]) -> Verdict:
    """The verdict, of rows with what was measured after training; see `Samplings` for its rule."""
    one, subsets = by_seed(rows, ONE), by_seed(rows, SUBSETS)
    if not one:
        return Verdict("undecided", f'"{ONE}" was not trained.')
    pairs = [(a, b) for a, b in zip(one, subsets, strict=True) if all(_holds(row) for row in (a, b))]
    seeds = f"{len(pairs)} of {len(one)} seeds hold single swaps (SIIA 99.9) both ways"
    found = difference([a for a, _ in pairs], [b for _, b in pairs], "hidden")
    if len(pairs) < LEAST:
        return Verdict("undecided", f"only {seeds}, and the comparison needs {LEAST}.")
    if found.low is None or found.high is None:
        return Verdict("undecided", f"the difference is {found} points in all of them, without a spread; {seeds}.")
    kind = "supported" if found.low > MARGIN else "contradicted" if found.high < MARGIN else "undecided"
    shown = sum(100 * (share(a, "hidden") or 0) > MARGIN for a, _ in pairs)
    return Verdict(
        kind,
        f"sampled one at a time, unused nodes hide {found.median:+.3f} points more than in random subsets (95% "
        f"interval {found.low:+.3f} to {found.high:+.3f}, margin {float(MARGIN):g}), and more than the margin in "
        f"{shown} of {len(pairs)} seeds; {seeds}.",
    )


def _holds(row: Row) -> bool:
    siia = share(row, "siia")
    return siia is not None and siia >= HELD


def ablated(rows: Sequence[Row], results: Results) -> Iterator[Row]:
    """What is left of each member's answers whatever becomes of its unused nodes, as shares."""
    if not rows:
        return
    case = results.members[0].config.case

    @jax.jit
    def measure(model, samples, key):
        return evaluate(model, case, samples, key=key), ablate(model, case, samples, key=key)

    for row in track(rows, "measuring what was trained", console=Console(stderr=True)):
        samples = draw_data(results.members[row["member"]].config, row["seed"]).validation[:MEASURED]
        # Another step than that of the row's own pairs.
        key = draw_key(jax.random.key(row["seed"]), Purpose.FINAL, 1)
        metrics, found = measure(load_weights(results.weights(row)), samples, key)
        siia = shares(metrics).siia
        yield {
            "member": row["member"],
            "counts": None,  # those of the row are of its own pairs, whose shares are replaced in part
            "siia": float(siia),
            "joint_siia": float(metrics.joint.share),
            "subset_siia": float(metrics.subset.share),
            **{name: float(getattr(found, name).share) for name in ("worst_siia", "zero", "mean")},
            "hidden": float(siia - found.worst_siia.share),
            "worst_subset": [*map(str, case.circuit.nodes.named(np.asarray(found.worst_subset)))],
            "kinds": kinds_scores(row, results),
        }


def ablations(rows: Sequence[Row]) -> Table:
    """What is left of the answers in each setting whatever becomes of the unused nodes."""
    table = Table(title="The unused nodes of what was trained", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("setting", no_wrap=True)
    for column in (*METRICS.values(), "hidden, points", "worst seed"):
        table.add_column(column, justify="right")
    for name in dict.fromkeys(row["setting"] for row in rows):
        ours = by_seed(rows, name)
        worst = min(ours, key=lambda row: row["worst_siia"])
        table.add_row(
            name,
            *(percent(mean(ours, metric)) for metric in METRICS),
            str(points(row["hidden"] for row in ours)),
            f"{percent(worst['worst_siia'])} by {'+'.join(worst['worst_subset']) or 'none'}",
        )
    table.caption = (
        f"metrics in %, means over the seeds, on {MEASURED} validation strings, in pairs that no epoch has seen; "
        "hidden: SIIA less SIIA under the worst subset, its median and 95% interval; worst seed: its least SIIA"
    )
    table.caption_justify = "left"
    return table


if __name__ == "__main__":
    main(Samplings)
