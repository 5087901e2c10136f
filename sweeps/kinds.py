"""Which kinds of swap must training draw, so that a transformer holds its circuit under all of them?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich import box
from rich.table import Table

import cases
from siitjax.base.command import main
from siitjax.base.share import percent
from siitjax.questions.kinds_table import worst_by_kind
from siitjax.questions.question import Question
from siitjax.questions.report import Verdict
from siitjax.questions.statistics.paired import by_seed
from siitjax.questions.statistics.ranks import LEAST
from siitjax.siit.objective import DrawnPer
from siitjax.siit.recipe import Recipe
from siitjax.sweep.engine import Member
from siitjax.sweep.results import Row

ALL = "all kinds"
LEFT_OUT: Mapping[str, Mapping[str, float]] = {
    ALL: {},
    "no circuit edges": {"p_edge": 0.0, "p_edges": 0.0},
    "no subsets": {"p_nodes": 0.0, "p_edges": 0.0},
    "no own sources": {"p_own": 0.0},
    "no positions": {"p_positions": 0.0},
    "nothing outside": {"p_outside": 0.0},
    "never all outside": {"p_whole": 0.0},
    "even weights": {"w_changed": 0.0},
    "nodes alone": {"edges_from": 1.0},
}
"""What differs from `siitjax.Recipe.edges()` in each setting."""


@dataclass(frozen=True)
class Kinds(Question):
    """Which kinds of swap must training draw, so that a transformer holds its circuit under all of them?

    Begins with the shipped weights that hold at nodes, and trains with every kind of swap, or with every kind but one:
    without edges of the circuit; without random subsets, of nodes or of edges; without sources of their own; without
    random positions; without edges outside the circuit in the IIT term; without swaps of all that lies outside;
    without more weight on labels that the swap changes; and, as a control, under single nodes alone for as long. Seeds
    differ in their strings and draws, not in the weights that they begin with.

    The rule: a setting holds when two thirds of its seeds hold (99.9% of all tokens and 99.5% of the changed ones
    under each swap of each kind, on 1,000 validation pairs). Supported: all kinds together hold, and without any one
    of them training does not. Contradicted: without some kind it holds as well, or all together do not. Undecided:
    fewer than 6 seeds.
    """

    title = "Which kinds of swap must training draw?"

    case: str = "unique_extractor"
    seeds: int = 6
    epochs: int = 20
    init_gain: float = 0.18
    drawn_per: DrawnPer = "example"
    batch_size: int = 64

    def members(self) -> Sequence[Member]:
        config = self.train_config(self.build(), swaps="edges")
        start = cases.shipped(self.case + cases.AT_NODES)
        return [
            Member(name, seed, config, replace(Recipe.edges().hyper, **without), start)
            for name, without in LEFT_OUT.items()
            for seed in self.every_seed
        ]

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        held = {name: [row["holds"] for row in by_seed(rows, name)] for name in LEFT_OUT}
        holds = {name: 3 * sum(seeds) >= 2 * len(seeds) for name, seeds in held.items()}
        counts = ", ".join(f"{name} {sum(seeds)} of {len(seeds)}" for name, seeds in held.items())
        needless = [name for name in LEFT_OUT if name != ALL and holds[name]]
        if min(map(len, held.values())) < LEAST:
            return Verdict("undecided", f"fewer than {LEAST} seeds a setting; seeds that hold: {counts}.")
        if not holds[ALL]:
            return Verdict("contradicted", f"not even with all kinds two thirds of the seeds hold: {counts}.")
        if needless:
            return Verdict("contradicted", f"it holds as well with {', '.join(needless)}; seeds that hold: {counts}.")
        return Verdict("supported", f"without any kind it does not hold; seeds that hold: {counts}.")

    def tables(self, rows: Sequence[Row]) -> Sequence[Table]:
        return [*super().tables(rows), self.worst_swaps(rows)]

    def worst_swaps(self, rows: Sequence[Row]) -> Table:
        """What the worst swap of each kind comes to, a column a setting."""
        table = Table(
            title="The worst swap of each kind, % of the labels that it changes (of all tokens, where it changes none)",
            box=box.SIMPLE_HEAD,
            title_justify="left",
        )
        for column in ("swap", *LEFT_OUT):
            table.add_column(column, justify="left" if column == "swap" else "right")
        kinds = [kind["words"] for kind in rows[0]["edges"]] if rows else []
        for i, kind in enumerate(kinds):
            table.add_row(kind, *(self._worst(rows, name, i) for name in LEFT_OUT))
        table.caption = "the least of all seeds; what falls short of 99.9% of tokens, or 99.5% of changed ones: *"
        table.caption_justify = "left"
        return table

    def picture(self, rows: Sequence[Row], verdict: Verdict, path: Path) -> None:
        from siitjax.questions.pictures import heat_map

        kinds = [kind["words"] for kind in rows[0]["edges"]]
        shares = [[self._least(rows, name, i) for name in LEFT_OUT] for i in range(len(kinds))]
        title = f"{self.title} ({self.about})\n{verdict.kind.capitalize()}"
        heat_map(shares, kinds, [*LEFT_OUT], ("", "training draws"), title, path, "worst swap, of changed labels")

    def _worst(self, rows: Sequence[Row], name: str, kind: int) -> str:
        found = by_seed(rows, name)
        if not found:
            return "-"
        least = percent(self._least(rows, name, kind))
        return least + ("" if all(row["edges"][kind]["holds"] for row in found) else "*")

    def _least(self, rows: Sequence[Row], name: str, kind: int) -> float:
        """The least share of a seed on the labels that the worst swap changes; of all tokens, where it changes none."""
        kinds = worst_by_kind(by_seed(rows, name))
        return min([*kinds.values()][kind]) if kinds else 0.0


if __name__ == "__main__":
    main(Kinds)
