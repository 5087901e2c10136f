"""The shape of a transformer: its sizes, its nodes, and their names in TransformerLens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal, get_args

import jax

from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError
from siitjax.model.nodes import Node, NodeList

ACTIVATION_FUNCTIONS = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
}
ActivationName = Literal["relu", "gelu", "gelu_new"]
AttentionDirection = Literal["causal", "bidirectional"]


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a transformer.

    Attributes:
        n_layers: blocks.
        d_model: width of the residual stream.
        d_head: width of a head.
        n_ctx: longest sequence, in tokens.
        d_vocab: input tokens.
        d_vocab_out: output classes, or output numbers a token.
        d_mlp: width of an MLP; None for 4 d_model.
        act_fn: "relu", "gelu" (the exact one) or "gelu_new" (its approximation by tanh, as GPT-2 has it).
        attn_only: no MLPs.
        layer_norm: pre-LayerNorm with weight and bias (TransformerLens' "LN"), or none at all.
        init_gain: gain of the Xavier normal initialisation.
        heads: heads a layer; None for d_model / d_head. `n_heads` says how many there are.
        attention_dir: "causal", a position sees those before it, or "bidirectional", it sees all.
        mlp_parts: how many equal parts each MLP is cut into, or how many neurons each part has; each is a node. There
            are no parts of heads: they would share one pattern of attention, and two heads say more.

    Raises:
        UserError: a size is not positive, d_head does not divide d_model and heads is None, a word is unknown, or the
            parts of an MLP have more or fewer neurons than it has.

    Example:
        >>> from siitjax import TransformerConfig
        >>> TransformerConfig(2, d_model=26, d_head=6, n_ctx=10, d_vocab=7, d_vocab_out=3, heads=4).n_heads
        4
        >>> halves = TransformerConfig(1, d_model=6, d_head=6, n_ctx=9, d_vocab=7, d_vocab_out=3, mlp_parts=2)
        >>> [halves.hook(node) for node in halves.nodes]
        ['hook_embed', 'blocks.0.attn.hook_z[0]', 'blocks.0.mlp.hook_post[0:12]', 'blocks.0.mlp.hook_post[12:24]']
    """

    n_layers: int
    d_model: int
    d_head: int
    n_ctx: int
    d_vocab: int
    d_vocab_out: int
    d_mlp: int | None = None
    act_fn: ActivationName = "relu"
    attn_only: bool = False
    layer_norm: bool = True
    init_gain: float = 1.0
    heads: int | None = None
    attention_dir: AttentionDirection = "causal"
    mlp_parts: int | tuple[int, ...] = 1

    def __post_init__(self):
        sizes = ("n_layers", "d_model", "d_head", "n_ctx", "d_vocab", "d_vocab_out", "d_mlp", "init_gain", "heads")
        for name in sizes:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}; it must be greater than 0")
        if self.heads is None and self.d_model % self.d_head:
            raise UserError(
                f"d_head {self.d_head} does not divide d_model {self.d_model}; choose one that does, or say how many "
                "heads a layer has"
            )
        check_choice("act_fn", self.act_fn, tuple(ACTIVATION_FUNCTIONS))
        check_choice("attention_dir", self.attention_dir, get_args(AttentionDirection))
        sizes = self.part_sizes if isinstance(self.mlp_parts, int | tuple) else ()
        if not all(isinstance(n, int) and n > 0 for n in sizes) or sum(sizes) != self.mlp_width:
            raise UserError(
                f"mlp_parts is {self.mlp_parts}, but an MLP has {self.mlp_width} neurons; give a number of equal "
                f"parts, or the neurons of each part, which must add up to {self.mlp_width}"
            )

    @property
    def n_heads(self) -> int:
        """Attention heads a layer."""
        return self.d_model // self.d_head if self.heads is None else self.heads

    @property
    def causal(self) -> bool:
        """Whether a position sees nothing of those after it."""
        return self.attention_dir == "causal"

    @property
    def mlp_width(self) -> int:
        """Neurons an MLP."""
        return 4 * self.d_model if self.d_mlp is None else self.d_mlp

    @property
    def part_sizes(self) -> tuple[int, ...]:
        """Neurons of each part of an MLP; one that is not cut is one part."""
        n = self.mlp_parts
        return n if isinstance(n, tuple) else (self.mlp_width // max(n, 1),) * n

    @property
    def n_parts(self) -> int:
        """Parts an MLP."""
        return len(self.part_sizes)

    @cached_property
    def nodes(self) -> NodeList:
        """The nodes of this transformer, in mask order."""
        return NodeList(self.n_layers, self.n_heads, not self.attn_only, self.n_parts)

    def neurons(self, node: Node) -> slice:
        """The neurons of an MLP, or of a part of one."""
        return part_slices(self.part_sizes)[node.part or 0]

    def hook(self, node: Node) -> str:
        """The site's name in TransformerLens, with the head's index, or the part's neurons, where the node is one of
        several there: "blocks.0.attn.hook_z[3]", "blocks.0.mlp.hook_post[0:12]"."""
        if node.part is None:
            return node.hook
        neurons = self.neurons(node)
        return f"{node.hook}[{neurons.start}:{neurons.stop}]"


def with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config's fields as JSON gives them back, with tuples where it has lists."""
    return {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}


def part_slices(sizes: Sequence[int]) -> tuple[slice, ...]:
    """The neurons of each part of an MLP, given how many each has."""
    ends = tuple(accumulate(sizes, initial=0))
    return tuple(slice(a, b) for a, b in pairwise(ends))
