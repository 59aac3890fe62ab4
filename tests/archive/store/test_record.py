"""Manifests: whatever we write is read back, whatever others write is survived."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from support.manifests import (
    RECORDS,
    manifest,
    manifest_of,
)
from support.properties import untimed
from support.versions import a_record, write_version

from keras_export_callbacks import ExportError, ExportRecord
from keras_export_callbacks.archive.errors import DamagedVersionError
from keras_export_callbacks.archive.store.record import (
    MANIFEST,
    parse_record,
    read_record,
)
from keras_export_callbacks.archive.store.store import open_store


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
    optional.add("copied_from")
    given = {name for name in optional if getattr(record, name) is not None}
    given |= {name for name in ("withdrawn", "metadata") if getattr(record, name)}
    optional |= {"withdrawn", "metadata"}
    names = {field.name for field in fields(record)} - optional - {"path", "unread"}
    assert content.keys() == names | given


def test_the_keys_are_those_that_were_promised() -> None:
    assert list(manifest()) == [
        "schema", "version", "created", "epoch", "step", "reason", "monitor", "mode", "value",
        "metrics", "endpoints", "collections", "bytes", "graph_reused", "stall_seconds",
        "write_seconds", "libraries", "files", "weights", "parity", "trial", "execution",
        "attempt", "hyperparameters", "project", "metadata",
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
    optional |= {"metadata"}
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
