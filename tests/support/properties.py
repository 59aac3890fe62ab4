"""What property tests share."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes is the machine's affair.
untimed = settings(deadline=None)
