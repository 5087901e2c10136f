"""Exact patching: what becomes of the answer when one edge, or one node, carries what it does in the source run.

Path patching swaps one edge (Wang et al. 2023; Conmy et al. 2023), activation patching all that leave a node (Vig et
al. 2020). One edge changes what one reader writes; the rest of the transformer runs on from there, and nothing before
it is computed again. All edges that end at one depth are run together.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from siitjax.analysis.discovery.metrics import METRICS, Metric
from siitjax.analysis.discovery.pairs import Pairs
from siitjax.analysis.discovery.relaxed import answers, run_on, site_depths, site_writes, with_writes
from siitjax.analysis.discovery.runs import Ablation, run_pairs
from siitjax.base.choice import check_choice
from siitjax.base.precision import matmul_precision
from siitjax.causal.case import Case
from siitjax.model.forms import summed_over_chunks
from siitjax.model.nodes import NodeList
from siitjax.model.transformer import Transformer

AT_ONCE = 8
"""Pairs that run together: bounds the memory, not the result."""


def path_patching(
    model: Transformer,
    case: Case,
    pairs: Pairs,
    *,
    metric: Metric = "kl",
    ablation: Ablation = "resample",
) -> Float[np.ndarray, " edge"]:
    """The effect of patching each edge alone: the metric, on average over the counted tokens.

    Args:
        metric: "kl", or "log_odds" that the answer loses.
        ablation: what the patched edge carries.

    Raises:
        UserError: these do not fit each other; see `siitjax.analysis.discovery.runs.run_pairs`.

    Example:
        >>> import siitjax
        >>> trained = siitjax.load("left_greater")
        >>> from siitjax.analysis.discovery.pairs import draw_pairs
        >>> effects = path_patching(trained.model, trained.case, draw_pairs(trained.case, 100))
        >>> edges = trained.case.circuit.nodes.possible_edges
        >>> sorted(siitjax.model.nodes.edge_name(edges[i]) for i in effects.argsort()[-3:])
        ['L0H1->MLP0', 'MLP0->logits', 'embed->L0H1']
    """
    return of_edges(model.config.nodes, _effects(model, case, pairs, metric, ablation)[:-1])


def activation_patching(
    model: Transformer,
    case: Case,
    pairs: Pairs,
    *,
    metric: Metric = "kl",
    ablation: Ablation = "resample",
) -> Float[np.ndarray, " node"]:
    """The effect of patching each node but the embedding, alone; as `path_patching`.

    Args:
        metric: "kl", or "log_odds" that the answer loses.
        ablation: what the patched node carries.

    Raises:
        UserError: these do not fit each other.
    """
    return _effects(model, case, pairs, metric, ablation)[-1, 1:]


def of_edges(nodes: NodeList, matrix: Float[Array | np.ndarray, "reader sender"]) -> Float[np.ndarray, " edge"]:
    """A number for each edge, in the order of `NodeList.possible_edges`."""
    readers, senders = edge_indices(nodes)
    return np.asarray(matrix)[readers, senders]


def edge_indices(nodes: NodeList) -> tuple[list[int], list[int]]:
    """Where each possible edge stands in a matrix (reader, sender)."""
    readers = {node: i for i, node in enumerate(nodes.readers)}
    senders = {node: i for i, node in enumerate(nodes)}
    return [readers[b] for _, b in nodes.possible_edges], [senders[a] for a, _ in nodes.possible_edges]


def _effects(model, case, pairs, metric, ablation) -> Float[np.ndarray, "reader_and_node sender"]:
    """The effects of all edges, and in a last row those of nodes."""
    check_choice("the metric", metric, tuple(METRICS))
    return np.asarray(_mean_effects(model, run_pairs(model, case, pairs, ablation))[metric])


@jax.jit
def _mean_effects(model, runs):
    def chunk(base, counted, logits, here, there):
        def sample(base, counted, clean, here, there):
            x = here[0] + model.pos_embed.W_pos[: len(base)]
            own = counted.astype(clean.dtype)
            groups = [*_edge_logits(model, x, here, there), _node_logits(model, x, here, there)]

            def effects(metric):
                lost = [metric(logits, jnp.broadcast_to(clean, logits.shape)) for logits in groups]
                return jnp.concatenate([(each * own[None, None]).sum(-1) for each in lost])

            # Both metrics, since running costs more than comparing and compiling more than both.
            return {name: effects(metric) for name, metric in METRICS.items()}

        each = jax.vmap(sample)(base, counted, logits, here, there)
        return jax.tree.map(lambda x: x.sum(0), each), counted.astype(logits.dtype).sum()

    with matmul_precision():
        arrays = (runs.base, runs.counted, runs.logits, runs.here, runs.there)
        total, tokens = summed_over_chunks(chunk, AT_ONCE, *arrays)
    return jax.tree.map(lambda x: x / tokens, total)


def _edge_logits(model, x, here, there):
    """The logits under each swap, a group of readers after another: (reader, sender, seq, out)."""
    n = len(here)
    shift, seen = there - here, 1  # senders seen so far

    def whole(logits):
        return jnp.pad(logits, [(0, 0), (0, n - logits.shape[1]), (0, 0), (0, 0)])

    for depth in site_depths(model):
        readers = len(model.config.nodes.at_depth(depth))
        wrote = here[seen : seen + readers]
        after = with_writes(model, depth, x, wrote)
        moved = jax.vmap(lambda s, x=x, depth=depth: site_writes(model, depth, x + s))(shift[:seen]) - wrote[None]
        streams = after[None, None] + moved.swapaxes(0, 1)
        yield whole(jax.vmap(jax.vmap(partial(run_on, model, depth + 1)))(streams))
        x, seen = after, seen + readers
    yield whole(jax.vmap(lambda s: answers(model, x + s))(shift)[None])


def _node_logits(model, x, here, there):
    """The logits under a swap of each node: (1, node, seq, out)."""
    shift, seen = there - here, 0
    found = []
    for depth in (0, *site_depths(model)):
        nodes = len(model.config.nodes.at_depth(depth))
        if depth:
            x = with_writes(model, depth, x, here[seen : seen + nodes])
        found.append(jax.vmap(partial(run_on, model, depth + 1))(x[None] + shift[seen : seen + nodes]))
        seen += nodes
    return jnp.concatenate(found)[None]
