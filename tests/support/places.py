"""The kinds of places that versions may be in, and what others do there."""

from __future__ import annotations

import errno
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

from keras_export_callbacks import ExportDirectory, ExportRecord
from keras_export_callbacks.archive.store.buckets import claims, objects, store
from keras_export_callbacks.archive.store.publish import publish_record
from keras_export_callbacks.archive.store.remote import RemotePath, VersionPath
from keras_export_callbacks.archive.store.staging import _release_in_child
from keras_export_callbacks.archive.store.store import Store, open_store

from .object_stores import SERVERS
from .versions import FILES, a_record, file_infos, write_files

KINDS = ("local", "without rename", *SERVERS)


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
    def has_directories(self) -> bool:
        """Whether there may be an empty directory."""
        return self.kind not in SERVERS

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
        patch.setattr(sys.modules[__name__], "_is_local", self.kind not in SERVERS)
        if self.kind in SERVERS:
            for name, value in SERVERS[self.kind]().environment().items():
                patch.setenv(name, value)
            # One after the other, so that there is a first step, and a second.
            patch.setattr(store, "side_by_side", lambda jobs, width=8: [job() for job in jobs])
        # A process that ends loses nothing that it has written, so spare the disk thousands.
        patch.setattr(os, "fsync", lambda descriptor: None)

    def put(self, at: str, content: bytes) -> None:
        """Write or replace a file, as another program does."""
        if isinstance(self.base, Path):
            path = self.base / at
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(content)
        else:
            there, base = self._bucket
            there.put(f"{base}/{at}", content)

    def make(self, at: str) -> None:
        """Make an empty directory, as another program does; a bucket has none."""
        if isinstance(self.base, Path):
            (self.base / at).mkdir(parents=True, exist_ok=True)

    def delete(self, at: str) -> None:
        """Delete a file, if there is one, as another program does."""
        if isinstance(self.base, Path):
            (self.base / at).unlink(missing_ok=True)
        else:
            there, base = self._bucket
            there.delete([f"{base}/{at}"])

    def read(self, at: str) -> bytes:
        """What is in a file."""
        if isinstance(self.base, Path):
            return (self.base / at).read_bytes()
        there, base = self._bucket
        return there.read(f"{base}/{at}")[0]

    def contents(self, at: str = "") -> dict[str, bytes]:
        """All files below a directory, by relative path, but for marks of numbers."""
        if isinstance(self.base, Path):
            root = self.base / at
            return {
                path.relative_to(root).as_posix(): path.read_bytes()
                for path in sorted(root.rglob("*"))
                if path.is_file()
            }
        there, base = self._bucket
        key = f"{base}/{at}".rstrip("/")
        return {
            entry.key.removeprefix(f"{key}/"): there.read(entry.key)[0]
            for entry in there.below(key)
            if entry.size > 1 or not entry.key.startswith(f"{base}/{claims.CLAIMS}/")
        }

    @property
    def _bucket(self) -> tuple[objects.Bucket, str]:
        """Where it is, seen by another program, whose steps are none of ours."""
        found, key = objects.bucket_at(str(self.base))
        return _Other(found), key  # type: ignore[return-value]


class _Other:
    """A bucket, without `before_each_step`."""

    def __init__(self, real: objects.Bucket) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        method = getattr(objects.Bucket, name)
        return partial(getattr(method, "__wrapped__", method), self._real)


def place_of(kind: str) -> Place:
    """A place of that kind that no test before had."""
    if kind in SERVERS:
        return Place(kind, RemotePath(f"{SERVERS[kind]().bucket()}/some/base"))
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
_LOCAL_STEPS = {
    "os.mkdir",
    "os.rename",
    "os.link",
    "os.symlink",
    "os.remove",
    "os.rmdir",
    "os.utime",
}
_REMOTE_STEPS = ("create", "replace", "put", "copy", "delete")

_on_step: Callable[[], None] | None = None

# Whether the place is in the local file system; else steps there change nothing.
_is_local = True


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if (
        _on_step is not None
        and _is_local
        and (event in _LOCAL_STEPS or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)))
    ):
        _on_step()


def _remote_step(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def step(*args: Any) -> Any:
        if _on_step is not None:
            _on_step()
        return original(*args)

    return step


sys.addaudithook(_hook)  # For good: it cannot be taken back, only told to be still.
for _name in _REMOTE_STEPS:
    setattr(objects.Bucket, _name, _remote_step(getattr(objects.Bucket, _name)))


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


@contextmanager
def patched(module: Any, **values: Any) -> Iterator[None]:
    """Other values for names of a module, for the length of a ``with`` block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(module, name, value)
        yield


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
            with patched(claims, LEASE=-1.0, STAGING_LEASE=-1.0), place.store().stage():
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
