"""The directories in which versions are written before they are published.

Each writer has a directory of its own, and locks it with ``flock``. The kernel releases
the lock when the process dies. The next writer then finds the directory unlocked, and
deletes it.
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

# The prefix of the names of temporary directories. They are used if the base directory is not
# local.
_TEMPORARY = "keras-export-"


class Workspace:
    """A writer's own directory in ``.staging``. Other writers leave it alone while it is open.

    Args:
        base_dir: The base directory. It is made if it does not exist.

    Raises:
        StorageError: If ``.staging`` is a symbolic link.
        OSError: If the directory cannot be made.
    """

    def __init__(self, base_dir: Path) -> None:
        self._staging = base_dir / STAGING
        sweep(base_dir)
        # Before this writer holds the lock, a writer that ends may remove `.staging`. Another
        # one may also sweep the new directory, as if it were abandoned. Both cases need
        # another try.
        while True:
            try:
                base_dir.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                if os.path.lexists(base_dir) and not base_dir.is_dir():
                    raise
                continue  # Another writer swept it, while it was empty.
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
        """Return a new empty directory to write one version in."""
        path = self._path / uuid.uuid4().hex
        path.mkdir()
        return path

    def close(self) -> None:
        """Remove this directory, and also ``.staging`` if it is then empty."""
        shutil.rmtree(self._path, ignore_errors=True)
        self._lock.release()
        with contextlib.suppress(OSError):
            self._staging.rmdir()


@contextlib.contextmanager
def workspace(base_dir: Path) -> Iterator[Workspace]:
    """Open a `Workspace` for the length of a ``with`` block."""
    opened = Workspace(base_dir)
    try:
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def temporary_workspace() -> Iterator[Workspace]:
    """Open a `Workspace` in a temporary directory, for a base directory that is not local."""
    _sweep_temporary()
    directory = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    try:
        with workspace(directory) as space:
            yield space
    finally:
        with contextlib.suppress(OSError):
            directory.rmdir()


def sweep(base_dir: Path) -> None:
    """Delete what dead writers left in ``.staging``. Live writers keep their directories."""
    staging = base_dir / STAGING
    try:
        names = [] if staging.is_symlink() else os.listdir(staging)
    except OSError:
        return  # `.staging` does not exist, was just removed, or cannot be read.
    for path in (staging / name for name in names):
        if path.is_symlink():
            continue
        try:
            lock = Lock(path, wait=False)
        except OSError:
            continue  # Its writer is alive, or the directory was just removed.
        try:
            if lock.excludes and lock.is_on(path):
                shutil.rmtree(path)
        except OSError as error:
            warnings.warn(
                f"Could not remove the abandoned directory '{path}': {error}.", stacklevel=2
            )
        finally:
            lock.release()


def _sweep_temporary() -> None:
    """Sweep the temporary directories of dead writers, and remove those that are empty."""
    for path in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        sweep(path)
        for left in (path / STAGING, path):
            # It may belong to another user, be in use, or be gone already.
            with contextlib.suppress(OSError):
                left.rmdir()


class Lock:
    """A lock on a directory. It lasts until it is released or the process ends.

    Args:
        path: The directory.
        wait: Bool. With True, wait until the lock is free.

    Attributes:
        excludes: Whether the lock keeps other writers out. It is False if the file system
            does not support such locks.

    Raises:
        BlockingIOError: If another writer holds the lock and `wait` is False.
        OSError: If the directory cannot be opened.
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
        """Return whether `path` is still the directory that was locked."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Release the lock. A second call does nothing."""
        if self in _held:
            _held.remove(self)
            os.close(self._descriptor)


_held: set[Lock] = set()


def _release_in_child() -> None:
    for lock in list(_held):
        lock.release()


# A forked child shares the locks. A data loader's worker, for example, may be forked while an
# export is written. Without this, it would still hold the locks after this process died.
os.register_at_fork(after_in_child=_release_in_child)


def _make_staging(staging: Path) -> None:
    if staging.is_symlink():
        raise StorageError(
            f"'{staging}' is a symbolic link. Expected a directory, from which versions can be "
            "renamed. Remove it."
        )
    with contextlib.suppress(FileExistsError):
        os.mkdir(staging)
