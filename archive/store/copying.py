"""Publishing where a directory cannot be renamed: everything first, ``saved_model.pb`` last.

So it is in object stores and on some network file systems. There a version is
one as soon as its ``saved_model.pb`` is there, unless a removal of it began.
Everything goes through `tf.io.gfile`, which knows local directories as well.
"""

from __future__ import annotations

import contextlib
import platform
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import ExportValueError, StorageError
from .files import BLOCK, FileStat, relative_files
from .remote import RemotePath
from .staging import temporary_workspace
from .versions import REMOVED, SAVED_MODEL, UNFINISHED, Numbers, is_marker, is_version, parse

# Each writer marks what it is writing with a marker of its own, that tells its machine.
_OURS = f"{UNFINISHED}{re.sub('[^A-Za-z0-9]', '-', platform.node())}-"


class CopiedFiles:
    """What is below a directory that `tf.io.gfile` reads; a `Files`.

    Args:
        root: the directory.
    """

    def __init__(self, root: RemotePath) -> None:
        self.root = root

    def at(self, name: str) -> CopiedFiles:
        """A directory in this one."""
        return CopiedFiles(self.root / name)

    def names(self) -> list[str]:
        """What is in the directory."""
        try:
            return self.root.names()
        except FileNotFoundError:
            return []

    def files(self) -> list[str]:
        """Every file below the directory, by relative path."""
        return list(self.root.files())

    def stat(self, name: str) -> FileStat | None:
        """Size and identity of a file, None if there is none."""
        try:
            return (self.root / name).stat()
        except FileNotFoundError:
            return None

    def blocks(self, name: str) -> Iterator[bytes]:
        """The contents of a file, from its beginning."""
        return (self.root / name).blocks(BLOCK)

    def fetch(self, name: str, target: Path) -> None:
        """Give a local file the same contents."""
        (self.root / name).download(target)


class CopyingStore(CopiedFiles):
    """Versions at a URL, each copied there file by file; a `Store`."""

    def __init__(self, root: RemotePath) -> None:
        super().__init__(root)
        self._numbers = Numbers()

    def local_path(self, version: int) -> None:
        """None: nothing there can be linked."""

    def check(self) -> None:
        """Raise unless TensorFlow can write there."""
        try:
            self.root.mkdir()
        except OSError as error:
            raise ExportValueError(
                f"Received base_dir='{self.root}', where TensorFlow cannot write: {error}. "
                "Expected a URL that `tf.io.gfile` can write to, or a local directory."
            ) from error

    def names(self) -> list[str]:
        """What is in the base directory; numbers that are taken there are never given out."""
        names = super().names()
        self._numbers.see(names)
        return names

    def versions(self) -> list[int]:
        """The numbers of the versions that are there to stay, ascending."""
        numbers = filter(None, map(parse, self.names()))
        return sorted(number for number in numbers if self.has(number))

    def has(self, version: int) -> bool:
        """Whether there is this version."""
        try:
            return is_version((self.root / str(version)).names())
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """A local directory to write a version in."""
        self.root.mkdir()
        self.sweep()
        with temporary_workspace() as space:
            yield space.stage()

    def commit(self, staged: Path, finish: Callable[[int], None]) -> int:
        """Copy a complete staged directory to the next version, and return its number."""
        published = publish_by_copying(staged, self.root, finish, self._numbers)
        self._numbers.see([published.name])
        return int(published.name)

    def remove(self, version: int) -> None:
        """Delete a version."""
        remove_in_place(self.root / str(version))

    def sweep(self) -> None:
        """Finish the removals that dead writers began."""
        sweep_copies(self.root, is_alone=False)


def publish_by_copying(
    staged: Path,
    base_dir: RemotePath,
    finish: Callable[[int], None],
    numbers: Numbers,
    flush: Callable[[RemotePath], None] = lambda target: None,
) -> RemotePath:
    """Copy a complete staged directory to the next version, and return its path.

    Args:
        staged: the complete version.
        base_dir: where the version appears.
        finish: as for `Store.commit`.
        numbers: those that this writer has seen before.
        flush: called before the version appears, and once more after it.

    Raises:
        StorageError: what was written is not there.
    """
    target, marker = _claim(base_dir, numbers)
    try:
        finish(int(target.name))
        names = sorted(relative_files(staged))
        names.remove(SAVED_MODEL)
        for name in names:
            (target / name).upload(staged / name)
        for directory in (path for path in staged.rglob("*") if path.is_dir()):
            (target / directory.relative_to(staged).as_posix()).mkdir()
        _confirm(staged, target, names)
        flush(target)
        (target / SAVED_MODEL).upload(staged / SAVED_MODEL)
        # All of it: on a file system without locks another writer may have swept it away.
        _confirm(staged, target, [*names, SAVED_MODEL])
        flush(target)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_in_place(target)
        raise
    # It is published, whether or not this still succeeds.
    with contextlib.suppress(OSError):
        marker.unlink()
    return target


def remove_in_place(version_dir: RemotePath) -> None:
    """Delete a version where it is; from the first step on it is none any more.

    Raises:
        FileNotFoundError: there is nothing.
    """
    version_dir.names()
    (version_dir / f"{REMOVED}{uuid.uuid4().hex}").write_bytes(b"")
    parts = [name for name in version_dir.names() if not is_marker(name)]
    parts.sort(key=lambda name: name != SAVED_MODEL)  # So that no server loads the rest.
    for path in [*(version_dir / name for name in parts), version_dir]:
        with contextlib.suppress(FileNotFoundError):  # Another writer does the same.
            path.rmtree() if path.is_dir() else path.unlink()


def sweep_copies(base_dir: RemotePath, is_alone: bool) -> None:
    """Finish the removals that dead writers began, and remove what they did not finish writing.

    Args:
        base_dir: the base directory.
        is_alone: whether no other writer on this machine can be writing now. Nobody
            can tell of other machines, or in an object store: what was not finished
            there stays, and is no version.
    """
    for name in base_dir.names():
        if parse(name) is None:
            continue
        with contextlib.suppress(OSError):
            names = (base_dir / name).names()
            is_removed = any(item.startswith(REMOVED) for item in names)
            is_ours = all(item.startswith(_OURS) for item in names if is_marker(item))
            if is_removed or (is_alone and is_ours and not is_version(names)):
                remove_in_place(base_dir / name)
            elif is_version(names):
                for marker in filter(is_marker, names):
                    (base_dir / name / marker).unlink()


def _claim(base_dir: RemotePath, numbers: Numbers) -> tuple[RemotePath, RemotePath]:
    """The directory of the next version, which no other writer has, and our marker in it."""
    while True:
        base_dir.mkdir()
        target = base_dir / str(numbers.next(base_dir.names()))
        marker = target / f"{_OURS}{uuid.uuid4().hex}"
        target.mkdir()
        marker.write_bytes(b"")
        # Of two writers that do this at once, the later one sees both markers, or both do.
        if target.names() == [marker.name]:
            return target, marker
        marker.unlink()
        time.sleep(random.uniform(0, 0.1))


def _confirm(staged: Path, target: RemotePath, names: Iterable[str]) -> None:
    """Raise unless files are where they were copied to, in full."""
    for name in names:
        if (target / name).stat().size != (staged / name).stat().st_size:
            raise StorageError(f"'{target / name}' is not as long as it was written.")
