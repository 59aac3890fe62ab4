"""What counts as a number in an argument: Python's and NumPy's, but no bool."""

from __future__ import annotations

import numbers


def is_whole(value: object) -> bool:
    """Whether `value` is an integer."""
    return not isinstance(value, bool) and isinstance(value, numbers.Integral)


def is_real(value: object) -> bool:
    """Whether `value` is a real number, NaN and infinities included."""
    return not isinstance(value, bool) and isinstance(value, numbers.Real)
