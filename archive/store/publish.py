"""Staging → fsync → one rename; and what a dead process left, swept.

A version directory appears complete or not at all, because it is renamed into
place from ``.staging``, whose dot keeps model servers away. Writers exclude
each other with ``flock`` on the directories themselves: the kernel drops such
a lock when its process dies, so none is ever left behind. Where directories
cannot be renamed, `copying` takes the place of the rename.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import StorageError
from .copying import publish_by_copying, remove_in_place, sweep_copies
from .files import sync, sync_tree
from .remote import RemotePath, VersionPath
from .versions import Numbers

STAGING = ".staging"

# Where staging is for base directories that are not local, begins with this.
_TEMPORARY = "keras-export-"

# How file systems say that they cannot rename a directory.
_NO_RENAME = {errno.EXDEV, errno.EMFILE, errno.ENOSYS, errno.ENOTSUP}


class Workspace:
    """This writer's own corner of ``.staging``, which others leave alone while it lives.

    Args:
        base_dir: the base directory; made if it does not exist.
    """

    _temporary: Path | None = None

    def __init__(self, base_dir: VersionPath) -> None:
        if isinstance(base_dir, RemotePath):
            base_dir.mkdir()
            sweep_copies(base_dir, is_alone=False)
            _sweep_temporary()
            base_dir = self._temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
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
                self._lock = _Lock(self._path)
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
            if self._temporary is not None:
                self._temporary.rmdir()


@contextlib.contextmanager
def workspace(base_dir: VersionPath) -> Iterator[Workspace]:
    """A `Workspace` for the length of a ``with`` block."""
    opened = Workspace(base_dir)
    try:
        yield opened
    finally:
        opened.close()


def publish(
    staged: Path,
    base_dir: VersionPath,
    finish: Callable[[int], None],
    numbers: Numbers | None = None,
) -> VersionPath:
    """Rename a complete staged directory into the next version, and return its path.

    Args:
        staged: the complete version, on the same file system as `base_dir` if
            that is local.
        base_dir: where the version appears.
        finish: called with the version number before the version appears, while
            no other writer can take it, to write what depends on it. If it
            raises, nothing is published.
        numbers: those that this writer has seen before.
    """
    numbers = numbers or Numbers()
    published = _publish(staged, base_dir, finish, numbers)
    numbers.see([published.name])
    return published


def _publish(
    staged: Path, base_dir: VersionPath, finish: Callable[[int], None], numbers: Numbers
) -> VersionPath:
    if isinstance(base_dir, RemotePath):
        return publish_by_copying(staged, base_dir, finish, numbers)
    sync_tree(staged)
    lock = _Lock(base_dir)
    try:
        while True:
            version = numbers.next(os.listdir(base_dir))
            finish(version)
            target = base_dir / str(version)
            # A version is never empty, and rename(2) replaces only an empty
            # directory: this cannot overwrite what someone published.
            try:
                os.rename(staged, target)
            except OSError as error:
                if os.path.lexists(target):
                    continue  # A writer that could not be locked out took the number.
                if error.errno in _NO_RENAME:
                    return _publish_without_rename(staged, base_dir, finish, numbers, lock)
                raise
            try:
                sync(base_dir)
            except OSError as error:
                warnings.warn(
                    f"Version {version} is published in '{base_dir}', but may be lost if the "
                    f"machine stops now: {error}.",
                    stacklevel=2,
                )
            return target
    finally:
        lock.release()


def _publish_without_rename(
    staged: Path, base_dir: Path, finish: Callable[[int], None], numbers: Numbers, lock: _Lock
) -> Path:
    def flush(target: RemotePath) -> None:
        sync_tree(Path(target))
        sync(base_dir)

    same = RemotePath(base_dir)
    sweep_copies(same, is_alone=lock.excludes)
    return Path(publish_by_copying(staged, same, finish, numbers, flush))


def remove(version_dir: VersionPath, space: Workspace) -> None:
    """Take a version out of the integer names by one rename, then delete it."""
    if isinstance(version_dir, RemotePath):
        remove_in_place(version_dir)
        return
    doomed = space.stage() / version_dir.name
    try:
        os.rename(version_dir, doomed)
    except OSError as error:
        if error.errno not in _NO_RENAME:
            raise
        remove_in_place(RemotePath(version_dir))
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


def _sweep_temporary() -> None:
    """`sweep` the temporary directories of writers to object stores."""
    for path in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        sweep(path)
        for left in (path / STAGING, path):
            with contextlib.suppress(OSError):  # Another's, or still in use, or not there.
                left.rmdir()


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
