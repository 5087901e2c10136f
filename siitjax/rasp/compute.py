"""How the variables of a RASP program are computed in jax: an s-op's values are numbered, and its function is a table.

The value of a variable at a position is the number of one of its `values`, or `len(values)`: none, RASP's None. The
tokens that a string begins with and is filled up with, BOS and PAD, have none, and no selector selects them.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from siitjax.causal.case import PAD

Values = tuple[Any, ...]
"""What an s-op can be, each once, in tracr's order."""


@dataclass(frozen=True)
class Input:
    """What an s-op is computed from.

    Attributes:
        kind: the token, where it stands in the string (RASP's indices), or another s-op.
        values: what it can be.
        at: which of the variables read it is; of indices, any.
    """

    kind: Literal["token", "index", "variable"]
    values: Values
    at: int = 0

    def number(self, read: tuple[Int[Array, " seq"], ...]) -> Int[Array, " seq"]:
        """The number of its value at each position."""
        size, value = len(self.values), read[self.at]
        if self.kind == "variable":
            return value
        number = jnp.arange(len(value), dtype=jnp.int32) - 1 if self.kind == "index" else value - (PAD + 1)
        return jnp.where((number >= 0) & (number < size), number, size)


@dataclass(frozen=True)
class Lookup:
    """A function of one s-op or of several at the same position: RASP's Map and SequenceMap.

    Attributes:
        inputs: what it is a function of.
        table: the number of its value for each number of the inputs', none included, the last input's fastest.
        values: what it can be.

    Example:
        >>> is_b = Lookup((Input("token", ("a", "b")),), (0, 1, 2), (False, True))
        >>> is_b(jnp.array([0, 2, 3, 1])).tolist()  # BOS a b PAD
        [2, 0, 1, 2]
    """

    inputs: tuple[Input, ...]
    table: tuple[int, ...]
    values: Values

    def __call__(self, *read: Int[Array, " seq"]) -> Int[Array, " seq"]:
        at = jnp.zeros_like(read[0])
        for each in self.inputs:
            at = at * (len(each.values) + 1) + each.number(read)
        return jnp.asarray(self.table, jnp.int32)[at]


@dataclass(frozen=True)
class Selector:
    """Which positions each position selects: RASP's Select.

    Attributes:
        keys, queries: what the predicate compares. A position where either is none selects, or is selected, nowhere.
        table: whether it holds, for each number of the queries' values and then of the keys'.
        length: tokens a string at most.
        causal: whether no position selects a later one.
        token_at: which of the variables read the tokens are, where strings may be shorter; None where they are not.
    """

    keys: Input
    queries: Input
    table: tuple[bool, ...]
    length: int
    causal: bool
    token_at: int | None

    def selected(self, read: tuple[Int[Array, " seq"], ...]) -> Bool[Array, "query key"]:
        """Whether each position selects each."""
        keys, queries = self.keys.number(read), self.queries.number(read)
        at = queries[:, None] * (len(self.keys.values) + 1) + keys[None, :]
        position = jnp.arange(len(keys))
        token = (position > 0) & (position <= self.length)
        if self.token_at is not None:
            token &= read[self.token_at] > PAD
        found = jnp.asarray(self.table, bool)[at] & token[None, :]
        return found & (position[None, :] <= position[:, None]) if self.causal else found


@dataclass(frozen=True)
class Width:
    """How many positions a selector selects: RASP's SelectorWidth. Its values are 0 to the longest string's length."""

    selector: Selector
    values: Values

    def __call__(self, *read: Int[Array, " seq"]) -> Int[Array, " seq"]:
        return self.selector.selected(read).sum(1, dtype=jnp.int32)


@dataclass(frozen=True)
class MostSelected:
    """A class from the positions selected: RASP's categorical Aggregate.

    Of several, it is that of most of them, and of as many the first in order, as the largest of the compiled model's
    outputs would be; none where nothing is selected that has a value.
    """

    selector: Selector
    of: Input
    values: Values

    def __call__(self, *read: Int[Array, " seq"]) -> Int[Array, " seq"]:
        size = len(self.values)
        one_hot = jax.nn.one_hot(self.of.number(read), size, dtype=jnp.int32)
        counts = self.selector.selected(read).astype(jnp.int32) @ one_hot
        return jnp.where(counts.any(1), counts.argmax(1).astype(jnp.int32), size)


@dataclass(frozen=True)
class Mean:
    """The mean of the numbers at the positions selected: RASP's numerical Aggregate; 0 where nothing is selected."""

    selector: Selector
    of: Input
    values: Values

    def __call__(self, *read: Int[Array, " seq"]) -> Int[Array, " seq"]:
        selected = self.selector.selected(read).astype(float)
        numbers = jnp.asarray((*self.of.values, 0.0), float)[self.of.number(read)]
        return nearest(self.values, selected @ numbers / jnp.maximum(selected.sum(1), 1))


@dataclass(frozen=True)
class Number:
    """The value of a numerical s-op itself, as labels have it."""

    values: Values

    def __call__(self, read: Int[Array, " seq"]) -> Float[Array, "seq 1"]:
        return jnp.asarray((*self.values, 0.0), float)[read][:, None]


def nearest(values: Values, numbers: Float[Array, " seq"]) -> Int[Array, " seq"]:
    """Which of the values, which rise, is nearest to each number.

    Example:
        >>> nearest((0.0, 0.5, 1.0), jnp.array([0.1, 0.4, 9.0])).tolist()
        [0, 1, 2]
    """
    middles = (np.asarray(values[1:], float) + np.asarray(values[:-1], float)) / 2
    return jnp.searchsorted(jnp.asarray(middles, numbers.dtype), numbers).astype(jnp.int32)
