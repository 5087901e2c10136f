"""Strings for a RASP program: every length from the shortest to the longest is an equal share, filled up with PADs."""

from dataclasses import dataclass

from siitjax.base.errors import UserError
from siitjax.causal.case import PAD
from siitjax.causal.data import OfLength, Stratum, Uniform


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
