"""Does a training step's time grow as its floating point operations do?"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from siitjax.base.command import Command, flag, main
from siitjax.base.jsonl import Row
from siitjax.bench.flops import step_flops
from siitjax.bench.process import Crew, Setup, in_turn
from siitjax.bench.timing import STEPS, Timed, seconds
from siitjax.causal import registry
from siitjax.model.forms import fastest
from siitjax.questions.measured import begin, conclude
from siitjax.questions.report import Verdict
from siitjax.siit.config import TrainConfig
from siitjax.siit.objective import Sampling, Swaps
from siitjax.sweep.cores import cores, pinned
from siitjax.sweep.placement import use_compilation_cache

SAMPLES = 1_000
"""Strings a task: no more than a few batches take."""
MARGIN = 0.1
"""How far the slope of the time may lie above that of the operations."""
CREW = "paren_checker"
"""The task of the members that are timed side by side."""
AXES = {"layers": "layers", "width": "d_model", "tokens": "tokens a sample", "tasks": "tasks in one transformer"}
AXES |= {"edges": "edges", "lanes": "members at once, a core each"}
"""What the first word of a line is called in the picture."""


@dataclass(frozen=True)
class Shape:
    """What is trained: left_greater in a transformer of these sizes, where d_mlp is 4 width; or `tasks` as shipped."""

    layers: int = 2
    width: int = 32
    heads: int = 4
    tokens: int = 16
    tasks: str = ""
    swaps: Swaps = "nodes"

    @property
    def config(self) -> TrainConfig:
        """As training takes it; swaps are drawn for each example, as those of edges must be."""
        case = registry.build(self.tasks or "left_greater")
        if not self.tasks:
            sizes = {"n_layers": self.layers, "d_model": self.width, "d_head": self.width // self.heads}
            case = replace(case, n_ctx=self.tokens, **sizes)
        how = Sampling(swaps=self.swaps, drawn_per="example")
        return TrainConfig(case, samples=SAMPLES * max(len(case.tasks), 1), sampling=how)

    @property
    def edges(self) -> int:
        """Those that the transformer has."""
        return len(self.config.case.circuit.nodes.possible_edges)


@dataclass(frozen=True)
class Growth(Command):
    """Does a training step's time grow as its floating point operations do?

    Times training steps (batches of 256, on one core) of transformers that differ in one size: layers, d_model (with
    4 heads and a d_mlp of 4 d_model), tokens a sample, tasks, and edges (by more heads of the same d_model in all),
    the last under swaps of nodes and of edges; and of paren_checker on 1, 2, ... cores, with a member on each. All
    are taken turn by turn in one run, compilation excluded. The slope is that of a line through log ms against log
    size; beside it stands the slope of the operations, counted from the shapes. Of members side by side it is the time
    a member that counts, and the operations a core and member.

    The rule: a line's excess is its slope of the time less that of the operations, in each run. Supported: every line's
    upper quartile over the runs is 0.1 at most, so time grows no faster than operations. Contradicted: the lower
    quartile of one lies above 0.1. Undecided: neither.
    """

    title = "Does a training step's time grow as its floating point operations do?"

    runs: int = flag(9, "timed runs of each, of which the medians are printed", least=3)
    quick: bool = flag(False, "two sizes a line, in 3 runs")
    out: str = flag("results/growth", "folder of the results; what it holds already is not measured again")

    def run(self) -> int:
        runs = 3 if self.quick else self.runs
        file = begin(Path(self.out), {"question": self.title, "runs": runs, "quick": self.quick})
        if not file.read():
            file.append(*self._measured(runs))
        rows = file.read()
        verdict = self.verdict(rows)
        conclude(Path(self.out), self.title, verdict, lambda path: self.picture(rows, verdict, path))
        screen = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
        for table in self.tables(rows):
            screen.print(table)
        print(f"{verdict}\nRows and picture: {self.out}")
        return 0

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        """As the rule says."""
        excess = {name: np.percentile(_slopes(own) - _counted(own), (25, 50, 75)) for name, own in _lines(rows).items()}
        above = [name for name, (low, _, _) in excess.items() if low > MARGIN]
        kind = "supported" if all(high <= MARGIN for _, _, high in excess.values()) else "undecided"
        said = "; ".join(f"{name} {middle:+.2f}" for name, (_, middle, _) in excess.items())
        return Verdict("contradicted" if above else kind, f"slope of the time less that of the operations: {said}.")

    def tables(self, rows: Sequence[Row]) -> Sequence[Table]:
        """A row for each line."""
        table = Table(box=box.SIMPLE_HEAD, title=self.title)
        for column in ("what grows", "sizes", "ms a step", "slope of the time", "slope of FLOPs"):
            table.add_column(column, justify="left" if column == "what grows" else "right")
        for name, own in _lines(rows).items():
            low, middle, high = np.percentile(_slopes(own), (25, 50, 75))
            sizes = ", ".join(f"{row['size']}" for row in own)
            ms = ", ".join(f"{np.median(row['ms']):.0f}" for row in own)
            table.add_row(name, sizes, ms, f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{_counted(own):.2f}")
        table.caption = "medians over the runs, in brackets quartiles; of members side by side, ms a member"
        table.caption_justify = "left"
        return [table]

    def picture(self, rows: Sequence[Row], verdict: Verdict, path: Path) -> None:
        from siitjax.questions.pictures import growth_picture

        slopes = lambda own: (float(np.median(_slopes(own))), _counted(own))
        points = lambda own: [(row["size"], float(np.median(row["ms"]))) for row in own]
        lines = {line: (points(own), *slopes(own)) for line, own in _lines(rows).items()}
        growth_picture(lines, AXES, f"{self.title} {verdict.kind.capitalize()}.", path)

    def _measured(self, runs: int) -> list[Row]:
        """A row a line and size."""
        use_compilation_cache()
        own, lines, bar = cores(), _shapes(self.quick), Console(stderr=True)
        counts = [2**i for i in range(len(own).bit_length())]
        setup = Setup(CREW, 256, SAMPLES, "single", "nodes", ("fast",), 1, 1, "map")
        work: dict[Any, Callable[[], float]] = {}
        with pinned(own[0]), ExitStack() as stack:  # before JAX counts the cores
            shapes = dict.fromkeys(shape for sizes in lines.values() for shape in sizes.values())
            for shape in track(shapes, "compiling", console=bar, disable=not bar.is_terminal):
                step = Timed(shape.config, fastest(), 1).step
                work[shape] = lambda step=step: seconds(step, 1) / STEPS
                work[shape]()
            for n in counts:
                crew = stack.enter_context(Crew(setup, own[:n]))
                crew.ask("prepare", ["step"])
                work[n] = lambda crew=crew, n=n: max(crew.ask("time", "fast", "step")) / n
            found = in_turn(work, runs)
        gflop: dict[Any, float] = {n: step_flops(setup.config) / n / 1e9 for n in counts}
        gflop |= {shape: step_flops(shape.config) / 1e9 for shape in work if isinstance(shape, Shape)}
        every: dict[str, Mapping[int, Any]] = {**lines, **({"lanes": {n: n for n in counts}} if len(own) > 1 else {})}
        return [
            {"line": line, "size": size, "gflop": gflop[key], "ms": [round(1e3 * s, 4) for s in found[key]]}
            for line, sizes in every.items()
            for size, key in sizes.items()
        ]


def _shapes(quick: bool) -> dict[str, Mapping[int, Shape]]:
    """What is timed along each line on one core, by size."""
    tasks = ("1", "0+1", "0+1+2", "0+1+2+3")
    lines = {
        "layers": {n: Shape(layers=n) for n in (1, 2, 4)},
        "width": {n: Shape(width=n) for n in (16, 32, 64, 128)},
        "tokens": {n: Shape(tokens=n) for n in (8, 16, 32, 64)},
        "tasks": {n: Shape(tasks=names) for n, names in enumerate(tasks, start=1)},
    }
    for swaps in get_args(Swaps):
        shapes = [Shape(heads=n, swaps=swaps) for n in (2, 4, 8)]
        lines[f"edges, swaps of {swaps}"] = {shape.edges: shape for shape in shapes}
    return {line: dict([*sizes.items()][: 2 if quick else None]) for line, sizes in lines.items()}


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {line: [row for row in rows if row["line"] == line] for line in dict.fromkeys(row["line"] for row in rows)}


def _slopes(rows: Sequence[Row]) -> Float[np.ndarray, " run"]:
    """That of the time, in each run."""
    return slope([row["size"] for row in rows], np.array([row["ms"] for row in rows]))


def _counted(rows: Sequence[Row]) -> float:
    """That of the operations."""
    return float(slope([row["size"] for row in rows], np.array([row["gflop"] for row in rows])))


def slope(sizes: Sequence[int], values: Float[np.ndarray, "size *run"]) -> Float[np.ndarray, "*run"]:
    """The exponent with which values grow with the size, by least squares."""
    x = np.log(sizes) - np.log(sizes).mean()
    return np.tensordot(x / (x**2).sum(), np.log(values), 1)


if __name__ == "__main__":
    main(Growth)
