"""Triggers, which say whether to export at a moment in training. They keep no state."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from .archive.checks import is_real, is_whole
from .archive.errors import ExportValueError
from .archive.store.objective import Objective

Unit = Literal["epoch", "batch", "second"]


@dataclass(frozen=True)
class Moment:
    """A point in training at which an export may be made.

    Attributes:
        step: Int. The number of optimizer steps taken. None if nothing counts them.
        seconds: Float. The time of a monotonic clock, in seconds.
        epoch: Int. The index of the epoch, from 0. None outside epochs.
        metrics: Dict. The finite scalars in the logs, by name.
        since: Float. When training began to wait for the export, by
            `time.perf_counter`.
    """

    step: int | None
    seconds: float
    epoch: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class EveryN:
    """Exports every `n` epochs, optimizer steps or seconds.

    Args:
        n: Int, or with the unit ``"second"`` also float. A positive number.
        unit: String. ``"epoch"``, ``"batch"`` or ``"second"``.
    """

    n: float
    unit: Unit = "epoch"

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ExportValueError(
                f"Received unit={self.unit!r}. Expected 'epoch', 'batch' or 'second'."
            )
        is_right = is_real if self.unit == "second" else is_whole
        if not is_right(self.n) or not 0 < self.n < 2**63:
            kind = "number" if self.unit == "second" else "int"
            raise ExportValueError(
                f"Received n={self.n!r}. Expected a positive {kind}: how many {self._units} from "
                "one export to the next."
            )

    @property
    def reason(self) -> str:
        """The `reason` in the manifest."""
        return f"every {self.n} {self._units}" if self.n != 1 else f"every {self.unit}"

    def is_due(self, now: Moment, last: Moment) -> bool:
        """Return whether to export now.

        If Keras runs several steps per execution, the step count may jump over a
        multiple of `n`. Then the export is due at the first moment after it.

        Args:
            now: The current moment.
            last: The moment of the last export, or of the start of training.
        """
        if self.unit == "second":
            return now.seconds - last.seconds >= self.n
        if self.unit == "batch":
            if now.step is None or last.step is None:
                return False
            return now.step // self.n > last.step // self.n
        return now.epoch is not None and (now.epoch + 1) % self.n == 0

    @property
    def _units(self) -> str:
        return "batches" if self.unit == "batch" else f"{self.unit}s"


@dataclass(frozen=True)
class OnImprove:
    """Exports when a metric is better than the best value so far.

    Args:
        objective: The metric and its direction.
        min_delta: Float. The metric must be better by more than this.
    """

    objective: Objective
    min_delta: float = 0.0

    reason = "improved"

    def is_due(self, now: Moment, best: float | None) -> bool:
        """Return whether the metric is there and is better than `best`, which may be None."""
        value = now.metrics.get(self.objective.monitor)
        return value is not None and self.objective.improves(value, best, self.min_delta)
