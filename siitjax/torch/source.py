"""What a loader takes: a transformer of ours, or where one is."""

from pathlib import Path

import numpy as np
import torch

import cases
from siitjax.case import Case
from siitjax.export import state_dict
from siitjax.folder import read_model
from siitjax.trained import check_described
from siitjax.transformer import Transformer

Source = Transformer | Path | str
"""A transformer; the path of a model's folder or weights file; or the name of a shipped model; see `cases.locate`."""


def transformer(source: Source) -> Transformer:
    """The transformer that `source` stands for. Raises ValueError where there is none."""
    if isinstance(source, Transformer):
        return source
    return read_model(cases.locate(source))


def check_case(source: Source, case: Case) -> None:
    """Raises UserError where the transformer is not of the case: in its shape, or as its file says."""
    case.check_fits(transformer(source).config)
    if not isinstance(source, Transformer):
        check_described(cases.locate(source), case)


def tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """The weights by TransformerLens key, as tensors of their own."""
    return {name: torch.from_numpy(np.array(weight)) for name, weight in state_dict(model).items()}
