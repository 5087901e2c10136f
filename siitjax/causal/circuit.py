"""The high-level model: a causal model over the positions of one token sequence, run with or without a swap.

A `Variable` is declared once: its name, what it reads, the pure function that computes it, and the node where
it lives. Which node swaps which variable, which edges carry it, and what a swap does to the labels, follows from that.
"""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from graphlib import CycleError, TopologicalSorter
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError
from siitjax.base.precision import matmul_precision
from siitjax.model.checks import check_mask, check_positions, check_source
from siitjax.model.nodes import EMBED, LOGITS, Edge, Node, NodeList
from siitjax.model.swaps import EdgeSwaps, of_source

TOKENS = "tokens"

Counterfactual = Literal["causal", "frozen"]

Mask = Bool[Array, " node"] | Bool[Array, "reader sender"] | Bool[Array, "reader sender seq"]
"""The nodes that are swapped, the edges, or the edges at each of the sender's positions."""

Values = tuple[Shaped[Array, "seq ..."] | None, ...]
"""The value of the tokens and of every variable, in the circuit's order; None in a swap's source: not swapped."""


@dataclass(frozen=True)
class Variable:
    """One variable of a circuit.

    Attributes:
        name: what other variables read it by.
        reads: the variables that `compute` takes, in order; "tokens" is the input.
        compute: a pure jax function of those variables' values, each (seq, ...), that returns (seq, ...).
        node: where it lives; several nodes that hold it together; or None for plumbing that no node holds and that is
            always recomputed.

    Nodes that hold a variable together are swapped together: its value is the source's when all of them are swapped,
    over every edge by which a reader sees them, from one source, at the same positions. They also see what it reads
    alike. A swap of some of them leaves the variable as it is in the causal model, and what a transformer makes of such
    a swap is not promised: none is drawn in training, and none is counted. Nor is an edge between them.

    Example:
        >>> from siitjax.model.nodes import mlp
        >>> Variable("is_two", ("tokens",), lambda tokens: tokens == 2, mlp(0)).value(jnp.array([1, 2])).tolist()
        [False, True]
        >>> from siitjax import Variable, head, mlp
        >>> Variable("sign", ("tokens",), lambda tokens: tokens > 2, (head(0, 1), mlp(0))).place
        'L0H1+MLP0'
    """

    name: str
    reads: tuple[str, ...]
    compute: Callable[..., Array]
    node: Node | tuple[Node, ...] | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes that hold it, in the order in which a transformer computes them; none of plumbing."""
        if not isinstance(self.node, tuple):
            return () if self.node is None else (self.node,)
        return tuple(sorted(self.node, key=lambda node: (node.depth, node.head or node.part or 0)))

    @property
    def place(self) -> str | None:
        """What its nodes are called; None of plumbing."""
        return unit_name(self.nodes) or None

    def value(self, *read: Shaped[Array, "seq ..."]) -> Shaped[Array, "seq ..."]:
        """What `compute` makes of the values that it reads.

        Whatever is raised inside keeps its traceback, and gets a note that names the variable.

        Raises:
            UserError: it is not of as many tokens as what is read.
        """
        try:
            found = self.compute(*read)
        except Exception as error:
            error.add_note(
                f'It was raised by the variable "{self.name}", which is computed from {_listed(self.reads)}.'
            )
            raise
        if any(np.shape(found)[:1] != x.shape[:1] for x in read):
            raise UserError(
                f'the variable "{self.name}" has shape {np.shape(found)}, but what it reads has {len(read[0])} tokens; '
                "it must give an array of as many, tokens first"
            )
        return found


@dataclass(frozen=True)
class Circuit:
    """Variables on the nodes of a transformer. The last variable declared is the label of each token.

    Attributes:
        variables: in any order but for the last.
        nodes: those of the transformer.
        counterfactual: "causal", or "frozen": every placed variable that is not swapped keeps the base run's value,
            so that a swap changes only what no node holds. That is the rule of the original's combined models (Anders
            & Garriga-Alonso 2024, in their code); it is here to measure what it does.

    `circuit(tokens, swap)` visits the variables in topological order. A swap is a mask over nodes and the
    values of the source run: the variables on a masked node take the source's values, and everything
    downstream is computed again from them (an interchange intervention: Geiger et al. 2022, section 3).

    Under a mask over edges, a variable has a value for each reader: who reads it over a swapped edge sees the source's
    value, the others its own, computed from what its node sees. What a reader makes of a swapped value flows on
    unswapped (path patching: Wang et al. 2023; Conmy et al. 2023).

    Raises:
        UserError: a name is declared twice or read without being declared, the variables read each other in a
            circle, a node does not exist, or a variable's node does not come after the nodes it reads from.

    Example:
        >>> import siitjax
        >>> case = siitjax.find_case("left_greater")
        >>> labels, values = case.circuit(jnp.asarray(case.tokens("(()")))
        >>> labels.tolist(), len(values)
        ([2, 1, 1, 1], 4)
    """

    variables: tuple[Variable, ...]
    nodes: NodeList
    counterfactual: Counterfactual = "causal"

    def __post_init__(self):
        check_choice("counterfactual", self.counterfactual, get_args(Counterfactual))
        names = [v.name for v in self.variables]
        if not names:
            raise UserError("the circuit has no variables; it needs at least one, the label of each token")
        for name in {TOKENS, *names}:
            if names.count(name) + (name == TOKENS) > 1:
                raise UserError(f'the variable "{name}" is declared twice; each name may stand once')
        for v in self.variables:
            if unknown := set(v.reads) - {TOKENS, *names}:
                raise UserError(
                    f'the variable "{v.name}" reads "{min(unknown)}", which is not declared; '
                    f"it can read {', '.join([TOKENS, *names])}"
                )
            if v.node == () or len({*v.nodes}) < len(v.nodes):
                raise UserError(
                    f'the variable "{v.name}" is placed on {v.place or "no node"}; name each of its nodes once, or '
                    "give node=None where none holds it"
                )
            for node in v.nodes:
                if node == EMBED:
                    raise UserError(f'the variable "{v.name}" is placed on the embedding, which holds the tokens alone')
                try:
                    self.nodes.index(node)
                except UserError as error:
                    if isinstance(node, str):
                        raise
                    raise UserError(f'the variable "{v.name}" cannot live on {node}: {error}') from None
        try:
            ordered = self.ordered
        except CycleError as error:
            raise UserError(f"the variables read each other in a circle: {' -> '.join(error.args[1])}") from None
        self._check_reachable(ordered)

    def _check_reachable(self, ordered: tuple[Variable, ...]) -> None:
        """What a node's variables read must lie on nodes before it, on the same node, or on none."""
        behind: dict[str, set[Node]] = {TOKENS: {EMBED}}
        for v in ordered:
            read = set[Node]().union(*(behind[name] for name in v.reads))
            if v.nodes:
                last = v.nodes[-1]
                if late := [n for n in read if n not in v.nodes and n.depth >= last.depth]:
                    raise UserError(
                        f'the variable "{v.name}" on {v.place} reads what {late[0]} holds, which comes no earlier '
                        f"({last} is at depth {last.depth}, {late[0]} at {late[0].depth}); place it on a later node"
                    )
                read = {*v.nodes}
            behind[v.name] = read

    @cached_property
    def ordered(self) -> tuple[Variable, ...]:
        """The variables so that each comes after those it reads."""
        by_name = {v.name: v for v in self.variables}
        order = TopologicalSorter({v.name: v.reads for v in self.variables}).static_order()
        return tuple(by_name[name] for name in order if name != TOKENS)

    @cached_property
    def circuit_mask(self) -> Bool[np.ndarray, " node"]:
        """The nodes that hold a variable. The embedding, whose swap is trivial, is not one of them."""
        return self.nodes.mask({node for v in self.variables for node in v.nodes})

    @cached_property
    def unused_mask(self) -> Bool[np.ndarray, " node"]:
        """The nodes that hold nothing, the embedding excepted: it holds the tokens."""
        return ~self.circuit_mask & ~self.nodes.mask([EMBED])

    @cached_property
    def units(self) -> tuple[tuple[Node, ...], ...]:
        """The circuit's nodes in the sets that are swapped together: those that share a variable; each other alone."""
        first = self.first_of_unit
        leaders = [i for i in np.flatnonzero(self.circuit_mask) if first[i] == i]
        return tuple(self.nodes.named(first == i) for i in leaders)

    @cached_property
    def first_of_unit(self) -> Int[np.ndarray, " node"]:
        """The number of the first node of each node's unit; of one that holds nothing, its own."""
        first = np.arange(len(self.nodes))
        for _ in self.variables:  # as often as sets may have to be joined
            for v in self.variables:
                if (own := [self.nodes.index(node) for node in v.nodes]) and len({*first[own]}) > 1:
                    first[np.isin(first, first[own])] = first[own].min()
        return first

    @cached_property
    def joint(self) -> bool:
        """Whether several nodes hold a variable together."""
        return any(len(unit) > 1 for unit in self.units)

    def same_unit(self, one: Node, other: Node) -> bool:
        """Whether two nodes are swapped together, or are the same one."""
        if LOGITS in (one, other):
            return one == other
        return bool(self.first_of_unit[self.nodes.index(one)] == self.first_of_unit[self.nodes.index(other)])

    @cached_property
    def within_mask(self) -> Bool[np.ndarray, "reader sender"]:
        """The edges between nodes of one unit, which no swap of edges swaps."""
        return self.nodes.edge_mask(edge for edge in self.nodes.possible_edges if self.same_unit(*edge))

    @cached_property
    def edge_units(self) -> tuple[tuple[Edge, ...], ...]:
        """The circuit's edges in the sets that are swapped together: those between the same two units."""
        found: list[list[Edge]] = []
        for edge in self.edges:
            same = lambda other, edge=edge: all(map(self.same_unit, edge, other))
            unit = next((unit for unit in found if same(unit[0])), None)
            if unit is None:
                found.append([edge])
            else:
                unit.append(edge)
        return tuple(map(tuple, found))

    @cached_property
    def first_of_edge_unit(self) -> Int[np.ndarray, " edge"]:
        """The number of the first edge of each edge's unit, in a mask of edges laid flat; of one that is not in the
        circuit, its own."""
        first = np.arange(len(self.nodes) ** 2)
        for unit in self.edge_units:
            numbers = [np.flatnonzero(self.nodes.edge_mask([edge]))[0] for edge in unit]
            first[numbers] = numbers[0]
        return first

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """The edges (a, b) where what node b computes reads what node a holds, in the order of the nodes they end in.

        Variables that no node holds are looked through: who reads one reads what it was computed from.
        """
        holders: dict[str, set[Node]] = {TOKENS: {EMBED}}
        found: set[Edge] = set()
        for variable in self.ordered:
            read = set[Node]().union(*(holders[name] for name in variable.reads))
            if variable.nodes:
                pairs = ((sender, node) for sender in read for node in variable.nodes)
                found |= {(a, b) for a, b in pairs if a.depth < b.depth and not self.same_unit(a, b)}
                read = {*variable.nodes}
            holders[variable.name] = read
        found |= {(sender, LOGITS) for sender in holders[self.variables[-1].name]}
        readers, senders = self.nodes.readers, self.nodes.nodes
        return tuple(sorted(found, key=lambda edge: (readers.index(edge[1]), senders.index(edge[0]))))

    @cached_property
    def edge_mask(self) -> Bool[np.ndarray, "reader sender"]:
        """The circuit's edges, as a mask."""
        return self.nodes.edge_mask(self.edges)

    @cached_property
    def outside_mask(self) -> Bool[np.ndarray, "reader sender"]:
        """The edges that the transformer has and the circuit has not; none between nodes of one unit."""
        return self.nodes.edge_mask(self.nodes.possible_edges) & ~self.edge_mask & ~self.within_mask

    def at(self, node: Node) -> tuple[Variable, ...]:
        """The variables that live on `node`."""
        return tuple(v for v in self.variables if node in v.nodes)

    @matmul_precision()
    def __call__(
        self, tokens: Int[Array, " seq"], swap: tuple[Mask, Values] | None = None
    ) -> tuple[Shaped[Array, "seq *out"], Values]:
        """The labels, and the value of every variable, of one input, perhaps under a swap.

        Args:
            swap: a mask of nodes, of edges, or of edges at positions, and the values of the source run. The values
                returned under a mask of nodes are those that all readers see; under one of edges, a variable's own.

        Raises:
            UserError: the mask is not of these nodes, the source's values not of this circuit on as many tokens, or
                the mask is of edges, and the rule "frozen", which is one of nodes.
        """
        if swap is not None:
            self._check(len(tokens), *swap)
            if swap[0].ndim > 1:
                return self._by_reader(tokens, *swap)
        clean = self(tokens)[1] if swap is not None and self.counterfactual == "frozen" else None

        def swapped(nodes: tuple[Node, ...], i: int, own: Array) -> Array:
            if swap is None or not nodes or (source := swap[1][i]) is None:
                return own
            kept = None if clean is None or nodes == (EMBED,) else clean[i]
            of_all = reduce(operator.and_, (swap[0][self.nodes.index(node)] for node in nodes))
            return jnp.where(of_all, source, own if kept is None else kept)

        values = {TOKENS: swapped((EMBED,), 0, tokens)}
        for i, v in enumerate(self.ordered, start=1):
            values[v.name] = swapped(v.nodes, i, v.value(*(values[name] for name in v.reads)))
        return as_label(values[self.variables[-1].name]), tuple(values.values())

    def _check(self, n_tokens: int, mask: Bool[Array | np.ndarray, "..."], source: Values) -> None:
        """What a swap brings must be of this circuit, and its source as long as the base."""
        check_mask(mask, range(mask.ndim)[:2], len(self.nodes))
        check_positions(mask, n_tokens)
        names = [TOKENS, *(v.name for v in self.ordered)]
        if len(source) != len(names):
            raise UserError(f"the source has {len(source)} values, but the circuit {len(names)}: {', '.join(names)}")
        check_source(dict(zip(names, source, strict=True)), dict.fromkeys(names, (n_tokens,)))

    def _by_reader(
        self, tokens: Int[Array, " seq"], mask: Bool[Array, "reader sender *seq"], source: Values
    ) -> tuple[Shaped[Array, "seq *out"], Values]:
        """The labels as the logits see them, and every variable's own value, under a mask of edges."""
        if self.counterfactual == "frozen":
            raise UserError('the rule "frozen" knows swaps of nodes alone; swap edges under the rule "causal"')
        variables = {v.name: (i, v) for i, v in enumerate(self.ordered, start=1)}
        nodes, readers = self.nodes.nodes, self.nodes.readers
        own: dict[tuple[str, tuple[Node, ...]], Array] = {}

        def value(name: str, seen_by: tuple[Node, ...]) -> Array:
            """What the nodes `seen_by` see of a variable. One that no node holds is computed from what they see."""
            i, variable = variables.get(name, (0, None))
            held_by = (EMBED,) if variable is None else variable.nodes
            key = name, held_by or seen_by
            if key not in own:
                reads = () if variable is None else variable.reads
                own[key] = tokens if variable is None else variable.value(*(value(read, key[1]) for read in reads))
            if not held_by or self.same_unit(held_by[0], seen_by[0]) or (held := source[i]) is None:
                return own[key]
            pairs = [(b, a) for b in seen_by for a in held_by if a.depth < b.depth]
            swapped = reduce(operator.and_, (mask[readers.index(b), nodes.index(a)] for b, a in pairs))
            return jnp.where(swapped.reshape(*swapped.shape, *(1,) * (own[key].ndim - swapped.ndim)), held, own[key])

        label = value(self.variables[-1].name, (LOGITS,))
        names = [(TOKENS, (EMBED,)), *((v.name, v.nodes or (LOGITS,)) for v in self.ordered)]
        for name, held_by in names:
            value(name, held_by)
        return as_label(label), tuple(own[key] for key in names)


def edge_labels(
    circuit: Circuit, base: Int[Array, "batch seq"], source: Int[Array, "source seq"], swaps: EdgeSwaps
) -> Shaped[Array, "batch mask seq *label"]:
    """The circuit's labels under swaps of edges. Raises UserError where these are not of it, or of such samples."""
    swaps.check(len(circuit.nodes), base.shape, source.shape)
    _, values = jax.vmap(circuit)(source)
    places = (EMBED, *(v.nodes[0] if v.nodes else None for v in circuit.ordered))
    index = lambda node: None if swaps.sources is None else swaps.sources[..., circuit.nodes.index(node)]
    held = tuple(
        None if node is None or value is None else of_source(value, index(node))
        for node, value in zip(places, values, strict=True)
    )
    masks = swaps.at_positions()
    held = jax.tree.map(lambda x: jnp.broadcast_to(x, (*masks.shape[:2], *x.shape[2:])), held)
    label = lambda tokens, mask, held: circuit(tokens, (mask, held))[0]
    return jax.vmap(jax.vmap(label, (None, 0, 0)))(base, masks, held)


def unit_name(nodes: Iterable[Node]) -> str:
    """What nodes that are swapped together are called: "L0H1+MLP0"."""
    return "+".join(map(str, nodes))


def edge_unit_name(edges: Iterable[Edge]) -> str:
    """What edges that are swapped together are called: "L0H0+L0H1->MLP0"."""
    senders, readers = (unit_name(dict.fromkeys(nodes)) for nodes in zip(*edges, strict=True))
    return f"{senders}->{readers}"


def as_label(value: Shaped[Array, "seq ..."]) -> Shaped[Array, "seq ..."]:
    """The last variable's value as the label of each token: true and false are the classes 1 and 0."""
    return value.astype(jnp.int32) if value.dtype == bool else value


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "nothing"
