"""What every place for versions can do, and which kind of place a path is.

`open_store` alone looks at whether a path is a URL. Whoever reads or publishes
versions is given a `Store`, and need not know where that is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ..errors import VersionNotFoundError
from .buckets.store import BucketStore
from .files import FileInfo, FileStat, Identity
from .local import LocalStore
from .paths import is_url, loadable_text
from .remote import VersionPath
from .versions import parse


class Files(Protocol):
    """What is below a directory: of a version, say.

    Every method raises OSError where something cannot be read.
    """

    @property
    def root(self) -> VersionPath:
        """Where it is; a `Path` if that is in the local file system."""

    def at(self, name: str) -> Files:
        """What is below a directory in this one."""

    def names(self) -> list[str]:
        """What is in the directory; nothing if there is no directory."""

    def files(self) -> list[str]:
        """Everything below the directory that is no directory, by relative path."""

    def stat(self, name: str) -> FileStat | None:
        """Size and identity of a file, by relative path; None if there is none."""

    def read(self, name: str, limit: int) -> tuple[FileStat, bytes]:
        """Size and identity of a file, and its first `limit` bytes if it is a regular one.

        Raises:
            FileNotFoundError: there is none.
        """

    def blocks(self, name: str) -> Iterator[bytes]:
        """The contents of a file, from its beginning.

        Raises:
            FileNotFoundError: there is none.
        """

    def fetch(self, name: str, target: Path) -> None:
        """Give a local file, which does not exist, the same contents.

        It may be a link to the same bytes: neither file may be written to.

        Raises:
            FileNotFoundError: there is no such file here.
        """


class Store(Files, Protocol):
    """A base directory: where versions are published, read and removed.

    A store is opened once by each writer and reader, and lives as long as it:
    a number that it has seen, it never gives out, even if the base directory is
    emptied. Nothing is read or written when it is opened.
    """

    def check(self) -> None:
        """Raise an `ExportError` unless versions can be published here."""

    def exists(self) -> bool:
        """Whether there is anything."""

    def local_path(self, version: int) -> Path | None:
        """Where a version is, if its files can be linked from there; else None."""

    def versions(self) -> dict[int, Identity | None]:
        """The versions that are there to stay, in any order, with the identity of the manifest.

        That is None of a version that has none, and where it takes a request for each.
        """

    def has(self, version: int) -> bool:
        """Whether there is this version."""

    def stage(self) -> AbstractContextManager[Path]:
        """An empty local directory to write one version in, which goes away at the end.

        What dead writers left is swept first.
        """

    def commit(
        self,
        staged: Path,
        finish: Callable[[int], None],
        known: Mapping[str, FileInfo] | None = None,
    ) -> int:
        """Publish what was staged as the next version, and return its number.

        Readers see all of the version or nothing of it.

        Args:
            staged: the complete version, in a directory from `stage`.
            finish: called with the number before the version appears, while no
                other writer can publish that number, to write into `staged` what
                depends on it. It may be called again, with the same number or a
                higher one. If it raises, nothing is published.
            known: sizes and digests of files in `staged`, by relative path. A store may
                copy them from what it has published before, instead of sending them.
        """

    def remove(self, version: int) -> None:
        """Remove a version; from the first moment on it is none any more.

        Raises:
            FileNotFoundError: it is not there.
            StorageError: nothing can be removed here.
            OSError: this version cannot be removed.
        """

    def sweep(self) -> None:
        """Complete the removals that dead writers began, and delete what they staged."""


def open_store(base_dir: str | os.PathLike[str]) -> Store:
    """The store for a base directory, which need not exist yet.

    A relative path stands for the same place wherever the process goes later.

    Raises:
        ExportError: `base_dir` is no path, or a URL that cannot be used.
    """
    text = loadable_text(base_dir)
    if is_url(text):
        return BucketStore(text)
    return LocalStore(Path(os.path.abspath(text)))


def absolute_path(path: str | os.PathLike[str]) -> VersionPath:
    """`path` as one that is the same wherever the process goes while it trains.

    Raises:
        ExportError: as `open_store`.
    """
    return open_store(path).root


def version_path(path: str | os.PathLike[str], label: str = "") -> tuple[VersionPath, int]:
    """The absolute path of a version's directory, and its number.

    `label` goes before the path in the error.

    Raises:
        ExportError: as `open_store`, or it is not named as a version is.
    """
    absolute = absolute_path(path)
    version = parse(absolute.name)
    if version is None:
        raise VersionNotFoundError(
            f"Received {label}'{absolute}'. Expected the directory of a version, whose name is its "
            "number, such as 'trials/trial_0/7'."
        )
    return absolute, version
