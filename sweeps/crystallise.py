"""Can a circuit be crystallised: made true of a transformer that was trained on its task alone?"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from siitjax.analysis.placement import Placement, find_placement
from siitjax.base.command import flag, main
from siitjax.base.errors import UserError
from siitjax.base.files import write_atomically
from siitjax.base.share import percent
from siitjax.causal.case import Case
from siitjax.model.nodes import Node
from siitjax.model.weights import load_weights, state_dict
from siitjax.questions.question import Question
from siitjax.questions.report import Verdict
from siitjax.questions.statistics.paired import by_seed
from siitjax.questions.statistics.ranks import LEAST, Differences
from siitjax.questions.statistics.speed import Speed, holm, ratio
from siitjax.siit.config import Hyperparams
from siitjax.siit.fresh_pairs import list_batches
from siitjax.siit.objective import DrawnPer
from siitjax.sweep.engine import Member
from siitjax.sweep.results import Results, Row
from siitjax.sweep.rows import read_rows, weights_file

ALONE = "task alone"
SCRATCH, DECLARED, FOUND = "from scratch", "crystallised as declared", "crystallised as found"
PAIRS = 2_000
"""Of a base and a source, on which each node is tried for each variable."""
PLACEMENTS = "placements.json"
RECIPE = {"p_unused": 0.8, "lr_end": 1e-5}


@dataclass(frozen=True)
class Alone(Question):
    """The first stage: transformers trained on the task alone, as they are found in the wild; no node is swapped.

    The rule: supported where two thirds of them answer 99.9% of the tokens or more right; else contradicted.
    """

    title = "Transformers trained on the task alone"

    case: str = "paren_checker"
    seeds: int = 8
    epochs: int = flag(30, "epochs of training on the task alone", least=1)
    init_gain: float = 0.18
    drawn_per: DrawnPer = "example"

    def members(self) -> Sequence[Member]:
        config, hyper = self.train_config(self.build()), Hyperparams(w_iit=0.0, w_siit=0.0, **RECIPE)
        return [Member(ALONE, seed, config, hyper) for seed in self.every_seed]

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        good = sum(row["accuracy"] >= 0.999 for row in rows)
        kind = "supported" if 3 * good >= 2 * len(rows) else "contradicted"
        return Verdict(kind, f"{good} of {len(rows)} transformers answer 99.9% of the tokens or more right.")


@dataclass(frozen=True)
class Crystallise(Question):
    """Can a circuit be crystallised: made true of a transformer that was trained on its task alone?

    Trains transformers on the task alone. Then SIIT goes on from their weights, with the variables on the nodes that
    the case declares, and again with them on the nodes that play their parts best in that transformer: of all
    placements that can be computed in order, the one with the highest balanced interchange accuracy
    (siitjax/analysis/placement.py). Beside both, SIIT from drawn weights, seed by seed with the same strings.

    The rule: supported where, as declared, two thirds of the seeds converge from the trained weights, and they are as
    fast as from drawn ones (the whole 95% interval of the ratio of epochs lies between 1 / 1.25 and 1.25) or faster
    (below 1 / 1.25); contradicted where fewer converge, or they are slower; else, or with fewer than 6 seeds,
    undecided. That ratio, and the one of the placements found to those declared, are one family, with Holm's
    correction. The epochs on the task alone are not counted.
    """

    title = "Can a circuit be crystallised in a transformer that was trained on its task alone?"

    case: str = "paren_checker"
    seeds: int = 8
    epochs: int = 60
    init_gain: float = 0.18
    drawn_per: DrawnPer = "example"
    alone_epochs: int = flag(30, "epochs of training on the task alone", least=1)
    alone: str = flag("", "results folder of the transformers trained on the task alone; empty: they are trained first")

    def run(self) -> int:
        if self.alone:
            return super().run()
        shared = {f.name: getattr(self, f.name) for f in fields(Alone) if f.name not in ("epochs", "out")}
        first = Alone(**shared, epochs=self.alone_epochs, out=f"{self.folder}-alone")
        code = first.run()
        if code or self.config_only:
            return code
        return replace(self, alone=str(first.folder)).run()

    def members(self) -> Sequence[Member]:
        case, folder = self.build(), Path(self.alone)
        rows = read_rows(folder)
        if others := {row["case"] for row in rows} - {case.name}:
            raise UserError(f"--alone is {self.alone}, which has transformers of {min(others)}, not of {case.name}")
        starts = {row["seed"]: weights_file(folder, row["member"]) for row in rows}
        if missing := [seed for seed in self.every_seed if seed not in starts]:
            raise UserError(
                f"--alone is {self.alone}, which has no transformer of seed {missing[0]}; train them there, or leave "
                "--alone out"
            )
        hyper = Hyperparams(**RECIPE)
        placed = {seed: found.of(case) for seed, found in placements(folder, case, starts).items()}
        configs = {
            here: self.train_config(here) for here in (case, *placed.values())
        }  # one a placement, to be compiled
        return [
            Member(
                name, seed, configs[placed[seed] if name == FOUND else case], hyper, None if name == SCRATCH else start
            )
            for name in (SCRATCH, DECLARED, FOUND)
            for seed, start in starts.items()
            if seed in self.every_seed
        ]

    def speeds(self, rows: Sequence[Row]) -> dict[str, Speed]:
        """How many times the epochs from drawn weights, and how many of them with the placement found."""
        return holm(dict(zip((DECLARED, FOUND), self.comparisons(rows).values(), strict=True)))

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        seeds = by_seed(rows, DECLARED)
        converged = sum(row["stop"] == "converged" for row in seeds)
        speeds = self.speeds(rows)
        seen = f"{converged} of {len(seeds)} seeds converge from the trained weights, as declared; "
        seen += f"{speeds[DECLARED].words('it', 'SIIT from drawn weights')}; "
        seen += f"{speeds[FOUND].words('the placement that was found', 'the declared one')}"
        if len(seeds) < LEAST:
            return Verdict("undecided", f"fewer than {LEAST} seeds; {seen}.")
        if 3 * converged < 2 * len(seeds) or speeds[DECLARED].kind == "slower":
            return Verdict("contradicted", f"{seen}.")
        return Verdict("undecided" if speeds[DECLARED].kind == "unclear" else "supported", f"{seen}.")

    def comparisons(self, rows: Sequence[Row]) -> dict[str, Differences]:
        scratch, declared, found = (by_seed(rows, name) for name in (SCRATCH, DECLARED, FOUND))
        return {"as declared / from scratch": ratio(declared, scratch), "as found / declared": ratio(found, declared)}

    def measure(self, rows: Sequence[Row], results: Results) -> Iterator[Row]:
        """The least accuracy on the way, how far the weights moved, their cosine, and where variables were found."""
        flat = lambda file: np.concatenate([np.ravel(w) for w in state_dict(load_weights(file)).values()])
        kept = json.loads((Path(self.alone) / PLACEMENTS).read_text())
        for row in rows:
            start = results.members[row["member"]].start
            if start is None:
                continue
            before, after = flat(start), flat(results.weights(row))
            length = float(np.linalg.norm(before))
            yield {
                "member": row["member"],
                "least_accuracy": min(results.curves(row)["accuracy"]),
                "moved": float(np.linalg.norm(after - before)) / length,
                "cosine": float(before @ after) / (length * float(np.linalg.norm(after))),
                "places": kept[str(row["seed"])] if row["setting"] == FOUND else None,
            }

    def tables(self, rows: Sequence[Row]) -> Sequence[Table]:
        table = Table(title="What changed on the way, medians over seeds", box=box.SIMPLE_HEAD, title_justify="left")
        for column in ("setting", "least accuracy", "weights moved", "kept their direction"):
            table.add_column(column, justify="left" if column == "setting" else "right")
        for name in (DECLARED, FOUND):
            ways = [(r["least_accuracy"], r["moved"], r["cosine"]) for r in by_seed(rows, name) if "moved" in r]
            least, moved, cosine = np.median(ways, axis=0) if ways else (np.nan,) * 3
            table.add_row(name, percent(float(least)), f"{moved:.2f}", f"{cosine:.2f}")
        table.caption = (
            "least accuracy: of any epoch, on 500 validation strings or more, %; moved: the length of the change, of "
            "that of the weights; direction: the cosine of the weights before and after"
        )
        table.caption_justify = "left"
        measured = any("moved" in row for row in rows)  # not so in rows of an older version
        return [*super().tables(rows), *((table, self._places(rows)) if measured else ())]

    def _places(self, rows: Sequence[Row]) -> Table:
        """Where each variable was found, and how well its node played the part before any node was swapped."""
        table = Table(title="Where the variables were found", box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("seed", justify="right")
        case = self.build()
        held = [v for v in case.variables if v.place]
        for variable in held:
            table.add_column(f"{variable.name} ({variable.place})", justify="right")
        for row in by_seed(rows, FOUND):
            found = row["places"]
            table.add_row(
                f"{row['seed']}",
                *(f"{found[v.place]['node']} {percent(found[v.place]['score'])}" for v in held if v.place),
            )
        table.caption = (
            "the node found and its balanced interchange accuracy in %, before SIIT; the one declared is in brackets"
        )
        table.caption_justify = "left"
        return table


def placements(folder: Path, case: Case, starts: Mapping[int, Path]) -> dict[int, Placement]:
    """The best placement in each transformer, by seed: measured once, and kept in the folder."""
    file = folder / PLACEMENTS
    if file.exists():
        kept = json.loads(file.read_text())
    else:
        base, source = (jnp.asarray(x) for x in list_batches(case, PAIRS, 10**6)[0])
        kept = {}
        screen = Console(file=sys.stderr)
        for seed, weights in track(starts.items(), "looking for the variables", console=screen, transient=True):
            found = find_placement(load_weights(weights), case, base, source)
            kept[f"{seed}"] = {str(a): {"node": str(b), "score": found.scores[a]} for a, b in found.nodes.items()}
        write_atomically(file, json.dumps(kept, indent=1) + "\n")
    node = Node.parse
    return {
        int(seed): Placement(
            {node(a): node(found["node"]) for a, found in nodes.items()},
            {node(a): found["score"] for a, found in nodes.items()},
        )
        for seed, nodes in kept.items()
    }


if __name__ == "__main__":
    main(Crystallise)
