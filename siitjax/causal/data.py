"""Strings to train and to validate on: drawn in strata, the two sets sharing none.

A stratum is one sampler, uniform over the strings of one kind. A case lists its strata, and each gives an equal
share of the data, however rare its strings are among all. (The original sorted its strings with np.unique and
then cut them, so that no letter sequence began with "c" and 6% of paren strings were balanced where 25% were
meant. Here nothing is ordered by content.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import comb
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from siitjax.base.errors import UserError

BOS = 0
"""The index of the token that begins every string: a vocabulary begins with it."""
PAD = 1
"""The index of the second token of every vocabulary."""
Strings = Int[np.ndarray, "_ position"]
Stratum = Callable[[np.random.Generator, int, int], Strings]
"""`stratum(rng, n, length)` draws n strings of `length` tokens, each with the same probability."""


@runtime_checkable
class Listed(Protocol):
    """A stratum that can also list its strings; what is measured on every string asks for it."""

    def __call__(self, rng: np.random.Generator, n: int, length: int) -> Strings: ...

    def every(self, length: int, limit: int) -> Strings | None:
        """Each string of `length` tokens that it draws, once, in any order; None where there are more than `limit`."""
        ...


TRIES = 400
"""Rounds of draws after which a stratum is taken to have no more strings, or none at all."""


@dataclass(frozen=True)
class Uniform:
    """Every string over `tokens`, each equally likely.

    Attributes:
        tokens: their indices in the vocabulary.

    Example:
        >>> Uniform((2, 3))(np.random.default_rng(0), 4, 3).shape
        (4, 3)
        >>> Uniform((2, 3)).every(2, limit=10).tolist()
        [[2, 2], [2, 3], [3, 2], [3, 3]]
    """

    tokens: tuple[int, ...]

    def __call__(self, rng: np.random.Generator, n: int, length: int) -> Strings:
        return rng.choice(np.asarray(self.tokens, np.int32), (n, length))

    def every(self, length: int, limit: int) -> Strings | None:
        """Every string of that length, or None where there are more than `limit`."""
        tokens = np.unique(np.asarray(self.tokens, np.int32))
        if len(tokens) ** length > limit:
            return None
        return tokens[np.indices((len(tokens),) * length).reshape(length, -1).T]


@dataclass(frozen=True)
class OfLength:
    """Every string of `count` tokens, each equally likely, then PADs.

    Attributes:
        uniform: draws the tokens.
        count: how many; as many as fit, where that is fewer.

    Example:
        >>> OfLength(Uniform((2, 3)), 1).every(3, limit=10).tolist()
        [[2, 1, 1], [3, 1, 1]]
    """

    uniform: Uniform
    count: int

    def __call__(self, rng: np.random.Generator, n: int, length: int) -> Strings:
        return self._filled(self.uniform(rng, n, min(self.count, length)), length)

    def every(self, length: int, limit: int) -> Strings | None:
        """Each string once, or None where there are more than `limit`."""
        strings = self.uniform.every(min(self.count, length), limit)
        return None if strings is None else self._filled(strings, length)

    def _filled(self, strings: Int[np.ndarray, "n own"], length: int) -> Int[np.ndarray, "n length"]:
        return np.pad(strings, ((0, 0), (0, length - strings.shape[1])), constant_values=PAD)


@dataclass(frozen=True)
class Arrangements:
    """Every order of `count` times the token `first` and otherwise `second`, each equally likely.

    Attributes:
        first, second: indices in the vocabulary.
        count: how many are `first`; in a string that is shorter, all.

    Example:
        >>> Arrangements(2, 3, 1).every(3, limit=10).tolist()
        [[2, 3, 3], [3, 2, 3], [3, 3, 2]]
    """

    first: int
    second: int
    count: int

    def __call__(self, rng: np.random.Generator, n: int, length: int) -> Strings:
        ordered = np.where(np.arange(length) < self.count, self.first, self.second).astype(np.int32)
        return rng.permuted(np.tile(ordered, (n, 1)), axis=1)

    def every(self, length: int, limit: int) -> Strings | None:
        """Every string of that length, or None where there are more than `limit`."""
        count = min(self.count, length)
        if comb(length, count) > limit:
            return None
        strings = np.full((comb(length, count), length), self.second, np.int32)
        for string, places in zip(strings, combinations(range(length), count), strict=True):
            string[list(places)] = self.first
        return strings


@dataclass(frozen=True)
class Those:
    """The strings of `stratum` for which `keep` is true, by rejection.

    Attributes:
        stratum: what draws them.
        keep: takes (string, token), and says of each string whether it is kept.

    Raises (when it is called):
        UserError: too few of the strings drawn are kept.

    Example:
        >>> twos = Those(Uniform((2, 3)), lambda strings: strings[:, 0] == 2)
        >>> twos.every(2, limit=10).tolist()
        [[2, 2], [2, 3]]
    """

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

    def every(self, length: int, limit: int) -> Strings | None:
        """Every string of that length that is kept; None where the stratum has more than `limit`."""
        strings = every_string((self.stratum,), length, limit)
        return None if strings is None else strings[self.keep(strings)]


def shares(n: int, parts: int) -> list[int]:
    """`n` in `parts` whole numbers that differ by at most one."""
    return [n // parts + (i < n % parts) for i in range(parts)]


def every_string(strata: Sequence[Stratum], length: int, limit: int) -> Strings | None:
    """Each string that one of the strata draws, once, sorted; None where there are more than `limit`.

    Raises:
        UserError: a stratum does not say which it draws.
    """
    found = []
    for stratum in strata:
        if not isinstance(stratum, Listed):
            raise UserError(
                f"{_name(stratum)} does not say which strings it draws, so they cannot be listed; give it a method "
                "every(length, limit), or do without"
            )
        found.append(stratum.every(length, limit))
        if found[-1] is None:
            return None
    strings = np.unique(np.concatenate(found), axis=0)
    return strings if len(strings) <= limit else None


def draw_split(
    strata: Sequence[Stratum],
    length: int,
    n_train: int,
    n_validation: int,
    rng: np.random.Generator,
    *,
    vocab: int | None = None,
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
        vocab: how many tokens there are; None for any number.

    Raises:
        UserError: no stratum has the two strings that a split needs, or one draws what is no string of that length and
            vocabulary.
    """
    each = zip(shares(n_train, len(strata)), shares(n_validation, len(strata)), strict=True)
    wanted = [a + b for a, b in each]
    pools = [_distinct(partial(_drawn, s, vocab), length, n, rng) for s, n in zip(strata, wanted, strict=True)]
    held_out = [len(p) - max(1, min(len(p) - 1, round(len(p) * n_train / (n_train + n_validation)))) for p in pools]
    divisible = [p[:k] for p, k in zip(pools, held_out, strict=True) if k > 0]
    if not divisible:
        if n_train + n_validation >= 2 * len(strata):
            raise UserError("the strata hold one string each; a train-validation split needs more")
        raise UserError(
            f"{n_train} strings to train on and {n_validation} to validate on are too few for {len(strata)} strata, of "
            f"which each is to give some of both; draw {2 * len(strata)} or more"
        )
    train = [_repeat(p[k:], n, rng) for p, k, n in zip(pools, held_out, shares(n_train, len(pools)), strict=True)]
    validation = [_repeat(p, n, rng) for p, n in zip(divisible, shares(n_validation, len(divisible)), strict=True)]
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(validation))


def _drawn(stratum: Stratum, vocab: int | None, rng: np.random.Generator, n: int, length: int) -> Strings:
    """What the stratum draws, which must be strings of that length, of tokens of the vocabulary.

    Raises:
        UserError: it is not.
    """
    try:
        strings = np.asarray(stratum(rng, n, length))
    except Exception as error:
        error.add_note(f"It was raised by {_name(stratum)}.")
        raise
    if strings.shape[1:] != (length,) or not len(strings) or strings.dtype.kind not in "iu":
        raise UserError(
            f"{_name(stratum)} gave an array of {strings.dtype} of shape {strings.shape} for {n} strings of {length} "
            f"tokens; it must give integers of shape ({n}, {length})"
        )
    outside = strings[(strings < 0) | (strings >= (np.inf if vocab is None else vocab))]
    if outside.size:
        ids = "0 or more" if vocab is None else f"0 to {vocab - 1}, as the vocabulary has {vocab} tokens"
        raise UserError(f"{_name(stratum)} drew the token {outside[0]}; tokens are {ids}")
    return strings.astype(np.int32)


def _name(stratum: Stratum) -> str:
    return f"the stratum {getattr(stratum, '__qualname__', stratum)}"


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
