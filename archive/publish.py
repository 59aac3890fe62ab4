"""Staging → fsync → one rename; and what a dead process left, swept.

A version directory appears complete or not at all, because it is renamed into
place from ``.staging``, whose dot keeps model servers away. Writers exclude
each other with ``flock`` on the directories themselves: the kernel drops such
a lock when its process dies, so none is ever left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import ExportTypeError, ExportValueError, StorageError
from .files import sync, sync_tree
from .versions import next_version

STAGING = ".staging"


def local_path(path: str | os.PathLike[str]) -> Path:
    """`path` as an absolute one, the same wherever the process goes while it trains.

    Raises:
        ExportError: it is no path, or one where no version can be published.
    """
    text = path_text(path)
    if not text or "\0" in text:
        raise ExportValueError(f"Received {text!r}. Expected the name of a directory.")
    if is_url(text):
        raise ExportValueError(
            f"Received '{text}', which is not on a local file system. Expected a local or mounted "
            "directory, where a version can appear by one rename."
        )
    if special := _PATTERN.search(text):
        raise ExportValueError(
            f"Received '{text}'. Expected a path without {special[0]!r}: TensorFlow takes such a "
            "path for a pattern, and cannot load a SavedModel from there."
        )
    return Path(os.path.abspath(text))


def path_text(path: object, label: str = "") -> str:
    """The text of a path; `label` goes before it in the error.

    Raises:
        ExportTypeError: it is neither a str nor a path made of one.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ExportTypeError(
            f"Received {label}{path!r} of type {type(path)}. Expected a directory, as a str or "
            "Path."
        )
    return text


def is_url(text: str) -> bool:
    """Whether a path names a place that is not in the local file system."""
    return _URL.match(text) is not None


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PATTERN = re.compile(r"[*?\[\\]")


def check_base_dir(base_dir: Path, argument: str = "base_dir") -> None:
    """Raise unless `base_dir` is, or can become, a directory we can write to."""
    existing = base_dir
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not os.path.isdir(existing):
        raise ExportValueError(
            f"Received {argument}='{base_dir}', but '{existing}' is not a directory. "
            "Expected a directory, existing or to be made."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ExportValueError(
            f"Received {argument}='{base_dir}', but '{existing}' is not writable by this process. "
            "Expected a directory that can be written to."
        )
    longest = os.pathconf(existing, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in base_dir.parts):
        raise ExportValueError(
            f"Received {argument}='{base_dir}'. Expected names of at most {longest} bytes."
        )


class Workspace:
    """This writer's own corner of ``.staging``, which others leave alone while it lives.

    Args:
        base_dir: the base directory; made if it does not exist.
    """

    def __init__(self, base_dir: Path) -> None:
        self._staging = base_dir / STAGING
        sweep(base_dir)
        base_dir.mkdir(parents=True, exist_ok=True)
        # Until the lock is held, a writer that ends may remove `.staging`, and
        # a sweeper may take the new directory for abandoned. Then try again.
        while True:
            _make_staging(self._staging)
            self._path = self._staging / uuid.uuid4().hex
            with contextlib.suppress(FileNotFoundError):
                os.mkdir(self._path)
                self._lock = _Lock(self._path)
                if self._lock.is_on(self._path):
                    return
                self._lock.release()

    def stage(self) -> Path:
        """A new empty directory to write one version in."""
        path = self._path / uuid.uuid4().hex
        path.mkdir()
        return path

    def close(self) -> None:
        """Remove this corner and, if it was the last, ``.staging`` itself."""
        shutil.rmtree(self._path, ignore_errors=True)
        self._lock.release()
        with contextlib.suppress(OSError):
            self._staging.rmdir()


@contextlib.contextmanager
def workspace(base_dir: Path) -> Iterator[Workspace]:
    """A `Workspace` for the length of a ``with`` block."""
    opened = Workspace(base_dir)
    try:
        yield opened
    finally:
        opened.close()


def publish(staged: Path, base_dir: Path, finish: Callable[[int], None]) -> Path:
    """Rename a complete staged directory into the next version, and return its path.

    Args:
        staged: the complete version, on the same file system as `base_dir`.
        base_dir: where the version appears.
        finish: called with the version number before the rename, while no other
            writer can take it, to write what depends on it. If it raises,
            nothing is published.
    """
    sync_tree(staged)
    lock = _Lock(base_dir)
    try:
        while True:
            version = next_version(os.listdir(base_dir))
            finish(version)
            target = base_dir / str(version)
            # A version is never empty, and rename(2) replaces only an empty
            # directory: this cannot overwrite what someone published.
            try:
                os.rename(staged, target)
            except OSError:
                if os.path.lexists(target):
                    continue  # A writer that could not be locked out took the number.
                raise
            sync(base_dir)
            return target
    finally:
        lock.release()


def remove(version_dir: Path, space: Workspace) -> None:
    """Take a version out of the integer names by one rename, then delete it."""
    doomed = space.stage() / version_dir.name
    os.rename(version_dir, doomed)
    sync(version_dir.parent)
    # It is gone for everyone; what cannot be deleted now is swept later.
    shutil.rmtree(doomed.parent, ignore_errors=True)


def sweep(base_dir: Path) -> None:
    """Delete what dead writers left in ``.staging``; never what a live one uses."""
    staging = base_dir / STAGING
    try:
        names = [] if staging.is_symlink() else os.listdir(staging)
    except OSError:
        return  # There is none, or it was just removed.
    for path in (staging / name for name in names):
        if path.is_symlink():
            continue
        try:
            lock = _Lock(path, wait=False)
        except OSError:
            continue  # Its owner lives, or it went away: either way not ours to take.
        try:
            if lock.excludes and lock.is_on(path):
                shutil.rmtree(path)
        except OSError as error:
            warnings.warn(f"Could not remove the abandoned '{path}': {error}.", stacklevel=2)
        finally:
            lock.release()


class _Lock:
    """A lock on a directory, until it is released or this process ends.

    Args:
        path: the directory.
        wait: False raises BlockingIOError when another holds it.

    Attributes:
        excludes: False where the file system has no such locks.
    """

    def __init__(self, path: Path, wait: bool = True) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        _held.add(self)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            self.excludes = True
        except BlockingIOError:
            self.release()
            raise
        except OSError:
            self.excludes = False

    def is_on(self, path: Path) -> bool:
        """Whether `path` is still the directory that was locked."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let others have it."""
        if self in _held:
            _held.remove(self)
            os.close(self._descriptor)


_held: set[_Lock] = set()


def _release_in_child() -> None:
    for lock in list(_held):
        lock.release()


# A forked child has a share in each lock, and would hold it after this process
# died: a data loader's worker, say, while an export is written.
os.register_at_fork(after_in_child=_release_in_child)


def _make_staging(staging: Path) -> None:
    if staging.is_symlink():
        raise StorageError(
            f"'{staging}' is a symbolic link, from where versions may not be renamed. Remove it."
        )
    with contextlib.suppress(FileExistsError):
        os.mkdir(staging)
