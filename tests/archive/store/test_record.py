"""Manifests: whatever we write is read back, whatever others write is survived."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.properties import untimed
from support.versions import a_record, write_version

from keras_export_callbacks import ExportError, ExportRecord
from keras_export_callbacks.archive.errors import DamagedVersionError
from keras_export_callbacks.archive.store.files import FileInfo
from keras_export_callbacks.archive.store.record import (
    MANIFEST,
    EndpointInfo,
    ParityInfo,
    Scalar,
    TensorInfo,
    parse_record,
    read_record,
)
from keras_export_callbacks.archive.store.store import open_store

INTS = st.integers(-(2**63), 2**63 - 1)


FLOATS = st.floats(allow_nan=False, allow_infinity=False)


SECONDS = st.floats(0, allow_infinity=False)


NAMES = st.text(max_size=8) | st.binary(max_size=8).map(os.fsdecode)


SCALARS: st.SearchStrategy[Scalar] = st.one_of(st.none(), st.booleans(), INTS, FLOATS, NAMES)


SHAPES = st.none() | st.lists(st.none() | INTS, max_size=3).map(tuple)


TENSORS = st.dictionaries(NAMES, st.builds(TensorInfo, SHAPES, NAMES), max_size=2)


RECORDS = st.builds(
    a_record,
    version=st.integers(1, 2**63 - 1),
    created=NAMES,
    epoch=st.none() | INTS,
    step=st.none() | INTS,
    reason=NAMES,
    monitor=st.none() | NAMES,
    mode=st.sampled_from([None, "min", "max"]),
    value=st.none() | FLOATS,
    metrics=st.dictionaries(NAMES, FLOATS, max_size=3),
    endpoints=st.dictionaries(NAMES, st.builds(EndpointInfo, TENSORS, TENSORS), max_size=2),
    collections=st.dictionaries(NAMES, INTS, max_size=2),
    bytes=st.integers(0, 2**63 - 1),
    graph_reused=st.booleans(),
    stall_seconds=SECONDS,
    write_seconds=SECONDS,
    libraries=st.dictionaries(NAMES, NAMES, max_size=2),
    files=st.dictionaries(NAMES, st.builds(FileInfo, INTS, NAMES), max_size=2),
    weights=st.sampled_from(["current", "validated"]),
    parity=st.none()
    | st.builds(ParityInfo, FLOATS, FLOATS, st.dictionaries(NAMES, FLOATS, max_size=2)),
    trial=st.none() | NAMES,
    execution=st.none() | INTS,
    attempt=st.none() | INTS,
    project=st.none() | NAMES,
    hyperparameters=st.none() | st.dictionaries(NAMES, SCALARS, max_size=3),
)


@contextmanager
def manifest_of(version: int, content: bytes) -> Iterator[Path]:
    """The directory of a version that holds nothing but a manifest with this content."""
    with tempfile.TemporaryDirectory() as base:
        path = Path(base, str(version), MANIFEST)
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        yield path.parents[1]


def manifest(**changes: Any) -> dict[str, Any]:
    """The content of a valid manifest of version 1, with changes."""
    tuner = {"trial": "00", "execution": 0, "attempt": 0, "project": "search"}
    tuner["hyperparameters"] = {"units": 8}
    parity = ParityInfo(0.1, 0.2, {"serve/output_0": 0.0})
    record = a_record(value=0.5, metrics={"m": 0.5}, parity=parity, **tuner)
    content: dict[str, Any] = json.loads(record.to_json())
    return content | changes


@untimed
@given(RECORDS)
def test_what_is_written_is_read_back(record: ExportRecord) -> None:
    with manifest_of(record.version, record.to_json().encode()) as version_dir:
        assert read_record(open_store(version_dir)) == replace(record, path=version_dir)


@untimed
@given(RECORDS)
def test_manifests_are_strict_json_and_the_schema_comes_first(record: ExportRecord) -> None:
    content = json.loads(record.to_json(), parse_constant=pytest.fail)
    assert list(content)[:2] == ["schema", "version"]
    assert content["schema"] == record.schema == 1
    optional = {"parity", "trial", "execution", "attempt", "hyperparameters", "project"}
    given = {name for name in optional if getattr(record, name) is not None}
    names = {field.name for field in fields(record)} - optional - {"path", "unread"}
    assert content.keys() == names | given


def test_the_keys_are_those_that_were_promised() -> None:
    assert list(manifest()) == [
        "schema", "version", "created", "epoch", "step", "reason", "monitor", "mode", "value",
        "metrics", "endpoints", "collections", "bytes", "graph_reused", "stall_seconds",
        "write_seconds", "libraries", "files", "weights", "parity", "trial", "execution",
        "attempt", "hyperparameters", "project",
    ]  # fmt: skip


class Index:
    """An integer that is no int, as NumPy's are."""

    def __index__(self) -> int:
        return 7


def test_other_integers_are_written_as_integers() -> None:
    record = a_record(step=Index())
    assert parse_record(record.to_json().encode(), record.path).step == 7


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_written(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        a_record(metrics={"m": number}).to_json()


# Every key that a record has, with a value that no schema 1 has.
CHANGED = {key: ["changed"] for key in manifest() if key not in ("schema", "version")}


@pytest.mark.parametrize("key", CHANGED)
@pytest.mark.parametrize("is_removed", [False, True])
def test_of_a_newer_schema_all_counts_that_can_be_read(key: str, is_removed: bool) -> None:
    content = manifest(schema=2, novelty=1) | {key: CHANGED[key]}
    if is_removed:
        del content[key]
    record = parse_record(json.dumps(content).encode(), Path("base", "1"))
    optional = {"weights", "parity", "trial", "execution", "attempt", "hyperparameters", "project"}
    assert record.is_newer
    assert record.unread == (() if is_removed and key in optional else (key,))
    whole = parse_record(json.dumps(manifest(schema=2)).encode(), Path("base", "1"))
    assert record == replace(whole, **{key: getattr(record, key)})
    assert not getattr(record, key) or (key, record.weights) == ("weights", "current")


def test_of_newer_metrics_the_numbers_count() -> None:
    metrics = {"loss": 0.5, "steps": 3, "confusion": [[1, 2]], "good": True, "huge": 10**400}
    content = json.dumps(manifest(schema=2, metrics=metrics, value="low")).encode()
    record = parse_record(content, Path("base", "1"))
    assert record.metrics == {"loss": 0.5, "steps": 3.0}
    assert record.measured("loss") == 0.5
    assert record.unread == ("value", "metrics")


def test_a_record_of_this_schema_is_not_newer() -> None:
    assert not a_record().is_newer


@pytest.mark.parametrize("name", ["01", "+1", "1 ", "one"])
def test_a_copy_of_a_version_may_be_called_anything(name: str) -> None:
    version_dir = write_version(Path("base"), 1).rename(Path("base", name))
    assert read_record(open_store(version_dir)).version == 1


def test_a_version_does_not_bear_the_number_of_another() -> None:
    version_dir = write_version(Path("base"), 1).rename(Path("base", "2"))
    with pytest.raises(DamagedVersionError, match="it says version 1, but its directory is"):
        read_record(open_store(version_dir))


def test_a_version_without_a_manifest_is_not_ours() -> None:
    Path("base", "1", "assets.extra").mkdir(parents=True)
    for missing in (Path("base", "1"), Path("base", "2")):
        with pytest.raises(FileNotFoundError):
            read_record(open_store(missing))


def linked_file(path: Path) -> None:
    path.symlink_to(path.rename("elsewhere"))


def linked_directory(path: Path) -> None:
    path.parent.symlink_to(path.parent.rename("elsewhere"))


def dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def file_for_its_directory(path: Path) -> None:
    path.unlink()
    for other in path.parent.iterdir():
        other.unlink()
    path.parent.rmdir()
    path.parent.write_text("")


@pytest.mark.parametrize(
    "replace_by",
    [linked_file, linked_directory, dangling_link, pipe, directory, file_for_its_directory],
)
def test_a_manifest_is_a_regular_file_of_its_version(replace_by: Callable[[Path], None]) -> None:
    version_dir = write_version(Path.cwd(), 1)
    replace_by(version_dir / MANIFEST)
    with pytest.raises(DamagedVersionError, match=r"not a regular file|cannot be read"):
        read_record(open_store(version_dir))


def test_damage_is_an_error_of_ours() -> None:
    assert issubclass(DamagedVersionError, ExportError)
