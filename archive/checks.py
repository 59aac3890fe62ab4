"""Checks for numbers in arguments. Python's and NumPy's numbers count, but bools do not."""

from __future__ import annotations

import numbers


def is_whole(value: object) -> bool:
    """Return whether `value` is an integer, and not a bool."""
    return not isinstance(value, bool) and isinstance(value, numbers.Integral)


def is_real(value: object) -> bool:
    """Return whether `value` is a real number, and not a bool. NaN and infinities count."""
    return not isinstance(value, bool) and isinstance(value, numbers.Real)
