"""The nodes and edges of a transformer: what a swap replaces, what a circuit is placed on, what a mask ranges over.

A node is a whole site over all positions: the token embedding, one attention head's `hook_z`, or one MLP's
`hook_post`. Every node is a *sender*: it writes to the residual stream. The heads, the MLPs and the logits are
*readers*. An edge is a sender and a reader that comes later. A `NodeList` fixes the order of a transformer's nodes, so
that a mask of nodes is a boolean vector, and one of edges a boolean matrix (reader, sender).

MLPs may be cut into parts. Each part is a node then, and an MLP is the sum of its parts, as a layer of attention is of
its heads. A part is a subspace of the MLP, spanned by some of its neurons. (Geiger et al. 2024 look for the directions
of a subspace in a trained model; here they are given, and training finds what they hold.)
"""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Shaped

from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError


@dataclass(frozen=True)
class Node:
    """One node, or the logits, which read and send nothing.

    Attributes:
        layer: from 0; None for the embedding and the logits.
        head: from 0; None for what is no head.
        is_logits: whether it stands for the logits.
        part: from 0, of an MLP that is cut into parts; None for what is no such part.

    Example:
        >>> str(head(0, 3)), head(0, 3).hook, Node.parse("MLP1") == mlp(1)
        ('L0H3', 'blocks.0.attn.hook_z[3]', True)
        >>> str(mlp(0, part=1))
        'MLP0.1'
    """

    layer: int | None = None
    head: int | None = None
    is_logits: bool = False
    part: int | None = None

    def __str__(self) -> str:
        if self.is_logits:
            return "logits"
        if self.layer is None:
            return "embed"
        if self.head is not None:
            return f"L{self.layer}H{self.head}"
        return f"MLP{self.layer}" + ("" if self.part is None else f".{self.part}")

    @property
    def hook(self) -> str:
        """The site's name in TransformerLens, with the head's index where the site holds several.

        Which neurons of its site a part of an MLP has, the transformer knows: `TransformerConfig.hook`.
        """
        if self.is_logits:
            return "ln_final.hook_normalized"
        if self.layer is None:
            return "hook_embed"
        block = f"blocks.{self.layer}"
        return f"{block}.mlp.hook_post" if self.head is None else f"{block}.attn.hook_z[{self.head}]"

    @property
    def depth(self) -> int:
        """How many sites lie before this one on the residual stream: 0 for the embedding, heads before their MLP."""
        if self.is_logits:
            return sys.maxsize
        if self.layer is None:
            return 0
        return 2 * self.layer + (2 if self.head is None else 1)

    @staticmethod
    def parse(name: str) -> "Node":
        """The node called `name`: "embed", "L0H3" (layer 0, head 3), "MLP1", "MLP1.0" (its part 0), or "logits".

        Raises:
            UserError: `name` is none of these.
        """
        if name == "logits":
            return LOGITS
        if name == "embed":
            return EMBED
        if match := re.fullmatch(r"L(\d+)H(\d+)", name):
            return head(int(match[1]), int(match[2]))
        if match := re.fullmatch(r"MLP(\d+)(?:\.(\d+))?", name):
            return mlp(int(match[1]), None if match[2] is None else int(match[2]))
        raise UserError(f'no node is called "{name}"; write "embed", "L0H3" (layer 0, head 3) or "MLP1"')


def block_of(depth: int) -> tuple[int, bool]:
    """The layer of the site that lies `depth` deep in the residual stream, and whether it is that layer's MLP."""
    return (depth - 1) // 2, depth % 2 == 0


EMBED = Node()
"""The token embedding, which sends and reads no other node."""
LOGITS = Node(is_logits=True)
"""The logits, which read and send nothing."""


def head(layer: int, index: int) -> Node:
    """Attention head `index` of layer `layer`."""
    return Node(layer, index)


def mlp(layer: int, part: int | None = None) -> Node:
    """The MLP of layer `layer`; or part `part` of it, where the transformer's MLPs are cut into parts."""
    return Node(layer, part=part)


def mlp_nodes(layer: int, n_parts: int) -> tuple[Node, ...]:
    """The parts of the MLP of layer `layer`; the MLP itself, where it has one part."""
    return (mlp(layer),) if n_parts == 1 else tuple(mlp(layer, part) for part in range(n_parts))


Edge = tuple[Node, Node]
"""A sender, and a reader that comes later on the residual stream."""

Masks = Bool[Array | np.ndarray, "batch mask node"] | Bool[Array | np.ndarray, "mask node"]
"""Masks of each sample, or of all samples alike. What a NumPy array does not swap is known before anything runs."""


class Sites(NamedTuple):
    """A mask, or a number a node, cut up by site kind as the transformer uses it; several are further axes."""

    embed: Shaped[Array | np.ndarray, "*rest"]
    z: Shaped[Array | np.ndarray, "layer head *rest"]
    post: Shaped[Array | np.ndarray, "layer part *rest"] | None


def edge_name(edge: Edge) -> str:
    """How an edge is written: "L0H1->MLP0"."""
    return f"{edge[0]}->{edge[1]}"


def parse_edge(name: str) -> Edge:
    """The edge called `name`: "L0H1->MLP0", "embed->logits". Raises UserError for anything else."""
    sender, arrow, reader = name.partition("->")
    if not arrow:
        raise UserError(f'"{name}" is no edge; write a sender, -> and a reader: "L0H1->MLP0", "embed->logits"')
    return Node.parse(sender.strip()), Node.parse(reader.strip())


@dataclass(frozen=True)
class NodeList:
    """The nodes of one transformer in mask order: the embedding, then each layer's heads and its MLP, or its parts."""

    n_layers: int
    n_heads: int
    has_mlp: bool = True
    n_parts: int = 1

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes in mask order: the embedding, then each layer's heads and its MLP, or its parts."""
        heads = lambda layer: tuple(head(layer, i) for i in range(self.n_heads))
        mlps = lambda layer: mlp_nodes(layer, self.n_parts) if self.has_mlp else ()
        return (EMBED, *(node for layer in range(self.n_layers) for node in heads(layer) + mlps(layer)))

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def at_depth(self, depth: int) -> tuple[Node, ...]:
        """The nodes that lie `depth` deep, side by side: a layer's heads, or its MLP, or the parts of that."""
        return tuple(node for node in self if node.depth == depth)

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

    @cached_property
    def readers(self) -> tuple[Node, ...]:
        """Who reads the residual stream, in the order of an edge mask: every node but the embedding, and the logits."""
        return (*self.nodes[1:], LOGITS)

    @cached_property
    def possible_edges(self) -> tuple[Edge, ...]:
        """Every edge that the transformer has: from each node to each that is deeper, and to the logits."""
        return tuple((a, b) for a in self for b in self.readers if b.depth > a.depth)

    def edge_mask(self, edges: Iterable[Edge]) -> Bool[np.ndarray, "reader sender"]:
        """The mask that is true at `edges` alone.

        Raises:
            UserError: the transformer has no such edge; the message names the nearest.
        """
        mask = np.zeros((len(self), len(self)), bool)
        for edge in edges:
            if edge not in self.possible_edges:
                rule = f"It must end in a deeper node of {', '.join(map(str, self.readers))}"
                check_choice("the edge", edge_name(edge), [edge_name(e) for e in self.possible_edges], rule)
            mask[self.readers.index(edge[1]), self.nodes.index(edge[0])] = True
        return mask

    def as_edges(self, mask: Bool[Array | np.ndarray, "*rest node"]) -> Bool[Array | np.ndarray, "*rest reader sender"]:
        """A mask of nodes as one of edges: every reader of a masked node sees the source's value."""
        possible = self.edge_mask(self.possible_edges)
        return mask[..., None, :] & possible.reshape((1,) * (mask.ndim - 1) + possible.shape)

    def edges_in(self, mask: Bool[np.ndarray, "reader sender"]) -> tuple[Edge, ...]:
        """The edges at which `mask` is true."""
        return tuple(e for e in self.possible_edges if mask[self.readers.index(e[1]), self.nodes.index(e[0])])

    def sites(self, mask: Shaped[Array | np.ndarray, "node *rest"]) -> Sites:
        """`mask`, or a number a node, by site kind; of several, the nodes lie on the first axis."""
        mlps = self.n_parts if self.has_mlp else 0
        blocks = mask[1:].reshape(self.n_layers, self.n_heads + mlps, *mask.shape[1:])
        return Sites(mask[0], blocks[:, : self.n_heads], blocks[:, self.n_heads :] if mlps else None)
