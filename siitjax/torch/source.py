"""What a loader takes: a transformer of ours, or where one is."""

from pathlib import Path

import numpy as np
import torch

from siitjax.causal.case import Case
from siitjax.causal.registry import locate
from siitjax.io.trained import check_described, read_model
from siitjax.model.transformer import Transformer
from siitjax.model.weights import state_dict

Source = Transformer | Path | str
"""A transformer; the path of a model's folder or weights file; or the name of a shipped model; see
`siitjax.causal.registry.locate`."""


def transformer(source: Source) -> Transformer:
    """The transformer that `source` stands for. Raises ValueError where there is none."""
    if isinstance(source, Transformer):
        return source
    return read_model(locate(source))


def check_case(source: Source, case: Case) -> None:
    """Raises UserError where the transformer is not of the case: in its shape, or as its file says."""
    case.check_fits(transformer(source).config)
    if not isinstance(source, Transformer):
        check_described(locate(source), case)


def tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """The weights by TransformerLens key, as tensors of their own."""
    return {name: torch.from_numpy(np.array(weight)) for name, weight in state_dict(model).items()}
