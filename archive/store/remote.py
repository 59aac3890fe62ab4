"""Paths that are not in the local file system, such as ``gs://bucket/served``.

TensorFlow reads and writes them, by `tf.io.gfile`; it is imported on first use.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from .files import FileStat


class RemotePath(os.PathLike[str]):
    """A URL, with of `pathlib.Path` what versions need.

    Every method raises OSError, and FileNotFoundError where that is the reason.

    Args:
        url: such as ``"gs://bucket/served"``. `tf.io.gfile` takes a local path as well.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self._url = os.fspath(url).rstrip("/")

    def __fspath__(self) -> str:
        return self._url

    __str__ = __fspath__

    def __repr__(self) -> str:
        return f"RemotePath({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._url == other._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self._url}/{name}")

    @property
    def name(self) -> str:
        return self._url.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self._url.rpartition("/")[0])

    def is_dir(self) -> bool:
        with _gfile() as gfile:
            return bool(gfile.isdir(self._url))

    def names(self) -> list[str]:
        """What is in this directory."""
        with _gfile() as gfile:
            # Not `listdir`, which of `ram://` lists `10/` in `1/` as well, as `0`.
            found = gfile.glob(f"{self._url}/*")
            if not found and not gfile.isdir(self._url):
                raise FileNotFoundError(self._url)
        return [path.rstrip("/").rpartition("/")[2] for path in found]

    def files(self) -> Iterator[str]:
        """Every file below this directory, by relative path."""
        for name in self.names():
            path = self / name
            if path.is_dir():
                yield from (f"{name}/{below}" for below in path.files())
            else:
                yield name

    def resolve(self) -> RemotePath:
        """The same: a URL has no links to follow."""
        return self

    def stat(self) -> FileStat:
        """Size and identity of this file."""
        with _gfile() as gfile:
            stat = gfile.stat(self._url)
            size = int(stat.length)
            return FileStat(size, (size, int(stat.mtime_nsec)))

    def blocks(self, size: int) -> Iterator[bytes]:
        """The contents, in blocks of at most `size` bytes."""
        with _gfile() as gfile, gfile.GFile(self._url, "rb") as file:
            while block := file.read(size):
                yield block

    def read_bytes(self) -> bytes:
        with _gfile() as gfile, gfile.GFile(self._url, "rb") as file:
            return bytes(file.read())

    def write_bytes(self, content: bytes) -> None:
        with _gfile() as gfile, gfile.GFile(self._url, "wb") as file:
            file.write(content)

    def mkdir(self) -> None:
        """Make the directory and those above it; object stores have none, which is fine."""
        with _gfile() as gfile:
            gfile.makedirs(self._url)

    def upload(self, source: Path) -> None:
        """Copy a local file here."""
        self.parent.mkdir()
        with _gfile() as gfile:
            gfile.copy(str(source), self._url)

    def download(self, target: Path) -> None:
        """Copy this file to a local one."""
        with _gfile() as gfile:
            gfile.copy(self._url, str(target))

    def unlink(self) -> None:
        with _gfile() as gfile:
            gfile.remove(self._url)

    def rmtree(self) -> None:
        with _gfile() as gfile:
            gfile.rmtree(self._url)


# Where a version is.
VersionPath: TypeAlias = Path | RemotePath


@contextlib.contextmanager
def _gfile() -> Iterator[Any]:
    tf: Any = importlib.import_module("tensorflow")
    try:
        yield tf.io.gfile
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(error.message) from error
    except tf.errors.OpError as error:
        raise OSError(error.message) from error
