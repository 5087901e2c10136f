"""The nodes of a transformer: what a swap replaces, what a circuit is placed on, what a mask ranges over.

A node is a whole site over all positions: the token embedding, one attention head's `hook_z`, or one MLP's
`hook_post`. A `NodeList` fixes the order of a transformer's nodes, so that a mask is a boolean vector.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool

from siitjax.errors import UserError


@dataclass(frozen=True)
class Node:
    """One node. `layer` and `head` are None where they mean nothing: the embedding has neither, an MLP no head."""

    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        if self.layer is None:
            return "embed"
        return f"MLP{self.layer}" if self.head is None else f"L{self.layer}H{self.head}"

    @property
    def hook(self) -> str:
        """The site's name in TransformerLens, with the head's index where the site holds several."""
        if self.layer is None:
            return "hook_embed"
        block = f"blocks.{self.layer}"
        return f"{block}.mlp.hook_post" if self.head is None else f"{block}.attn.hook_z[{self.head}]"

    @property
    def depth(self) -> int:
        """How many sites lie before this one on the residual stream: 0 for the embedding, heads before their MLP."""
        if self.layer is None:
            return 0
        return 2 * self.layer + (2 if self.head is None else 1)

    @staticmethod
    def parse(name: str) -> "Node":
        """The node called `name`: "embed", "L0H3" (layer 0, head 3) or "MLP1".

        Raises:
            UserError: `name` is none of these.
        """
        if name == "embed":
            return EMBED
        if match := re.fullmatch(r"L(\d+)H(\d+)", name):
            return head(int(match[1]), int(match[2]))
        if match := re.fullmatch(r"MLP(\d+)", name):
            return mlp(int(match[1]))
        raise UserError(f'no node is called "{name}"; write "embed", "L0H3" (layer 0, head 3) or "MLP1"')


def block_of(depth: int) -> tuple[int, bool]:
    """The layer of the site that lies `depth` deep in the residual stream, and whether it is that layer's MLP."""
    return (depth - 1) // 2, depth % 2 == 0


EMBED = Node()


def head(layer: int, index: int) -> Node:
    """Attention head `index` of layer `layer`."""
    return Node(layer, index)


def mlp(layer: int) -> Node:
    """The MLP of layer `layer`."""
    return Node(layer)


Masks = Bool[Array | np.ndarray, "batch mask node"] | Bool[Array | np.ndarray, "mask node"]
"""Masks of each sample, or of all samples alike. What a NumPy array does not swap is known before anything runs."""


class Sites(NamedTuple):
    """A mask, cut up by site kind as the transformer uses it; of several masks, these are further axes."""

    embed: Bool[Array | np.ndarray, "*rest"]
    z: Bool[Array | np.ndarray, "layer head *rest"]
    post: Bool[Array | np.ndarray, "layer *rest"] | None


@dataclass(frozen=True)
class NodeList:
    """The nodes of one transformer in mask order: the embedding, then each layer's heads and its MLP."""

    n_layers: int
    n_heads: int
    has_mlp: bool = True

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        layers = range(self.n_layers)
        blocks = [[*(head(i, j) for j in range(self.n_heads)), *([mlp(i)] if self.has_mlp else [])] for i in layers]
        return (EMBED, *(node for block in blocks for node in block))

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def index(self, node: Node) -> int:
        """The place of `node` in a mask.

        Raises:
            UserError: this transformer has no such node.
        """
        if isinstance(node, str):
            raise UserError(f'the node "{node}" is a text; write Node.parse("{node}")')
        if node not in self.nodes:
            raise UserError(f"there is no node {node}; the nodes are {', '.join(map(str, self))}")
        return self.nodes.index(node)

    def mask(self, nodes: Iterable[Node]) -> Bool[np.ndarray, " node"]:
        """The mask that is true at `nodes` alone. Raises UserError for a node that is not in the list."""
        mask = np.zeros(len(self), bool)
        mask[[self.index(node) for node in nodes]] = True
        return mask

    def named(self, mask: Bool[np.ndarray, " node"]) -> tuple[Node, ...]:
        """The nodes at which `mask` is true."""
        return tuple(node for node, swapped in zip(self, mask, strict=True) if swapped)

    def sites(self, mask: Bool[Array | np.ndarray, "node *rest"]) -> Sites:
        """`mask` by site kind; of several masks, the nodes lie on the first axis."""
        blocks = mask[1:].reshape(self.n_layers, self.n_heads + self.has_mlp, *mask.shape[1:])
        return Sites(mask[0], blocks[:, : self.n_heads], blocks[:, -1] if self.has_mlp else None)
