"""Strings for a RASP program: every length from the shortest to the longest is an equal share, filled up with PADs."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from siitjax.base.errors import UserError
from siitjax.causal.case import PAD
from siitjax.causal.data import Stratum, Uniform


@dataclass(frozen=True)
class OfLength:
    """Every string of so many tokens, each equally likely, then PADs.

    Attributes:
        uniform: draws the tokens.
        tokens: how many; as many as fit, where that is fewer.

    Example:
        >>> OfLength(Uniform((2, 3)), 1).every(3, limit=10).tolist()
        [[2, 1, 1], [3, 1, 1]]
    """

    uniform: Uniform
    tokens: int

    def __call__(self, rng: np.random.Generator, n: int, length: int) -> Int[np.ndarray, "n length"]:
        return self._filled(self.uniform(rng, n, min(self.tokens, length)), length)

    def every(self, length: int, limit: int) -> Int[np.ndarray, "_ length"] | None:
        """Each string once, or None where there are more than `limit`."""
        strings = self.uniform.every(min(self.tokens, length), limit)
        return None if strings is None else self._filled(strings, length)

    def _filled(self, strings: Int[np.ndarray, "n own"], length: int) -> Int[np.ndarray, "n length"]:
        return np.pad(strings, ((0, 0), (0, length - strings.shape[1])), constant_values=PAD)


@dataclass(frozen=True)
class Lengths:
    """The strata of a program's strings: one for each length.

    Attributes:
        letters: how many tokens the vocabulary has, BOS and PAD not counted.
        shortest, longest: tokens a string.

    Raises (when it is called):
        UserError: longer strings are asked for than the program was read for.
    """

    letters: int
    shortest: int
    longest: int

    def __call__(self, length: int) -> tuple[Stratum, ...]:
        if length > self.longest:
            raise UserError(
                f"the program was read for strings of {self.longest} tokens at most, and they are to be {length} long; "
                f"call from_rasp with max_seq_len={length}"
            )
        uniform = Uniform(tuple(range(PAD + 1, PAD + 1 + self.letters)))
        return tuple(OfLength(uniform, n) for n in range(min(self.shortest, length), length + 1))
