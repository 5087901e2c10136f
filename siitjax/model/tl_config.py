"""A transformer's shape in the words of TransformerLens' configs, and back."""

from collections.abc import Mapping
from math import isclose
from typing import Any, get_args

from siitjax.base.errors import UserError
from siitjax.model.config import ACTIVATION_FUNCTIONS, AttentionDirection, TransformerConfig
from siitjax.model.transformer import LN_EPS

OURS: dict[str, Any] = {
    "positional_embedding_type": "standard",
    "eps": LN_EPS,
    "use_attn_scale": True,
    "scale_attn_by_inverse_layer_idx": False,
    "use_local_attn": False,
    "use_qk_norm": False,
    "use_logn_attn": False,
    "use_attention_sinks": False,
    "attn_scores_soft_cap": -1.0,
    "output_logits_soft_cap": -1.0,
    "n_key_value_heads": None,
    "num_experts": None,
    "gated_mlp": False,
    "parallel_attn_mlp": False,
    "final_rms": False,
    "post_embedding_ln": False,
    "use_normalization_before_and_after": False,
}
"""What our transformer does wherever TransformerLens offers a choice; sizes, LayerNorm or none, act_fn and
attention_dir are free."""


def lens_config(config: TransformerConfig) -> dict[str, Any]:
    """The fields of a HookedTransformerConfig, which are those of a TransformerBridgeConfig too."""
    return {
        "n_layers": config.n_layers,
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "d_head": config.d_head,
        "d_mlp": None if config.attn_only else config.mlp_width,
        "n_ctx": config.n_ctx,
        "d_vocab": config.d_vocab,
        "d_vocab_out": config.d_vocab_out,
        "act_fn": config.act_fn,
        "attn_only": config.attn_only,
        "normalization_type": "LN" if config.layer_norm else None,
        "positional_embedding_type": OURS["positional_embedding_type"],
        "attention_dir": config.attention_dir,
        "eps": OURS["eps"],
        "init_weights": False,
    }


def from_lens_config(fields: Mapping[str, Any], where: str) -> TransformerConfig:
    """The shape that a HookedTransformerConfig's fields describe; those that are missing are at their defaults.

    Raises:
        UserError: a size is missing, or the transformer does something that ours does not; all of it is named.
    """
    sizes = ("n_layers", "d_model", "d_head", "n_ctx", "d_vocab", "act_fn")
    if missing := [name for name in sizes if fields.get(name) is None]:
        raise UserError(f"{where} does not say {', '.join(missing)}; a transformer needs {', '.join(sizes)}")
    other = [f"{name} {fields[name]}, not {ours}" for name, ours in OURS.items() if fields.get(name, ours) != ours]
    normalisation, act_fn = fields.get("normalization_type", "LN"), fields["act_fn"]
    if normalisation not in ("LN", None):
        other.append(f"normalization_type {normalisation}, not LN or None (load it without folding LayerNorm)")
    if act_fn not in ACTIVATION_FUNCTIONS:
        other.append(f"act_fn {act_fn}, not {' or '.join(ACTIVATION_FUNCTIONS)}")
    direction, directions = fields.get("attention_dir", "causal"), get_args(AttentionDirection)
    if direction not in directions:
        other.append(f"attention_dir {direction}, not {' or '.join(directions)}")
    d_model, d_head = fields["d_model"], fields["d_head"]
    n_heads = fields.get("n_heads", -1)
    heads = None if n_heads in (-1, None) or n_heads * d_head == d_model else n_heads
    scale = fields.get("attn_scale", -1.0)
    if scale != -1.0 and not isclose(scale, d_head**0.5, rel_tol=1e-6):
        other.append(f"attn_scale {scale}, not the root of d_head")
    if other:
        raise UserError(f"{where} is not of our kind: it has {'; '.join(other)}")
    d_mlp, attn_only = fields.get("d_mlp"), fields.get("attn_only", False)
    d_vocab_out = fields.get("d_vocab_out", -1)
    return TransformerConfig(
        n_layers=fields["n_layers"],
        d_model=d_model,
        d_head=d_head,
        n_ctx=fields["n_ctx"],
        d_vocab=fields["d_vocab"],
        d_vocab_out=fields["d_vocab"] if d_vocab_out == -1 else d_vocab_out,
        d_mlp=None if attn_only or d_mlp == 4 * d_model else d_mlp,
        act_fn=act_fn,
        attn_only=attn_only,
        layer_norm=normalisation == "LN",
        heads=heads,
        attention_dir=direction,
    )
