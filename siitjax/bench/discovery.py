"""How long does circuit discovery take, beside TransformerLens? `python -m siitjax.bench.discovery`"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from siitjax.analysis.discovery.attribution import eap, eap_ig_inputs
from siitjax.analysis.discovery.pairs import draw_pairs
from siitjax.analysis.discovery.patching import path_patching
from siitjax.base.command import Command, flag, main
from siitjax.base.errors import UserError
from siitjax.bench.process import in_turn
from siitjax.io.trained import load
from siitjax.sweep.cores import cores, pinned


@dataclass(frozen=True)
class DiscoverySpeed(Command):
    """How long does circuit discovery take?

    Times EAP and EAP-IG on inputs (5 steps) on one core, turn by turn with the same as written for TransformerLens in
    PyTorch, and path patching of every edge on all cores. Medians, compilation excluded.
    """

    models: tuple[str, ...] = flag(("1", "2", "1+2", "0+1+2+3"), "the shipped models, by number")
    pairs: int = flag(128, "pairs of strings of the attribution methods", least=2)
    exact_pairs: int = flag(1_000, "pairs of strings of path patching", least=2)
    runs: int = flag(9, "timed runs of each, of which the medians are printed", least=3)

    def run(self) -> int:
        try:
            from siitjax.bench.eap_peer import EapPeer
        except ImportError as error:
            raise UserError(f"this needs {error.name}; install the extra: pip install 'siitjax[torch]'") from None
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        table = Table(box=box.SIMPLE_HEAD)
        for column in ("model", "edges", "EAP s", "torch s", "ratio", "EAP-IG s", "torch s", "ratio", "every edge s"):
            table.add_column(column, justify="right")
        for name in self.models:
            trained = load(name)
            given = trained.model, trained.case
            pairs, many = draw_pairs(trained.case, self.pairs), draw_pairs(trained.case, self.exact_pairs)
            with pinned(cores()[0]):
                peer = EapPeer(trained, pairs)
                works = {"eap": partial(eap, *given, pairs), "ig": partial(eap_ig_inputs, *given, pairs)}
                medians = _medians({**works, "eap, torch": peer.eap, "ig, torch": peer.eap_ig_inputs}, self.runs)
            exact = _medians({"exact": partial(path_patching, *given, many)}, 3)["exact"]
            cells = [f"{len(trained.case.circuit.nodes.possible_edges)}"]
            for method in ("eap", "ig"):
                ours, theirs = medians[method], medians[f"{method}, torch"]
                cells += [f"{ours:.3f}", f"{theirs:.3f}", f"{theirs / ours:.1f}"]
            table.add_row(name, *cells, f"{exact:.1f}")
        table.caption = (
            f"{self.pairs} pairs, on one core; every edge: path patching of {self.exact_pairs} pairs, on all"
        )
        table.caption_justify = "left"
        Console(width=120).print(table)
        return 0


def _medians(works: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Seconds of each, after a first run that compiles."""

    def timed(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    for work in works.values():
        work()
    found = in_turn({name: lambda work=work: timed(work) for name, work in works.items()}, runs)
    return {name: float(np.median(seconds)) for name, seconds in found.items()}


if __name__ == "__main__":
    main(DiscoverySpeed)
