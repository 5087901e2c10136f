"""The transformer as a plain torch.nn.Module, with the state dict of TransformerLens and no need of it."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from siitjax.base.errors import UserError
from siitjax.model.config import TransformerConfig
from siitjax.model.nodes import Node
from siitjax.model.transformer import LN_EPS
from siitjax.torch.source import Source, tensors, transformer

ACTIVATION_FUNCTIONS = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
}


def to_torch(source: Source) -> "TorchTransformer":
    """The plain module of a transformer, a model's folder, or a shipped model's name.

    Raises:
        UserError: it is no model.
    """
    model = transformer(source)
    module = TorchTransformer(model.config)
    module.load_state_dict(tensors(model))
    return module


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def _held_by(config: TransformerConfig, node: Node) -> int | slice:
    """Where a node's values lie on the third axis of what its site holds."""
    if node.layer is None:
        return slice(None)
    return config.neurons(node) if node.head is None else node.head


class LayerNorm(nn.Module):
    """As `siitjax.model.transformer.LayerNorm`, over a batch."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.w, self.b = _zeros(config.d_model), _zeros(config.d_model)

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        """The normalised activations."""
        return functional.layer_norm(x, self.w.shape, self.w, self.b, LN_EPS)


class Embed(nn.Module):
    """As `siitjax.model.transformer.Embed`."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.W_E = _zeros(config.d_vocab, config.d_model)


class PosEmbed(nn.Module):
    """As `siitjax.model.transformer.PosEmbed`."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.W_pos = _zeros(config.n_ctx, config.d_model)


class Unembed(nn.Module):
    """As `siitjax.model.transformer.Unembed`."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.W_U, self.b_U = _zeros(config.d_model, config.d_vocab_out), _zeros(config.d_vocab_out)


class Attention(nn.Module):
    """As `siitjax.model.transformer.Attention`, over a batch."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        heads, d_model, d_head = config.n_heads, config.d_model, config.d_head
        self.W_Q, self.W_K, self.W_V = (_zeros(heads, d_model, d_head) for _ in range(3))
        self.b_Q, self.b_K, self.b_V = (_zeros(heads, d_head) for _ in range(3))
        self.W_O, self.b_O = _zeros(heads, d_head, d_model), _zeros(d_model)
        self.causal = config.causal

    def z(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq head d_head"]:
        """What each head reads from where it looks, before W_O."""
        q, k, v = (
            torch.einsum("bsm,hmd->bhsd", x, w) + b[:, None]
            for w, b in ((self.W_Q, self.b_Q), (self.W_K, self.b_K), (self.W_V, self.b_V))
        )
        return functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2)

    def out(self, z: Float[Tensor, "batch seq head d_head"]) -> Float[Tensor, "batch seq d_model"]:
        """What the heads together write to the residual stream."""
        return torch.einsum("bshd,hdm->bsm", z, self.W_O) + self.b_O


class MLP(nn.Module):
    """As `siitjax.model.transformer.MLP`, over a batch."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.W_in, self.b_in = _zeros(config.d_model, config.mlp_width), _zeros(config.mlp_width)
        self.W_out, self.b_out = _zeros(config.mlp_width, config.d_model), _zeros(config.d_model)
        self.act_fn = ACTIVATION_FUNCTIONS[config.act_fn]

    def post(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_mlp"]:
        """The activations of the neurons."""
        return self.act_fn(x @ self.W_in + self.b_in)

    def out(self, post: Float[Tensor, "batch seq d_mlp"]) -> Float[Tensor, "batch seq d_model"]:
        """What the MLP writes to the residual stream."""
        return post @ self.W_out + self.b_out


class Block(nn.Module):
    """As `siitjax.model.transformer.Block`; where a part is missing, an identity or None is in its place."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.ln1 = LayerNorm(config) if config.layer_norm else nn.Identity()
        self.attn = Attention(config)
        self.ln2 = LayerNorm(config) if config.layer_norm and not config.attn_only else nn.Identity()
        self.mlp = None if config.attn_only else MLP(config)


class TorchTransformer(nn.Module):
    """`siitjax.model.transformer.Transformer` in PyTorch, over a batch. Its weights are zero until they are loaded.

    `module(tokens, swap)` gives the logits, and the activations by their sites' names: "hook_embed",
    "blocks.0.attn.hook_z" (batch, seq, head, d_head), "blocks.0.mlp.hook_post" (batch, seq, d_mlp). A swap is nodes,
    and the activations of a source run: the nodes take their values from it, and what comes later is computed again.

    Raises (when it is called):
        UserError: the transformer has no such node, or the source's run is of another shape than the base's.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.embed, self.pos_embed, self.unembed = Embed(config), PosEmbed(config), Unembed(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layers)])
        self.ln_final = LayerNorm(config) if config.layer_norm else nn.Identity()

    def forward(
        self,
        tokens: Int[Tensor, "batch seq"],
        swap: tuple[Sequence[Node], Mapping[str, Tensor]] | None = None,
    ) -> tuple[Float[Tensor, "batch seq out"], dict[str, Tensor]]:
        """Logits, and the activations after the swap by their sites' names."""
        nodes, source = swap or ((), {})
        self.config.nodes.mask(nodes)  # says which nodes there are, where one of these is not
        held: dict[str, Tensor] = {}

        def site(name: str, value: Tensor) -> Tensor:
            for node in nodes:
                if node.hook.split("[")[0] == name:
                    if source[name].shape != value.shape:
                        given, own = tuple(source[name].shape), tuple(value.shape)
                        raise UserError(f"the source's {name} has shape {given}, the base's {own}; they must be alike")
                    part = (slice(None), slice(None), _held_by(self.config, node))
                    value = value.clone()
                    value[part] = source[name][part]
            held[name] = value
            return value

        x = site("hook_embed", self.embed.W_E[tokens]) + self.pos_embed.W_pos[: tokens.shape[1]]
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x = x + block.attn.out(site(f"blocks.{i}.attn.hook_z", block.attn.z(block.ln1(x))))
            if block.mlp is not None:
                x = x + block.mlp.out(site(f"blocks.{i}.mlp.hook_post", block.mlp.post(block.ln2(x))))
        return self.ln_final(x) @ self.unembed.W_U + self.unembed.b_U, held
