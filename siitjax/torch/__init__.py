"""Our models in PyTorch, TransformerLens and SAELens.

    to_torch                  a plain torch.nn.Module
    to_hooked_transformer     TransformerLens' HookedTransformer, which its version 4 has no more
    to_bridge                 the TransformerBridge that replaces it, of version 3.9 or later
    from_hooked_transformer   a HookedTransformer as one of ours
    read_published            a published folder of Anders & Garriga-Alonso 2024 as one of ours
    tokenizer, CaseDataset, draw_datasets, interchanges   a case's strings, labels and counterfactuals
    sites, saelens_runner, train_sae, to_sae_transformer  SAEs, by SAELens

The extra `torch` brings what all but the last line need, the extra `sae` the rest. Each is imported when it is first
used, so that a plain module needs no TransformerLens, and none of them SAELens.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siitjax.torch.bridge import to_bridge as to_bridge
    from siitjax.torch.data import CaseDataset as CaseDataset
    from siitjax.torch.data import Interchange as Interchange
    from siitjax.torch.data import draw_datasets as draw_datasets
    from siitjax.torch.data import interchanges as interchanges
    from siitjax.torch.data import tokenizer as tokenizer
    from siitjax.torch.hooked import from_hooked_transformer as from_hooked_transformer
    from siitjax.torch.hooked import to_hooked_transformer as to_hooked_transformer
    from siitjax.torch.plain import TorchTransformer as TorchTransformer
    from siitjax.torch.plain import to_torch as to_torch
    from siitjax.torch.published import read_published as read_published
    from siitjax.torch.sae import saelens_runner as saelens_runner
    from siitjax.torch.sae import sites as sites
    from siitjax.torch.sae import to_sae_transformer as to_sae_transformer
    from siitjax.torch.sae import train_sae as train_sae

FILES = {
    "plain": ("TorchTransformer", "to_torch"),
    "hooked": ("from_hooked_transformer", "to_hooked_transformer"),
    "bridge": ("to_bridge",),
    "published": ("read_published",),
    "data": ("CaseDataset", "Interchange", "draw_datasets", "interchanges", "tokenizer"),
    "sae": ("saelens_runner", "sites", "to_sae_transformer", "train_sae"),
}
"""Which file of this folder each name is in."""


def __getattr__(name: str) -> Any:
    file = next((file for file, names in FILES.items() if name in names), None)
    if file is None:
        raise AttributeError(f"siitjax.torch has no {name}; it has {', '.join(sum(FILES.values(), ()))}")
    try:
        return getattr(import_module(f"siitjax.torch.{file}"), name)
    except ModuleNotFoundError as error:
        extra = "sae" if file == "sae" else "torch"
        raise ModuleNotFoundError(
            f"siitjax.torch.{name} needs {error.name}, which is not installed; pip install 'siitjax[{extra}]' brings it"
        ) from None
    except ImportError as error:
        if error.name != "HookedTransformer":
            raise
        raise ImportError(
            f"siitjax.torch.{name} needs HookedTransformer, which TransformerLens 4 has no more; use to_bridge, or "
            "pip install 'transformer-lens<4'"
        ) from None
