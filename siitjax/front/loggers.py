"""What `siitjax.train(..., on_epoch=...)` can hand its curves to: TensorBoard, Weights & Biases."""

from importlib import import_module
from pathlib import Path
from typing import Any

from siitjax.base.errors import UserError
from siitjax.front.run import Epoch


class TensorBoard:
    """Writes the numbers of each epoch into a folder, for `tensorboard --logdir=FOLDER`.

    They are on the disk a second later.

    Args:
        folder: where the event file is written; one folder a run.

    Raises:
        UserError: tensorboardX is not installed.

    Example:
        >>> import siitjax, tempfile
        >>> small = {"epochs": 2, "samples": 400, "batch_size": 64, "progress": False}
        >>> with siitjax.TensorBoard(tempfile.mkdtemp()) as log:
        ...     run = siitjax.train("left_greater", on_epoch=log, **small)
    """

    def __init__(self, folder: str | Path):
        self._writer = _package("tensorboardX", "tensorboard").SummaryWriter(str(folder), flush_secs=1)

    def __call__(self, epoch: Epoch) -> None:
        """Writes one epoch."""
        for name, number in epoch.numbers().items():
            self._writer.add_scalar(name, number, epoch.number)

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class WandB:
    """Logs the numbers of each epoch to a run of Weights & Biases.

    Args:
        **settings: what `wandb.init` takes: project="siit", name="seed 0", mode="offline", config={...}.

    Attributes:
        run: the run that `wandb.init` began.

    Raises:
        UserError: wandb is not installed.

    Example:
        >>> import siitjax
        >>> small = {"epochs": 2, "samples": 400, "batch_size": 64, "progress": False}
        >>> with siitjax.WandB(project="siit", mode="disabled") as log:
        ...     run = siitjax.train("left_greater", on_epoch=log, **small)
    """

    def __init__(self, **settings: Any):
        self.run = _package("wandb", "wandb").init(**settings)

    def __call__(self, epoch: Epoch) -> None:
        """Logs one epoch."""
        self.run.log(epoch.numbers(), step=epoch.number)

    def close(self) -> None:
        """Ends the run, once all is sent."""
        self.run.finish()

    def __enter__(self) -> "WandB":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _package(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(f"{name} is not installed; type: pip install 'siitjax[{extra}]'") from None
