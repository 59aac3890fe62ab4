"""Bytes on disk: digests, links, and flushing them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from ..errors import ExportError, StorageError

# How much of a file is read at a time.
BLOCK = 2**20


# What tells a file from another one, or from itself changed.
Identity: TypeAlias = tuple[int | str, ...]


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and SHA-256 digest (hexadecimal) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class FileStat:
    """What can be told of a file without reading it.

    Attributes:
        size: in bytes; None if it is no regular file, such as a pipe or a link.
        identity: what tells it from another file, or from itself changed.
    """

    size: int | None
    identity: Identity


@dataclass(frozen=True)
class KnownFile:
    """A file we wrote, which may be linked instead of written again.

    Attributes:
        path: where it is.
        info: its size and digest.
        identity: what tells it from another file, or from itself changed.
    """

    path: Path
    info: FileInfo
    identity: Identity

    @classmethod
    def at(cls, path: Path, sha256: str | None = None) -> KnownFile:
        """The file at `path` as it is now; its digest is taken unless it is known."""
        status = os.stat(path)
        info = FileInfo(status.st_size, sha256 or sha256_of(path))
        return cls(path, info, identity_of(status))

    def is_intact(self) -> bool:
        """Whether it is still there and was not written to."""
        try:
            return identity_of(os.stat(self.path)) == self.identity
        except OSError:
            return False

    def share(self, target: Path) -> KnownFile | None:
        """Give `target` the same contents; return the file that it then is.

        None if it is not there any more: other processes remove versions too.
        """
        if not self.is_intact():
            return None
        try:
            link_or_copy(self.path, target)
        except FileNotFoundError:
            return None
        return KnownFile.at(target, self.info.sha256)

    def moved(self, root: Path, new_root: Path) -> KnownFile:
        """The same file after a directory that it is in was renamed."""
        return replace(self, path=new_root / self.path.relative_to(root))


@dataclass(frozen=True)
class KeptFile:
    """A file of the graph, or an asset, that further exports will have as well.

    Attributes:
        content: its bytes, for when `known` is not there any more.
        known: the file in an export, to be linked.
    """

    content: bytes
    known: KnownFile

    @classmethod
    def at(cls, path: Path) -> KeptFile:
        """The file at `path` as it is now."""
        return cls(path.read_bytes(), KnownFile.at(path))

    def put(self, target: Path) -> KeptFile:
        """Make it part of another export; return it as it is there."""
        target.parent.mkdir(parents=True, exist_ok=True)
        shared = self.known.share(target)
        if shared is None:
            target.write_bytes(self.content)
            shared = KnownFile.at(target, self.known.info.sha256)
        return KeptFile(self.content, shared)

    def moved(self, root: Path, new_root: Path) -> KeptFile:
        """The same file after a directory that it is in was renamed."""
        return replace(self, known=self.known.moved(root, new_root))


def identity_of(status: os.stat_result) -> Identity:
    """What differs between two files, and in one file before and after it is written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same as `source`, sharing its bytes where the file system can.

    A symbolic link stays one: what it points to is not read.

    Raises:
        FileExistsError: there is a `target`. It is left alone, because writing
            to it would write to every version that it is linked from.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target, follow_symlinks=False)


def relative_files(root: Path) -> Iterator[str]:
    """Everything below `root` that is not a directory, by relative path."""
    for directory, subdirectories, names in os.walk(root):
        # A link to a directory is listed among the directories, yet is one entry.
        links = [name for name in subdirectories if Path(directory, name).is_symlink()]
        for name in [*names, *links]:
            yield Path(directory, name).relative_to(root).as_posix()


def blocks_of(path: Path) -> Iterator[bytes]:
    """The contents of a file."""
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block


def sha256_of(path: Path) -> str:
    """The SHA-256 digest of a file, hexadecimal."""
    return digest_of(blocks_of(path))


def digest_of(blocks: Iterable[bytes]) -> str:
    """The SHA-256 digest of a file's contents, hexadecimal."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def first_bytes(blocks: Iterable[bytes], limit: int) -> bytes:
    """The first `limit` bytes of a file: who knows how long it is."""
    content = bytearray()
    for block in blocks:
        content += block
        if len(content) >= limit:
            break
    return bytes(content[:limit])


@contextlib.contextmanager
def clear_errors(base_dir: object) -> Iterator[None]:
    """Say of what the system refuses where it happened, as an error of ours."""
    try:
        yield
    except ExportError:
        raise
    except OSError as error:
        raise StorageError(f"'{base_dir}' cannot be written: {error}.") from error


def sync_tree(root: Path) -> None:
    """Flush every file and directory below `root`, and itself, to the disk."""
    for directory, _, names in os.walk(root):
        for name in names:
            sync(Path(directory, name))
        sync(Path(directory))


def sync(path: Path) -> None:
    """Flush one file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a directory, and say so.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
