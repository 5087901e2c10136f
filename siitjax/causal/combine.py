"""Several cases in one transformer, sharing its MLPs: `combine(cases)` is a case like any other.

A sample is a task token, then a sample of that task, then pads. Every task runs on the same tokens, each through its
own vocabulary, and its variables live on its own nodes. The task is a variable on a head of layer 0; which task's
answer counts is another, on an MLP after every task's own: no linear read-out can choose between two answers.

Source: Anders & Garriga-Alonso 2024, the polysemantic benchmarks. There the answer is chosen by no node
(`selection=False`), and a swap changes nothing downstream of it (`counterfactual="frozen"`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped

from siitjax.base.errors import UserError
from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Counterfactual, Variable, as_label
from siitjax.causal.data import shares
from siitjax.model.nodes import Node, head, mlp_nodes

TRANSFORMER = ("act_fn", "layer_norm", "attention_dir", "mlp_parts")
"""What the combined transformer has of its parts, which must be the same in all of them."""
LEAST_WIDTH = 32
"""The least d_model that is chosen unasked."""


@dataclass(frozen=True)
class Part:
    """A case that is combined with others.

    Attributes:
        name: unique among the parts; a second copy of a case has a number.
        tokens: what its vocabulary is called in the combined one.
    """

    name: str
    case: Case
    tokens: tuple[str, ...]


def combine(
    cases: Sequence[Case],
    *,
    width_factor: float | None = 1.0,
    d_head: int | None = None,
    d_mlp: int | None = None,
    share_heads: bool = False,
    selection: bool = True,
    counterfactual: Counterfactual = "causal",
) -> Case:
    """One case of several; the same case twice stands for two copies of it, on tokens of their own.

    Args:
        cases: one or more, in the order of their tasks.
        width_factor: d_model in the largest of the parts', rounded up to whole heads; None for as much as the heads
            need, and a d_model of 32 at least.
        d_head: width of a head; None for the largest of the parts'.
        d_mlp: width of an MLP; None for 4 d_model.
        share_heads: all tasks use the same heads, each layer's first ones; otherwise each has heads of its own. The
            task has its own in either case.
        selection: give the choice of the answer an MLP of its own, with all its parts, one layer after every task.
        counterfactual: what a swap changes, see `siitjax.causal.circuit`.

    Raises:
        UserError: there are no cases, their losses or transformers differ, a token of one names a task, or a layer has
            too few heads.

    Example:
        >>> import siitjax
        >>> both = siitjax.combine([siitjax.find_case("left_greater"), siitjax.find_case("paren_checker")])
        >>> both.name, both.tasks, both.n_layers
        ('left_greater+paren_checker', ('left_greater:', 'paren_checker:'), 4)
    """
    if not cases:
        raise UserError("no cases were given to combine; name one or more")
    if len({(case.loss, case.init_gain) for case in cases}) > 1:
        raise UserError(f"the losses or initial gains of {', '.join(c.name for c in cases)} differ; give them the same")
    for name in TRANSFORMER:
        if len(kinds := {str(getattr(case, name)) for case in cases}) > 1:
            raise UserError(f"the cases differ in {name}: {', '.join(sorted(kinds))}; give all of them the same")
    parts = _parts(cases)
    tasks = tuple(f"{part.name}:" for part in parts)
    own = tuple(dict.fromkeys(token for part in parts for token in part.tokens))
    if clash := set(own) & set(tasks):
        raise UserError(f'the token "{min(clash)}" is also the name of a task\'s first token; rename one of them')
    vocabulary = (*own, *tasks)
    layers = max(case.n_layers for case in cases) + selection
    places, task_node = _placed(parts, share_heads)
    d_head = d_head or max(case.d_head for case in cases)
    used = [*(node for nodes in places.values() for node in nodes), task_node]
    n_heads = _heads(used, width_factor, max(case.d_model for case in cases), d_head)
    answer_nodes = mlp_nodes(layers - 1, cases[0].config.n_parts) if selection else ()
    return Case(
        name="+".join(part.name for part in parts),
        vocabulary=vocabulary,
        variables=_variables(parts, vocabulary, places, task_node, answer_nodes),
        strata=(),
        drawn=Mixed(parts, vocabulary),
        tasks=tasks,
        n_layers=layers,
        d_model=n_heads * d_head,
        d_head=d_head,
        d_mlp=d_mlp,
        n_outputs=max(case.n_outputs for case in cases),
        n_ctx=1 + max(case.n_ctx for case in cases),
        loss=cases[0].loss,
        init_gain=cases[0].init_gain,
        attn_only=all(case.attn_only for case in cases) and not selection,
        **{name: getattr(cases[0], name) for name in TRANSFORMER},
        counterfactual=counterfactual,
        counted=partial(_counted, parts, vocabulary) if any(case.counted is not None for case in cases) else None,
        sources=partial(_sources, parts, vocabulary) if any(case.sources is not None for case in cases) else None,
    )


def _counted(parts: tuple[Part, ...], vocabulary: tuple[str, ...], tokens: Int[Array, " seq"]) -> Bool[Array, " seq"]:
    """The tokens that count in a combined sample: those that count in the named task's own."""
    own = (jnp.roll(_seen(_folding(part, vocabulary), tokens), -1) for part in parts)
    masks = [part.case.counted_mask(sample) for part, sample in zip(parts, own, strict=True)]
    task = jnp.clip(tokens[0] - (len(vocabulary) - len(parts)), 0, len(parts) - 1)
    return jnp.roll(jnp.stack(masks)[task], 1)


def _sources(
    parts: tuple[Part, ...],
    vocabulary: tuple[str, ...],
    base: Int[Array, " seq"],
    other: Int[Array, " seq"],
    key: PRNGKeyArray,
) -> Int[Array, " seq"]:
    """The source of a combined base: where the other sample is of the same task, what that task's own sampler gives."""
    first_task = len(vocabulary) - len(parts)

    def of(part: Part) -> Int[Array, " seq"]:
        if part.case.sources is None:
            return other
        n_ctx, folding = part.case.n_ctx, jnp.asarray(_folding(part, vocabulary))
        tokens = jnp.array([vocabulary.index(token) for token in part.tokens], base.dtype)
        own = part.case.sources(folding[base[1 : 1 + n_ctx]], folding[other[1 : 1 + n_ctx]], key)
        return base.at[1 : 1 + n_ctx].set(tokens[own])

    made = jnp.stack([of(part) for part in parts])[jnp.clip(base[0] - first_task, 0, len(parts) - 1)]
    return jnp.where(base[0] == other[0], made, other)


def _parts(cases: Sequence[Case]) -> tuple[Part, ...]:
    parts = []
    for i, case in enumerate(cases):
        copy = 1 + sum(other.name == case.name for other in cases[:i])
        mark = "" if copy == 1 else f"#{copy}"
        tokens = (*case.vocabulary[:2], *(token + mark for token in case.vocabulary[2:]))
        parts.append(Part(case.name + mark, case, tokens))
    return tuple(parts)


def _placed(parts: Sequence[Part], share_heads: bool) -> tuple[dict[tuple[str, str], tuple[Node, ...]], Node]:
    """The nodes of every placed variable, by part and name, and that of the task."""
    places: dict[tuple[str, str], tuple[Node, ...]] = {}
    taken: set[Node] = set()
    wanted = {node for part in parts for v in part.case.variables for node in v.nodes}
    for part in parts:
        ours: dict[Node, Node] = {}  # variables of one task that share a head go on sharing it
        for variable in part.case.variables:
            for node in variable.nodes:
                if node not in ours:
                    layer, place = node.layer or 0, node
                    if place.head is not None and share_heads:
                        place = _free(layer, set(ours.values()))
                    elif place.head is not None and place in taken:
                        place = _free(layer, taken | wanted | set(ours.values()))
                    ours[node] = place
            if variable.nodes:
                places[part.name, variable.name] = tuple(ours[node] for node in variable.nodes)
        taken |= set(ours.values())
    return places, _free(0, taken)


def _free(layer: int, taken: set[Node]) -> Node:
    """The first head of a layer that nothing has taken."""
    index = 0
    while head(layer, index) in taken:
        index += 1
    return head(layer, index)


def _heads(nodes: Sequence[Node], width_factor: float | None, d_model: int, d_head: int) -> int:
    """How many heads a layer has; `d_model` is the largest of the parts'."""
    needed = 1 + max(node.head for node in nodes if node.head is not None)
    if width_factor is None:
        return max(ceil(max(d_model, LEAST_WIDTH) / d_head), needed)
    n_heads = ceil(d_model * width_factor / d_head)
    if needed > n_heads:
        raise UserError(
            f"{n_heads} heads of {d_head} are too few, {needed - n_heads} missing; "
            f"a width_factor of {needed * d_head / d_model:.3g} (d_model {needed * d_head}) has them"
        )
    return n_heads


def _variables(
    parts: Sequence[Part],
    vocabulary: tuple[str, ...],
    places: dict[tuple[str, str], tuple[Node, ...]],
    task_node: Node,
    answer_nodes: tuple[Node, ...],
) -> tuple[Variable, ...]:
    first_task = len(vocabulary) - len(parts)

    def task(tokens):
        """Which task the first token names, at every position."""
        return jnp.broadcast_to(tokens[:1] - first_task, tokens.shape)

    def answer(task, *labels):
        """The label of the task that is named; nothing is asked at the task token."""
        chosen = jnp.stack([as_label(label) for label in labels])[task, jnp.arange(len(task))]
        return chosen.at[0].set(0)

    variables = [Variable("task", ("tokens",), task, task_node)]
    labels = []
    for part in parts:
        own = lambda name, part=part: f"{part.name}.{name}"
        variables.append(Variable(own("tokens"), ("tokens",), partial(_seen, _folding(part, vocabulary))))
        for variable in part.case.variables:
            reads = tuple(map(own, variable.reads))
            node = _one_or_several(places.get((part.name, variable.name), ()))
            variables.append(Variable(own(variable.name), reads, _behind_the_task(variable.compute), node))
        labels.append(own(part.case.variables[-1].name))
    return (*variables, Variable("answer", ("task", *labels), answer, _one_or_several(answer_nodes)))


def _one_or_several(nodes: tuple[Node, ...]) -> Node | tuple[Node, ...] | None:
    """The nodes as a variable is declared on them."""
    return nodes if len(nodes) > 1 else next(iter(nodes), None)


def _folding(part: Part, vocabulary: tuple[str, ...]) -> Int[np.ndarray, " vocab"]:
    """A task's own token for every combined one; those that it has not become its first letter.

    Swaps bring such tokens: that of the task, and any with a source of another task. None becomes BOS or PAD, which
    mean the same to every task. (Folded in turn over all its letters, a foreign sample was a string that the
    task's own data hardly ever hold, and nearly all wrong answers were those of swaps with such a source.)
    """
    own = {token: i for i, token in enumerate(part.tokens)}
    return np.array([own.get(token, 2) for token in vocabulary], np.int32)


def _seen(folding: Int[np.ndarray, " vocab"], tokens: Int[Array, " seq"]) -> Shaped[Array, " seq"]:
    """The sample in one task's tokens; a PAD in the place of the task token."""
    return jnp.asarray(folding)[tokens].at[0].set(PAD)


def _behind_the_task(compute: Callable[..., Array]) -> Callable[..., Array]:
    """`compute`, whose sample begins one position later in the combined one, behind the task token.

    A variable's value must lie where the node holds it, or a swap at some positions would swap others in the circuit.
    What stands at the task token goes to the end meanwhile, so that nothing is lost.
    """

    def moved(*values: Array) -> Array:
        return jnp.roll(compute(*(jnp.roll(value, -1, 0) for value in values)), 1, 0)

    return moved


@dataclass(frozen=True)
class Mixed:
    """Draws samples of a combined case, an equal share of each task."""

    parts: tuple[Part, ...]
    vocabulary: tuple[str, ...]

    def __call__(
        self, n_train: int, n_validation: int, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, "train seq"], Int[np.ndarray, "validation seq"]]:
        n = len(self.parts)
        counts = zip(shares(n_train, n), shares(n_validation, n), strict=True)
        drawn = [part.case.draw(a, b, rng) for part, (a, b) in zip(self.parts, counts, strict=True)]
        train, validation = (
            np.concatenate([self._samples(i, pair[side]) for i, pair in enumerate(drawn)]) for side in (0, 1)
        )
        return rng.permutation(train), rng.permutation(validation)

    def every(self, limit: int) -> Int[np.ndarray, "sample seq"] | None:
        """Every sample of the tasks that have no more than `limit`; None where none has so few."""
        found = [(i, part.case.every(limit)) for i, part in enumerate(self.parts)]
        samples = [self._samples(i, own) for i, own in found if own is not None]
        return np.concatenate(samples) if samples else None

    def with_context(self, n_ctx: int) -> "Mixed":
        """The same, the task token before samples of n_ctx - 1 tokens of every task."""
        longer = [replace(part, case=part.case.with_context(n_ctx - 1)) for part in self.parts]
        return replace(self, parts=tuple(longer))

    def _samples(self, task: int, own: Int[np.ndarray, "n own"]) -> Int[np.ndarray, "n seq"]:
        """Combined samples of one task's own: its token first, pads at the end."""
        n_ctx = 1 + max(part.case.n_ctx for part in self.parts)
        whole = np.full((len(own), n_ctx), PAD, np.int32)
        whole[:, 0] = len(self.vocabulary) - len(self.parts) + task
        tokens = [self.vocabulary.index(token) for token in self.parts[task].tokens]
        whole[:, 1 : 1 + own.shape[1]] = np.array(tokens, np.int32)[own]
        return whole
