"""Which cases of a test run each time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_zoo(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """Cases for `parametrize`: `make test` runs those `kept`, and `make zoo` the others."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if case in kept else [pytest.mark.zoo],
        )
        for case in cases
    ]
