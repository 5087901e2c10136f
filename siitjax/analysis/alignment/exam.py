"""Pairs of strings at a node: what the node holds in both runs, and what the causal model answers when a variable that
lives there is swapped alone."""

from collections.abc import Iterable, Sequence
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from siitjax.analysis.discovery.pairs import Pairs
from siitjax.analysis.sae.known import swappable
from siitjax.analysis.sae.site import Site
from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.causal.circuit import Values, Variable
from siitjax.model.checks import check_pair
from siitjax.model.nodes import Node
from siitjax.model.transformer import Activations, Transformer


class Exam(eqx.Module):
    """Pairs at a node, and what is known of some variables.

    Attributes:
        model, case, site: the transformer, its case, and the node's site.
        names: of the variables.
        base: the tokens of the base run.
        activations: of the base run.
        here, there: what the node holds in the base run and in the source run.
        labels: the causal model's answer when a variable alone is swapped.
        counted: the tokens that answers are asked of.
        caused: those of them whose label the swap of the variable changes.
        isolated: those whose label it leaves, while the swap of the node's other variables would change it; all whose
            label it leaves where the node holds no other variable.
    """

    model: Transformer
    base: Int[Array, "pair seq"]
    activations: Activations
    here: Float[Array, "pair seq d_site"]
    there: Float[Array, "pair seq d_site"]
    labels: Shaped[Array, "variable pair seq *label"]
    counted: Bool[Array, "pair seq"]
    caused: Bool[Array, "variable pair seq"]
    isolated: Bool[Array, "variable pair seq"]
    case: Case = eqx.field(static=True)
    site: Site = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    @property
    def width(self) -> int:
        """Numbers that the node holds a token."""
        return self.here.shape[-1]

    def answers(
        self, which: Int[Array, " some"], value: Float[Array, "some seq d_site"]
    ) -> Float[Array, "some seq vocab_out"]:
        """The logits of some of the base runs with these values at the node, and all after it computed again."""
        activations = jax.tree.map(lambda x: x[which], self.activations)
        return jax.vmap(partial(self.site.replaced, self.model))(self.base[which], activations, value)

    def weights(self) -> Float[Array, "variable pair seq"]:
        """Of each token in a loss: the caused, the isolated and the other tokens weigh the same as groups.

        They sum to the number of pairs, so that the mean over some pairs estimates that over all.
        """
        rest = self.counted[None] & ~self.caused & ~self.isolated
        groups = [group.astype(self.here.dtype) for group in (self.caused, self.isolated, rest)]
        sizes = [group.sum((1, 2), keepdims=True) for group in groups]
        shares = [group / jnp.maximum(size, 1) for group, size in zip(groups, sizes, strict=True)]
        some = jnp.stack([(size > 0).astype(self.here.dtype) for size in sizes]).sum(0)
        return len(self.base) * (shares[0] + shares[1] + shares[2]) / some


def site_of(case: Case, node: Node) -> Site:
    """The site of a node of the case's transformer that holds a variable.

    Raises:
        UserError: the transformer has no MLPs or no such node, or the node is a part of an MLP or holds no variable
            whole.

    Example:
        >>> import siitjax
        >>> str(site_of(siitjax.find_case("left_greater"), siitjax.mlp(0)))
        'blocks.0.mlp.hook_post'
    """
    if case.config.attn_only:
        raise UserError(f"the transformer of {case.name} has no MLPs; variables are looked for in those that have")
    if node.part is not None:
        raise UserError(f"{node} is a part of an MLP; variables are looked for in whole nodes")
    holding = [n for n in case.circuit.nodes if n.layer is not None and swappable(case, _site(n))]
    if node not in holding:
        listed = [str(other) for other in holding]
        check_choice("the node", str(node), listed, f"Of {case.name}, these hold a variable: {', '.join(listed)}")
    return _site(node)


def _site(node: Node) -> Site:
    assert node.layer is not None
    return Site("hook_post" if node.head is None else "hook_z", node.layer, node.head)


def variables_at(case: Case, node: Node, names: Sequence[str] = ()) -> tuple[Variable, ...]:
    """The variables that live whole on a node and that no other variable there reads; those of `names`, if any.

    Raises:
        UserError: as `site_of`, or a variable does not live there.

    Example:
        >>> import siitjax
        >>> case = siitjax.load("1+2").case
        >>> [variable.name for variable in variables_at(case, siitjax.mlp(0))]
        ['left_greater.left_greater', 'paren_checker.elevation']
    """
    found = {v.name: v for v in swappable(case, site_of(case, node))}
    for name in names:
        check_choice(f"the variable on {node}", name, tuple(found), f"It holds {', '.join(found)}")
    return tuple(found[name] for name in names or found)


OFTEN = 0.01
"""The share of tokens whose label a wrong variable's swap changes at least."""


def wrong_variable(case: Case, node: Node, pairs: Pairs) -> Variable | None:
    """A control: of the variables that live elsewhere, the one whose swap is least like that of the node.

    That is the one whose counterfactual labels agree least often with those of the node's swap, of the tokens whose
    label the variable's swap changes. None where all others' agree always, or change hardly any label.

    Raises:
        UserError: as `site_of`.

    Example:
        >>> import siitjax
        >>> from siitjax.analysis.discovery.pairs import draw_pairs
        >>> case = siitjax.load("1+2").case
        >>> wrong_variable(case, siitjax.mlp(0), draw_pairs(case, 50)).name
        'task'
    """
    site_of(case, node)
    own = [v for v in case.variables if node in v.nodes]
    others = [v for v in case.variables if v.nodes and node not in v.nodes]
    clean, counted, labels = _labels(case, [own, *([v] for v in others)], *map(jnp.asarray, pairs))
    same = lambda labels, other: np.asarray(case.loss.same(labels, other))
    found: list[tuple[float, Variable]] = []
    for variable, swapped in zip(others, labels[1:], strict=True):
        changed = ~same(swapped, clean) & np.asarray(counted)
        if changed.sum() > OFTEN * np.asarray(counted).sum():
            found.append((float(same(swapped, labels[0])[changed].mean()), variable))
    agrees, variable = min(found, key=lambda each: each[0], default=(1.0, None))
    return variable if agrees < 1 else None


def prepare_exam(model: Transformer, case: Case, node: Node, variables: Iterable[Variable], pairs: Pairs) -> Exam:
    """The pairs, run and labelled.

    Args:
        node: where the variables are looked for.
        variables: of the case; those that live elsewhere are controls.

    Raises:
        UserError: the node holds no variable, the model or the pairs do not fit the case, or the swap of a variable
            changes no label of these pairs.

    Example:
        >>> import siitjax
        >>> from siitjax.analysis.discovery.pairs import draw_pairs
        >>> trained = siitjax.load("1+2")
        >>> model, case = trained.model, trained.case
        >>> exam = prepare_exam(model, case, siitjax.mlp(0), variables_at(case, siitjax.mlp(0)), draw_pairs(case, 20))
        >>> exam.here.shape, exam.labels.shape
        ((20, 16, 128), (2, 20, 16))
    """
    site, variables = site_of(case, node), tuple(variables)
    base, source = jnp.asarray(pairs.base), jnp.asarray(pairs.source)
    check_pair(base, source)
    case.check_fits(model.config, base, source)

    @jax.jit
    @jax.vmap
    def run(tokens):
        activations = model(tokens)[1]
        return activations, site.read(model, activations)

    beside = [[v for v in case.variables if node in v.nodes and v != variable] for variable in variables]
    swaps = [*([variable] for variable in variables), *beside]
    clean, counted, labels = _labels(case, swaps, base, source)
    changed = ~case.loss.same(labels, jnp.broadcast_to(clean, labels.shape)) & counted[None]
    caused, by_others = changed[: len(variables)], changed[len(variables) :]
    for variable, some in zip(variables, caused.any((1, 2)), strict=True):
        if not some:
            raise UserError(
                f'a swap of the variable "{variable.name}" changes no label of {len(base)} pairs, so it cannot be '
                "looked for; choose another variable, or more pairs"
            )
    alone = jnp.array([not others for others in beside])[:, None, None]
    isolated = counted[None] & ~caused & (by_others | alone)
    activations, here = run(base)
    names = tuple(v.name for v in variables)
    labels = labels[: len(variables)]
    return Exam(model, base, activations, here, run(source)[1], labels, counted, caused, isolated, case, site, names)


def values_of(case: Case, variable: Variable, samples: Int[Array, "sample seq"]) -> Shaped[np.ndarray, "token number"]:
    """The numbers that a variable is made of, at each token that counts, samples in order.

    Example:
        >>> import siitjax
        >>> case = siitjax.find_case("left_greater")
        >>> values_of(case, case.variables[0], case.tokens("(()")[None]).tolist()
        [[0, 0], [1, 0], [2, 0], [2, 1]]
    """
    place = 1 + [v.name for v in case.circuit.ordered].index(variable.name)
    values = np.asarray(jax.vmap(lambda tokens: case.circuit(tokens)[1][place])(samples))
    counted = np.asarray(case.counted_mask(samples))
    return values.reshape(*counted.shape, -1)[counted]


def _labels(case: Case, swaps: Sequence[Sequence[Variable]], base: Int[Array, "pair seq"], source):
    """The labels of the bases, the tokens that count, and the labels under each swap of variables alone."""
    circuit = case.circuit

    def under(swapped: Sequence[Variable], base, values: Values):
        mask = jnp.asarray(circuit.nodes.mask({node for v in swapped for node in v.nodes}))
        ordered = zip(circuit.ordered, values[1:], strict=True)
        alone: Values = (None, *(value if v in swapped else None for v, value in ordered))
        return circuit(base, (mask, alone))[0]

    @jax.jit
    @partial(jax.vmap, out_axes=(0, 1))
    def labelled(base, source):
        _, values = circuit(source)
        return circuit(base)[0], jnp.stack([under(swapped, base, values) for swapped in swaps])

    clean, labels = labelled(base, source)
    return clean, case.counted_mask(base), labels
