"""Tears each file of a results folder at every byte of its last write, and goes on from there.

Nothing is trained: what members and SAEs give is made up. A file is *cut* where a kill or a full disk ends a write, and
*zeroed* from there on where a power cut leaves its whole length. What goes on must end in the files of an undisturbed
run. Our own writes never tear config.json itself, nor a member's files for which a row stands: a whole file takes their
place. Where another program did it, that must be refused in one line, and nothing touched.
"""

import gc
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

import siitjax.sweep.checkpoint
from siitjax.analysis.sae.results import LAST, SAEResults
from siitjax.base.errors import UserError
from siitjax.model.transformer import init_transformer
from siitjax.siit.metrics import Metrics, Tally
from siitjax.siit.train import History, State, Stop, make_train
from siitjax.sweep.checkpoint import CheckpointError, Checkpoints, Occupant, find, load, quiet
from siitjax.sweep.engine import Member, Outcome
from siitjax.sweep.lanes import without_keys
from siitjax.sweep.results import Results
from tests.tiny import CONFIG, LEARNS, STAYS

MEMBERS = tuple(Member("made up", seed, CONFIG, hyper) for seed, hyper in enumerate((LEARNS, STAYS)))
SITES = {site: [{"site": site, "kind": kind, "f1": 0.5} for kind in ("topk", "neurons", LAST)] for site in "ab"}
SWEEP = "the digest of this sweep"
CUT, ZEROED = "cut", "zeroed"
CHECKPOINT_EVERY = 16
"""Bytes of a checkpoint's files between two tears: to read one takes much longer than the other files."""

Files = dict[str, bytes]


@dataclass(frozen=True)
class Tear:
    """What was torn, how often, and how often all was well then."""

    what: str
    times: int
    well: int

    def __str__(self) -> str:
        return f"{self.what}: torn {self.times} times, {self.well} times all was well"


@cache
def outcome(seed: int) -> Outcome:
    """What a member gives: weights and curves that its seed decides."""
    rng, circuit, epochs = np.random.default_rng(seed), CONFIG.case.circuit, 2
    n_circuit, n_unused = int(circuit.circuit_mask.sum()), int(circuit.unused_mask.sum())
    tally = lambda *shape: Tally(rng.integers(0, 100, shape), np.full(shape, 100))
    metrics = Metrics(
        base=tally(),
        node=tally(n_circuit),
        changed=tally(n_circuit),
        whole=tally(n_circuit),
        unused=tally(n_unused),
        joint=tally(),
        subset=tally(),
    )
    blank = jax.eval_shape(lambda: init_transformer(CONFIG.case.config, key=jax.random.key(0)))
    model = jax.tree.map(lambda w: jnp.asarray(rng.standard_normal(w.shape), w.dtype), blank)
    history = History(
        jnp.asarray(rng.random((epochs, 3)), jnp.float32), jax.tree.map(lambda x: np.stack([x] * epochs), metrics)
    )
    return Outcome(Stop.EXHAUSTED, epochs, 1.0, metrics, history, model)


def run(folder: Path) -> None:
    """Begins the sweep, or goes on with it, to the last row."""
    results = Results(folder, "made up", MEMBERS)
    with results.held():
        done = {row["member"] for row in results.begin(resume=True)}
        for i, member in enumerate(MEMBERS):
            if i not in done:
                results.append(results.write(i, member, outcome(i)))


def study(folder: Path) -> None:
    """The same of a study of SAEs."""
    results = SAEResults(folder, {"steps": 1})
    with results.held(resume=True):
        done = {row["site"] for row in results.rows()}
        for site, rows in SITES.items():
            if site not in done:
                results.append(rows)


def contents(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@dataclass
class Torn:
    """A finished folder that is torn again and again; `go_on` is what finished it."""

    folder: Path
    go_on: Callable[[Path], None]
    every: int

    def __post_init__(self):
        self.go_on(self.folder)
        self.whole = contents(self.folder)

    def at(
        self, what: str, file: str, of: bytes, kept: int = 0, *, without: Sequence[str] = (), refused: bool = False
    ) -> Tear:
        """Tears what was written to `file` after the first `kept` bytes, while other files were not there yet."""
        times = well = 0
        for left in cuts(of, kept, self.every, (CUT, ZEROED) if file == "rows.jsonl" else (CUT,)):
            for name in without:
                (self.folder / name).unlink()
            (self.folder / file).write_bytes(left)
            before = contents(self.folder)
            try:
                self.go_on(self.folder)
                good = contents(self.folder) == self.whole and not refused
            except UserError as error:
                good = refused and "\n" not in str(error) and contents(self.folder) == before
            times, well = times + 1, well + good
            if not good or refused:
                shutil.rmtree(self.folder)
                for name, content in self.whole.items():
                    (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (self.folder / name).write_bytes(content)
        return Tear(what, times, well)


def cuts(of: bytes, kept: int, every: int, how: Sequence[str] = (CUT, ZEROED)) -> Iterator[bytes]:
    """What may be left of a write, the first `kept` bytes of which were there before."""
    for k in range(kept, len(of), every):
        for kind in how:
            yield of[:k] + (bytes(len(of) - k) if kind == ZEROED else b"")


def sweep(folder: Path, every: int) -> Iterator[Tear]:
    """Tears a sweep's folder."""
    torn = Torn(folder, run, every)
    rows, last = torn.whole["rows.jsonl"], "0001"
    before = rows[: rows[:-1].rindex(b"\n") + 1]
    members = [name for name in torn.whole if name.startswith("members/")]
    yield torn.at("the first row of a sweep", "rows.jsonl", rows[: rows.index(b"\n") + 1])
    yield torn.at("its last row", "rows.jsonl", rows, len(before))
    config = torn.whole["config.json"]
    yield torn.at("its config", ".config.json.new", config, without=["config.json", "rows.jsonl", *members])
    yield torn.at("its config, by others", "config.json", config.rstrip(), refused=True)
    for kind in ("safetensors", "csv"):
        name, whole = f"members/{last}.{kind}", torn.whole[f"members/{last}.{kind}"]
        late = ["rows.jsonl", *(other for other in members if last in other)]
        yield torn.at(f"a member's {kind}", f"members/.{last}.{kind}.new", whole, without=late)
        yield torn.at(f"a member's {kind}, by others", name, whole, refused=True)


def saes(folder: Path, every: int) -> Iterator[Tear]:
    """Tears the folder of a study of SAEs."""
    torn = Torn(folder, study, every)
    rows = torn.whole["rows.jsonl"]
    site = len(rows) // len(SITES)
    yield torn.at("the first site's rows of a study of SAEs", "rows.jsonl", rows[:site])
    yield torn.at("its last site's rows", "rows.jsonl", rows, len(rows) - site)
    config = torn.whole["config.json"]
    yield torn.at("its config", ".config.json.new", config, without=["config.json", "rows.jsonl"])


def saved(folder: Path) -> list[State]:
    """Saves a checkpoint of two members that have not trained; gives their states."""
    init = jax.jit(make_train(CONFIG).init)
    states = [init(STAYS.traced(), jax.random.key(seed)) for seed in range(2)]
    with Checkpoints(folder, "0001-0", SWEEP) as saving:
        saving.save(jax.tree.map(lambda *x: jnp.stack(x), *states), [Occupant(i, 1, 1.0) for i in range(2)])
        saving.wait()
    return states


def bits(state: State) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(without_keys(state))]


def checkpoints(folder: Path, every: int) -> Iterator[Tear]:
    """Tears each file of a checkpoint: a member's state is then passed over, or has the bits that were saved."""
    states = saved(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole, times, well = path.read_bytes(), 0, 0
        for left in cuts(whole, 0, every):
            path.write_bytes(left)
            siitjax.sweep.checkpoint._read.cache_clear()
            for spot in find(folder, SWEEP).get(1, []):
                try:
                    good = bits(load(folder, spot, states[0])) == bits(states[1])
                except CheckpointError as error:
                    good = "\n" not in str(error)
                well += good - 1
            times, well = times + 1, well + 1
        path.write_bytes(whole)
        yield Tear(f"a checkpoint's {path.relative_to(folder / '0001-0' / '00000001')}", times, well)


def everything(home: Path, every: int) -> Iterator[Tear]:
    """Tears all of it at every so many bytes."""
    with patch("os.fsync"):  # nothing is lost here that the disk has not got yet
        yield from sweep(home / "sweep", every)
        yield from saes(home / "saes", every)
    with quiet():  # as the engine reads them
        yield from checkpoints(home / "checkpoints", CHECKPOINT_EVERY * every)
        gc.collect()
