"""The interface of a store, which is a place for versions, and `open_store`.

Only `open_store` checks whether a path is a URL. Code that reads or publishes versions
gets a `Store`, and does not need to know where the store is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from .buckets.store import BucketStore
from .files import FileInfo, FileStat, Identity
from .local import LocalStore
from .paths import is_url, loadable_text
from .remote import VersionPath
from .versions import MANIFEST, SAVED_MODEL, parse


class Files(Protocol):
    """The files in a directory, such as the directory of a version.

    Every method raises an OSError if something cannot be read.
    """

    @property
    def can_link(self) -> bool:
        """Whether `fetch` can make hard links, so that copies share their bytes."""

    @property
    def reads_at_once(self) -> int:
        """How many files should be read at the same time."""

    @property
    def root(self) -> VersionPath:
        """The directory. It is a `Path` if it is in the local file system."""

    def at(self, name: str) -> Files:
        """Return the files in a subdirectory."""

    def names(self) -> list[str]:
        """Return the names of the entries, or an empty list if the directory does not exist."""

    def files(self) -> list[str]:
        """Return the relative paths of all files in the directory and its subdirectories."""

    def stat(self, name: str) -> FileStat | None:
        """Return the size and identity of a file, or None if it does not exist.

        Args:
            name: The relative path of the file.
        """

    def read(self, name: str, limit: int) -> tuple[FileStat, bytes]:
        """Return the size and identity of a file, and its first bytes.

        Args:
            name: The relative path of the file.
            limit: How many bytes to read at most. Nothing is read from a file that is not
                a regular file, such as a link.

        Raises:
            FileNotFoundError: If the file does not exist.
        """

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the contents of a file in blocks, from its beginning.

        Raises:
            FileNotFoundError: If the file does not exist.
        """

    def fetch(self, name: str, target: Path) -> None:
        """Make a local copy of a file.

        The copy may be a hard link to the file, so do not write to it.

        Args:
            name: The relative path of the file.
            target: The path of the copy. It must not exist yet.

        Raises:
            FileNotFoundError: If the file does not exist.
        """


class Store(Files, Protocol):
    """A base directory, in which versions are published, read and removed.

    Each writer or reader opens a store once and keeps it. A store never gives out a number
    that it has seen, even if the base directory is emptied. Opening a store reads and
    writes nothing.
    """

    def check(self) -> None:
        """Raise an `ExportError` if versions cannot be published here."""

    def exists(self) -> bool:
        """Return whether the base directory exists."""

    def local_path(self, version: int) -> Path | None:
        """Return the directory of a version, or None if its files cannot be linked."""

    def versions(self) -> dict[int, Identity | None]:
        """Return the published versions, each with the identity of its manifest.

        The order is arbitrary. A version that is being removed is left out. The identity is
        None if the version has no manifest, or if the store would need a request for each
        version to know it.
        """

    def has(self, version: int) -> bool:
        """Return whether a version exists."""

    def stage(self) -> AbstractContextManager[Path]:
        """Return a context manager that makes a local directory to write one version in.

        The directory is empty. It is deleted at the end of the ``with`` block, unless it
        was published. What dead writers left behind is deleted first.
        """

    def commit(
        self,
        staged: Path,
        finish: Callable[[int], None],
        known: Mapping[str, FileInfo] | None = None,
    ) -> int:
        """Publish a staged directory as the next version, and return its number.

        Readers see either the complete version or no version.

        Args:
            staged: The directory with the complete version. It comes from `stage`.
            finish: Function that writes the files that depend on the version's number. It
                is called with the number, before the version appears and while no other
                writer can publish that number. It may be called again, with the same or a
                higher number. If it raises, nothing is published.
            known: The size and the digest of files in `staged`, by relative path. With
                these, a store may copy a file from a version that it published before,
                and does not need to upload it.
        """

    def remove(self, version: int) -> None:
        """Remove a version. Readers stop seeing it at once.

        Raises:
            FileNotFoundError: If the version does not exist.
            StorageError: If no version can be removed here.
            OSError: If this version cannot be removed.
        """

    def sweep(self) -> None:
        """Complete the removals that dead writers began, and delete what they staged."""


def open_store(base_dir: str | os.PathLike[str]) -> Store:
    """Return the store for a base directory.

    A relative path is made absolute now. It stays the same place if the process changes
    its working directory later.

    Args:
        base_dir: The base directory. It does not need to exist.

    Raises:
        ExportError: If `base_dir` is not a path, or if it is a URL that cannot be used.
    """
    text = loadable_text(base_dir)
    if is_url(text):
        return BucketStore(text)
    return LocalStore(Path(os.path.abspath(text)))


def absolute_path(path: str | os.PathLike[str]) -> VersionPath:
    """Return a path as an absolute path, or as a `RemotePath` if it is a URL.

    Raises:
        ExportError: If `path` is not a path, or if it is a URL that cannot be used.
    """
    return open_store(path).root


def version_at(path: str | os.PathLike[str]) -> tuple[Store, int] | None:
    """Return the base directory of the version at a path, and the version's number.

    A base directory may have a number as its name, too. It is not a version.

    Args:
        path: The path, which does not need to exist.

    Returns:
        A tuple ``(base, version)``, or None if there is no version at the path.

    Raises:
        ExportError: If `path` is not a path, or if it is a URL that cannot be used.
    """
    files = open_store(path)
    version = parse(files.root.name)
    if version is None or not files.exists():
        return None
    # The files come first, because credentials may be for a base directory alone.
    is_saved = any(files.stat(name) is not None for name in (SAVED_MODEL, MANIFEST))
    if not is_saved and files.versions():
        return None
    base = open_store(files.root.parent)
    return (base, version) if base.has(version) else None
