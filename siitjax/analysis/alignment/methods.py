"""The methods by name. Each is a function `(exam, lanes, training) -> alignments`, one for each lane, of pairs to learn
from."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from siitjax.analysis.alignment import directions
from siitjax.analysis.alignment.alignments import Alignment, Directions, Projection
from siitjax.analysis.alignment.exam import Exam, values_of
from siitjax.analysis.alignment.learn import DAS, Lanes, Mask, NonLinear, Training, learn
from siitjax.analysis.sae.dictionary import of_sae
from siitjax.analysis.sae.train import Lane, SAEConfig, folded, prepare, train

Method = Callable[[Exam, Lanes, Training], Alignment]

SAE_LATENTS, SAE_K, SAE_STEPS = 128, 8, 1_000
"""Of the sparse autoencoder: TopK, latents, those active a token, and updates."""
LONGER, SLOWER = 6, 0.1
"""The non-linear map takes so many times the steps, and this share of the learning rate."""


def das(exam: Exam, lanes: Lanes, training: Training) -> Alignment:
    """A learned rotation; see `siitjax.analysis.alignment.learn.DAS`.

    Example:
        >>> import jax.numpy as jnp, siitjax
        >>> from siitjax.analysis.alignment.exam import prepare_exam, variables_at
        >>> from siitjax.analysis.discovery.pairs import draw_pairs
        >>> trained = siitjax.load("left_greater")
        >>> case, node = trained.case, siitjax.mlp(0)
        >>> exam = prepare_exam(trained.model, case, node, variables_at(case, node), draw_pairs(case, 50))
        >>> one = jnp.array([1])
        >>> das(exam, Lanes(0 * one, 2 * one, 0 * one), Training(steps=2)).matrix.shape
        (1, 48, 48)
    """
    return learn(exam, DAS(int(np.max(lanes.sizes))), lanes, training)


def neuron_mask(exam: Exam, lanes: Lanes, training: Training) -> Alignment:
    """A learned choice of the node's own numbers: an MLP's neurons, a head's dimensions."""
    return learn(exam, Mask(Directions(jnp.eye(exam.width))), lanes, training)


def sae_mask(exam: Exam, lanes: Lanes, training: Training) -> Alignment:
    """A learned choice of the latents of a sparse autoencoder, which is trained on the node's values first.

    What the autoencoder does not rebuild stays the base's.
    """
    activity = prepare(np.random.default_rng(0).permutation(_tokens(exam)))
    config = SAEConfig("topk", exam.width, SAE_LATENTS, SAE_STEPS, 64)
    lane = Lane(jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32), jnp.full(1, SAE_K, jnp.float32))
    stacked = jax.tree.map(lambda x: x[None], activity)
    sae = jax.tree.map(lambda x: jnp.asarray(np.asarray(x[0])), train(config, stacked, lane)(lane))
    return learn(exam, Mask(of_sae(folded(sae, activity.scale))), lanes, training)


def pca(exam: Exam, lanes: Lanes, training: Training) -> Alignment:
    """The principal components of most variance, whatever the variable."""
    found = directions.principal(_tokens(exam))
    return _first(exam, lanes, lambda variable, seed: found)


def probe(exam: Exam, lanes: Lanes, training: Training) -> Alignment:
    """The directions that a linear probe of the variable's value reads."""
    tokens = _tokens(exam)
    return _first(exam, lanes, lambda variable, seed: directions.probe(tokens, _values(exam, variable)))


def class_means(exam: Exam, lanes: Lanes, training: Training) -> Alignment:
    """The directions in which the means of the variable's values differ."""
    tokens = _tokens(exam)
    return _first(exam, lanes, lambda variable, seed: directions.class_means(tokens, _values(exam, variable)))


def random_directions(exam: Exam, lanes: Lanes, training: Training) -> Alignment:
    """The lower control."""
    rng = np.random.default_rng
    return _first(exam, lanes, lambda variable, seed: directions.random_directions(exam.width, rng(seed)))


def full_vector(exam: Exam, lanes: Lanes, training: Training) -> Alignment:
    """The upper control where the node holds one variable alone: the whole node is swapped."""
    return Projection(jnp.broadcast_to(jnp.eye(exam.width), (len(lanes.sizes), exam.width, exam.width)))


def non_linear(exam: Exam, lanes: Lanes, training: Training) -> Alignment:
    """An unrestricted bijection; see `siitjax.analysis.alignment.alignments.Flow`."""
    longer = Training(LONGER * training.steps, training.batch_size, SLOWER * training.lr)
    return learn(exam, NonLinear(), lanes, longer)


METHODS: Mapping[str, Method] = {
    "DAS": das,
    "neuron mask": neuron_mask,
    "SAE mask": sae_mask,
    "PCA": pca,
    "probe": probe,
    "class means": class_means,
    "random": random_directions,
    "full vector": full_vector,
    "non-linear": non_linear,
}
SEEDED = ("DAS", "neuron mask", "SAE mask", "random", "non-linear")
"""Methods that a seed decides."""


def sizes_of(method: str, width: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes that a method is asked for at a node of that width: the full vector's is the whole node, that of the
    non-linear map half of its numbers."""
    return {"full vector": (width,), "non-linear": (max(width // 2, 1),)}.get(method, tuple(sizes))


def _tokens(exam: Exam) -> Float[np.ndarray, "token d_site"]:
    """What the node holds at the tokens that count."""
    return np.asarray(exam.here, float)[np.asarray(exam.counted)]


def _values(exam: Exam, variable: int) -> np.ndarray:
    named = {v.name: v for v in exam.case.variables}
    return values_of(exam.case, named[exam.names[variable]], exam.base)


def _first(exam: Exam, lanes: Lanes, found: Callable[[int, int], Float[np.ndarray, "d_site direction"]]) -> Projection:
    """The first directions that are found for each lane's variable, as many as its size says, or as there are."""
    found, asked = cache(found), jax.device_get(lanes)
    used = [
        found(variable, seed)[:, :size] for variable, size, seed in zip(*map(np.ndarray.tolist, asked), strict=True)
    ]
    return Projection(jnp.asarray(np.stack([columns @ columns.T for columns in used]), jnp.float32))
