"""What the neurons of several models answer to, as a table and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from siitjax.analysis.neuron_summary import LEAST, MATTERS, MOST, Model, matters
from siitjax.analysis.neurons import Answers, participation_ratio
from siitjax.causal import registry
from siitjax.questions.pictures import COLOURS, STYLE


def models_table(models: Sequence[Model], title: str) -> Table:
    """One row a model."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    columns = (
        "live",
        "alone",
        "matter",
        "shared",
        "of live",
        "random",
        "by chance",
        "by layer",
        "spread",
        "answer to",
        "of two",
    )
    for column in ("model", "neurons", *columns):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for m in models:
        random = "-" if m.control_low is None else f"{100 * m.control_low:.1f}-{100 * (m.control_high or 0):.1f}%"
        table.add_row(
            m.name,
            *(f"{n}" for n in (m.neurons, m.live, m.alone, m.matter, m.shared)),
            f"{100 * m.share:.1f}%",
            random,
            f"{m.chance_low:.0f}-{m.chance_high:.0f}",
            " ".join(f"{shared}/{live}" for shared, live in m.layers),
            f"{m.participation:.2f}",
            f"{m.answered:.1f}",
            f"{100 * m.of_two:.0f}%",
        )
    table.caption = (
        "neurons: live; that a task misses alone; that matter to a task; to two or more (shared), their share of the "
        "live, its 95% interval in random transformers, how many by chance, shared/live by layer; spread: over how "
        "many tasks, by participation ratio, the median; answer to: variables a live neuron, the mean; of two: answer "
        "to variables of two tasks"
    )
    table.caption_justify = "left"
    return table


def picture(models: Sequence[Model], title: str, path: Path) -> None:
    """Shares of the live neurons, a place a model: those that matter to a task, and to two, beside random ones."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 3.4), layout="constrained")
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        _shares(figure.subplots(), models)
        figure.savefig(path, dpi=150)


def maps_picture(found: Sequence[tuple[Answers, Model]], path: Path) -> None:
    """Over how many tasks neurons spread, by model; then a map of live neurons by task for combined models' MLPs."""
    maps = [(answers, model) for answers, model in found if model.tasks > 1]
    tall = sum(0.14 * model.tasks + 0.2 for _, model in maps)
    with matplotlib.rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=(11, 4.2 + tall), layout="constrained")
        above, beneath = figure.subfigures(2, 1, height_ratios=(2.8, tall + 1), squeeze=False).flat
        _spreads(above.subplots(), found)
        if maps:
            layers = max(len(model.layers) for _, model in maps)
            ratios = [0.14 * model.tasks + 0.2 for _, model in maps]
            axes = beneath.subplots(len(maps), layers, squeeze=False, height_ratios=ratios)
            most = max(answers.loss.max() for answers, _ in maps)
            norm = LogNorm(MATTERS / 10, max(most, MATTERS))
            drawn = None
            for line, (answers, model) in zip(axes, maps, strict=True):
                for layer, axis in enumerate(line):
                    axis.set_axis_off()
                    if layer < len(model.layers):
                        drawn = _map(axis, answers, layer, model.name if layer == 0 else "", norm) or drawn
            for layer, axis in enumerate(axes[0]):
                axis.set_title(f"MLP{layer}", fontsize=8)
            if drawn is not None:
                label = "rise of a task's loss without the neuron, nats a token (a column a live neuron, a line a task)"
                bar: dict[str, Any] = {"location": "bottom", "extend": "min", "fraction": 0.02, "aspect": 60}
                beneath.colorbar(drawn, ax=axes.ravel().tolist(), label=label, **bar)
        figure.savefig(path, dpi=150)


def _shares(axis: Axes, models: Sequence[Model]) -> None:
    """Shares of the live neurons, a place a model: shared, beside random transformers' interval."""
    places = np.arange(len(models))
    axis.bar(places, [m.matter / max(m.live, 1) for m in models], color="#dddddd", label="matter to a task")
    axis.bar(places, [m.share for m in models], color=COLOURS[0], label="matter to two or more")
    for place, m in enumerate(models):
        if m.control_low is not None and m.control_high is not None:
            label = "" if place else "random transformers, two or more"
            axis.vlines(place, m.control_low, m.control_high, color=COLOURS[1], linewidth=5, label=label)
    axis.axhline(LEAST, color="black", linewidth=0.8, linestyle=":")
    axis.set_xticks(places, [m.name for m in models], rotation=45, ha="right")
    axis.set(ylabel="share of live neurons", ylim=(0, 1))
    axis.legend(frameon=False, fontsize=7)


def _spreads(axis: Axes, found: Sequence[tuple[Answers, Model]]) -> None:
    """The distribution of the participation ratio over the neurons that matter, a place a model."""
    spreads = [participation_ratio(answers.loss)[matters(answers).any(-1)] for answers, _ in found]
    axis.boxplot(spreads, positions=range(len(found)), sym=".", flierprops={"markersize": 2}, widths=0.6)
    axis.set_xticks(range(len(found)), [model.name for _, model in found], rotation=45, ha="right")
    axis.set(ylabel="tasks a neuron, by participation ratio")


def widths_picture(models: Sequence[Model], title: str, path: Path) -> None:
    """Shared neurons beneath the answer's MLP by its width: a colour a number of tasks, a dot a model."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 4), layout="constrained")
        figure.suptitle(title, fontsize=9, x=0.01, ha="left", wrap=True)
        _widths(figure.subplots(), models)
        figure.savefig(path, dpi=150)


def _widths(axis: Axes, models: Sequence[Model]) -> None:
    for i, tasks in enumerate(sorted({m.tasks for m in models if m.tasks > 1})):
        ours = [m for m in models if m.tasks == tasks]
        axis.plot([m.width for m in ours], [m.share_beneath for m in ours], "o", color=COLOURS[i], ms=3)
        places = sorted({m.width for m in ours})
        means = [float(np.mean([m.share_beneath for m in ours if m.width == place])) for place in places]
        axis.plot(places, means, color=COLOURS[i], label=f"{tasks} tasks")
    axis.axhline(MOST, color="black", linewidth=0.8, linestyle=":")
    axis.set_xscale("log", base=2)
    every = sorted({m.width for m in models})
    axis.set_xticks(every, [f"{width}" for width in every])
    axis.set(xlabel="neurons an MLP", ylabel="shared, of those beneath the answer's MLP", ylim=(0, 1))
    axis.legend(frameon=False, fontsize=7)


def _map(axis: Axes, answers: Answers, layer: int, name: str, norm: LogNorm) -> Any:
    """Effects by task and live neuron of one MLP, the neurons of the same chief task beside each other."""
    effects = answers.loss[layer][answers.live[layer]]
    if not len(effects):
        return None
    chief = np.where(effects.max(1) >= MATTERS, effects.argmax(1), effects.shape[1])
    order = np.lexsort((-effects.max(1), chief))
    axis.set_axis_on()
    axis.set_xticks([])
    numbers = [registry.number(task.split("#")[0]) for task in answers.tasks]
    axis.set_yticks(range(len(numbers)), numbers, fontsize=6)
    axis.set_ylabel(name, rotation=0, ha="right", va="center")
    return axis.imshow(
        effects[order].T.clip(min=norm.vmin), norm=norm, cmap="viridis", aspect="auto", interpolation="nearest"
    )
