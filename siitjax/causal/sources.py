"""Which source a base is swapped with, where a case says so: sources near the base show changes that are rare else.

A sampler takes one base, the sample that would be its source otherwise, and a key; it gives the source. It is a pure
jax function, which training and evaluation call for each pair.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from siitjax.base.errors import UserError


@runtime_checkable
class Sources(Protocol):
    """A sampler of sources; see above."""

    def __call__(
        self, base: Int[Array, " seq"], other: Int[Array, " seq"], key: PRNGKeyArray
    ) -> Int[Array, " seq"]: ...


@dataclass(frozen=True)
class OneChanged:
    """The base with one of its tokens changed into another, or, with probability 1 - p, the other sample.

    Attributes:
        tokens: those that may be changed, and what they may become; two at least. A base that has none stays as it is.
        p: the probability of such a source.

    Raises:
        UserError: there are fewer than two tokens, or p is no probability.

    Example:
        >>> import jax
        >>> import siitjax
        >>> case = siitjax.find_case("left_greater")
        >>> source = siitjax.OneChanged((2, 3), p=1.0)(case.tokens("((("), case.tokens(")))"), jax.random.key(0))
        >>> int((source != case.tokens("(((")).sum())
        1
        >>> from dataclasses import replace
        >>> near = replace(case, sources=siitjax.OneChanged((2, 3)))  # half of all sources differ from the base in one
    """

    tokens: tuple[int, ...]
    p: float = 0.5

    def __post_init__(self):
        if len(set(self.tokens)) < 2:
            raise UserError(f"the tokens are {self.tokens}; give two at least, so that one can become another")
        if not 0 <= self.p <= 1:
            raise UserError(f"p is {self.p}; it must be from 0 to 1")

    def __call__(self, base: Int[Array, " seq"], other: Int[Array, " seq"], key: PRNGKeyArray) -> Int[Array, " seq"]:
        letters = jnp.array(self.tokens, base.dtype)
        where, step, which = jax.random.split(key, 3)
        may = (base[:, None] == letters[None]).any(1)
        position = jnp.argmax(jnp.where(may, jax.random.uniform(where, base.shape), -1.0))
        place = jnp.argmax(letters == base[position])
        new = letters[(place + jax.random.randint(step, (), 1, len(letters))) % len(letters)]
        near = jnp.where((jnp.arange(len(base)) == position) & may, new, base)
        return jnp.where(jax.random.bernoulli(which, self.p), near, other)
