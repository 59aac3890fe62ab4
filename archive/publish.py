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
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import ExportValueError
from .files import sync, sync_tree
from .versions import next_version

STAGING = ".staging"


def check_base_dir(base_dir: Path) -> None:
    """Raise unless `base_dir` is, or can become, a directory we can write to."""
    existing = base_dir
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise ExportValueError(
            f"Received base_dir='{base_dir}', but '{existing}' is not a directory. "
            "Expected a directory for versions, existing or to be made."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ExportValueError(
            f"Received base_dir='{base_dir}', but '{existing}' is not writable by this process. "
            "Expected a directory for versions that can be written to."
        )


class Workspace:
    """This writer's own corner of ``.staging``, which others leave alone while it lives.

    Args:
        base_dir: the base directory; made if it does not exist.
    """

    def __init__(self, base_dir: Path) -> None:
        self._base_dir = base_dir
        sweep(base_dir)
        while True:
            self._path = base_dir / STAGING / uuid.uuid4().hex
            self._path.mkdir(parents=True)
            with contextlib.suppress(FileNotFoundError):
                self._lock = _open_locked(self._path)
                if self._lock is None or _is_still(self._lock, self._path):
                    return
            # A sweeper came between mkdir and lock, and took it for abandoned.

    def stage(self) -> Path:
        """A new empty directory to write one version in."""
        path = self._path / uuid.uuid4().hex
        path.mkdir()
        return path

    def close(self) -> None:
        """Remove this corner and, if it was the last, ``.staging`` itself."""
        shutil.rmtree(self._path, ignore_errors=True)
        _unlock(self._lock)
        with contextlib.suppress(OSError):
            (self._base_dir / STAGING).rmdir()


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
    with _exclusive(base_dir):
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


def remove(version_dir: Path, space: Workspace) -> None:
    """Take a version out of the integer names by one rename, then delete it."""
    doomed = space.stage() / version_dir.name
    os.rename(version_dir, doomed)
    sync(version_dir.parent)
    shutil.rmtree(doomed.parent)


def sweep(base_dir: Path) -> None:
    """Delete what dead writers left in ``.staging``; never what a live one uses."""
    staging = base_dir / STAGING
    if staging.is_symlink() or not staging.is_dir():
        return
    for path in staging.iterdir():
        if path.is_symlink() or not path.is_dir():
            continue
        try:
            lock = _open_locked(path, wait=False)
        except OSError:
            continue  # Its owner lives, or it went away: either way not ours to take.
        try:
            if lock is not None:
                shutil.rmtree(path)
        except OSError as error:
            warnings.warn(f"Could not remove the abandoned '{path}': {error}.", stacklevel=2)
        finally:
            _unlock(lock)


@contextlib.contextmanager
def _exclusive(base_dir: Path) -> Iterator[None]:
    """Keep other writers of `base_dir` out for the length of a ``with`` block."""
    lock = _open_locked(base_dir)
    try:
        yield
    finally:
        _unlock(lock)


def _open_locked(path: Path, wait: bool = True) -> int | None:
    """Lock a directory; None where its file system has no such locks.

    Raises:
        BlockingIOError: another process holds it and `wait` is false.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        # A forked child may share the descriptor: unlock, do not only close.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _is_still(descriptor: int, path: Path) -> bool:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
