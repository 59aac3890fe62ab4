"""The kinds of places that versions may be in, and what others do there."""

from __future__ import annotations

import errno
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from keras_export_callbacks import ExportDirectory, ExportRecord
from keras_export_callbacks.archive.store.publish import publish_record
from keras_export_callbacks.archive.store.remote import RemotePath, VersionPath
from keras_export_callbacks.archive.store.staging import _release_in_child
from keras_export_callbacks.archive.store.store import Store, open_store

from .versions import FILES, a_record, file_infos, write_files

KINDS = ("local", "without rename", "memory")

_COUNT = itertools.count()


@dataclass(frozen=True)
class Place:
    """A base directory of one kind.

    Attributes:
        kind: one of `KINDS`.
        base: the base directory; it need not exist.
    """

    kind: str
    base: VersionPath

    @property
    def is_swept(self) -> bool:
        """Whether the next writer removes what a dead one did not finish."""
        return self.kind != "memory"

    def store(self) -> Store:
        """What a new writer or reader has."""
        return open_store(self.base)

    def directory(self) -> ExportDirectory:
        """What a new user has."""
        return ExportDirectory(self.base)

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        """Let this process see the place as what it is."""
        if self.kind == "without rename":
            refuse_renames(patch)
        # A process that ends loses nothing that it has written, so spare the disk thousands.
        patch.setattr(os, "fsync", lambda descriptor: None)

    def put(self, at: str, content: bytes) -> None:
        """Write or replace a file, as another program does."""
        path = self.base / at
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir()
            self.delete(at)  # Or `ram://` would append.
        path.write_bytes(content)

    def make(self, at: str) -> None:
        """Make an empty directory, as another program does."""
        path = self.base / at
        if isinstance(path, Path):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.mkdir()

    def delete(self, at: str) -> None:
        """Delete a file, if there is one, as another program does."""
        with suppress(FileNotFoundError):
            (self.base / at).unlink()

    def read(self, at: str) -> bytes:
        """What is in a file."""
        return (self.base / at).read_bytes()

    def contents(self, at: str = "") -> dict[str, bytes]:
        """All files below a directory, by relative path."""
        root = self.base / at if at else self.base
        if isinstance(root, RemotePath):
            return {name: (root / name).read_bytes() for name in root.files()}
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }


def place_of(kind: str) -> Place:
    """A place of that kind that no test before had."""
    if kind == "memory":  # What is in memory stays there.
        return Place(kind, RemotePath(f"ram://places/base-{next(_COUNT)}"))
    return Place(kind, Path("base").absolute())


def refuse_renames(patch: pytest.MonkeyPatch, error: int = errno.EXDEV) -> None:
    """Let directories stay where they are, as on some network file systems."""
    rename = os.rename

    def refusing(source: Any, target: Any) -> None:
        if os.path.isdir(source):
            raise OSError(error, "directories stay where they are")
        rename(source, target)

    patch.setattr(os, "rename", refusing)


def commit(
    store: Store,
    files: Mapping[str, bytes] = FILES,
    finish: Callable[[int], None] = lambda version: None,
) -> int:
    """Publish a version with these files, and no manifest."""
    with store.stage() as staged:
        write_files(staged, files)
        return store.commit(staged, finish)


def export(
    store: Store,
    files: Mapping[str, bytes] = FILES,
    check: Callable[[], None] = lambda: None,
    snapshot_time: float | None = None,
    **fields: Any,
) -> ExportRecord:
    """Publish a version with a manifest."""
    with store.stage() as staged:
        write_files(staged, files)
        record = a_record(0, path=staged, files=file_infos(files), **fields)
        return publish_record(staged, record, store, snapshot_time, check)


# Processes that end in the midst of their work.


class Crash(BaseException):
    """The process ends here: nothing that is meant to clean up gets to run."""


# The steps by which a place changes. Python tells its audit hooks of local ones.
_LOCAL_STEPS = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir"}
_REMOTE_STEPS = ("mkdir", "write_bytes", "upload", "unlink", "rmtree")

_on_step: Callable[[], None] | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _on_step is not None and (
        event in _LOCAL_STEPS or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR))
    ):
        _on_step()


def _remote_step(original: Callable[..., Any]) -> Callable[..., Any]:
    def step(*args: Any) -> Any:
        if _on_step is not None:
            _on_step()
        return original(*args)

    return step


sys.addaudithook(_hook)  # For good: it cannot be taken back, only told to be still.
for _name in _REMOTE_STEPS:
    setattr(RemotePath, _name, _remote_step(getattr(RemotePath, _name)))


@contextmanager
def before_each_step(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` before each step that changes a place; what it does itself is no step."""
    global _on_step

    def on_step() -> None:
        global _on_step
        _on_step = None
        try:
            act()
        finally:
            _on_step = on_step

    _on_step = on_step
    try:
        yield
    finally:
        _on_step = None


def crashes(
    place: Place, act: Callable[[], object], look: Callable[[], None] = lambda: None
) -> Iterator[int]:
    """Do `act`, crashing at its first step, then at its second, until it ends.

    After each crash another writer begins, and ends without publishing anything: else
    there would be more to sweep each time, and `act` would never come to its end.

    Args:
        place: where it is done.
        act: what a writer does.
        look: what a reader does before each step.
    """
    for count in itertools.count(1):
        try:
            with before_each_step(_crash_at(count, look)):
                act()
        except Crash:
            _release_in_child()  # As the kernel drops the locks of a process that died.
            look()
            with place.store().stage():
                pass
            yield count
        else:
            return


def _crash_at(count: int, look: Callable[[], None]) -> Callable[[], None]:
    steps = itertools.count(1)

    def step() -> None:
        number = next(steps)
        if number >= count:  # Nor does anything after it happen.
            raise Crash
        if number == count - 1:  # Those before it were looked at in an earlier turn.
            look()

    return step
