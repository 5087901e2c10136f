"""Where the time of a compiled program goes, read from a trace of JAX's profiler."""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PARTS = {
    "matrix products": r"dot_general$",
    "attention, the rest": r"blocks(\.\d+)?\.attn\b",
    "MLPs, the rest": r"blocks(\.\d+)?\.mlp\b",
    "causal model": r"\bcausal_model\b",
    "drawing swaps": r"\bdraw_swaps\b",
    "optimizer": r"\boptimizer\b",
}
"""Parts of a training step, and what the name of an operation has that belongs to it; the first that matches."""
REST = "other"


def time_shares(program: str, folder: Path) -> Mapping[str, float]:
    """Of the time that a program's operations took, the share of each part; they come to 1.

    Args:
        program: its compiled text, `jax.stages.Compiled.as_text()`.
        folder: of the trace, which `jax.profiler.trace(folder, create_perfetto_trace=True)` wrote of a run of it.

    Returns:
        Nothing where the trace names none of the program's operations, as on a GPU.
    """
    names = dict(_operations(program))
    spent: defaultdict[str, float] = defaultdict(float)
    for path in folder.rglob("perfetto_trace.json.gz"):
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
        for name, own in _own_times([e for e in events if e.get("ph") == "X" and e["name"] in names]):
            spent[_part(names[name])] += own
    total = sum(spent.values())
    return {part: spent[part] / total for part in (*PARTS, REST) if part in spent}


def _operations(program: str) -> Iterator[tuple[str, str]]:
    """Each operation of the compiled text, and the name that it had in the source."""
    for line in program.splitlines():
        if found := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line):
            name = re.search(r'op_name="([^"]*)"', line)
            yield found[1], name[1] if name else ""


def _part(name: str) -> str:
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name)), REST)


def _own_times(events: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """How long each ran, without those that ran within it."""
    threads = defaultdict(list)
    for event in events:
        threads[event["pid"], event["tid"]].append(event)
    for thread in threads.values():
        ours = sorted(thread, key=lambda e: (e["ts"], -e["dur"]))
        own = [event["dur"] for event in ours]
        around: list[int] = []  # places of what is running
        for i, event in enumerate(ours):
            while around and ours[around[-1]]["ts"] + ours[around[-1]]["dur"] <= event["ts"]:
                around.pop()
            if around:
                own[around[-1]] -= event["dur"]
            around.append(i)
        yield from zip((event["name"] for event in ours), own, strict=True)
