"""Settings of the property tests."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# How long an example takes is the machine's affair.
untimed = settings(deadline=None)

# A walk through many states: a short one in each run of the tests, thousands on request.
stateful = settings(
    untimed,
    max_examples=2000 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 15,
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow],
)
