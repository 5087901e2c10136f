"""`siitjax.sweep`: seeds times settings, trained in this process."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.front.here import train_here
from siitjax.front.train import DEFAULT, Start, make_member, start_file
from siitjax.siit.recipe import Recipe


def train_grid(
    case: Case | str,
    seeds: int | Sequence[int] = 4,
    *,
    recipe: Recipe = DEFAULT,
    start: Start | None = None,
    progress: bool = True,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Trains every seed under every combination of settings, and gives a row a member. It is called `siitjax.sweep`.

    A setting that is a tuple is an axis of the grid, any other is fixed. What differs in numbers of `Hyperparams`
    alone is compiled once. Members run one after another on a CPU, side by side on a GPU. A question of sweeps/
    (`python -m sweeps.betas`) uses all cores, keeps the weights, and can be resumed; so does `siitjax train`.

    Args:
        case: as `siitjax.train` takes it.
        seeds: how many, counted from 0, or which.
        recipe: how they are trained.
        start: what all begin with, as `siitjax.train` takes it.
        progress: as in `siitjax.train`.
        **settings: choices of the recipe by name, a value or a tuple of them: beta2=(0.9, 0.999), epochs=60.

    Returns:
        One dict a member, as rows.jsonl of a results folder has them: "member", "setting", "seed", "case", "stop",
        "epochs", "seconds" (in s), the hyperparameters, and the metrics, floats from 0 to 1. `pandas.DataFrame(rows)`
        takes them.

    Raises:
        UserError: as `siitjax.train` does; or there are no seeds, or a tuple is empty.

    Example:
        >>> import siitjax
        >>> small = {"epochs": 2, "samples": 400, "batch_size": 64, "progress": False}
        >>> rows = siitjax.sweep("left_greater", seeds=2, beta2=(0.9, 0.999), **small)
        >>> [(row["setting"], row["seed"]) for row in rows]
        [('beta2 0.9', 0), ('beta2 0.9', 1), ('beta2 0.999', 0), ('beta2 0.999', 1)]
        >>> 0 <= rows[0]["iia"] <= 1
        True
    """
    chosen = [*(range(seeds) if isinstance(seeds, int) else seeds)]
    if not chosen:
        raise UserError(f"seeds is {seeds}; give how many, 1 or more, or a list of them")
    axes = {name: values for name, values in settings.items() if isinstance(values, tuple)}
    if empty := [name for name, values in axes.items() if not values]:
        raise UserError(f"{empty[0]} is an empty tuple; give a value or more")
    fixed = recipe.changed(**{name: value for name, value in settings.items() if name not in axes})
    with start_file(start) as file:
        members = []
        for values in product(*axes.values()):
            here = dict(zip(axes, values, strict=True))
            words = ", ".join(
                f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in here.items()
            )
            own = fixed.changed(**here)
            members += [make_member(case, seed, own, file, words or None) for seed in chosen]
        return [row for _, row in train_here(members, progress=progress)]
