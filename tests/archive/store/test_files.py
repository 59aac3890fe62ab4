"""Bytes on disk: what is shared, and what must never be written through."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.versions import write_files

from keras_export_callbacks.archive.store.files import (
    KnownFile,
    link_or_copy,
    relative_files,
    sha256_of,
    sync,
)

SOURCE = Path("source")
TARGET = Path("target")


@pytest.fixture(params=["linked", "copied"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the file system can share bytes."""
    if request.param == "copied":

        def link(source: Any, target: Any, **kwargs: Any) -> None:
            raise OSError("Operation not supported")

        monkeypatch.setattr(os, "link", link)
    return str(request.param)


def test_the_target_has_the_contents(way: str) -> None:
    SOURCE.write_bytes(b"abc")
    link_or_copy(SOURCE, TARGET)
    assert TARGET.read_bytes() == b"abc"
    assert TARGET.samefile(SOURCE) == (way == "linked")


def test_a_link_stays_a_link(way: str) -> None:
    SOURCE.symlink_to("secret")
    Path("secret").write_bytes(b"secret")
    link_or_copy(SOURCE, TARGET)
    assert TARGET.readlink() == Path("secret")


def test_what_is_there_is_never_written_to() -> None:
    SOURCE.write_bytes(b"abc")
    TARGET.write_bytes(b"published")
    os.link(TARGET, "version")
    with pytest.raises(FileExistsError):
        link_or_copy(SOURCE, TARGET)
    assert Path("version").read_bytes() == b"published"


def test_a_known_file_is_shared_and_known_again(way: str) -> None:
    SOURCE.write_bytes(b"abc")
    known = KnownFile.at(SOURCE)
    shared = known.share(TARGET)
    assert shared.path == TARGET
    assert shared.info == known.info
    assert shared.is_intact()


def test_a_file_that_was_moved_changed_or_removed_is_not_intact() -> None:
    SOURCE.write_bytes(b"abc")
    known = KnownFile.at(SOURCE)
    assert known.is_intact()
    Path("other").mkdir()
    SOURCE.rename("other/source")
    assert not known.is_intact()
    assert known.moved(SOURCE.parent, Path("other")).is_intact()
    # As long as before: only the time of writing tells.
    os.utime("other/source", ns=(0, 0))
    assert not known.moved(SOURCE.parent, Path("other")).is_intact()


def test_relative_files_are_all_but_directories_and_no_link_is_followed() -> None:
    write_files(Path("root"), {"a": b"", "b/c": b"", "b/d/e": b""})
    Path("elsewhere").mkdir()
    Path("elsewhere/hidden").write_bytes(b"")
    Path("root/b/link").symlink_to(Path("elsewhere").resolve())
    Path("root/dangling").symlink_to("nowhere")
    Path("root/empty").mkdir()
    assert sorted(relative_files(Path("root"))) == ["a", "b/c", "b/d/e", "b/link", "dangling"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_what_a_file_system_cannot_flush_is_left_to_it(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "fsync", _failing(code))
    sync(Path.cwd())


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_what_was_lost_while_flushing_is_told(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "fsync", _failing(code))
    with pytest.raises(OSError, match=os.strerror(code)):
        sync(Path.cwd())


def _failing(code: int) -> Callable[[int], None]:
    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    return fsync


def test_a_digest_is_that_of_all_bytes() -> None:
    SOURCE.write_bytes(b"a" * (2**20 + 1))
    # From `sha256sum`.
    assert sha256_of(SOURCE) == ("4a3f0c0c213adea174f9a3d4c13177315b588bdb2e9c1012d3d0bf0453ca0f6a")
