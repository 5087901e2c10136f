"""To and from TransformerLens' HookedTransformer.

TransformerLens 2 wants a NumPy that is older than ours; there, a model's folder is loaded as its card says.
"""

import warnings
from typing import TypeVar

from transformer_lens import HookedTransformer, HookedTransformerConfig

from siitjax.model.tl_config import from_lens_config, lens_config
from siitjax.model.transformer import Transformer
from siitjax.model.weights import checked_model, without_constants
from siitjax.torch.source import Source, tensors, transformer

Hooked = TypeVar("Hooked", bound=HookedTransformer)


def to_hooked_transformer(source: Source, *, device: str = "cpu") -> HookedTransformer:
    """The HookedTransformer of a transformer, a model's folder, or a shipped model's name.

    Raises:
        UserError: it is no model.
    """
    return load_into(HookedTransformer, source, device)


def load_into(cls: type[Hooked], source: Source, device: str) -> Hooked:
    """The same as HookedTransformer, or as a class that is one."""
    model = transformer(source)
    with warnings.catch_warnings():
        # TransformerLens 3 tells its users to build a bridge. Who calls this has chosen; `to_bridge` is the other.
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        hooked = cls(HookedTransformerConfig(**lens_config(model.config), device=device))
    # Not strict, because the causal masks are in its state dict too.
    found = hooked.load_state_dict(tensors(model), strict=False)
    assert not found.unexpected_keys
    return hooked.eval()


def from_hooked_transformer(hooked: HookedTransformer) -> Transformer:
    """The HookedTransformer as one of ours, its weights in float32.

    Raises:
        UserError: it does something that ours does not; all of it is named.
    """
    config = from_lens_config(vars(hooked.cfg), "this HookedTransformer")
    weights = {name: weight.detach().float().cpu().numpy() for name, weight in hooked.state_dict().items()}
    return checked_model(config, without_constants(weights), "this HookedTransformer")
