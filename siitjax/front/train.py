"""`siitjax.train`: a case and a seed, trained in this process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from siitjax.base.errors import UserError
from siitjax.causal import registry
from siitjax.causal.case import Case
from siitjax.front.here import OnEpoch, train_here
from siitjax.front.load import file_of
from siitjax.front.run import Run, run_of
from siitjax.io.trained import Trained
from siitjax.model.transformer import Transformer
from siitjax.model.weights import load_weights, save_weights
from siitjax.siit.recipe import Recipe
from siitjax.sweep.engine import Member
from siitjax.sweep.results import about_member

Start = Transformer | Run | Trained | str | Path
DEFAULT = Recipe()


def train(
    case: Case | str,
    seed: int = 0,
    *,
    recipe: Recipe = DEFAULT,
    start: Start | None = None,
    progress: bool = True,
    on_epoch: OnEpoch | Sequence[OnEpoch] | None = None,
    **settings: Any,
) -> Run:
    """Trains a transformer so that it computes a case's circuit, under strict interchange interventions.

    It is the same training as `python -m sweeps.table` or `siitjax train` gives with these settings: on one machine the
    same seed gives the same weights, to the bit. The first call of a config compiles for half a minute or so; the next
    ones, with another seed or other numbers of `Hyperparams`, do not compile again. Ctrl-C raises KeyboardInterrupt
    after the epoch that runs, and breaks nothing.

    Source: Gupta et al. 2024, section 3; the recipe is that of Anders & Garriga-Alonso 2024, changed as `Recipe` says.

    Args:
        case: a `Case`, or the name of one, or several with + between: "paren_checker", "2", "1+2", "my/task.py:CASE".
        seed: decides the strings, the first weights and every draw; from 0 to 2**32 - 1.
        recipe: how it is trained.
        start: what it begins with in place of drawn weights: a transformer, a `Run`, what `load` gives, a shipped
            model's name ("1@nodes") or a file.
        progress: show a line with the epoch and the metrics, in place on a terminal; one every 20 s where it is piped.
        on_epoch: called with an `Epoch` after each epoch, in this thread; or several, called in turn, such as
            `siitjax.TensorBoard("logs")` and `siitjax.WandB(project="siit")`. What one raises ends the training.
        **settings: choices of the recipe to change, by name: epochs=60, beta2=0.9, samples=2000, swaps="edges".

    Raises:
        UserError: there is no such case or setting (the message names the nearest), a value cannot be used, the case's
            labels cannot be learned, or `start` is of another shape or is missing where the recipe needs it.
        KeyboardInterrupt: Ctrl-C was pressed.

    Example:
        >>> import siitjax
        >>> small = {"epochs": 2, "samples": 400, "batch_size": 64, "progress": False}
        >>> run = siitjax.train("left_greater", seed=3, **small)
        >>> [float(x) for x in run.history["epoch"]], run.seed
        ([1.0, 2.0], 3)
        >>> again = siitjax.train("left_greater", seed=3, start=run, lr_start=1e-4, **small)
        >>> siitjax.train("left_greater", epoch=2)
        Traceback (most recent call last):
        siitjax.base.errors.UserError: the setting is "epoch"; did you mean "epochs"? See help(siitjax.Recipe)
    """
    recipe = recipe.changed(**settings)
    with start_file(start) as file:
        member = make_member(case, seed, recipe, file)
        about = about_member(member.describe(), member.config.case)
        ((outcome, _),) = train_here([member], progress=progress, on_epoch=on_epoch)
    return run_of(member.config.case, outcome, about)


def make_member(
    case: Case | str, seed: int, recipe: Recipe, start: Path | None = None, setting: str | None = None
) -> Member:
    """What the engine trains of a case.

    Raises:
        UserError: as `train` does.
    """
    if isinstance(case, str):
        case = registry.build(case)
    if start is None and recipe.needs_start:
        raise UserError(
            "this recipe swaps edges from its first batch, which works only from weights that hold at nodes; give "
            "start=, such as the Run of siitjax.train(case), or edges_from=0.4"
        )
    config = recipe.config(case)
    if start is not None:
        # Which parts its MLPs are cut into, no weight knows.
        config.case.check_fits(replace(load_weights(start).config, mlp_parts=config.case.mlp_parts))
    return Member(setting or config.case.name, seed, config, recipe.hyper, start)


@contextmanager
def start_file(start: Start | None) -> Iterator[Path | None]:
    """The file of the weights to begin with; None for drawn ones."""
    if start is None:
        yield None
    elif isinstance(start, str | Path):
        yield file_of(start)
    else:
        with TemporaryDirectory(prefix="siitjax-") as folder:
            path = Path(folder) / "start.safetensors"
            save_weights(path, start if isinstance(start, Transformer) else start.model)
            yield path
