"""Which versions stay. Pure: records in, version numbers out.

A policy is a small frozen value answering one question, which versions it
keeps. Policies combine with ``|``: a version stays if any of them keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..checks import is_whole
from ..errors import ExportTypeError, ExportValueError
from .objective import Mode, Objective
from .record import ExportRecord


class RetentionPolicy:
    """What every policy is: a choice of versions, combined with ``|``."""

    def keeps(self, records: Sequence[ExportRecord]) -> set[int]:
        """The versions of `records` that must stay."""
        raise NotImplementedError

    def monitors(self) -> set[str]:
        """The metrics that the choice depends on."""
        return set()

    def __or__(self, other: RetentionPolicy) -> RetentionPolicy:
        if not isinstance(other, RetentionPolicy):
            return NotImplemented
        return KeepAny((self, other))


@dataclass(frozen=True)
class KeepLatest(RetentionPolicy):
    """Keep the `n` newest versions.

    Args:
        n: how many, at least 1.

    Example:

    >>> from keras_export_callbacks import KeepBest, KeepLatest
    >>> keep = KeepLatest(3) | KeepBest(1, monitor="val_loss", mode="min")
    """

    n: int

    def __post_init__(self) -> None:
        _check_count(self.n, "KeepLatest")

    def keeps(self, records: Sequence[ExportRecord]) -> set[int]:
        return set(sorted(record.version for record in records)[-self.n :])


@dataclass(frozen=True)
class KeepBest(RetentionPolicy):
    """Keep the `n` versions with the best value of a metric.

    Of equal values the older version counts as better. Versions whose manifest
    has no such metric are not kept by this policy.

    Args:
        n: how many, at least 1.
        monitor: the metric's name in the manifests, such as ``"val_loss"``.
        mode: ``"min"`` or ``"max"``.
    """

    n: int
    monitor: str
    mode: Mode

    def __post_init__(self) -> None:
        _check_count(self.n, "KeepBest")
        Objective(self.monitor, self.mode)

    def keeps(self, records: Sequence[ExportRecord]) -> set[int]:
        ranked = Objective(self.monitor, self.mode).ranked(records)
        return {record.version for record in ranked[: self.n]}

    def monitors(self) -> set[str]:
        return {self.monitor}


@dataclass(frozen=True)
class KeepAny(RetentionPolicy):
    """Keep what any of `policies` keeps; what ``|`` makes."""

    policies: tuple[RetentionPolicy, ...]

    def monitors(self) -> set[str]:
        return {name for policy in self.policies for name in policy.monitors()}

    def keeps(self, records: Sequence[ExportRecord]) -> set[int]:
        return set().union(*(policy.keeps(records) for policy in self.policies))


def as_policy(keep: int | RetentionPolicy | None) -> RetentionPolicy | None:
    """The policy that a `keep` argument stands for; None keeps everything."""
    if keep is None or isinstance(keep, RetentionPolicy):
        return keep
    if is_whole(keep):
        return KeepLatest(int(keep))
    raise ExportTypeError(
        f"Received keep={keep!r}. Expected None (keep all), an int (that many of the newest), "
        "or policies such as KeepLatest(3) | KeepBest(1, monitor='val_loss', mode='min')."
    )


def removals(policy: RetentionPolicy, records: Sequence[ExportRecord]) -> list[int]:
    """The versions that may go, oldest first.

    Never the newest, which a server is serving, and never the best by an
    objective that some version was exported for: "best" is read from the
    committed versions, so losing it would let a worse model count as a record.
    Nor one that a later version of this library wrote, which may know a reason
    to keep it.
    """
    kept = KeepAny((policy, KeepLatest(1))).keeps(records) | _bests(records)
    return sorted({record.version for record in records if not record.is_newer} - kept)


def _bests(records: Sequence[ExportRecord]) -> set[int]:
    """The best by each objective, and the best of the versions exported for it.

    Nearly always they are one. Where a version exported for another reason is
    better, the objective itself would be forgotten without the second.
    """
    bests = set()
    for objective in {objective for record in records if (objective := record.objective)}:
        own = [record for record in records if record.objective == objective]
        best = objective.best(records)
        best_own = objective.best(own) or max(own, key=lambda record: record.version)
        bests |= {record.version for record in (best, best_own) if record is not None}
    return bests


def _check_count(n: int, name: str) -> None:
    if not is_whole(n) or n < 1:
        raise ExportValueError(f"Received {name}({n!r}). Expected how many versions: an int ≥ 1.")
