"""The store in a local or mounted directory.

A version is written in ``.staging``, flushed to the disk, and then renamed into place.
Therefore it appears complete or not at all. Model servers ignore ``.staging``, because its
name is not a number. Where directories cannot be renamed, `copying` replaces the rename.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..errors import ExportValueError
from .copying import publish_by_copying, remove_in_place, sweep_copies
from .files import (
    FileInfo,
    FileStat,
    Identity,
    blocks_of,
    clear_errors,
    first_bytes,
    identity_of,
    link_or_copy,
    relative_files,
    sync,
    sync_tree,
)
from .staging import STAGING, Lock, Workspace, sweep, workspace
from .versions import (
    MANIFEST,
    SAVED_MODEL,
    Numbers,
    claimed,
    counted_as_version,
    is_version,
    parse,
)

# The errors of file systems that cannot rename a directory.
_NO_RENAME = {errno.EXDEV, errno.EMFILE, errno.ENOSYS, errno.ENOTSUP}


class LocalFiles:
    """The files in a local directory, as a `Files`.

    Args:
        root: The directory.
    """

    can_link = True
    reads_at_once = 1

    def __init__(self, root: Path) -> None:
        self.root = root
        self._text = str(root)  # Joining texts is much faster than joining paths.

    def at(self, name: str) -> LocalFiles:
        """Return the files in a subdirectory."""
        return LocalFiles(self.root / name)

    def names(self) -> list[str]:
        """Return the names of the entries, or an empty list if the directory does not exist."""
        try:
            return os.listdir(self.root)
        except FileNotFoundError:
            return []

    def files(self) -> list[str]:
        """Return the relative paths of all files. Links are not followed."""
        return list(relative_files(self.root))

    def stat(self, name: str) -> FileStat | None:
        """Return the size and identity of a file, or None. Links in `root` are not followed."""
        if self._leads_out(name):
            return FileStat(None, ())
        try:
            status = os.lstat(f"{self._text}/{name}")
        except FileNotFoundError:
            return None
        is_regular = stat.S_ISREG(status.st_mode)
        return FileStat(status.st_size if is_regular else None, identity_of(status))

    def read(self, name: str, limit: int) -> tuple[FileStat, bytes]:
        """Return the size and identity of a file, and its first bytes."""
        status = self.stat(name)
        if status is None:
            raise FileNotFoundError(f"There is no '{self.root / name}'.")
        if status.size is None:
            return status, b""
        return status, first_bytes(self.blocks(name), limit)

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the contents of a file in blocks."""
        return blocks_of(f"{self._text}/{name}")

    def fetch(self, name: str, target: Path) -> None:
        """Link a file to `target`, or copy it if the file system has no hard links."""
        link_or_copy(self.root / name, target)

    def _leads_out(self, name: str) -> bool:
        """Return whether one of the directories in a file's relative path is a link."""
        while name := os.path.dirname(name):
            if os.path.islink(f"{self._text}/{name}"):
                return True
        return False


class LocalStore(LocalFiles):
    """Versions in a local or mounted directory, as a `Store`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._numbers = Numbers()
        self._found: dict[int, Identity | None] = {}

    def local_path(self, version: int) -> Path:
        """Return the directory of a version, which does not need to exist."""
        return self.root / str(version)

    def check(self) -> None:
        """Raise an error if versions cannot be written to this directory."""
        check_directory(self.root)

    def exists(self) -> bool:
        """Return whether the base directory exists."""
        return self.root.is_dir()

    def names(self) -> list[str]:
        """Return the names of the entries. The store never gives out their numbers."""
        names = super().names()
        self._numbers.see(names)
        return names

    def versions(self) -> dict[int, Identity | None]:
        """Return the published versions, each with the identity of its manifest.

        If a directory was a version in the last call, and its manifest is still the same
        file, it still is a version. Nothing else is read then, because the first step of
        every removal takes the manifest away.
        """
        found: dict[int, Identity | None] = {}
        for number in self._numbers_of_directories():
            manifest, known = self._manifest(number), self._found.get(number)
            if manifest is not None and manifest == known:
                found[number] = known  # The same object, so that callers compare fast.
            elif self.has(number):
                found[number] = manifest
        self._found = found
        return found

    def _numbers_of_directories(self) -> list[int]:
        """Return the version numbers that are names of directories. Links do not count."""
        numbers, others = [], []
        try:
            with os.scandir(self.root) as entries:
                for entry in entries:
                    number = parse(entry.name)
                    if number is None or not entry.is_dir(follow_symlinks=False):
                        others.append(entry.name)
                    else:
                        numbers.append(number)
        except FileNotFoundError:
            return []
        self._numbers.see([*others, str(max(numbers, default=0))])
        return numbers

    def _manifest(self, version: int) -> Identity | None:
        try:
            return identity_of(os.lstat(f"{self._text}/{version}/{MANIFEST}"))
        except OSError:
            return None  # The reason is reported when the manifest is read.

    def has(self, version: int) -> bool:
        """Return whether a version exists."""
        path = self.local_path(version)
        if path.is_symlink():
            return False
        try:
            return is_version(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # `verify` reports why the directory cannot be read.

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """Make a directory to write a version in, on the same file system."""
        with workspace(self.root) as space:
            yield space.stage()

    def commit(
        self,
        staged: Path,
        finish: Callable[[int], None],
        known: Mapping[str, FileInfo] | None = None,
    ) -> int:
        """Rename a complete staged directory into the next version, and return its number."""
        version = _publish(staged, self.root, finish, self._numbers)
        self._numbers.see([str(version)])
        return version

    def remove(self, version: int) -> None:
        """Take a version out of the integer names by one rename, then delete it."""
        with clear_errors(self.root):
            space = Workspace(self.root)
        with contextlib.closing(space):
            _remove(self.local_path(version), space)

    def sweep(self) -> None:
        """Delete what dead writers left in ``.staging``."""
        sweep(self.root)


def _publish(staged: Path, base_dir: Path, finish: Callable[[int], None], numbers: Numbers) -> int:
    sync_tree(staged)
    lock = Lock(base_dir)
    try:
        while True:
            version = numbers.next(os.listdir(base_dir))
            finish(version)
            target = base_dir / str(version)
            # rename(2) replaces a directory only if it is empty. A version is never empty, so
            # this cannot overwrite one.
            try:
                os.rename(staged, target)
            except OSError as error:
                if os.path.lexists(target):
                    continue  # Without a working lock, another writer took the number.
                if error.errno in _NO_RENAME:
                    return _publish_without_rename(staged, base_dir, finish, numbers, lock)
                raise
            try:
                sync(base_dir)
            except OSError as error:
                warnings.warn(
                    f"Version {version} is published in '{base_dir}', but it may be lost if the "
                    f"machine stops now, because the directory could not be flushed: {error}.",
                    stacklevel=2,
                )
            return version
    finally:
        lock.release()


def _publish_without_rename(
    staged: Path, base_dir: Path, finish: Callable[[int], None], numbers: Numbers, lock: Lock
) -> int:
    def flush(target: Path) -> None:
        sync_tree(target)
        sync(base_dir)

    sweep_copies(base_dir, is_alone=lock.excludes)
    return int(publish_by_copying(staged, base_dir, finish, numbers, flush).name)


def _remove(version_dir: Path, space: Workspace) -> None:
    """Take a version out of the integer names by one rename, then delete it."""
    doomed = space.stage() / version_dir.name
    try:
        os.rename(version_dir, doomed)
    except OSError as error:
        if error.errno not in _NO_RENAME:
            raise
        remove_in_place(version_dir)
    sync(version_dir.parent)
    # Readers do not see the version any more. What cannot be deleted now is swept later.
    shutil.rmtree(doomed.parent, ignore_errors=True)


def check_directory(path: Path, argument: str = "base_dir") -> None:
    """Raise an error if versions cannot be written to a directory.

    Args:
        path: The directory. It does not need to exist.
        argument: The name of the argument in the error message.

    Raises:
        ExportValueError: If `path` is a file or inside a SavedModel, if a server would take it
            for a version, if this process cannot write there, or if a name is too long.
    """
    existing = path
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not os.path.isdir(existing):
        raise ExportValueError(
            f"Received {argument}='{path}', but '{existing}' is not a directory. "
            "Expected a directory, which does not need to exist yet."
        )
    inside = next((above for above in [path, *path.parents] if _is_ours(above)), None)
    if inside is not None:
        raise ExportValueError(
            f"Received {argument}='{path}', but '{inside}' is a SavedModel, or holds versions "
            "that are not published yet. Expected a directory outside of it."
        )
    for above in [path, *path.parents]:
        if claimed(above.name) is not None and _holds_versions(above.parent):
            raise ExportValueError(
                counted_as_version(f"{argument}='{path}'", above.parent, above.name)
            )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ExportValueError(
            f"Received {argument}='{path}', but '{existing}' is not writable by this process. "
            "Expected a directory that it can write to."
        )
    longest = os.pathconf(existing, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in path.parts):
        raise ExportValueError(
            f"Received {argument}='{path}'. Expected a path in which no name is longer than "
            f"{longest} bytes."
        )


def _is_ours(path: Path) -> bool:
    """Return whether a directory is ``.staging`` or a SavedModel."""
    return path.name == STAGING or os.path.lexists(path / SAVED_MODEL)


def _holds_versions(directory: Path) -> bool:
    """Return whether a directory holds SavedModels with numbers as their names."""
    try:
        names = os.listdir(directory)
    except OSError:
        return False
    return any(
        parse(name) is not None and os.path.lexists(directory / name / SAVED_MODEL)
        for name in names
    )
