"""Versions in a bucket: files are uploaded elsewhere, copied inside the store, the graph last.

A version appears when its ``saved_model.pb`` is created, under a claim to its
number (see `claims`). Until then a server that lists the bucket sees a number
without a graph, for as long as copies inside the store take.

Below the base directory, beside the versions: ``.claims/<number>``,
``.staging/<id>/`` with what a writer has uploaded, and ``.removed/<number>``
while a version is removed.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import StorageError
from .claims import (
    CLAIMS,
    REMOVALS,
    STAGING,
    Claim,
    Claims,
    LostClaimError,
    numbered,
)
from .cloud import (
    PART,
    Bucket,
    ChangedError,
    Entry,
    Seen,
    UnreachableError,
    UnreadableKeyError,
    bucket_at,
    side_by_side,
)
from .files import FileInfo, FileStat, Identity, relative_files
from .remote import RemotePath
from .staging import temporary_workspace
from .versions import MANIFEST, SAVED_MODEL, Numbers, claimed, parse

# With more versions it takes fewer requests to look at each than to list all their files.
_MANY = 100

# How often a writer that was taken for dead begins anew.
_ATTEMPTS = 5


class BucketFiles:
    """What is below a key; a `Files`.

    Args:
        root: the URL.
        bucket: where it is.
        key: what the URL stands for there, with a slash at the end; empty for all of it.
    """

    def __init__(self, root: RemotePath, bucket: Bucket, key: str) -> None:
        self.root = root
        self._bucket, self._key = bucket, key

    def at(self, name: str) -> BucketFiles:
        """What is below a directory in this one."""
        return BucketFiles(self.root / name, self._bucket, f"{self._key}{name}/")

    def names(self) -> list[str]:
        """What is in the directory."""
        directories, entries = self._bucket.children(self._key.rstrip("/"))
        return sorted(directories | {self._relative(entry) for entry in entries})

    def files(self) -> list[str]:
        """Everything below the directory, by relative path."""
        return [self._relative(entry) for entry in self._bucket.below(self._key.rstrip("/"))]

    def stat(self, name: str) -> FileStat | None:
        """Size and identity of a file, by relative path; None if there is none."""
        entry = self._bucket.head(f"{self._key}{name}")
        return None if entry is None else FileStat(entry.size, entry.identity)

    def read(self, name: str, limit: int) -> tuple[FileStat, bytes]:
        """Size and identity of a file, and its first bytes."""
        content, entry = self._bucket.read(f"{self._key}{name}", limit)
        return FileStat(entry.size, entry.identity), content

    def blocks(self, name: str) -> Iterator[bytes]:
        """The contents of a file, from its beginning."""
        return self._bucket.blocks(f"{self._key}{name}")

    def fetch(self, name: str, target: Path) -> None:
        """Give a local file, which does not exist, the same contents."""
        blocks = self.blocks(name)
        first = next(blocks, b"")  # It is there; else nothing is made.
        with open(target, "xb") as file:
            file.write(first)
            for block in blocks:
                file.write(block)

    def _relative(self, entry: Entry) -> str:
        return entry.key.removeprefix(self._key)


@dataclass(frozen=True)
class _Sent:
    """A file of a version that this process has published, as it is in the store."""

    key: str
    entry: Entry


class BucketStore(BucketFiles):
    """Versions below a URL; a `Store`.

    Args:
        url: such as ``s3://bucket/served``.

    Raises:
        ExportError: the URL cannot be used, or obstore is not installed.
    """

    def __init__(self, url: str) -> None:
        bucket, key = bucket_at(url)
        super().__init__(RemotePath(url), bucket, f"{key}/" if key else "")
        self._claims = Claims(bucket, self._key)
        self._numbers = Numbers()
        self._sent: dict[FileInfo, _Sent] = {}
        self._has_many: bool | None = None

    def check(self) -> None:
        """Raise unless versions can be published here, safely for several writers."""
        if self._bucket in _probed:
            return
        key = f"{self._key}{STAGING}/probe-{uuid.uuid4().hex}/probe"
        created = self._bucket.create(key, b"first")
        try:
            self._bucket.read(key)
            is_kept = self._bucket.create(key, b"second") is None
            if created is None or not is_kept or not self._is_compared(key, created):
                raise StorageError(
                    f"'{self._bucket.url}' does not honour conditional writes (If-None-Match, "
                    "If-Match): several writers would overwrite each other's versions. Use a "
                    "store that honours them, as S3, Google Cloud Storage and Azure do, or a "
                    "mounted directory."
                )
            self._bucket.below(f"{self._key}{STAGING}")
        except BaseException:
            with contextlib.suppress(StorageError):
                self._bucket.delete([key])
            raise
        self._bucket.delete([key])
        _probed.add(self._bucket)

    def _is_compared(self, key: str, created: Seen) -> bool:
        """Whether the store replaces an object only if it is what was seen."""
        self._bucket.replace(key, b"third", created)
        try:
            self._bucket.replace(key, b"fourth", created)
        except ChangedError:
            return True
        return False

    def exists(self) -> bool:
        """Whether there is anything below the URL."""
        return bool(self.names())

    def local_path(self, version: int) -> None:
        """None: nothing there can be linked."""

    def names(self) -> list[str]:
        """What is in the base directory, but for what only writers need."""
        names = [name for name in super().names() if name not in (CLAIMS, STAGING, REMOVALS)]
        self._numbers.see(names)
        return names

    def has(self, version: int) -> bool:
        """Whether there is this version."""
        try:
            there = self._bucket.below(f"{self._key}{version}")
        except UnreadableKeyError:
            return True  # `verify` says why it cannot be read.
        is_whole = any(self._relative(entry) == f"{version}/{SAVED_MODEL}" for entry in there)
        if not there or self._bucket.head(f"{self._key}{REMOVALS}/{version}") is not None:
            return False
        # What has no graph is none of ours, and nobody's work that is under way.
        return not (self._claims.is_buried if is_whole else self._claims.has)(version)

    def versions(self) -> dict[int, Identity | None]:
        """The versions, with the identity of the manifest.

        That is one listing of all files, unless there are many. Then the identity is None.
        """
        entries = None
        if self._has_many is None:
            self._has_many = len(self.names()) > _MANY
        if not self._has_many:
            with contextlib.suppress(UnreadableKeyError):
                entries = self._bucket.below(self._key.rstrip("/"))
        if entries is None:
            numbers = {number for number in map(parse, self.names()) if number}
            self._has_many = len(numbers) > _MANY
            return dict.fromkeys(self._versions_among(numbers))
        by_path = {self._relative(entry): entry for entry in entries}
        self._numbers.see({path.partition("/")[0] for path in by_path})
        claims = numbered(_below(CLAIMS, by_path))
        gone = {*map(parse, _below(REMOVALS, by_path)), *claims.graves}
        present = {parse(path.partition("/")[0]) for path in by_path if "/" in path} - {None}
        self._has_many = len(present) > _MANY
        versions = {}
        for number in present - gone:
            is_whole = f"{number}/{SAVED_MODEL}" in by_path
            if number and (is_whole or (number not in claims.live and self.has(number))):
                manifest = by_path.get(f"{number}/{MANIFEST}")
                versions[number] = manifest.identity if manifest else None
        return versions

    def _versions_among(self, numbers: set[int]) -> list[int]:
        """Which of the numbers that were there a moment ago are versions."""
        # What is uploaded has a claim by now, or is there by now.
        kinds = [partial(self._bucket.below, f"{self._key}{name}") for name in (REMOVALS, CLAIMS)]
        removed, claimed_now = side_by_side(kinds)
        uncertain = {parse(entry.key.rpartition("/")[2]) for entry in [*removed, *claimed_now]}
        return [number for number in numbers if number not in uncertain or self.has(number)]

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """A local directory to write a version in."""
        self.sweep()
        with temporary_workspace() as space:
            yield space.stage()

    def commit(
        self,
        staged: Path,
        finish: Callable[[int], None],
        known: Mapping[str, FileInfo] | None = None,
    ) -> int:
        """Upload a complete staged directory as the next version, and return its number.

        Args:
            staged: the complete version.
            finish: as for `Store.commit`.
            known: digests of files in `staged`. What this store has published before,
                and still holds unchanged, is copied there and not sent again.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._commit(staged, finish, known or {})
            except LostClaimError:
                if attempt == _ATTEMPTS:
                    break
        raise StorageError(
            f"Nothing could be published in '{self.root}': other writers took this one for dead "
            f"{_ATTEMPTS} times, because the store did not hear from it for long."
        )

    def _commit(
        self, staged: Path, finish: Callable[[int], None], known: Mapping[str, FileInfo]
    ) -> int:
        with self._claims.corner() as corner:
            before = _stats(staged)
            sources = self._upload(staged, before.keys() - {SAVED_MODEL}, corner, known)
            with self._claims.claimed(self._numbers, super().names) as claim:
                finish(claim.number)
                after = _stats(staged)
                # What `finish` wrote was not sent yet.
                sources = {
                    name: key for name, key in sources.items() if after.get(name) == before[name]
                }
                self._put_in_place(staged, after, sources, claim)
                self._numbers.see([str(claim.number)])
        self._remember(claim.number, known)
        return claim.number

    def _upload(
        self, staged: Path, names: set[str], corner: str, known: Mapping[str, FileInfo]
    ) -> dict[str, str]:
        """Send files to where no server looks, or find them in the store; their keys, by name."""
        sources = {name: key for name in names if (key := self._unchanged(known.get(name)))}
        left = {name: os.path.getsize(staged / name) for name in names - sources.keys()}
        large = [name for name, size in left.items() if size > PART]
        # Each of them takes memory for several parts, a small one for its own size.
        for group, width in ((large, 2), (left.keys() - set(large), 4)):
            side_by_side(
                [partial(self._bucket.put, f"{corner}/{name}", staged / name) for name in group],
                width,
            )
        return sources | {name: f"{corner}/{name}" for name in left}

    def _unchanged(self, info: FileInfo | None) -> str | None:
        """The key of the same contents in the store, if nobody has touched them."""
        sent = self._sent.get(info) if info is not None else None
        if sent is None:
            return None
        now = self._bucket.head(sent.key)
        # Not the time: a list tells it more exactly. Nor the generation: a list may lack it.
        is_same = now is not None and (now.size, now.tag) == (sent.entry.size, sent.entry.tag)
        return sent.key if is_same else None

    def _put_in_place(
        self,
        staged: Path,
        names: Mapping[str, tuple[int, ...]],
        sources: Mapping[str, str],
        claim: Claim,
    ) -> None:
        target = f"{self._key}{claim.number}/"
        graph = f"{target}{SAVED_MODEL}"
        try:
            side_by_side(
                [
                    partial(self._place, staged / name, sources.get(name), target + name)
                    for name in names.keys() - {SAVED_MODEL}
                ]
            )
            self._confirm(staged, target, names.keys() - {SAVED_MODEL})
            claim.check()
            if self._bucket.create(graph, (staged / SAVED_MODEL).read_bytes()) is None:
                raise _TakenError  # Another program puts a model there.
            self._confirm_claim(staged, target, names, claim)
        except _TakenError:
            raise
        except BaseException as error:
            claim.is_kept = True  # Until all is removed, which others do if we cannot.
            if isinstance(error, StorageError) and not isinstance(error, UnreachableError):
                claim.beat()  # What is missing was cleared by who took this writer for dead.
            self._claims.clear(claim.number)
            claim.is_kept = False
            raise

    def _place(self, local: Path, source: str | None, target: str) -> None:
        if source is not None:
            try:
                self._bucket.copy(source, target)
                return
            except UnreachableError:
                raise
            except (FileNotFoundError, StorageError):
                pass  # It cannot be copied, or is gone by now; then it is sent.
        self._bucket.put(target, local)

    def _confirm(self, staged: Path, target: str, names: set[str]) -> None:
        """Raise unless files are where they were put, in full."""
        there = {entry.key: entry.size for entry in self._bucket.below(target.rstrip("/"))}
        for name in names:
            if there.get(target + name) != os.path.getsize(staged / name):
                raise StorageError(
                    f"'{self._bucket.url}/{target}{name}' is not as long as it was written."
                )

    def _confirm_claim(
        self, staged: Path, target: str, names: Mapping[str, object], claim: Claim
    ) -> None:
        """Raise unless nobody took this writer for dead before the version was there."""
        try:
            claim.beat()
        except LostClaimError:
            if self._claims.has(claim.number):
                raise  # There is a gravestone.
            # One that sweeps may have seen the version, and removed a claim that has no use.
            try:
                self._confirm(staged, target, set(names))
            except StorageError:
                raise LostClaimError from None

    def _remember(self, version: int, known: Mapping[str, FileInfo]) -> None:
        """What was published, to be copied by the next versions."""
        target = f"{self._key}{version}/"
        with contextlib.suppress(StorageError):
            there = {entry.key: entry for entry in self._bucket.below(target.rstrip("/"))}
            self._sent = {
                info: _Sent(target + name, there[target + name])
                for name, info in known.items()
                if target + name in there
            }

    def remove(self, version: int) -> None:
        """Remove a version; from the first moment on it is none any more."""
        if not self.has(version):
            raise FileNotFoundError(f"There is no version {version} in '{self.root}'.")
        if version >= self._highest():
            self._claims.bury(version)  # No higher number tells that it is taken.
        self._bucket.put(f"{self._key}{REMOVALS}/{version}", b"removed")
        self._complete_removal(str(version))

    def _complete_removal(self, name: str) -> None:
        number = parse(name)
        if number is not None:
            self._claims.clear(number)
        self._bucket.delete([f"{self._key}{REMOVALS}/{name}"])

    def sweep(self) -> None:
        """Complete removals, bury dead writers, and delete what they uploaded."""
        kinds = [
            partial(self._bucket.below, f"{self._key}{name}")
            for name in (REMOVALS, STAGING, CLAIMS)
        ]
        removals, staged, claims_there = side_by_side(kinds)
        for entry in removals:
            self._complete_removal(self._relative(entry).partition("/")[2])
        claims = numbered(
            {self._relative(entry).partition("/")[2]: entry for entry in claims_there}
        )
        self._claims.bury_dead(claims)
        self._claims.sweep_corners(staged)
        self._sweep_graves(claims.graves)

    def _highest(self) -> int:
        """The highest number that is taken."""
        return max((claimed(name) or 0 for name in super().names()), default=0)

    def _sweep_graves(self, graves: set[int]) -> None:
        if not graves:
            return
        highest = max(self._highest(), *graves)
        for number in graves:
            self._claims.clear(number)  # Its writer may have gone on for a moment.
            if number < highest:
                self._claims.forget(number)


class _TakenError(LostClaimError):
    """Somebody who knows of no claims has written a version with the number that is claimed."""


# The buckets that honour conditions.
_probed: set[Bucket] = set()


def _below(directory: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Those of the entries that are right below a directory, by name."""
    start = f"{directory}/"
    return {
        path.removeprefix(start): entry for path, entry in entries.items() if path.startswith(start)
    }


def _stats(root: Path) -> dict[str, tuple[int, ...]]:
    """Every file below a directory, with what tells it from what is written there later."""
    found: dict[str, tuple[int, ...]] = {}
    for name in relative_files(root):
        status = os.lstat(root / name)
        found[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found
