"""What is known of a site: which variables it holds, and which value each has at every token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from siitjax.analysis.sae.site import Site
from siitjax.causal.case import Case
from siitjax.causal.circuit import Circuit, Values, Variable
from siitjax.model.nodes import Node

LEAST = 20
"""Tokens that have to have a value, and as many that have another, for it to be looked for."""


@dataclass(frozen=True)
class Known:
    """Values of variables, token by token. Of a variable that is a vector, each number has values of its own.

    Attributes:
        names: such as "elevation = 3", "counts[1] = 0".
        variables: whose value each is.
        counted: whether a token counts: of one task's variable, those of its own samples.
        holds: whether it counts and has the value.
    """

    names: tuple[str, ...]
    variables: tuple[str, ...]
    holds: Bool[np.ndarray, "token value"]
    counted: Bool[np.ndarray, "token value"]

    def at(self, tokens: slice) -> "Known":
        """The same of some of the tokens."""
        return replace(self, holds=self.holds[tokens], counted=self.counted[tokens])

    def frequent(self, least: int, *parts: "Known") -> Bool[np.ndarray, " value"]:
        """Which values enough tokens have, and do not have, in every part."""
        each = [(p.holds.sum(0) >= least) & ((p.counted & ~p.holds).sum(0) >= least) for p in (parts or (self,))]
        return np.logical_and.reduce(each)

    def only(self, which: Bool[np.ndarray, " value"]) -> "Known":
        """The same of some of the values."""
        kept = np.flatnonzero(which)
        names, variables = ([words[i] for i in kept] for words in (self.names, self.variables))
        return Known(tuple(names), tuple(variables), self.holds[:, which], self.counted[:, which])


def held(case: Case, site: Site) -> tuple[Variable, ...]:
    """The variables that a site holds whole: its node's, and in the residual stream those of every node before."""
    if site.node is not None:
        return tuple(v for v in case.variables if v.nodes == (site.node,))
    return tuple(v for v in case.variables if v.nodes and v.nodes[-1].depth <= site.depth)


def swappable(case: Case, site: Site) -> tuple[Variable, ...]:
    """Those of them that nothing at the site depends on: what is read of them is read after it."""
    reads = lambda v: _readers(case.circuit, v)
    return tuple(v for v in held(case, site) if all(node.depth > site.depth for node in reads(v)))


def _readers(circuit: Circuit, variable: Variable) -> set[Node]:
    """The nodes whose variables read it, themselves or through variables that no node holds."""
    found = set[Node]()
    for v in circuit.variables:
        if variable.name in v.reads:
            found |= {*v.nodes} or _readers(circuit, v)
    return found


def task_named(case: Case, samples: Int[np.ndarray, "sample seq"]) -> Int[np.ndarray, " sample"]:
    """The task that each sample's first token names; 0 for all where there is one task."""
    return samples[:, 0] - (len(case.vocabulary) - len(case.tasks)) if case.tasks else np.zeros(len(samples), int)


def known_values(case: Case, variables: Sequence[Variable], samples: Int[np.ndarray, "sample seq"]) -> Known:
    """The values that variables have at the samples' own tokens, in the order of the samples."""
    values: Values = jax.jit(jax.vmap(lambda tokens: case.circuit(tokens)[1]))(jnp.asarray(samples))
    own = np.asarray(case.token_mask(jnp.asarray(samples)))
    tasks = np.broadcast_to(task_named(case, samples)[:, None], own.shape)[own]
    order = [v.name for v in case.circuit.ordered]
    names, owners, holds, counted = [], [], [], []
    for variable in variables:
        found, task = np.asarray(values[1 + order.index(variable.name)]), case.task_of(variable.name)
        found = found[own].reshape(own.sum(), -1)
        counts = np.ones(len(found), bool) if task is None else tasks == task
        for i, column in enumerate(found.T):
            name = variable.name if found.shape[1] == 1 else f"{variable.name}[{i}]"
            for value in np.unique(column[counts]):
                names.append(f"{name} = {value}")
                owners.append(variable.name)
                holds.append((column == value) & counts)
                counted.append(counts)
    none = np.zeros((0, int(own.sum())), bool)
    stacked = (np.stack(rows) if rows else none for rows in (holds, counted))
    return Known(tuple(names), tuple(owners), *(rows.T for rows in stacked))
