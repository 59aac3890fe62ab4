"""When to export. Pure: a moment in, yes or no out; nothing here keeps state."""

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
        step: optimizer steps taken so far; None if nothing counts them.
        seconds: what a monotonic clock shows.
        epoch: the epoch, from 0; None outside epochs.
        metrics: the finite scalars in the logs.
        since: when training began to wait for this, by `time.perf_counter`.
    """

    step: int | None
    seconds: float
    epoch: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class EveryN:
    """Every `n` epochs, optimizer steps or seconds.

    Args:
        n: at least 1; seconds need not be whole.
        unit: ``"epoch"``, ``"batch"`` or ``"second"``.
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
        """What the manifest says about why."""
        return f"every {self.n} {self._units}" if self.n != 1 else f"every {self.unit}"

    def is_due(self, now: Moment, last: Moment) -> bool:
        """Whether to export now, when the last export, or the start, was at `last`.

        A step count may jump over the multiple of `n` it should stop at, when
        Keras runs several steps per execution; then the export is due at once.
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
    """When a metric is better than it ever was.

    Args:
        objective: the metric and its direction.
        min_delta: by how much more than this it must be better.
    """

    objective: Objective
    min_delta: float = 0.0

    reason = "improved"

    def is_due(self, now: Moment, best: float | None) -> bool:
        """Whether the metric is there and improves on `best`, if there is one."""
        value = now.metrics.get(self.objective.monitor)
        return value is not None and self.objective.improves(value, best, self.min_delta)
