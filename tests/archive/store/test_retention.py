"""Which versions stay, against a model that counts instead of sorting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.properties import untimed
from support.versions import a_record

from keras_export_callbacks import ExportError, ExportRecord, KeepBest, KeepLatest
from keras_export_callbacks.archive.store.objective import Mode, Objective
from keras_export_callbacks.archive.store.retention import RetentionPolicy, as_policy, removals

# Few values, so that there are many equals.
VALUES = st.sampled_from([-1.0, 0.0, -0.0, 0.5, 2.0, math.nan, math.inf, -math.inf])
METRICS = st.dictionaries(st.sampled_from(["a", "b"]), VALUES)
MODES = st.sampled_from(["min", "max"])


@st.composite
def records(draw: st.DrawFn) -> list[ExportRecord]:
    versions = draw(st.lists(st.integers(1, 30), unique=True, max_size=12))
    return [
        a_record(
            version,
            metrics=draw(METRICS),
            monitor=draw(st.sampled_from([None, "", "a", "b"])),
            mode=draw(st.none() | MODES),
            value=draw(st.none() | VALUES),
            endpoints={},
            libraries={},
            files={},
            schema=draw(st.sampled_from([1, 1, 1, 2])),
            withdrawn=tuple(draw(st.sets(st.integers(1, 30), max_size=2))),
        )
        for version in versions
    ]


COUNTS = st.integers(1, 15)
SIMPLE = st.builds(KeepLatest, COUNTS) | st.builds(KeepBest, COUNTS, st.sampled_from("ab"), MODES)
POLICIES: st.SearchStrategy[RetentionPolicy] = st.recursive(
    SIMPLE, lambda policies: st.tuples(policies, policies).map(lambda pair: pair[0] | pair[1])
)


def measured(record: ExportRecord, monitor: str) -> float | None:
    own = record.monitor == monitor and record.value is not None
    value = record.value if own else record.metrics.get(monitor)
    return None if value is None or math.isnan(value) or math.isinf(value) else value


def is_latest(record: ExportRecord, n: int, among: Sequence[ExportRecord]) -> bool:
    return sum(other.version > record.version for other in among) < n


def is_best(
    record: ExportRecord, n: int, monitor: str, mode: str, among: Sequence[ExportRecord]
) -> bool:
    value = measured(record, monitor)
    if value is None:
        return False
    better = 0
    for other in among:
        theirs = measured(other, monitor)
        if theirs is not None:
            ahead = theirs < value if mode == "min" else theirs > value
            better += ahead or (theirs == value and other.version < record.version)
    return better < n


def counts(record: ExportRecord, among: Sequence[ExportRecord]) -> bool:
    """Whether no later version has withdrawn a version."""
    return not any(
        record.version in other.withdrawn and other.version > record.version for other in among
    )


def stays(record: ExportRecord, policy: RetentionPolicy, among: Sequence[ExportRecord]) -> bool:
    if isinstance(policy, KeepLatest):
        return is_latest(record, policy.n, among)
    if isinstance(policy, KeepBest):
        standing = [other for other in among if counts(other, among)]
        return record in standing and is_best(
            record, policy.n, policy.monitor, policy.mode, standing
        )
    return any(stays(record, each, among) for each in policy.policies)  # type: ignore[attr-defined]


def is_best_by_an_objective(record: ExportRecord, among: Sequence[ExportRecord]) -> bool:
    among = [other for other in among if counts(other, among)]
    if record not in among:
        return False
    for monitor, mode in {(other.monitor, other.mode) for other in among}:
        if monitor and mode:
            if is_best(record, 1, monitor, mode, among):
                return True
            own = [other for other in among if (other.monitor, other.mode) == (monitor, mode)]
            unmeasured = all(measured(other, monitor) is None for other in own)
            if record in own and (
                is_best(record, 1, monitor, mode, own) or (unmeasured and is_latest(record, 1, own))
            ):
                return True
    return False


@untimed
@given(POLICIES, records())
def test_policies_keep_what_the_model_keeps(
    policy: RetentionPolicy, among: list[ExportRecord]
) -> None:
    expected = {record.version for record in among if stays(record, policy, among)}
    assert policy.keeps(among) == expected


@untimed
@given(POLICIES, records())
def test_removals_spare_the_newest_and_the_best_by_their_own_objectives(
    policy: RetentionPolicy, among: list[ExportRecord]
) -> None:
    kept: set[int] = set()
    for record in sorted(among, key=lambda record: record.version):
        if (
            stays(record, policy, among)
            or record.is_newer
            or is_latest(record, 1, among)
            or is_best_by_an_objective(record, among)
        ):
            kept.add(record.version)
    # What a version has withdrawn would count again without it.
    while more := {
        record.version
        for record in among
        if record.version not in kept
        and any(version in kept for version in record.withdrawn if version < record.version)
    }:
        kept |= more
    assert removals(policy, among) == sorted({record.version for record in among} - kept)


@untimed
@given(POLICIES, POLICIES, records())
def test_a_version_stays_if_any_policy_keeps_it(
    one: RetentionPolicy, other: RetentionPolicy, among: list[ExportRecord]
) -> None:
    assert (one | other).keeps(among) == one.keeps(among) | other.keeps(among)


@untimed
@given(POLICIES, records())
def test_what_was_pruned_once_is_pruned(policy: RetentionPolicy, among: list[ExportRecord]) -> None:
    gone = removals(policy, among)
    assert removals(policy, [record for record in among if record.version not in gone]) == []


def test_keep_latest() -> None:
    assert removals(KeepLatest(2), [a_record(version) for version in (3, 10, 1, 7)]) == [1, 3]


@pytest.mark.parametrize(("mode", "kept"), [("min", {2, 4}), ("max", {1, 3})])
def test_keep_best(mode: Mode, kept: set[int]) -> None:
    values = {1: 3.0, 2: 1.0, 3: 3.0, 4: 2.0, 5: 3.0, 6: math.nan}
    among = [a_record(version, metrics={"m": value}) for version, value in values.items()]
    assert KeepBest(2, monitor="m", mode=mode).keeps(among) == kept


def test_the_best_by_an_objective_that_no_policy_names_stays() -> None:
    among = [
        a_record(version, monitor="val_loss", mode="min", value=value)
        for version, value in enumerate([0.5, 0.125, 0.25, 0.375], start=1)
    ]
    assert removals(KeepLatest(1), among) == [1, 3]


def test_what_was_rolled_back_is_not_the_best_any_more() -> None:
    best = KeepBest(1, monitor="m", mode="max")
    among = [a_record(version, metrics={"m": float(version)}) for version in (1, 2, 3)]
    rolled = [*among, a_record(4, metrics={"m": 1.0}, copied_from="1", withdrawn=(2, 3))]
    assert best.keeps(among) == {3}
    assert best.keeps(rolled) == {1}
    later = [*rolled, a_record(5), a_record(6)]
    assert removals(KeepLatest(2), later) == [1, 2, 3, 4]
    assert removals(KeepLatest(4), later) == [1, 2]  # 4 withdraws 3.


def test_the_version_of_a_rollback_stays_with_what_it_withdrew() -> None:
    class KeepThird(RetentionPolicy):
        def keeps(self, records: Sequence[ExportRecord]) -> set[int]:
            return {3}

    among = [a_record(version) for version in (1, 2, 3, 5)]
    among.append(a_record(4, copied_from="1", withdrawn=(3,)))
    assert removals(KeepThird(), among) == [1, 2]


def test_an_objective_is_not_forgotten_when_something_else_is_better() -> None:
    """As when `ExportEveryN` and `ExportOnImprove` write into one base directory."""
    among = [
        a_record(1, monitor="val_loss", mode="min", value=0.75),
        a_record(2, monitor="val_loss", mode="min", value=0.5),
        a_record(3, monitor="val_loss", mode="min", value=0.625),
        a_record(4, metrics={"val_loss": 0.25}),
        a_record(5, metrics={"val_loss": 0.375}),
        a_record(6, metrics={"val_loss": 1.0}),
    ]
    assert removals(KeepLatest(1), among) == [1, 3, 5]


def test_a_policy_that_keeps_nothing_leaves_the_newest() -> None:
    class KeepNothing(RetentionPolicy):
        def keeps(self, records: Sequence[ExportRecord]) -> set[int]:
            return set()

    assert removals(KeepNothing(), [a_record(1), a_record(2)]) == [1]
    assert removals(KeepNothing(), []) == []


@pytest.mark.parametrize("n", [0, -1, 1.0, True, "3", None])
def test_counts_are_checked(n: Any) -> None:
    with pytest.raises(ExportError, match=r"Received KeepLatest\(.* Expected the number of"):
        KeepLatest(n)
    with pytest.raises(ExportError, match=r"Received KeepBest\(.* Expected the number of"):
        KeepBest(n, "m", "min")


def test_the_objective_of_keep_best_is_checked() -> None:
    with pytest.raises(ExportError, match="Received mode='auto'"):
        KeepBest(1, "m", "auto")  # type: ignore[arg-type]


def test_keep_best_without_a_metric_takes_that_of_a_callback() -> None:
    policy = KeepLatest(2) | KeepBest(1)
    assert policy.needs_metric
    assert policy.monitors() == set()
    assert policy.bound(Objective("m", "max")) == KeepLatest(2) | KeepBest(1, "m", "max")
    named = KeepBest(1, "m", "max")
    assert not named.needs_metric
    assert named.bound(Objective("other", "min")) is named
    with pytest.raises(ExportError, match=r"Received KeepBest\(n=1, .*such as KeepBest"):
        removals(policy, [a_record(1)])
    with pytest.raises(ExportError, match="mode=None"):
        KeepBest(1, "m")


def test_what_keep_may_be() -> None:
    policy = KeepLatest(2) | KeepBest(1, "m", "max")
    assert as_policy(None) is None
    assert as_policy(3) == KeepLatest(3)
    assert as_policy(policy) is policy


@pytest.mark.parametrize("keep", [True, 2.0, "3", [KeepLatest(1)]])
def test_what_keep_may_not_be(keep: Any) -> None:
    with pytest.raises(ExportError, match=r"Received keep=.* Expected None"):
        as_policy(keep)


def test_policies_combine_only_with_policies() -> None:
    with pytest.raises(TypeError):
        KeepLatest(1) | 3  # type: ignore[operator]


def test_a_copy_does_not_count_beside_its_original() -> None:
    def record(version: int, value: float, **fields: Any) -> ExportRecord:
        return a_record(version, metrics={"m": value}, **fields)

    original, second, worse = record(1, 9.0), record(2, 8.0), record(3, 1.0)
    copy = record(4, 9.0, copied_from="1", withdrawn=(3,))
    policy = KeepBest(2, "m", "max")
    assert policy.keeps([original, second, worse, copy]) == {1, 2}
    # If the original was withdrawn or removed, the copy counts.
    assert policy.keeps([second, worse, copy]) == {2, 4}
    again = record(5, 9.0, copied_from="1", withdrawn=(1, 2, 3, 4))
    assert policy.keeps([original, second, worse, copy, again]) == {5}
    # A copy from another directory has a path, and not a number.
    assert policy.keeps([original, record(2, 9.5, copied_from="/other/1")]) == {1, 2}
