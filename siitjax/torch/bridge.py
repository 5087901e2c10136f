"""To TransformerLens' TransformerBridge, which replaces HookedTransformer in TransformerLens 4."""

from torch import Tensor
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

from siitjax.model.tl_config import lens_config
from siitjax.torch.source import Source, tensors, transformer

WHOLE = ("w", "b", "W_E", "W_pos", "W_U", "b_U")
"""Weights of parts that have one matrix, or one bias; those of the others are called after their own part."""


def to_bridge(source: Source, *, device: str = "cpu") -> TransformerBridge:
    """The TransformerBridge of a transformer, a model's folder, or a shipped model's name.

    It is `TransformerBridge.boot_native`, of TransformerLens 3.9 or later, with our weights. It carries all of our
    config: LayerNorm or none, learned positions, each act_fn, no MLPs, d_vocab_out other than d_vocab, any number of
    heads, either attention_dir, attention over sqrt(d_head), an unembedding with a bias. Its hooks go by
    HookedTransformer's names too, with the same shapes.

    Raises:
        UserError: it is no model.
    """
    model = transformer(source)
    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**lens_config(model.config), device=device))
    bridge.load_state_dict(dict(_native(name, weight) for name, weight in tensors(model).items()), strict=True)
    return bridge.eval()


def _native(name: str, weight: Tensor) -> tuple[str, Tensor]:
    """A weight's name and layout in the bridge: torch.nn.Linear's (out, in), the heads one below the other."""
    owner, _, own = name.rpartition(".")
    part = owner if own in WHOLE else f"{owner}.{own[2:].lower()}"
    if own in ("W_Q", "W_K", "W_V"):
        weight = weight.transpose(1, 2).flatten(0, 1)
    elif own == "W_O":
        weight = weight.flatten(0, 1).T
    elif own in ("W_in", "W_out", "W_U"):
        weight = weight.T
    elif own.startswith("b_"):
        weight = weight.flatten()
    return f"{part}.{'weight' if own[0] in 'Ww' else 'bias'}", weight
