"""The weights that a member begins with, where another sweep trained them: the second stage, under swaps of edges."""

from pathlib import Path

from siitjax.base.errors import UserError
from siitjax.sweep.rows import read_rows, weights_file


def start_from(folder: Path, setting: str, seed: int, others: str = "") -> Path:
    """The weights that a sweep left of this setting and seed.

    Args:
        folder: its results folder.
        others: what else --start takes, as the error names it.

    Raises:
        UserError: the folder has no such member.

    Example:
        >>> start_from(Path("nowhere"), "1+1, d_mlp 8", 0)
        Traceback (most recent call last):
        siitjax.base.errors.UserError: --start is nowhere, which has no 1+1, d_mlp 8, seed 0; it has nothing that was \
trained; give the results folder of the same question that has it
    """
    rows = read_rows(folder)
    for row in rows:
        if (row["setting"], row["seed"]) == (setting, seed):
            return weights_file(folder, row["member"])
    has = ", ".join(f"{row['setting']}, seed {row['seed']}" for row in rows[:5]) or "nothing that was trained"
    raise UserError(
        f"--start is {folder}, which has no {setting}, seed {seed}; it has {has}; give {others}the results folder of "
        "the same question that has it"
    )
