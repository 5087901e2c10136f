"""Information flow routes (Ferrando & Voita 2024): how near a sender's vector lies to what is read, in base runs alone.

Their section 2: where a vector y is the sum of vectors z_j, z_j has the proximity max(|y| - |z_j - y|, 0), in the norm
of absolute values, and the importance proximity(z_j) / sum of the proximities. Routes are taken from the top: an edge
that is important enough is followed from readers that were reached before, and the logits are reached first.

What an MLP or the logits read is the residual stream, before its LayerNorm. Of a head, y is what it writes: under the
attention pattern that it has, a sum over the positions that it reads, and of each over senders. LayerNorm there is the
linear map that it is at the scale of this run. Positions and biases are together one vector more, which has no edge.

The paper's nodes are tokens. Here importances are averages over the counted tokens, and an edge's score is the highest
threshold at which it is followed: its importance, or that of the best route from its reader to the logits, if less.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from siitjax.analysis.discovery.pairs import Pairs
from siitjax.analysis.discovery.patching import of_edges
from siitjax.analysis.discovery.relaxed import site_depths, with_writes
from siitjax.analysis.discovery.runs import Runs, run_pairs
from siitjax.causal.case import Case
from siitjax.model.forms import summed_over_chunks
from siitjax.model.nodes import LOGITS, NodeList, block_of
from siitjax.model.transformer import LN_EPS, Attention, LayerNorm, Transformer, normalised

AT_ONCE = 16
"""Pairs that run together: bounds the memory, not the result."""


def information_flow(model: Transformer, case: Case, pairs: Pairs) -> Float[np.ndarray, " edge"]:
    """The highest threshold of importance, from 0 to 1, at which each edge lies on a route to the logits.

    It looks at base runs alone, and knows nothing of the answer.

    Raises:
        UserError: these do not fit each other; see `siitjax.analysis.discovery.runs.run_pairs`.

    Example:
        >>> import siitjax
        >>> from siitjax.analysis.discovery.pairs import draw_pairs
        >>> trained = siitjax.load("left_greater")
        >>> scores = information_flow(trained.model, trained.case, draw_pairs(trained.case, 20))
        >>> scores.shape == (len(trained.case.circuit.nodes.possible_edges),), bool(scores.max() <= 1)
        (True, True)
    """
    nodes = model.config.nodes
    found = importances(model, run_pairs(model, case, pairs))
    return routes(nodes, of_edges(nodes, found).astype(float))


def routes(nodes: NodeList, importance: Float[np.ndarray, " edge"]) -> Float[np.ndarray, " edge"]:
    """The highest threshold at which an edge is followed from the logits, where edges of at least it are.

    Example:
        >>> routes(NodeList(1, 1), np.array([0.9, 0.2, 0.3, 0.8, 0.5, 0.7]))  # embed->L0H0 by way of the MLP
        array([0.7, 0.2, 0.3, 0.7, 0.5, 0.7])
    """
    reached = {LOGITS: np.inf}
    scores = np.zeros(len(importance))
    for i in sorted(range(len(importance)), key=lambda i: -nodes.possible_edges[i][1].depth):
        sender, reader = nodes.possible_edges[i]
        scores[i] = min(importance[i], reached.get(reader, 0.0))
        reached[sender] = max(scores[i], reached.get(sender, 0.0))
    return scores


def importances(model: Transformer, runs: Runs) -> Float[np.ndarray, "reader sender"]:
    """How important each sender is to each reader, from 0 to 1, on average over the counted tokens."""
    return np.asarray(_mean_importances(model, runs))


@jax.jit
def _mean_importances(model: Transformer, runs: Runs) -> Float[Array, "reader sender"]:
    def chunk(here, counted):
        each = jax.vmap(lambda here: _of_sample(model, here))(here)
        own = counted.astype(each.dtype)
        return jnp.einsum("prst,pt->rs", each, own), own.sum()

    total, tokens = summed_over_chunks(chunk, AT_ONCE, runs.here, runs.counted)
    return total / tokens


def _of_sample(model: Transformer, here: Float[Array, "sender seq d_model"]) -> Float[Array, "reader sender seq"]:
    x = here[0] + model.pos_embed.W_pos[: here.shape[1]]
    found, seen = [], 1  # senders seen so far

    def whole(shares):
        return jnp.pad(shares, [(0, 0), (0, len(here) - seen), (0, 0)])

    for depth in site_depths(model):
        layer, is_mlp = block_of(depth)
        block, readers = model.blocks[layer], len(model.config.nodes.at_depth(depth))
        wrote = here[seen : seen + readers]
        if is_mlp:
            shares = jnp.broadcast_to(importance(here[:seen], x), (readers, seen, len(x)))
        else:
            shares = jax.vmap(importance)(_head_parts(block.attn, block.ln1, x, here[:seen]), wrote)
        found.append(whole(shares))
        x, seen = with_writes(model, depth, x, wrote), seen + readers
    return jnp.concatenate([*found, importance(here, x)[None]])


def importance(parts: Float[Array, "part seq d_model"], whole: Float[Array, "seq d_model"]) -> Float[Array, "part seq"]:
    """The importance of each part to the whole; what they lack of it is one part more, and is left out.

    Where no part lies nearer to the whole than nothing does, all have 0.

    Example:
        >>> parts, whole = jnp.array([[[2.0, 0.0]], [[0.0, 1.0]]]), jnp.array([[2.0, 2.0]])
        >>> importance(parts, whole).tolist()  # the proximities are 2 and 1, and 1 of what is lacking
        [[0.5], [0.25]]
    """
    every = jnp.concatenate([parts, (whole - parts.sum(0))[None]])
    proximity = jnp.maximum(jnp.abs(whole).sum(-1)[None] - jnp.abs(every - whole[None]).sum(-1), 0)
    total = proximity.sum(0, keepdims=True)
    return jnp.where(total > 0, proximity / jnp.where(total > 0, total, 1), 0)[:-1]


def _head_parts(
    attn: Attention, ln: LayerNorm | None, x: Float[Array, "seq d_model"], parts: Float[Array, "part seq d_model"]
) -> Float[Array, "head part seq d_model"]:
    """What each head writes of each part of the stream x."""
    read = normalised(ln, x)
    q, k = (jnp.einsum("sm,hmd->hsd", read, w) + b[:, None] for w, b in ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K)))
    scores = jnp.einsum("hqd,hkd->hqk", q, k) / q.shape[-1] ** 0.5
    if attn.causal:
        scores = jnp.where(jnp.tril(jnp.ones((len(x), len(x)), bool))[None], scores, -jnp.inf)
    pattern = jax.nn.softmax(scores, -1)
    if ln is not None:
        scale = jax.lax.rsqrt(x.var(-1, keepdims=True) + LN_EPS)
        parts = (parts - parts.mean(-1, keepdims=True)) * scale[None] * ln.w[None, None]
    return jnp.einsum("hqk,pkm,hmd,hdn->hpqn", pattern, parts, attn.W_V, attn.W_O)
