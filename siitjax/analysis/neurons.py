"""What each neuron of the MLPs answers to, and what would miss it.

Two measures a neuron. Its mutual information with a variable says what can be read off it; a neuron that nothing reads
can still have much of it, and so has a random one. Its ablation effect says what is lost without it: the neuron is held
at its mean over the samples, one mean a position, all else running on.

Where many neurons bear the same, none alone is missed. So each is held not only alone but in backgrounds as well, in
which others of its MLP are held already, from none to all of them: the mean rise of the loss is the neuron's Shapley
value (Shapley 1953; sampled as by Owen 1972), and those of an MLP's neurons add up to what is lost without the MLP.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped
from scipy.stats import t

from siitjax.causal.case import Case
from siitjax.model.cpu.transformer import batch_last
from siitjax.model.nodes import mlp
from siitjax.model.transformer import Transformer

BINS = 8
"""Bins of an activation: 3 bits can be told at most."""
CONSTANT = 1e-6
"""An activation that varies by no more than rounding does."""
AT_ONCE = 2
"""Neurons held together: bounds the memory, not the result."""


class Effects(eqx.Module):
    """What the answers lose when a neuron is held at its mean.

    Attributes:
        loss: rise of the mean loss of a token, the mean over backgrounds, in the loss' own unit.
        low: lower end of its 95% interval over the backgrounds (Student's t).
        alone: rise of the loss when no other neuron is held.
        accuracy: fall of the share of tokens answered right when no other neuron is held, from -1 to 1.
    """

    loss: Float[Array, "layer d_mlp"]
    low: Float[Array, "layer d_mlp"]
    alone: Float[Array, "layer d_mlp"]
    accuracy: Float[Array, "layer d_mlp"]


@dataclass(frozen=True)
class Answers:
    """What every neuron of one transformer answers to.

    Attributes:
        tasks: of a combined case its parts, else the case alone.
        variables: those that live on nodes.
        task_of: which task each variable is of; None where it is of the combined case itself.
        live: whether the neuron's activation varies on the samples of any task.
        loss, low, alone, accuracy: ablation effects by task, as in `Effects`.
        information: by variable, as in `information_share`.
    """

    tasks: tuple[str, ...]
    variables: tuple[str, ...]
    task_of: tuple[int | None, ...]
    live: Bool[np.ndarray, "layer neuron"]
    loss: Float[np.ndarray, "layer neuron task"]
    low: Float[np.ndarray, "layer neuron task"]
    alone: Float[np.ndarray, "layer neuron task"]
    accuracy: Float[np.ndarray, "layer neuron task"]
    information: Float[np.ndarray, "layer neuron variable"]


def measure_neurons(
    model: Transformer,
    case: Case,
    samples: Sequence[Int[np.ndarray, "sample seq"]],
    rng: np.random.Generator,
    *,
    ablated: int,
    backgrounds: int,
) -> Answers:
    """Both measures of every neuron, each task on samples of its own.

    Args:
        samples: of each task, in the order of the case's (see `samples_by_task`); as many of each.
        rng: the random orders that information is compared with, and the backgrounds.
        ablated: on how many of each task's samples neurons are held at their mean.
        backgrounds: in how many each neuron is held, see `draw_backgrounds`.

    Raises:
        UserError: the transformer or the samples do not fit the case; see `Case.check_fits`.
    """
    case.check_fits(model.config, *samples)
    tasks = tuple(task.removesuffix(":") for task in case.tasks) or (case.name,)
    ordered = [v.name for v in case.circuit.ordered]
    placed = tuple(v.name for v in case.circuit.ordered if v.node is not None)
    task_of = tuple(case.task_of(name) if case.tasks else 0 for name in placed)
    shape = (case.config.n_layers, case.config.mlp_width)
    live = np.zeros(shape, bool)
    information = np.zeros((*shape, len(placed)))
    for task in (*range(len(tasks)), None):
        ours = [i for i, of in enumerate(task_of) if of == task]
        strings = np.concatenate(samples) if task is None else samples[task]
        own = np.asarray(case.token_mask(jnp.asarray(strings))).all(0)
        posts, values = jax.device_get(_run(model, case, jnp.asarray(strings)))
        posts = np.moveaxis(posts, 1, 2)[:, own]
        live |= (np.ptp(posts, axis=0) > CONSTANT).any(0)
        codes = binned(posts.reshape(*posts.shape[:2], -1))
        for i in ours:
            value = values[1 + ordered.index(placed[i])]
            information[..., i] = information_share(codes, value[:, own], rng).reshape(shape)
    held = jnp.asarray(draw_backgrounds(*shape, backgrounds, rng))
    effects = jax.device_get([ablation_effects(model, case, jnp.asarray(own[:ablated]), held) for own in samples])
    by_task = {f.name: np.stack([getattr(each, f.name) for each in effects], -1) for f in fields(Effects)}
    return Answers(tasks, placed, task_of, live, information=information, **by_task)


def samples_by_task(case: Case, n: int, rng: np.random.Generator) -> list[Int[np.ndarray, "sample seq"]]:
    """`n` samples of each task, in the order of the case's."""
    count = max(len(case.tasks), 1)
    drawn, _ = case.draw(n * count, count, rng)
    if not case.tasks:
        return [drawn]
    first = len(case.vocabulary) - count
    return [drawn[drawn[:, 0] == first + task] for task in range(count)]


@partial(jax.jit, static_argnums=1)
def _run(
    model: Transformer, case: Case, samples: Int[Array, "sample seq"]
) -> tuple[Float[Array, "sample layer seq d_mlp"], tuple[Any, ...]]:
    """Of each sample the MLPs' activations, and the values of tokens and variables in the circuit's order."""
    post = jax.vmap(model)(samples)[1].post
    assert post is not None
    return post, jax.vmap(case.circuit)(samples)[1]


def draw_backgrounds(
    layers: int, neurons: int, count: int, rng: np.random.Generator
) -> Bool[np.ndarray, "layer background neuron"]:
    """Which neurons are held in each background: each with a probability that rises evenly from 0 to 1 over them."""
    held = (np.arange(count) + 0.5) / count
    return rng.random((layers, count, neurons)) < held[:, None]


@partial(jax.jit, static_argnums=1)
def ablation_effects(
    model: Transformer,
    case: Case,
    samples: Int[Array, "sample seq"],
    backgrounds: Bool[Array, "layer background d_mlp"],
) -> Effects:
    """The effect of each neuron of each MLP.

    The mean is over these samples. Given those of one task, it is the task's own: then a neuron that is constant in the
    task has no effect on it, though it may be what tells the task from others.

    Args:
        backgrounds: which neurons of the same MLP are held beside the one that is measured; its own entry is not read.
            Two at least of each layer.
    """
    case.check_fits(model.config, samples)
    n_layers, width = model.config.n_layers, model.config.mlp_width
    _, own_run = batch_last(model, samples)
    labels, _ = jax.vmap(case.circuit)(samples)
    own, labels = case.counted_mask(samples), labels[:, None]

    def of_layer(layer: int):
        post, grounds = own_run.post[layer], backgrounds[layer]  # (d_mlp, seq, 1, sample)
        depth = mlp(layer).depth
        whole = case.config.nodes.mask(case.config.nodes.at_depth(depth))

        def scores(held):
            # The whole MLP is swapped with the run's own values, in which the held neurons alone are others. What comes
            # before it is not computed again.
            values = jnp.where(held.T[:, None, :, None], post.mean(-1, keepdims=True), post)
            source = eqx.tree_at(lambda run: run.post[layer], own_run, values)
            logits, _ = batch_last(model, samples, (whole[None].repeat(len(held), 0), source), resume=(depth, own_run))
            against = jnp.broadcast_to(labels, (*logits.shape[:2], *labels.shape[2:]))
            loss, right = case.loss.per_token(logits, against), case.loss.correct(logits, against)
            tokens, counted = own.sum().astype(loss.dtype), own[:, None]
            return (
                jnp.where(counted, loss, 0.0).sum((0, 2)) / tokens,
                (right & counted).sum((0, 2)).astype(loss.dtype) / tokens,
            )

        one = jnp.eye(width, dtype=bool)
        other = (grounds[:, None] ^ one[None]).reshape(-1, width)
        masks = jnp.concatenate([jnp.zeros_like(one[:1]), one, grounds, other])
        padded = jnp.pad(masks, ((0, -len(masks) % AT_ONCE), (0, 0)))
        found = jax.lax.map(scores, padded.reshape(-1, AT_ONCE, width))
        loss, right = (x.ravel()[: len(masks)] for x in found)
        clean, alone, before, after = jnp.split(loss, (1, 1 + width, 1 + width + len(grounds)))
        change = after.reshape(-1, width) - before[:, None]
        rises = jnp.where(grounds, -change, change)
        spread = float(t.ppf(0.975, len(grounds) - 1)) / len(grounds) ** 0.5
        mean = rises.mean(0)
        return mean, mean - spread * rises.std(0, ddof=1), alone - clean, right[0] - right[1 : 1 + width]

    loss, low, alone, accuracy = map(jnp.stack, zip(*map(of_layer, range(n_layers)), strict=True))
    return Effects(loss, low, alone, accuracy)


def binned(activations: Float[np.ndarray, "sample *rest"], bins: int = BINS) -> Int[np.ndarray, "sample *rest"]:
    """Each activation's bin, the lowest 0: as many samples in each as ties allow, each neuron and position for itself.

    Equal activations share a bin. So a ReLU's zeros are one, however many they are.
    """
    edges = np.quantile(activations, np.arange(1, bins) / bins, axis=0, method="inverted_cdf")
    codes = np.zeros(activations.shape, np.int64)
    for edge in edges:
        codes += activations > edge
    return codes


def coded(values: Shaped[np.ndarray, "sample ..."]) -> Int[np.ndarray, " sample"]:
    """A number for each distinct value, from 0; a value may be an array."""
    return np.unique(values.reshape(len(values), -1), axis=0, return_inverse=True)[1].ravel()


def entropy(codes: Int[np.ndarray, " sample"]) -> float:
    """In bits, of the codes' own frequencies."""
    return float(_entropy(np.bincount(codes)[None])[0])


def mutual_information(
    codes: Int[np.ndarray, "sample neuron"], values: Int[np.ndarray, " sample"]
) -> Float[np.ndarray, " neuron"]:
    """Bits that each neuron's bin and the value tell of each other, of their joint frequencies in the samples.

    Of few samples this is too much, by about (bins - 1)(values - 1) / (2 ln 2 samples): compare it with that of values
    in another order (Shannon 1948, section 12; the bias: Miller 1955).
    """
    n_neurons, n_codes, n_values = codes.shape[1], int(codes.max()) + 1, int(values.max()) + 1
    cells = (np.arange(n_neurons) * n_codes + codes) * n_values + values[:, None]
    joint = np.bincount(cells.ravel(), minlength=n_neurons * n_codes * n_values).reshape(n_neurons, n_codes, n_values)
    return (_entropy(joint.sum(2)) + _entropy(joint.sum(1)) - _entropy(joint.reshape(n_neurons, -1))).clip(min=0)


def _entropy(counts: Int[np.ndarray, "n cell"]) -> Float[np.ndarray, " n"]:
    p = counts / counts.sum(1, keepdims=True)
    return -(p * np.log2(np.where(p > 0, p, 1))).sum(1)


def information_share(
    codes: Int[np.ndarray, "sample seq neuron"],
    values: Shaped[np.ndarray, "sample seq ..."],
    rng: np.random.Generator,
) -> Float[np.ndarray, " neuron"]:
    """The share of a variable's entropy that each neuron's bin tells of it at its own position, over all positions.

    What the same values tell in a random order, one for all neurons, is taken off: 0 in the mean where nothing is told
    (and so now and then below), 1 where all is. 0 of a variable that has one value.
    """
    told, whole = np.zeros(codes.shape[2]), 0.0
    for position in range(codes.shape[1]):
        known, here = coded(values[:, position]), codes[:, position]
        if known.any():
            told += mutual_information(here, known) - mutual_information(here, rng.permutation(known))
            whole += entropy(known)
    return told / whole if whole else told


def participation_ratio(effects: Float[np.ndarray, "*neuron task"]) -> Float[np.ndarray, "*neuron"]:
    """Over how many tasks a neuron's effects are spread: (sum e)^2 / sum e^2, from 1 to the number of tasks.

    Effects below 0, of neurons that a task is better without, count as 0; a neuron without any has 0.
    """
    e = effects.clip(min=0)
    squares = (e * e).sum(-1)
    return e.sum(-1) ** 2 / np.where(squares > 0, squares, 1)


def shared_by_chance(
    matters: Bool[np.ndarray, "layer neuron task"], rng: np.random.Generator, draws: int
) -> Int[np.ndarray, " draw"]:
    """How many neurons matter to two tasks or more when each task's are dealt anew within their layer."""
    dealt = lambda: rng.permuted(matters, axis=1).sum(2) >= 2
    return np.array([dealt().sum() for _ in range(draws)])
