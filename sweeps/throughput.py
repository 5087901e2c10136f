"""How fast is a training step, and where does the time of an epoch go?"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from siitjax.base.choice import check_choice
from siitjax.base.command import Command, flag, main
from siitjax.base.errors import UserError
from siitjax.base.files import write_atomically
from siitjax.base.precision import MatmulPrecision
from siitjax.bench.absent import MEMORY, Compiled, compile_for, mesh_of, step_roofline
from siitjax.bench.flops import step_flops
from siitjax.bench.process import SAMPLES, Crew, Setup, Station, in_turn
from siitjax.bench.roofline import PASSES, Roofline
from siitjax.bench.timing import PARTS, STEPS, Timed, seconds
from siitjax.bench.trace import time_shares
from siitjax.model.forms import fastest
from siitjax.siit.config import TrainConfig, Updates
from siitjax.siit.objective import Swaps
from siitjax.sweep import hosts
from siitjax.sweep.cores import cores
from siitjax.sweep.engine import Occupancy
from siitjax.sweep.lanes import Batching
from siitjax.sweep.placement import choose_policy

NODES = "fast, nodes"


@dataclass(frozen=True)
class Timing:
    """One form of the training step with some members at once; times are medians, compilation excluded.

    Attributes:
        form: "fast", as a sweep runs it; "plain": einsum attention, where on CPU it stands on XLA's own threads;
            "plain, pinned": the same, spread over the cores as the fast form is; "fast, nodes": the fast one under
            swaps of nodes, where edges are swapped; or "torch": TransformerLens.
        lanes: members at once.
        step_ms, epoch_ms: a training step and an epoch with its evaluation, a member.
        evaluation_share: of an epoch.
        member_steps_a_second: of all lanes together.
        gflops: achieved in training steps, GFLOP a second.
        gemm_share: of what one large float32 matrix product reaches on the same cores in the same run.
        speedup_over_plain: of a training step; None where the plain form was not timed.
    """

    form: str
    lanes: int
    step_ms: float
    epoch_ms: float
    evaluation_share: float
    member_steps_a_second: float
    gflops: float
    gemm_share: float
    speedup_over_plain: float | None


@dataclass(frozen=True)
class Cost:
    """What else a number of lanes costs.

    Attributes:
        occupancy: share of lane-time in training while members of a queue of 4 times the lanes were waiting.
        compile_s, cached_s: of a bucket, with nothing cached and from the cache.
        peak_gib: of the device, or of the processes where it does not say.
    """

    lanes: int
    occupancy: float
    compile_s: float
    cached_s: float
    peak_gib: float


@dataclass(frozen=True)
class Throughput(Command):
    """How fast is a training step, and where does the time of an epoch go?

    Times the training step and the evaluation as a sweep runs them on this machine, and the plain ones (einsum
    attention), turn by turn in one run, and counts their floating point operations from the shapes. With --peer=torch
    also what a user of TransformerLens would write instead: hooks that patch from a cache, one member at a time; under
    swaps of edges, hooks that move what each reader sees. With
    --swaps=edges the step under swaps of nodes stands in the plain one's place, which takes minutes to compile there.
    """

    case: str = flag("paren_checker", "a task by name or number, several with + between (1+2), or path/to/file.py:CASE")
    lanes: tuple[int, ...] = flag((0,), "members timed at once; 0: one a core on CPU, elsewhere one a device", least=0)
    devices: int = flag(0, "devices that the lanes are split over; 0: all; on CPU they are virtual", least=0)
    distributed: bool = flag(False, "time on all hosts that the cluster, or JAX's own variables, name")
    batch_size: int = flag(256, "pairs of a base and a source a batch", least=1)
    samples: int = flag(SAMPLES, "strings that are drawn for each task", least=10)
    updates: Updates = flag("single", "updates a batch: single (on the weighted sum) or three (one a loss term)")
    swaps: Swaps = flag("nodes", "what training swaps: nodes, or edges and every other kind: nodes or edges")
    peer: Literal["", "torch"] = flag("", "also time the same step and evaluation in TransformerLens: torch")
    runs: int = flag(30, "timed runs of each form, of which the medians are printed", least=3)
    profile: bool = flag(False, "also write a trace of some steps to --out, and print where their time goes")
    compile_for: str = flag("", "time nothing, but compile for devices not here: tpu-v5e:2x2, cuda-h100:1x1x1")
    out: str = flag("", "folder for throughput.json and the picture; empty: nothing is written")

    def run(self) -> int:
        if self.compile_for:
            return self._compile()
        if self.devices:
            jax.config.update("jax_num_cpu_devices", self.devices)
        if self.distributed:
            hosts.join()
        config = self._setup(("fast",), 1, 1, "map").config
        check_choice("peer", self.peer, ("", "torch"))
        if self.peer and config.case.tasks:
            raise UserError("--peer=torch times one task; give one --case")
        folder = Path(self.out) if self.out else None
        if self.profile and folder is None:
            raise UserError("--profile writes its trace into --out; give an --out")
        if folder is not None and (folder / "throughput.json").exists():
            raise UserError(f"{folder / 'throughput.json'} exists; choose another --out")
        peer = _torch(config) if self.peer else None
        timings, costs, about = [], [], {}
        for lanes in self.lanes:
            found, cost, about = self._measure(config, lanes, peer)
            timings += found
            costs.append(cost)
        screen = Console(width=None if sys.stdout.isatty() else 160)
        print(f"{self.case}, batch {self.batch_size}, on {about['device']} ({about['cores']} cores)")
        by_xla = f" ({about['gflop_by_xla']:.2f} by XLA, of the plain step)" if self.swaps == "nodes" else ""
        print(f"{about['gflop_a_step']:.2f} GFLOP a step a member, counted from the shapes{by_xla}")
        screen.print(_timings_table(timings))
        if self.swaps == "edges":
            step = {(t.lanes, t.form): t.step_ms for t in timings}
            for lanes in {t.lanes: None for t in timings if t.form == "fast"}:
                ratio = step[lanes, "fast"] / step[lanes, NODES]
                print(f"{lanes} at once: a step under swaps of edges takes {ratio:.2f} times that under swaps of nodes")
        screen.print(_costs_table(costs))
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            rows = {"timings": [asdict(t) for t in timings], "costs": [asdict(c) for c in costs]}
            write_atomically(folder / "throughput.json", json.dumps({**about, **rows}, indent=1) + "\n")
            from siitjax.questions.pictures import cost_picture

            cost_picture(rows["timings"], f"{self.case}, {about['device']}", folder / "throughput.png")
            if self.profile:
                self._profile(folder / "profile")
        return 0

    def _compile(self) -> int:
        """What a bucket costs on a mesh of devices that are not here."""
        jax.config.update("jax_platforms", "cpu")  # a compiler alone is no device to be found
        mesh, config = mesh_of(self.compile_for), self._setup(("fast",), 1, 1, "map").config
        lanes = [lanes or mesh.size for lanes in self.lanes]
        runs = [compile_for(config, mesh, n) for n in lanes]
        title = f"{self.case}, batch {self.batch_size}, for {self.compile_for}"
        screen = Console(width=None if sys.stdout.isatty() else 120)
        screen.print(_compiled_table(runs, MEMORY.get(mesh.devices.flat[0].device_kind), title))
        steps = [step_roofline(config, mesh, n) for n in lanes]
        if None in steps:
            print("XLA counts no operations and no bytes for these devices")
        else:
            screen.print(_roofline_table(lanes, [step for step in steps if step], mesh.size, config.matmul_precision))
        return 0

    def _measure(self, config: TrainConfig, lanes: int, peer: Any) -> tuple[list[Timing], Cost, dict[str, Any]]:
        """Everything with some members at once: where each form runs, then all of them turn by turn."""
        policy = choose_policy(0, 0, self.devices)
        places = min(lanes or policy.workers, policy.workers) or policy.devices
        lanes = lanes or places
        if lanes % places:
            raise UserError(f"--lanes is {lanes}; it must be a multiple of the {places} cores or devices")
        setup = lambda forms, lanes, devices: self._setup(forms, lanes, devices, policy.batching)
        edges = self.swaps == "edges"
        forms = (NODES, "fast") if edges else ("plain", "fast")
        with ExitStack() as stack:
            if policy.workers:
                alone = Station(setup(() if edges else ("plain",), 1, 1))
                crew = stack.enter_context(Crew(setup(forms, lanes // places, 1), cores()[:places]))
                crew.ask("prepare")
                ask: Callable[..., list[Any]] = crew.ask
                spread = {} if edges else {"plain": ("plain", alone.time), "plain, pinned": ("plain", None)}
                spread |= {name: (name, None) for name in forms if name != "plain"}
            else:
                alone = Station(setup(forms, lanes, places))
                ask = lambda what, *arguments: [getattr(alone, what)(*arguments)]
                spread = {name: (name, alone.time) for name in forms}
            alone.prepare()
            counted = 0.0 if edges else alone.counted() / 1e9
            work: dict[str, Callable[[], float]] = {"gemm": lambda: sum(ask("gemm"))}
            members = {}
            for name, (form, time) in spread.items():
                members[name] = 1 if policy.workers and name == "plain" else lanes
                for part in PARTS:
                    if time is None:
                        work[f"{name} {part}"] = lambda f=form, p=part: max(ask("time", f, p))
                    else:
                        work[f"{name} {part}"] = lambda t=time, f=form, p=part: t(f, p)
            if peer is not None:
                members["torch"] = 1
                for part, repeats in zip(PARTS, (STEPS, 1), strict=True):
                    work[f"torch {part}"] = lambda p=part, r=repeats: seconds(getattr(peer, p), r)
            if self.distributed:
                hosts.wait("timing")
            found = {name: float(np.median(values)) for name, values in in_turn(work, self.runs).items()}
            cost = _cost(ask, lanes)
        gflop = step_flops(config) / 1e9
        timings = [_timing(name, n, found, config.steps_per_epoch, gflop) for name, n in members.items()]
        device = jax.devices()[0].device_kind
        about = {"case": self.case, "device": device, "cores": os.cpu_count(), "hosts": jax.process_count()}
        return timings, cost, {**about, "gflop_a_step": gflop, "gflop_by_xla": counted}

    def _setup(self, forms: tuple[str, ...], lanes: int, devices: int, batching: Batching) -> Setup:
        asked = (self.case, self.batch_size, self.samples, self.updates, self.swaps)
        return Setup(*asked, forms, lanes, devices, batching)

    def _profile(self, folder: Path) -> None:
        timed = Timed(self._setup(("fast",), 1, 1, "map").config, fastest(), 1)
        compiled = timed.compiled_step.lower(timed.states).compile()
        jax.block_until_ready(compiled(timed.states))
        with jax.profiler.trace(str(folder), create_perfetto_trace=True):
            jax.block_until_ready(compiled(timed.states))
        if found := time_shares(compiled.as_text() or "", folder):
            print("of a step: " + ", ".join(f"{part} {100 * share:.0f}%" for part, share in found.items()))
        print(f"trace of {STEPS} steps: {folder} (TensorBoard), and perfetto_trace.json.gz in it (ui.perfetto.dev)")


def _torch(config: TrainConfig) -> Any:
    try:
        from siitjax.bench.edge_peer import EdgePeer
        from siitjax.bench.torch_peer import Peer, best_threads
    except ImportError as error:
        raise UserError(f"--peer=torch needs {error.name}; install the extra: pip install 'siitjax[torch]'") from None
    kind = EdgePeer if config.sampling.swaps == "edges" else Peer
    return kind(config, best_threads(kind, config, os.cpu_count() or 1))


def _timing(form: str, members: int, found: dict[str, float], steps: int, gflop: float) -> Timing:
    step, evaluation = (found[f"{form} {part}"] / members for part in PARTS)
    plain = found.get("plain step", 0.0) / (members if "plain, pinned step" not in found else 1)
    return Timing(
        form=form,
        lanes=members,
        step_ms=1e3 * step,
        epoch_ms=1e3 * (steps * step + evaluation),
        evaluation_share=evaluation / (steps * step + evaluation),
        member_steps_a_second=1 / step,
        gflops=gflop / step,
        gemm_share=gflop / step / found["gemm"],
        speedup_over_plain=plain / step if plain else None,
    )


def _cost(ask: Callable[..., list[Any]], lanes: int) -> Cost:
    engines, memory = ask("engine"), sum(ask("memory"))
    occupancy = sum((Occupancy(**found) for found, _, _ in engines), Occupancy())
    cold, cached = (max(engine[i] for engine in engines) for i in (1, 2))
    return Cost(lanes, occupancy.shares()["while_waiting"], cold, cached, memory)


def _timings_table(timings: Sequence[Timing]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    columns = ("ms a step", "ms an epoch", "in evaluation", "steps/s", "GFLOP/s", "of gemm", "over plain")
    for column in ("lanes", "form", *columns):
        table.add_column(column, justify="left" if column == "form" else "right")
    for t in timings:
        table.add_row(
            f"{t.lanes}",
            t.form,
            f"{t.step_ms:.2f}",
            f"{t.epoch_ms:.0f}",
            f"{100 * t.evaluation_share:.0f}%",
            f"{t.member_steps_a_second:.1f}",
            f"{t.gflops:.1f}",
            f"{100 * t.gemm_share:.0f}%",
            "-" if t.speedup_over_plain is None else f"{t.speedup_over_plain:.2f}",
        )
    table.caption = "times a member, medians, compilation excluded; an epoch is its steps and one evaluation"
    table.caption_justify = "left"
    return table


def _compiled_table(runs: Sequence[Compiled], memory: float | None, title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title)
    sizes = ("arguments MB", "temporaries MB", "code MB", "MB a lane")
    for column in ("lanes", "trace s", "compile s", *sizes, "fit a device"):
        table.add_column(column, justify="right")
    for run in runs:
        megabytes = (f"{size / 1e6:.1f}" for size in (run.arguments, run.temporaries, run.code, run.bytes_a_lane))
        fit = "-" if memory is None else f"{run.fit(memory)}"
        table.add_row(f"{run.lanes}", f"{run.trace_s:.1f}", f"{run.compile_s:.1f}", *megabytes, fit)
    table.caption = f"as XLA says, of a device of {runs[0].devices}; seconds are this machine's"
    table.caption_justify = "left"
    return table


def _roofline_table(lanes: Sequence[int], steps: Sequence[Roofline], devices: int, precision: MatmulPrecision) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="a training step, of a device's lanes")
    columns = ("GFLOP", "GB moved", "FLOP/byte", "padding", "least ms", "by", "% of peak", "most steps/s")
    for column in ("lanes", *columns):
        table.add_column(column, justify="right")
    for n, step in zip(lanes, steps, strict=True):
        table.add_row(
            f"{n}",
            f"{step.flops / 1e9:.2f}",
            f"{step.moved / 1e9:.2f}",
            f"{step.intensity:.2f}",
            f"{step.padding:.0f}x",
            f"{1e3 * step.seconds:.2f}",
            step.bound,
            f"{100 * step.share:.2f}",
            f"{n / step.seconds:.0f}",
        )
    table.caption = (
        f"padding: what the matrix units run over what products ask; peak: {PASSES[precision]} bfloat16 passes a "
        f"product ({precision}); steps/s: all members' on {devices} devices"
    )
    table.caption_justify = "left"
    return table


def _costs_table(costs: Sequence[Cost]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("lanes", "occupancy", "compile s", "cached s", "peak GiB"):
        table.add_column(column, justify="right")
    for c in costs:
        occupancy = f"{100 * c.occupancy:.1f}%"
        table.add_row(f"{c.lanes}", occupancy, f"{c.compile_s:.1f}", f"{c.cached_s:.1f}", f"{c.peak_gib:.2f}")
    table.caption = "occupancy: lane-time in training while members of a queue of 4 x lanes, long and short, wait"
    table.caption_justify = "left"
    return table


if __name__ == "__main__":
    main(Throughput)
