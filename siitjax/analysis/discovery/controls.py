"""What any method must beat: scores drawn at random, and scores that look at one node alone."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from siitjax.analysis.discovery.pairs import Pairs
from siitjax.analysis.discovery.patching import edge_indices
from siitjax.analysis.discovery.runs import Ablation, run_pairs
from siitjax.causal.case import Case
from siitjax.model.transformer import Transformer


def random_scores(model: Transformer, case: Case, pairs: Pairs, *, seed: int = 0) -> Float[np.ndarray, " edge"]:
    """A number drawn for each edge."""
    return np.random.default_rng(seed).random(len(model.config.nodes.possible_edges))


def magnitude(
    model: Transformer, case: Case, pairs: Pairs, *, ablation: Ablation = "resample"
) -> Float[np.ndarray, " edge"]:
    """How far what an edge's sender writes is moved: the mean norm over the counted tokens, whoever reads it.

    Raises:
        UserError: these do not fit each other; see `siitjax.analysis.discovery.runs.run_pairs`.
    """
    runs = run_pairs(model, case, pairs, ablation)
    counted = runs.counted[:, None].astype(runs.here.dtype)
    moved = jnp.linalg.norm(runs.there - runs.here, axis=-1) * counted
    _, senders = edge_indices(model.config.nodes)
    return np.asarray(moved.sum((0, 2)) / counted.sum())[senders]
