"""Floating point operations, counted from shapes: a multiplication and an addition are two."""

from siitjax.model.config import TransformerConfig
from siitjax.siit.config import TrainConfig

BACKWARD = 2
"""A backward pass in forward passes: one product for the inputs' gradient, and one for the weights'."""


def forward_flops(config: TransformerConfig) -> int:
    """Those of the matrix products of one forward pass over one sample.

    Attention is counted over all pairs of positions, as einsum computes it.
    """
    seq, d_model, d_attn = config.n_ctx, config.d_model, config.n_heads * config.d_head
    attention = 4 * 2 * seq * d_model * d_attn + 2 * 2 * seq * seq * d_attn
    mlp = 0 if config.attn_only else 2 * 2 * seq * d_model * config.mlp_width
    return config.n_layers * (attention + mlp) + 2 * seq * d_model * config.d_vocab_out


def step_flops(config: TrainConfig) -> int:
    """Those of one training step: a forward pass over the sources, forward and backward under three masks.

    With three updates a batch the sources run three times. Under swaps of edges, what each sender may add to what each
    reader sees is counted too, under two masks.
    """
    source_runs, shape = 1 if config.updates == "single" else 3, config.case.config
    forward = (source_runs + 3 * (1 + BACKWARD)) * forward_flops(shape)
    mixing = 0
    if config.sampling.swaps == "edges":
        # A product and a sum an edge and feature, forward and, of the gradient, backward; the mask has no gradient.
        mixing = 2 * 2 * 2 * len(shape.nodes.possible_edges) * shape.n_ctx * shape.d_model
    return config.batch_size * (forward + mixing)
