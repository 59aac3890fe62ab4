"""Retention policies, which choose the versions to keep.

A policy takes the records of the versions and returns the numbers of those it keeps. It
reads no files. ``|`` combines policies: a version stays if any of them keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..checks import is_whole
from ..errors import ExportTypeError, ExportValueError
from .objective import Mode, Objective
from .record import ExportRecord, standing, withdrawn
from .versions import parse


class RetentionPolicy:
    """Base class of all retention policies. ``|`` combines two policies."""

    def keeps(self, records: Sequence[ExportRecord]) -> set[int]:
        """Return the numbers of the versions to keep.

        Args:
            records: The records of all versions.
        """
        raise NotImplementedError

    def monitors(self) -> set[str]:
        """Return the names of the metrics that the choice depends on."""
        return set()

    @property
    def needs_metric(self) -> bool:
        """Whether the policy takes its metric from a callback, by `bound`."""
        return False

    def bound(self, objective: Objective | None) -> RetentionPolicy:
        """Return this policy with the metric of a callback, where it names none.

        Args:
            objective: The metric that a version was exported for, or None.
        """
        return self

    def __or__(self, other: RetentionPolicy) -> RetentionPolicy:
        if not isinstance(other, RetentionPolicy):
            return NotImplemented
        return KeepAny((self, other))


@dataclass(frozen=True)
class KeepLatest(RetentionPolicy):
    """Keeps the `n` newest versions.

    Args:
        n: Int. The number of versions to keep, at least 1.

    Raises:
        ExportValueError: If `n` is not an int of at least 1.

    Examples:
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
    """Keeps the `n` versions with the best values of a metric.

    If two values are equal, the older version counts as better. This policy does not
    keep versions whose manifest lacks the metric, or that a rollback has withdrawn. A copy
    that a rollback has published does not count beside its original.

    Args:
        n: Int. The number of versions to keep, at least 1.
        monitor: String. The metric's name in the manifests, such as ``"val_loss"``. With
            None, `ExportOnImprove` takes the metric that it watches.
        mode: ``"min"`` if lower is better, or ``"max"`` if higher is better. Pass it
            together with `monitor`.

    Raises:
        ExportValueError: If an argument cannot be used.
    """

    n: int
    monitor: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        _check_count(self.n, "KeepBest")
        if self.monitor is not None or self.mode is not None:
            self._objective()

    @property
    def needs_metric(self) -> bool:
        return self.monitor is None

    def bound(self, objective: Objective | None) -> RetentionPolicy:
        if objective is None or not self.needs_metric:
            return self
        return KeepBest(self.n, objective.monitor, objective.mode)

    def keeps(self, records: Sequence[ExportRecord]) -> set[int]:
        ranked = self._objective().ranked(standing(records))
        originals = {record.version for record in ranked}
        # A rollback publishes a copy. The two have the same weights.
        others = [each for each in ranked if _original(each) not in originals]
        return {record.version for record in others[: self.n]}

    def monitors(self) -> set[str]:
        return set() if self.monitor is None else {self.monitor}

    def _objective(self) -> Objective:
        if self.monitor is None or self.mode is None:
            raise ExportValueError(
                f"Received {self!r}. Expected a metric and its direction, such as "
                f"KeepBest({self.n}, monitor='val_loss', mode='min'). Only `ExportOnImprove` has "
                "a metric that it can take."
            )
        return Objective(self.monitor, self.mode)


@dataclass(frozen=True)
class KeepAny(RetentionPolicy):
    """Keeps the versions that any of `policies` keeps. ``|`` returns a `KeepAny`.

    Args:
        policies: Tuple of retention policies.
    """

    policies: tuple[RetentionPolicy, ...]

    def monitors(self) -> set[str]:
        return {name for policy in self.policies for name in policy.monitors()}

    @property
    def needs_metric(self) -> bool:
        return any(policy.needs_metric for policy in self.policies)

    def bound(self, objective: Objective | None) -> RetentionPolicy:
        return KeepAny(tuple(policy.bound(objective) for policy in self.policies))

    def keeps(self, records: Sequence[ExportRecord]) -> set[int]:
        return set().union(*(policy.keeps(records) for policy in self.policies))


def as_policy(keep: int | RetentionPolicy | None, argument: str = "keep") -> RetentionPolicy | None:
    """Return the policy for a `keep` argument, or None to keep all versions.

    Args:
        keep: What the user has passed.
        argument: The name of the argument in the error message.

    Raises:
        ExportTypeError: If `keep` is neither None, an int nor a policy.
        ExportValueError: If `keep` is an int below 1.
    """
    if keep is None or isinstance(keep, RetentionPolicy):
        return keep
    if is_whole(keep):
        return KeepLatest(int(keep))
    raise ExportTypeError(
        f"Received {argument}={keep!r}. Expected None (keep all), an int (keep that many of the "
        "newest), or policies such as KeepLatest(3) | KeepBest(1, monitor='val_loss', mode='min')."
    )


def removals(policy: RetentionPolicy, records: Sequence[ExportRecord]) -> list[int]:
    """Return the versions to remove under a policy, oldest first.

    Some versions stay whatever the policy says:

    - The newest version, because a server serves it.
    - The best version by each objective that a version was exported for. The best value
      so far is read from the versions that exist. Without the best version, a worse value
      would count as the best.
    - The version that a rollback published, as long as a version that it withdrew stays.
      Without its manifest, the withdrawn version would count again.
    - Versions that a later version of this library wrote, because it may know a reason to
      keep them.

    Args:
        policy: The policy.
        records: The records of all versions.
    """
    kept = KeepAny((policy, KeepLatest(1))).keeps(records) | _bests(standing(records))
    kept |= {record.version for record in records if record.is_newer}
    for record in sorted(records, key=lambda record: record.version):
        if kept & withdrawn([record]):
            kept.add(record.version)
    return sorted({record.version for record in records} - kept)


def _bests(records: Sequence[ExportRecord]) -> set[int]:
    """Return the versions that must stay because they are the best by an objective.

    There are up to two for each objective: the best of all versions, and the best of the
    versions that were exported for this objective. Nearly always these are the same
    version. They differ if a version that was exported for another reason is better. The
    second one must stay too. Without it, no record would name the objective any more, and
    the best version could be removed.
    """
    bests = set()
    for objective in {objective for record in records if (objective := record.objective)}:
        own = [record for record in records if record.objective == objective]
        best = objective.best(records)
        best_own = objective.best(own) or max(own, key=lambda record: record.version)
        bests |= {record.version for record in (best, best_own) if record is not None}
    return bests


def _original(record: ExportRecord) -> int | None:
    """Return the version in the same directory that a record is a copy of, or None."""
    return parse(record.copied_from or "")


def _check_count(n: int, name: str) -> None:
    if not is_whole(n) or n < 1:
        raise ExportValueError(
            f"Received {name}(n={n!r}). Expected the number of versions to keep, as an int of at "
            "least 1."
        )
