"""Strings to train and to validate on: drawn in strata, the two sets sharing none.

A stratum is one sampler, uniform over the strings of one kind. A case lists its strata, and each gives an equal
share of the data, however rare its strings are among all. (The original sorted its strings with np.unique and
then cut them, so that no letter sequence began with "c" and 6% of paren strings were balanced where 25% were
meant. Here nothing is ordered by content.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from siitjax.errors import UserError

Strings = Int[np.ndarray, "_ position"]
Stratum = Callable[[np.random.Generator, int, int], Strings]
"""`stratum(rng, n, length)` draws n strings of `length` tokens, each with the same probability."""

TRIES = 400
"""Rounds of draws after which a stratum is taken to have no more strings, or none at all."""


@dataclass(frozen=True)
class Uniform:
    """Every string over `tokens`."""

    tokens: tuple[int, ...]

    def __call__(self, rng: np.random.Generator, n: int, length: int) -> Strings:
        return rng.choice(np.asarray(self.tokens, np.int32), (n, length))


@dataclass(frozen=True)
class Arrangements:
    """Every order of `count` times the token `first` and otherwise `second`."""

    first: int
    second: int
    count: int

    def __call__(self, rng: np.random.Generator, n: int, length: int) -> Strings:
        ordered = np.where(np.arange(length) < self.count, self.first, self.second).astype(np.int32)
        return rng.permuted(np.tile(ordered, (n, 1)), axis=1)


@dataclass(frozen=True)
class Those:
    """The strings of `stratum` for which `keep` is true, by rejection."""

    stratum: Stratum
    keep: Callable[[Strings], Bool[np.ndarray, " string"]]

    def __call__(self, rng: np.random.Generator, n: int, length: int) -> Strings:
        kept = []
        for _ in range(TRIES):
            strings = self.stratum(rng, max(n, 1000), length)
            kept.append(strings[self.keep(strings)])
            if sum(map(len, kept)) >= n:
                return np.concatenate(kept)[:n]
        raise UserError(
            f"{TRIES * max(n, 1000)} strings of length {length} held fewer than {n} of a kind that the case lists; "
            "choose another n_ctx or drop that stratum"
        )


def shares(n: int, parts: int) -> list[int]:
    """`n` in `parts` whole numbers that differ by at most one."""
    return [n // parts + (i < n % parts) for i in range(parts)]


def draw_split(
    strata: Sequence[Stratum], length: int, n_train: int, n_validation: int, rng: np.random.Generator
) -> tuple[Strings, Strings]:
    """Strings to train on and to validate on, an equal share from each stratum, no string in both.

    A stratum too small to fill its share has its distinct strings split in the same proportion, and each side
    repeats its own evenly. A stratum of a single string can only be trained on; the others fill its share of
    the validation set.

    Args:
        strata: samplers whose strings are disjoint.
        length: tokens a string.
        n_train: strings to train on, repetitions counted.
        n_validation: strings to validate on, repetitions counted.
        rng: decides everything here.

    Raises:
        UserError: no stratum has the two strings that a split needs.
    """
    pools = [
        _distinct(stratum, length, a + b, rng)
        for stratum, a, b in zip(strata, shares(n_train, len(strata)), shares(n_validation, len(strata)), strict=True)
    ]
    held_out = [len(p) - max(1, min(len(p) - 1, round(len(p) * n_train / (n_train + n_validation)))) for p in pools]
    divisible = [p[:k] for p, k in zip(pools, held_out, strict=True) if k > 0]
    if not divisible:
        raise UserError("the strata hold one string each; a train-validation split needs more")
    train = [_repeat(p[k:], n, rng) for p, k, n in zip(pools, held_out, shares(n_train, len(pools)), strict=True)]
    validation = [_repeat(p, n, rng) for p, n in zip(divisible, shares(n_validation, len(divisible)), strict=True)]
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(validation))


def _distinct(stratum: Stratum, length: int, wanted: int, rng: np.random.Generator) -> Strings:
    """Up to `wanted` distinct strings in random order: fewer where the stratum holds fewer."""
    pool = np.empty((0, length), np.int32)
    for _ in range(TRIES):
        before = len(pool)
        pool = _unique(np.concatenate([pool, stratum(rng, max(wanted, 1000), length)]))
        # That sorts; the permutation below is what keeps the cut from following the order.
        if len(pool) >= wanted or len(pool) == before:
            break
    return rng.permutation(pool)[:wanted]


def _unique(strings: Strings) -> Strings:
    """The distinct strings, sorted."""
    base, length = int(strings.max()) + 1, strings.shape[1]
    if base**length >= 2**63:
        return np.unique(strings, axis=0)
    # Numbers with a token a digit sort in the same order, ten times faster.
    digits = base ** np.arange(length - 1, -1, -1, dtype=np.int64)
    return strings[np.unique(strings @ digits, return_index=True)[1]]


def _repeat(strings: Strings, n: int, rng: np.random.Generator) -> Strings:
    """`n` strings in which each of `strings` stands equally often, to within one."""
    return np.resize(rng.permutation(strings), (n, strings.shape[1]))
