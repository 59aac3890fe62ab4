"""Files on the disk: their digests, hard links to them, and flushing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from ..errors import ExportError, StorageError
from .decoding import Size

# The number of bytes of a file that are read at a time.
BLOCK = 2**20


# A function that is told how many more bytes are done.
Progress: TypeAlias = Callable[[int], object]

# Values that differ between two files, and also change when a file is written to.
Identity: TypeAlias = tuple[int | str, ...]


@dataclass(frozen=True)
class FileInfo:
    """The size and the digest of a file.

    Attributes:
        size: The size in bytes.
        sha256: The SHA-256 digest in hexadecimal.
    """

    size: Size
    sha256: str


@dataclass(frozen=True)
class FileStat:
    """What is known about a file without reading it.

    Attributes:
        size: The size in bytes. None if the file is not a regular file, but a pipe or a
            link, for example.
        identity: The identity of the file. It differs between two files, and also changes
            when the file is written to.
    """

    size: int | None
    identity: Identity


@dataclass(frozen=True)
class KnownFile:
    """A file of an earlier export. A later export can link it instead of writing it again.

    Attributes:
        path: The path of the file.
        info: The size and the digest of the file.
        identity: The identity of the file. It changes when the file is written to.
    """

    path: Path
    info: FileInfo
    identity: Identity

    @classmethod
    def at(cls, path: Path, sha256: str | None = None) -> KnownFile:
        """Return the file at `path` as it is now.

        Args:
            path: The path of the file.
            sha256: The digest of the file. If it is None, it is computed.
        """
        status = os.stat(path)
        info = FileInfo(status.st_size, sha256 or sha256_of(path))
        return cls(path, info, identity_of(status))

    def is_intact(self) -> bool:
        """Return whether the file still exists and nobody wrote to it."""
        try:
            return identity_of(os.stat(self.path)) == self.identity
        except OSError:
            return False

    def share(self, target: Path) -> KnownFile | None:
        """Link or copy the file to `target`, and return the file at `target`.

        Returns:
            The new file. None if the file changed or does not exist any more. Another
            process may have removed the version that held it.
        """
        if not self.is_intact():
            return None
        try:
            link_or_copy(self.path, target)
        except FileNotFoundError:
            return None
        return KnownFile.at(target, self.info.sha256)

    def moved(self, root: Path, new_root: Path) -> KnownFile:
        """Return the same file after a directory above it was renamed from `root` to `new_root`."""
        return replace(self, path=new_root / self.path.relative_to(root))


@dataclass(frozen=True)
class KeptFile:
    """A file that later exports will have too, such as the graph or an asset.

    Attributes:
        content: The contents of the file. They are written if `known` does not exist any
            more.
        known: The file in an earlier export, which can be linked.
    """

    content: bytes
    known: KnownFile

    @classmethod
    def at(cls, path: Path) -> KeptFile:
        """Return the file at `path` as it is now."""
        return cls(path.read_bytes(), KnownFile.at(path))

    def put(self, target: Path) -> KeptFile:
        """Link, copy or write the file to `target`, and return the file at `target`."""
        target.parent.mkdir(parents=True, exist_ok=True)
        shared = self.known.share(target)
        if shared is None:
            target.write_bytes(self.content)
            shared = KnownFile.at(target, self.known.info.sha256)
        return KeptFile(self.content, shared)

    def moved(self, root: Path, new_root: Path) -> KeptFile:
        """Return the same file after a directory above it was renamed from `root` to `new_root`."""
        return replace(self, known=self.known.moved(root, new_root))


def identity_of(status: os.stat_result) -> Identity:
    """Return the identity of a file, from the result of `os.stat`."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy if the file system has no hard links.

    If `source` is a symbolic link, `target` becomes one too.

    Raises:
        FileExistsError: If `target` exists. It is not replaced. Other versions may have
            links to it, and writing to it would change them.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target, follow_symlinks=False)


def relative_files(root: Path) -> Iterator[str]:
    """Yield the relative paths of all files in `root` and its subdirectories."""
    for directory, subdirectories, names in os.walk(root):
        # `os.walk` lists a link to a directory as a directory. Here it counts as a file.
        links = [name for name in subdirectories if Path(directory, name).is_symlink()]
        for name in [*names, *links]:
            yield Path(directory, name).relative_to(root).as_posix()


def blocks_of(path: str | Path) -> Iterator[bytes]:
    """Yield the contents of a file in blocks."""
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block


def no_progress(count: int) -> None:
    """Ignore how many bytes are done."""


def counted(blocks: Iterable[bytes], progress: Progress) -> Iterator[bytes]:
    """Yield blocks, and call `progress` with the size of each."""
    for block in blocks:
        progress(len(block))
        yield block


def sha256_of(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal."""
    return digest_of(blocks_of(path))


def digest_of(blocks: Iterable[bytes]) -> str:
    """Return the SHA-256 digest of a file's contents in hexadecimal."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def first_bytes(blocks: Iterable[bytes], limit: int) -> bytes:
    """Return the first `limit` bytes of a file, which may be very long."""
    content = bytearray()
    for block in blocks:
        content += block
        if len(content) >= limit:
            break
    return bytes(content[:limit])


@contextlib.contextmanager
def clear_errors(base_dir: object) -> Iterator[None]:
    """Turn an OSError into a `StorageError` whose message names `base_dir`."""
    try:
        yield
    except ExportError:
        raise
    except OSError as error:
        raise StorageError(f"'{base_dir}' cannot be written: {error}.") from error


def sync_tree(root: Path) -> None:
    """Flush a directory, and all files and directories in it, to the disk."""
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
        # Some network file systems cannot flush a directory. They raise one of these errors.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
