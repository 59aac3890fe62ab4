"""Where a version is written before it is published, and what dead processes left there, swept.

Writers exclude each other with ``flock`` on the directories themselves: the
kernel drops such a lock when its process dies, so none is ever left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..errors import StorageError

STAGING = ".staging"

# How the directory is called that stands in for a base directory that is not local.
_TEMPORARY = "keras-export-"


class Workspace:
    """This writer's own corner of ``.staging``, which others leave alone while it lives.

    Args:
        base_dir: the base directory; made if it does not exist.
    """

    def __init__(self, base_dir: Path) -> None:
        self._staging = base_dir / STAGING
        sweep(base_dir)
        # Until the lock is held, a writer that ends may remove `.staging`, and
        # a sweeper may take the new directory for abandoned. Then try again.
        while True:
            base_dir.mkdir(parents=True, exist_ok=True)
            self._path = self._staging / uuid.uuid4().hex
            with contextlib.suppress(FileNotFoundError):
                _make_staging(self._staging)
                self._make()
                self._lock = Lock(self._path)
                if self._lock.is_on(self._path):
                    return
                self._lock.release()

    def _make(self) -> None:
        try:
            os.mkdir(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                self._staging.rmdir()
            raise

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


@contextlib.contextmanager
def temporary_workspace() -> Iterator[Workspace]:
    """A `Workspace` in a temporary directory, for a base directory that is not local."""
    _sweep_temporary()
    directory = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    try:
        with workspace(directory) as space:
            yield space
    finally:
        with contextlib.suppress(OSError):
            directory.rmdir()


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
            lock = Lock(path, wait=False)
        except OSError:
            continue  # Its owner lives, or it went away: either way not ours to take.
        try:
            if lock.excludes and lock.is_on(path):
                shutil.rmtree(path)
        except OSError as error:
            warnings.warn(f"Could not remove the abandoned '{path}': {error}.", stacklevel=2)
        finally:
            lock.release()


def _sweep_temporary() -> None:
    """`sweep` the temporary directories of writers to object stores."""
    for path in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        sweep(path)
        for left in (path / STAGING, path):
            with contextlib.suppress(OSError):  # Another's, or still in use, or not there.
                left.rmdir()


class Lock:
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


_held: set[Lock] = set()


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
