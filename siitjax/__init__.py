"""siitjax: transformers whose circuits are known, trained by strict interchange interventions in JAX.

    import siitjax

    run = siitjax.train("paren_checker", seed=0)
    print(run)
    run.save("mine.safetensors")
    print(siitjax.evaluate(siitjax.load("mine.safetensors")))

Each name is imported when it is first used, so that `import siitjax` alone costs nothing.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from siitjax import sweep as _room

if TYPE_CHECKING:
    from siitjax.base.errors import UserError as UserError
    from siitjax.causal.case import BOS as BOS
    from siitjax.causal.case import PAD as PAD
    from siitjax.causal.case import Case as Case
    from siitjax.causal.circuit import Circuit as Circuit
    from siitjax.causal.circuit import Variable as Variable
    from siitjax.causal.combine import combine as combine
    from siitjax.causal.data import Arrangements as Arrangements
    from siitjax.causal.data import OfLength as OfLength
    from siitjax.causal.data import Those as Those
    from siitjax.causal.data import Uniform as Uniform
    from siitjax.causal.loss import CrossEntropy as CrossEntropy
    from siitjax.causal.loss import SquaredError as SquaredError
    from siitjax.causal.sources import OneChanged as OneChanged
    from siitjax.causal.vocabulary import with_vocabulary as with_vocabulary
    from siitjax.front.evaluate import Evaluation as Evaluation
    from siitjax.front.evaluate import NodeShares as NodeShares
    from siitjax.front.evaluate import evaluate as evaluate
    from siitjax.front.grid import train_grid as sweep
    from siitjax.front.load import find_case as find_case
    from siitjax.front.load import load as load
    from siitjax.front.load import register as register
    from siitjax.front.loggers import TensorBoard as TensorBoard
    from siitjax.front.loggers import WandB as WandB
    from siitjax.front.run import Epoch as Epoch
    from siitjax.front.run import Run as Run
    from siitjax.front.train import train as train
    from siitjax.io.trained import Trained as Trained
    from siitjax.model.config import TransformerConfig as TransformerConfig
    from siitjax.model.nodes import EMBED as EMBED
    from siitjax.model.nodes import Node as Node
    from siitjax.model.nodes import head as head
    from siitjax.model.nodes import mlp as mlp
    from siitjax.model.transformer import Transformer as Transformer
    from siitjax.rasp.case import from_rasp as from_rasp
    from siitjax.siit.config import Hyperparams as Hyperparams
    from siitjax.siit.config import TrainConfig as TrainConfig
    from siitjax.siit.objective import Sampling as Sampling
    from siitjax.siit.recipe import Recipe as Recipe
    from siitjax.siit.train import Stop as Stop

_HOMES = {
    "base.errors": ("UserError",),
    "causal.case": ("BOS", "PAD", "Case"),
    "causal.circuit": ("Circuit", "Variable"),
    "causal.combine": ("combine",),
    "causal.data": ("Arrangements", "OfLength", "Those", "Uniform"),
    "causal.loss": ("CrossEntropy", "SquaredError"),
    "causal.sources": ("OneChanged",),
    "causal.vocabulary": ("with_vocabulary",),
    "front.evaluate": ("Evaluation", "NodeShares", "evaluate"),
    "front.load": ("find_case", "load", "register"),
    "front.loggers": ("TensorBoard", "WandB"),
    "front.run": ("Epoch", "Run"),
    "front.train": ("train",),
    "io.trained": ("Trained",),
    "model.nodes": ("EMBED", "Node", "head", "mlp"),
    "model.config": ("TransformerConfig",),
    "model.transformer": ("Transformer",),
    "rasp.case": ("from_rasp",),
    "siit.objective": ("Sampling",),
    "siit.recipe": ("Recipe",),
    "siit.config": ("Hyperparams", "TrainConfig"),
    "siit.train": ("Stop",),
}
"""The public names, by the module that each is declared in; `sweep` is beside them."""

__all__ = [
    "BOS",
    "EMBED",
    "PAD",
    "Arrangements",
    "Case",
    "Circuit",
    "CrossEntropy",
    "Epoch",
    "Evaluation",
    "Hyperparams",
    "Node",
    "NodeShares",
    "OfLength",
    "OneChanged",
    "Recipe",
    "Run",
    "Sampling",
    "SquaredError",
    "Stop",
    "TensorBoard",
    "Those",
    "TrainConfig",
    "Trained",
    "Transformer",
    "TransformerConfig",
    "Uniform",
    "UserError",
    "Variable",
    "WandB",
    "combine",
    "evaluate",
    "find_case",
    "from_rasp",
    "head",
    "load",
    "mlp",
    "register",
    "sweep",
    "train",
    "with_vocabulary",
]


class _Sweep(ModuleType):
    """The room siitjax.sweep, which can be called too: as a function, it is `siitjax.front.grid.train_grid`."""

    def __call__(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """Trains every seed under every combination of settings; see `siitjax.front.grid.train_grid`."""
        return import_module("siitjax.front.grid").train_grid(*args, **kwargs)


# A function of this name in its place would hide the room: siitjax.sweep.engine would be no attribute any more.
_room.__class__ = _Sweep  # pyright: ignore[reportAttributeAccessIssue]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(f"siitjax.{home}"), name)
            return found
    raise AttributeError(f"module siitjax has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
