"""What values the s-ops of a RASP program can take, and their functions as tables over them.

Every combination of what is read counts, whether a string brings it or not: a swap may. (tracr's own value sets of
fractions hold those of one among n alone: it takes 2/5 for 1/3, where we do not.)
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from math import isfinite
from typing import Any

import numpy as np

from siitjax.base.errors import UserError, one_line
from siitjax.rasp.compute import Values

MOST = 100_000
"""Entries that a table may have, and values an s-op."""
DIGITS = 9
"""Numbers that agree in so many decimals are one."""


def in_order(values: Iterable[Any]) -> Values:
    """Each value once, in tracr's order: sorted, or by what they are called where they cannot be compared.

    Example:
        >>> in_order(["b", "a", "b"]), in_order([2, "a"])
        (('a', 'b'), (2, 'a'))
    """
    distinct = list(dict.fromkeys(values))
    try:
        return tuple(sorted(distinct))
    except TypeError:
        return tuple(sorted(distinct, key=str))


def numbers(values: Iterable[Any]) -> Values:
    """Each number once, rising.

    Example:
        >>> numbers([True, 0.1 + 0.2, 0.3])
        (0.30000000000000004, 1.0)
    """
    return tuple(sorted({round(float(x), DIGITS): float(x) for x in [*values][::-1]}.values()))


def means(name: str, of: Values, length: int) -> Values:
    """Every mean of 1 to `length` of the numbers `of`, and 0.

    Raises:
        UserError: there are too many.

    Example:
        >>> means("share", (0.0, 1.0), 3)
        (0.0, 0.3333333333333333, 0.5, 0.6666666666666666, 1.0)
    """
    sums, found = (0.0,), [0.0]
    for n in range(1, length + 1):
        check_few(name, len(sums) * len(of))
        sums = numbers(a + b for a in sums for b in of)
        found += [x / n for x in sums]
    return numbers(found)


def table_of(
    name: str, f: Callable[..., Any], inputs: Sequence[Values], *, same: bool, from_numbers: bool, to_numbers: bool
) -> tuple[tuple[int, ...], Values]:
    """A function as the table of a `siitjax.rasp.compute.Lookup`, and what values it gives.

    It gives none where an input is none, and where it gives None itself; a number, 0 where an input is none. Where a
    function of a number has no value, as 1 / x at 0, it gives that of the nearest number.

    Args:
        name: of the s-op.
        inputs: the values of each input.
        same: whether all inputs are one s-op, which has but one value at a time.
        from_numbers, to_numbers: whether the inputs, and the output, are numerical.

    Raises:
        UserError: the table would be too large, or the function fails.

    Example:
        >>> table_of("odd", lambda x: x % 2 == 1, [(1, 2, 3)], same=False, from_numbers=False, to_numbers=False)
        ((1, 0, 1, 2), (False, True))
    """
    sizes = [len(values) + 1 for values in inputs]
    check_few(name, int(np.prod(sizes, dtype=float)))
    chosen = [(i,) * len(inputs) for i in range(sizes[0] - 1)] if same else [*product(*(range(n - 1) for n in sizes))]
    given = {at: tuple(values[i] for values, i in zip(inputs, at, strict=True)) for at in chosen}
    results: dict[tuple[int, ...], Any] = {}
    for at, arguments in given.items():
        try:
            result = f(*arguments)
            hash(result)
            results[at] = float(result) if to_numbers else result
            if to_numbers and not isfinite(results[at]):
                raise ValueError(f"{results[at]} is not finite")
        except Exception as error:
            if not (from_numbers and isinstance(error, ArithmeticError)):
                said = f"{type(error).__name__}: {one_line(error)}"
                shown = ", ".join(map(repr, arguments))
                raise UserError(f'the function of "{name}" fails at {shown} ({said}); mend it there') from None
    if from_numbers and results:
        distance = lambda one, other: sum(abs(a - b) for a, b in zip(given[one], given[other], strict=True))
        near = {at: min(results, key=lambda other: distance(at, other)) for at in given if at not in results}
        results |= {at: results[other] for at, other in near.items()}
    found = [x for x in results.values() if x is not None]
    values = numbers([0.0, *found]) if to_numbers else in_order(found)
    if not values:
        raise UserError(f'the function of "{name}" gives None for all that it is given; mend it')
    place = {round(x, DIGITS) if to_numbers else x: i for i, x in enumerate(values)}
    none = place[0.0] if to_numbers else len(values)
    number = lambda x: none if x is None else place[round(x, DIGITS) if to_numbers else x]
    return tuple(number(results.get(at)) for at in product(*map(range, sizes))), values


def predicate_table(name: str, predicate: Callable[[Any, Any], Any], keys: Values, queries: Values) -> tuple[bool, ...]:
    """A predicate as the table of a `siitjax.rasp.compute.Selector`: false where the key or the query is none.

    Raises:
        UserError: the table would be too large, or the predicate fails.

    Example:
        >>> predicate_table("before", lambda key, query: key < query, (0, 1), (0, 1))
        (False, False, False, True, False, False, False, False, False)
    """
    check_few(name, (len(keys) + 1) * (len(queries) + 1))
    found = []
    for query in queries:
        for key in keys:
            try:
                found.append(bool(predicate(key, query)))
            except Exception as error:
                said = f"{type(error).__name__}: {one_line(error)}"
                raise UserError(
                    f'the predicate that "{name}" selects by fails at key {key!r}, query {query!r} ({said}); mend it '
                    "there"
                ) from None
        found.append(False)
    return (*found, *(False for _ in range(len(keys) + 1)))


def check_few(name: str, count: int) -> None:
    """Raises UserError where an s-op would have too many values, or too large a table."""
    if count > MOST:
        raise UserError(
            f'"{name}" has {count:,} combinations of values, and {MOST:,} are the most; give a smaller vocabulary or '
            "max_seq_len"
        )
