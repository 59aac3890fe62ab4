"""`verify` finds every byte that is not what was published, and says where."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.properties import untimed
from support.versions import (
    FILES,
    write_files,
    write_version,
)

from keras_export_callbacks import ExportDirectory
from keras_export_callbacks.archive.store.local import LocalFiles
from keras_export_callbacks.archive.store.record import MANIFEST, MANIFEST_DIGEST

BASE = Path("base")


@pytest.fixture
def base() -> ExportDirectory:
    """A base directory with the versions 1, 2 and 3."""
    for version in (1, 2, 3):
        write_version(BASE, version, metrics={"m": float(version % 3)})
    return ExportDirectory(BASE)


BYTES = [(name, place) for name, content in FILES.items() for place in range(len(content))]


@settings(untimed, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(BYTES), st.integers(1, 255))
@example(("saved_model.pb", 0), 1)
def test_every_changed_byte_is_found(
    base: ExportDirectory, place: tuple[str, int], change: int
) -> None:
    name, offset = place
    content = bytearray(FILES[name])
    content[offset] ^= change
    try:
        (BASE / "1" / name).write_bytes(content)
        assert base.verify(1) == [f"'{name}' has other contents than were published"]
    finally:
        (BASE / "1" / name).write_bytes(FILES[name])


@pytest.mark.parametrize("name", [MANIFEST, MANIFEST_DIGEST])
def test_every_changed_byte_of_the_manifest_is_found(base: ExportDirectory, name: str) -> None:
    path = BASE / "1" / name
    published = path.read_bytes()
    for offset in range(len(published)):
        path.write_bytes(
            published[:offset] + bytes([published[offset] ^ 1]) + published[offset + 1 :]
        )
        assert any("export.json" in problem for problem in ExportDirectory(BASE).verify(1))


def test_a_digest_of_any_size_is_found_without_reading_it(base: ExportDirectory) -> None:
    os.truncate(BASE / "1" / MANIFEST_DIGEST, 2**40)  # A hole, which takes no space.
    assert base.verify(1) == [
        f"'{MANIFEST}' or '{MANIFEST_DIGEST}' has other contents than were published"
    ]


def test_a_manifest_without_its_digest_is_found(base: ExportDirectory) -> None:
    (BASE / "1" / MANIFEST_DIGEST).unlink()
    assert base.verify(1) == [f"'{MANIFEST_DIGEST}' is missing"]


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_grew_or_shrank_is_found(base: ExportDirectory, name: str) -> None:
    published = len(FILES[name])
    for size in {published + 1, max(published - 1, 0), 0} - {published}:
        (BASE / "1" / name).write_bytes((FILES[name] + b"!")[:size])
        assert base.verify(1) == [f"'{name}' has {size} bytes, {published} were published"]


@pytest.mark.parametrize("name", FILES)
def test_every_missing_file_is_found(base: ExportDirectory, name: str) -> None:
    (BASE / "1" / name).unlink()
    assert base.verify(1) == [f"'{name}' is missing"]


@pytest.mark.parametrize(
    "name",
    ["new", "variables/new", "a/b/new", ".hidden", "assets.extra/x", ".unfinished-x/new"],
)
def test_every_added_file_is_found(base: ExportDirectory, name: str) -> None:
    write_files(BASE / "1", {name: b""})
    assert base.verify(1) == [f"'{name}' was added"]


def test_what_poses_as_a_writers_marker_is_found(base: ExportDirectory) -> None:
    (BASE / "1" / ".unfinished-x").write_bytes(b"")
    assert base.verify(1) == []
    (BASE / "1" / ".unfinished-x").write_bytes(b"content")
    assert base.verify(1) == ["'.unfinished-x' was added"]


def test_names_that_are_not_utf8_are_told_so_that_they_can_be_printed(
    base: ExportDirectory,
) -> None:
    Path(BASE, "1", os.fsdecode(b"\xff")).write_bytes(b"")
    assert base.verify(1) == [r"'\udcff' was added"]


@pytest.mark.parametrize("name", FILES)
def test_a_link_in_place_of_a_file_is_found(base: ExportDirectory, name: str) -> None:
    path = BASE / "1" / name
    path.symlink_to(path.rename("same_contents").resolve())
    assert base.verify(1) == [f"'{name}' is not a regular file"]


def test_a_link_in_place_of_a_directory_is_found(base: ExportDirectory) -> None:
    path = BASE / "1" / "variables"
    path.symlink_to(path.rename("same_contents").resolve())
    assert base.verify(1) == [
        "'variables' was added",
        "'variables/variables.data-00000-of-00001' is missing",
        "'variables/variables.index' is missing",
    ]


def test_a_pipe_in_place_of_a_file_is_found(base: ExportDirectory) -> None:
    (BASE / "1" / "saved_model.pb").unlink()
    os.mkfifo(BASE / "1" / "saved_model.pb")
    assert base.verify(1) == ["'saved_model.pb' is not a regular file"]


def test_all_problems_are_told(base: ExportDirectory) -> None:
    (BASE / "1" / "saved_model.pb").unlink()
    (BASE / "1" / "fingerprint.pb").write_bytes(b"")
    write_files(BASE / "1", {"new": b""})
    assert base.verify(1) == [
        "'fingerprint.pb' has 0 bytes, 13 were published",
        "'new' was added",
        "'saved_model.pb' is missing",
    ]


def test_a_file_that_cannot_be_read_is_a_problem(
    base: ExportDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(files: LocalFiles, name: str) -> Iterator[bytes]:
        if name.startswith("assets.extra/export"):
            return original(files, name)
        raise OSError(5, "Input/output error", name)

    original = LocalFiles.blocks
    monkeypatch.setattr(LocalFiles, "blocks", broken)
    assert "'saved_model.pb' cannot be read: Input/output error" in base.verify(1)


def test_a_marker_that_its_writer_removes_meanwhile_is_no_problem(
    base: ExportDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = LocalFiles.files
    monkeypatch.setattr(LocalFiles, "files", lambda self: [*files(self), ".unfinished-0"])
    assert base.verify(1) == []
