"""How fast is a training step, and where does the time of an epoch go?"""

import json
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
from rich import box
from rich.console import Console
from rich.table import Table

import cases
from siitjax.choice import check_choice
from siitjax.command import Command, flag, main
from siitjax.files import write_atomically
from siitjax.flops import step_flops
from siitjax.forms import PLAIN
from siitjax.timing import LARGE_GFLOP, PARTS, Form, large_product, medians
from siitjax.train import TrainConfig, Updates


@dataclass(frozen=True)
class Timing:
    """One form of the training step on one number of lanes; all times are medians, compilation excluded.

    Attributes:
        form: "fast"; "plain": einsum attention; or "torch": TransformerLens.
        step_ms, epoch_ms: a training step and an epoch with its evaluation, a member.
        evaluation_share: of an epoch.
        gflops: achieved in training steps, GFLOP a second.
        gemm_share: of what one large float32 matrix product reaches in the same run.
        speedup_over_plain: of a training step.
        compile_s: of step and evaluation, nothing cached.
    """

    form: str
    lanes: int
    step_ms: float
    epoch_ms: float
    evaluation_share: float
    member_steps_a_second: float
    gflops: float
    gemm_share: float
    speedup_over_plain: float
    compile_s: float


@dataclass(frozen=True)
class Throughput(Command):
    """How fast is a training step, and where does the time of an epoch go?

    Times the fast form of the training step and the plain one (einsum attention), and their evaluations, turn by
    turn in one run, and counts their floating point operations from the shapes. With --peer=torch also what a user
    of TransformerLens would write instead: hooks that patch from a cache, one member at a time.
    """

    case: str = flag("paren_checker", "the task, one of those in cases/")
    lanes: tuple[int, ...] = flag((1,), "members in one vmapped program", least=1)
    batch_size: int = flag(256, "pairs a batch", least=1)
    updates: Updates = flag("single", "updates a batch: single or three")
    peer: Literal["", "torch"] = flag("", "also time the same step and evaluation in TransformerLens: torch")
    runs: int = flag(30, "timed runs of each; medians are printed", least=3)
    out: str = flag("", "folder for throughput.json; by default nothing is written")

    def run(self) -> int:
        config = TrainConfig(cases.find(self.case), batch_size=self.batch_size, updates=self.updates)
        check_choice("peer", self.peer, ("", "torch"))
        path = Path(self.out) / "throughput.json" if self.out else None
        if path is not None and path.exists():
            raise ValueError(f"{path} exists; choose another --out")
        device, gflop = jax.devices()[0].device_kind, step_flops(config) / 1e9
        product = large_product()
        timings, counted = [], 0.0
        for lanes in self.lanes:
            forms: dict[str, Any] = {
                "plain": Form(config, PLAIN, lanes),
                "fast": Form(config, None, lanes),
            }
            if self.peer:
                forms["torch"] = _torch(config)
            work = {f"{name} {part}": getattr(form, part) for name, form in forms.items() for part in PARTS}
            seconds = medians({"gemm": product, **work}, self.runs)
            counted = forms["plain"].counted_flops / 1e9
            timings += _timings(forms, seconds, lanes, config, gflop)
        gemm = timings[0].gflops / timings[0].gemm_share
        print(f"{self.case}, batch {self.batch_size}, on {device} ({os.cpu_count()} cores)")
        print(f"{gflop:.2f} GFLOP a step a member, counted from the shapes ({counted:.2f} by XLA, of the plain step)")
        print(f"{gemm:.0f} GFLOP/s in one large matrix product")
        Console(width=None if sys.stdout.isatty() else 160).print(_table(timings))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"peak memory of the process: {memory:.2f} GiB")
        if path is not None:
            about = {"case": self.case, "device": device, "gflop_a_step": gflop, "gemm_gflops": gemm}
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [asdict(timing) for timing in timings]
            write_atomically(path, json.dumps({**about, "peak_gib": memory, "timings": rows}, indent=1) + "\n")
        return 0


def _torch(config: TrainConfig) -> Any:
    try:
        from siitjax.peer import Peer, best_threads
    except ImportError as error:
        raise ValueError(f"--peer=torch needs {error.name}; install the extra: pip install 'siitjax[torch]'") from None
    return Peer(config, best_threads(config, os.cpu_count() or 1))


def _timings(
    forms: dict[str, Any], seconds: dict[str, float], lanes: int, config: TrainConfig, gflop: float
) -> Sequence[Timing]:
    gemm = LARGE_GFLOP / seconds["gemm"]
    found = []
    for name, form in forms.items():
        members = 1 if name == "torch" else lanes
        step, evaluation = (seconds[f"{name} {part}"] / members for part in PARTS)
        epoch = config.steps_per_epoch * step + evaluation
        found.append(
            Timing(
                form=name,
                lanes=lanes,
                step_ms=1e3 * step,
                epoch_ms=1e3 * epoch,
                evaluation_share=evaluation / epoch,
                member_steps_a_second=1 / step,
                gflops=gflop / step,
                gemm_share=gflop / step / gemm,
                speedup_over_plain=seconds["plain step"] / lanes / step,
                compile_s=form.compile_s,
            )
        )
    return found


def _table(timings: Sequence[Timing]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    columns = ("ms a step", "ms an epoch", "in evaluation", "steps/s", "GFLOP/s", "of gemm", "over plain", "compile s")
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
            f"{t.speedup_over_plain:.2f}",
            f"{t.compile_s:.1f}",
        )
    table.caption = "times a member, medians, compilation excluded; an epoch is its steps and one evaluation"
    table.caption_justify = "left"
    return table


if __name__ == "__main__":
    main(Throughput)
