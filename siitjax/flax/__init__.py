"""Our models in Flax.

    to_nnx      a flax.nnx.Module with the same weights, under the same names
    from_nnx    such a module, as it is or as Flax trained it, as one of ours

    model = siitjax.flax.to_nnx("1+2")
    logits, activations = model(tokens)                       # one sample; nnx.vmap makes a batch of it
    swapped, _ = model(tokens, (mask, source_activations))    # nodes or edges, as siitjax.Transformer takes them

Flax is imported when one of them is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siitjax.flax.module import Layer as Layer
    from siitjax.flax.module import NNXTransformer as NNXTransformer
    from siitjax.flax.module import from_nnx as from_nnx
    from siitjax.flax.module import to_nnx as to_nnx

__all__ = ["Layer", "NNXTransformer", "from_nnx", "to_nnx"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module siitjax.flax has no attribute {name!r}")
    found = globals()[name] = getattr(import_module("siitjax.flax.module"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
