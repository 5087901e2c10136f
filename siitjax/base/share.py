"""Shares as the exact fractions that they are, and how they are shown.

What is compared with a goal is a `Fraction`, and so must the goal be: Python compares a Fraction with a float by the
binary number that the float holds, and that of 0.9999 lies above 9999/10000.
"""

from fractions import Fraction
from typing import Any

import numpy as np


def exact(number: Any) -> Fraction | None:
    """The fraction that a number stands for; None of None, and of nan.

    A float stands for the decimal that is written for it in its own precision, so that 0.57 is 57/100, and 0.9999 in
    float32 is 9999/10000.
    """
    if number is None or number != number:
        return None
    return number if isinstance(number, Fraction) else Fraction(str(np.asarray(number)[()]))


def percent(share: Any) -> str:
    """A share in percent, rounded down to two decimals; "-" where there is none.

    A whole percentage has no decimals where it is exact, so that 100 is all of them, and 99.99 not quite.
    """
    if (found := exact(share)) is None:
        return "-"
    hundredths = found * 10_000 // 1
    if hundredths == found * 10_000 and hundredths % 100 == 0:
        return f"{hundredths // 100}"
    whole, rest = divmod(abs(hundredths), 100)
    return f"{'-' if hundredths < 0 else ''}{whole}.{rest:02d}"
