"""Paths that are not in the local file system, such as ``s3://bucket/served``.

This module sends no requests.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias


class RemotePath(os.PathLike[str]):
    """A URL with some of the attributes and operators of `pathlib.Path`.

    Args:
        url: The URL, such as ``"s3://bucket/served"``.
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

    def resolve(self) -> RemotePath:
        """Return this path itself, because a URL has no links to follow."""
        return self


# The path of a version.
VersionPath: TypeAlias = Path | RemotePath
