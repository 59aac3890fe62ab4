"""Which way a metric gets better: one tiny value, used wherever that matters."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from ..errors import ExportValueError

Mode = Literal["min", "max"]


class Measured(Protocol):
    """What can be ranked: an `ExportRecord`."""

    @property
    def version(self) -> int:
        """Its number; of equals, the lower one is better."""

    def measured(self, monitor: str) -> float | None:
        """The value of a metric, None if it has none."""


Record = TypeVar("Record", bound=Measured)


@dataclass(frozen=True)
class Objective:
    """A metric and its direction.

    Args:
        monitor: the metric's name in Keras's logs, such as ``"val_loss"``.
        mode: ``"min"`` if lower is better, ``"max"`` if higher is.
    """

    monitor: str
    mode: Mode

    def __post_init__(self) -> None:
        if not isinstance(self.monitor, str) or not self.monitor:
            raise ExportValueError(
                f"Received monitor={self.monitor!r}. Expected the name of a metric, "
                "such as 'val_loss'."
            )
        if self.mode not in ("min", "max"):
            raise ExportValueError(
                f"Received mode={self.mode!r}. Expected 'min' (lower is better) or "
                "'max' (higher is better)."
            )

    def improves(self, value: float, best: float | None, min_delta: float = 0.0) -> bool:
        """Whether `value` is finite and better than `best` by more than `min_delta`."""
        if not math.isfinite(value):
            return False
        if best is None:
            return True
        return value < best - min_delta if self.mode == "min" else value > best + min_delta

    def ranked(self, records: Iterable[Record]) -> list[Record]:
        """The records that measured it, best first; of equals, the one published first."""
        return [record for _, _, record in sorted(self._ranks(records), key=_RANK)]

    def best(self, records: Iterable[Record]) -> Record | None:
        """The first of `ranked`, or None if there is none."""
        first = min(self._ranks(records), key=_RANK, default=None)
        return first[2] if first else None

    def _ranks(self, records: Iterable[Record]) -> Iterator[tuple[float, int, Record]]:
        sign = 1 if self.mode == "min" else -1
        for record in records:
            if (value := record.measured(self.monitor)) is not None:
                yield sign * value, record.version, record


_RANK = operator.itemgetter(0, 1)
