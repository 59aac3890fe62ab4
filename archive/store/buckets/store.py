"""Publish and read versions in a bucket.

A writer uploads the files to a folder of its own. Then it claims a number (see
`claims`), and the store copies the files to that number. The writer creates
``saved_model.pb`` last, and the version appears at that moment. While the store
copies, a server that lists the bucket sees a number without a graph.

Besides the versions, a base directory has ``.claims/<number>``, ``.staging/<id>/``
with the uploads of a writer, and ``.removed/<number>``, which marks a version as
removed.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...errors import ExportValueError, StorageError
from ..files import FileInfo, FileStat, Identity, relative_files
from ..remote import RemotePath
from ..staging import temporary_workspace
from ..threads import side_by_side
from ..versions import MANIFEST, SAVED_MODEL, Numbers, claimed, counted_as_version, parse
from .claims import (
    CLAIMS,
    REMOVALS,
    STAGING,
    Claim,
    Claims,
    LostClaimError,
    Numbered,
    clean_up,
    numbered,
)
from .failures import ChangedError, UnreachableError, UnreadableKeyError
from .objects import PART, Bucket, Entry, Seen, bucket_at

# With more versions, it takes fewer requests to list the names than to list all files.
_MANY = 100

# How often a writer tries to publish a version. It tries again if others took it for dead.
_ATTEMPTS = 5


class BucketFiles:
    """The files below a key, as a `Files`.

    Args:
        root: The URL.
        bucket: The bucket of the URL.
        key: The key of the URL, with a slash at the end. It is empty for the whole bucket.
    """

    can_link = False
    reads_at_once = 16

    def __init__(self, root: RemotePath, bucket: Bucket, key: str) -> None:
        self.root = root
        self._bucket, self._key = bucket, key

    def at(self, name: str) -> BucketFiles:
        """Return the files in a subdirectory."""
        return BucketFiles(self.root / name, self._bucket, f"{self._key}{name}/")

    def names(self) -> list[str]:
        """Return the names of the entries in the directory."""
        directories, entries = self._bucket.children(self._key.rstrip("/"))
        return sorted(directories | {self._relative(entry) for entry in entries})

    def files(self) -> list[str]:
        """Return the relative paths of all files in the directory and its subdirectories."""
        return [self._relative(entry) for entry in self._bucket.below(self._key.rstrip("/"))]

    def stat(self, name: str) -> FileStat | None:
        """Return the size and identity of a file, or None if it does not exist."""
        entry = self._bucket.head(f"{self._key}{name}")
        return None if entry is None else FileStat(entry.size, entry.identity)

    def read(self, name: str, limit: int) -> tuple[FileStat, bytes]:
        """Return the size and identity of a file, and its first bytes."""
        content, entry = self._bucket.read(f"{self._key}{name}", limit)
        return FileStat(entry.size, entry.identity), content

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the contents of a file in blocks."""
        return self._bucket.blocks(f"{self._key}{name}")

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to a local path that does not exist yet."""
        blocks = self.blocks(name)
        first = next(blocks, b"")  # If the file is missing, this fails before `target` exists.
        with open(target, "xb") as file:
            file.write(first)
            for block in blocks:
                file.write(block)

    def _relative(self, entry: Entry) -> str:
        return entry.key.removeprefix(self._key)


@dataclass(frozen=True)
class _Sent:
    """A file of a published version, as the bucket lists it."""

    key: str
    entry: Entry


class BucketStore(BucketFiles):
    """The versions below a URL, as a `Store`.

    Args:
        url: The URL, such as ``"s3://bucket/served"``.

    Raises:
        ExportError: If the URL cannot be used, or obstore is not installed.
    """

    def __init__(self, url: str) -> None:
        bucket, key = bucket_at(url)
        super().__init__(RemotePath(url), bucket, f"{key}/" if key else "")
        self._claims = Claims(bucket, self._key)
        self._numbers = Numbers()
        self._sent: dict[FileInfo, _Sent] | None = None
        self._has_many: bool | None = None

    def check(self) -> None:
        """Raise an error unless several writers can publish versions here safely."""
        if (self._bucket, self._key) in _probed:
            return
        self._check_is_no_version()
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
        _probed.add((self._bucket, self._key))

    def _check_is_no_version(self) -> None:
        """Raise an error if a server would take this directory, or one above it, for a version."""
        above = ""
        for name in self._key.rstrip("/").split("/"):
            if claimed(name) is not None:
                url = RemotePath(f"{self._bucket.url}/{above}")
                if _holds_versions(BucketFiles(url, self._bucket, above)):
                    raise ExportValueError(counted_as_version(f"base_dir='{self.root}'", url, name))
            above += f"{name}/"

    def _is_compared(self, key: str, created: Seen) -> bool:
        """Return whether the store refuses to replace an object that has changed."""
        self._bucket.replace(key, b"third", created)
        try:
            self._bucket.replace(key, b"fourth", created)
        except ChangedError:
            return True
        return False

    def exists(self) -> bool:
        """Return whether there is anything below the URL, except the folders of writers."""
        return bool(self.names())

    def local_path(self, version: int) -> None:
        """Return None, because files in a bucket cannot be linked."""

    def names(self) -> list[str]:
        """Return the names in the base directory, without the folders that writers use."""
        names = [name for name in super().names() if name not in (CLAIMS, STAGING, REMOVALS)]
        self._numbers.see(names)
        return names

    def has(self, version: int) -> bool:
        """Return whether a version exists."""
        try:
            return self._is_version(version)
        except UnreadableKeyError:
            return True  # `verify` reports the key that cannot be read.

    def _is_version(self, version: int) -> bool:
        if self._bucket.head(f"{self._key}{REMOVALS}/{version}") is not None:
            return False
        there = self._bucket.below(f"{self._key}{version}")
        is_whole = any(self._relative(entry) == f"{version}/{SAVED_MODEL}" for entry in there)
        if not there:
            return False
        if is_whole:
            return not self._claims.has_tombstone(version)
        # Another program wrote it, unless a writer is about to publish it.
        return not self._claims.has(version)

    def versions(self) -> dict[int, Identity | None]:
        """Return the versions, each with the identity of its manifest.

        With few versions, one listing of all files shows both. With many, the identities
        are None.
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
        gone = {*map(parse, _below(REMOVALS, by_path)), *claims.tombstones}
        present = {parse(path.partition("/")[0]) for path in by_path if "/" in path} - {None}
        self._has_many = len(present) > _MANY
        versions = {}
        for number in present - gone:
            is_whole = f"{number}/{SAVED_MODEL}" in by_path
            if number and (is_whole or (number not in claims.claims and self.has(number))):
                manifest = by_path.get(f"{number}/{MANIFEST}")
                versions[number] = manifest.identity if manifest else None
        return versions

    def _versions_among(self, numbers: set[int]) -> list[int]:
        """Return the versions among numbers that were listed a moment ago."""
        # If a number was incomplete in that listing, it has a claim, or is complete by now.
        kinds = [partial(self._bucket.below, f"{self._key}{name}") for name in (REMOVALS, CLAIMS)]
        removed, claimed_now = side_by_side(kinds)
        uncertain = {parse(entry.key.rpartition("/")[2]) for entry in [*removed, *claimed_now]}
        return [number for number in numbers if number not in uncertain or self.has(number)]

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """Make a local directory to write a version in."""
        self.sweep()
        with temporary_workspace() as space:
            yield space.stage()

    def commit(
        self,
        staged: Path,
        finish: Callable[[int], None],
        known: Mapping[str, FileInfo] | None = None,
    ) -> int:
        """Upload a staged directory as the next version, and return its number.

        Args:
            staged: The directory with the complete version.
            finish: See `Store.commit`.
            known: The size and the digest of files in `staged`, by relative path. If an
                earlier version has the same file, the store may copy it, and does not need
                to receive it again.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._commit(staged, finish, known or {})
            except LostClaimError:
                if attempt == _ATTEMPTS:
                    break
        raise StorageError(
            f"Nothing could be published in '{self.root}': other writers took this writer for "
            f"dead {_ATTEMPTS} times, because the store did not hear from it in time."
        )

    def _commit(
        self, staged: Path, finish: Callable[[int], None], known: Mapping[str, FileInfo]
    ) -> int:
        with self._claims.folder() as folder:
            before = _stats(staged)
            sources = self._upload(staged, before.keys() - {SAVED_MODEL}, folder, known)
            with self._claims.claimed(self._numbers, self._taken) as claim:
                finish(claim.number)
                after = _stats(staged)
                # The files that `finish` wrote were not uploaded yet.
                sources = {
                    name: key for name, key in sources.items() if after.get(name) == before[name]
                }
                self._put_in_place(staged, after, sources, claim)
                claim.is_published = True
                self._numbers.see([str(claim.number)])
        self._sent = self._sent_in(claim.number, known)
        return claim.number

    def _upload(
        self, staged: Path, names: set[str], folder: str, known: Mapping[str, FileInfo]
    ) -> dict[str, str]:
        """Upload the files that the bucket does not have yet. Return the keys of all, by name."""
        if self._sent is None:
            self._sent = self._sent_in(self._newest(), known)
        infos = {name: known[name] for name in names & known.keys()}
        sent = {name: self._sent[info] for name, info in infos.items() if info in self._sent}
        still_there = side_by_side([partial(self._is_unchanged, each) for each in sent.values()])
        sources = {
            name: each.key
            for (name, each), is_there in zip(sent.items(), still_there, strict=True)
            if is_there
        }
        left = {name: os.path.getsize(staged / name) for name in names - sources.keys()}
        large = [name for name, size in left.items() if size > PART]
        # A large file takes memory for several parts. A small one takes only its own size.
        for group, width in ((large, 2), (left.keys() - set(large), 4)):
            side_by_side(
                [
                    partial(
                        self._bucket.put,
                        f"{folder}/{name}",
                        staged / name,
                        known[name].sha256 if name in known else None,
                    )
                    for name in group
                ],
                width,
            )
        return sources | {name: f"{folder}/{name}" for name in left}

    def _sent_in(self, version: int, known: Mapping[str, FileInfo]) -> dict[FileInfo, _Sent]:
        """Return the files of a version that the next version may have too.

        An object counts only if its own metadata says what it holds. If another program has
        replaced it, the metadata is missing.
        """
        sizes = {info.size for info in known.values()}
        with contextlib.suppress(StorageError, FileNotFoundError):
            there = self._bucket.below(f"{self._key}{version}")
            there = [entry for entry in there if entry.size in sizes]
            digests = side_by_side([partial(self._bucket.digest, entry.key) for entry in there])
            return {
                FileInfo(entry.size, digest): _Sent(entry.key, entry)
                for entry, digest in zip(there, digests, strict=True)
                if digest is not None
            }
        return {}

    def _is_unchanged(self, sent: _Sent) -> bool:
        """Return whether a published object still has the same contents."""
        now = self._bucket.head(sent.key)
        # The times are not compared, because a listing has more exact times. The generations are
        # not compared, because some listings lack them.
        return now is not None and (now.size, now.tag) == (sent.entry.size, sent.entry.tag)

    def _put_in_place(
        self,
        staged: Path,
        names: Mapping[str, tuple[int, ...]],
        sources: Mapping[str, str],
        claim: Claim,
    ) -> None:
        target = f"{self._key}{claim.number}/"
        graph = f"{target}{SAVED_MODEL}"
        claim.beat()  # If this writer was frozen, its claim may be lost.
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
                raise _TakenError
            self._confirm_claim(staged, target, names, claim)
        except _TakenError:
            raise
        except BaseException as error:
            claim.is_kept = True  # If this writer cannot remove the files, others do.
            clean_up(lambda: self._take_back(claim))
            # If another writer took this one for dead, it has removed files.
            is_refused = isinstance(error, StorageError) and not isinstance(error, UnreachableError)
            if is_refused and claim.is_lost:
                raise LostClaimError from None
            raise

    def _take_back(self, claim: Claim) -> None:
        """Remove the files of a number that was not published."""
        with contextlib.suppress(LostClaimError):
            claim.beat()
        # If the claim is lost, there is a tombstone, or a sweep has found the version complete.
        if not claim.is_lost or self._claims.has_tombstone(claim.number):
            self._claims.clear(claim.number)
            claim.is_kept = False

    def _place(self, local: Path, source: str | None, target: str) -> None:
        if source is not None:
            try:
                self._bucket.copy(source, target)
                return
            except UnreachableError:
                raise
            except (FileNotFoundError, StorageError):
                pass  # The store cannot copy it, or it is gone by now. It is uploaded instead.
        self._bucket.put(target, local)

    def _confirm(self, staged: Path, target: str, names: set[str]) -> None:
        """Raise an error unless the bucket has all files with their sizes."""
        there = {entry.key: entry.size for entry in self._bucket.below(target.rstrip("/"))}
        for name in names:
            size, found = os.path.getsize(staged / name), there.get(target + name, "no")
            if found != size:
                raise StorageError(
                    f"'{self._bucket.url}/{target}{name}' has {found} bytes, and {size} were sent. "
                    "Another program may write there."
                )

    def _confirm_claim(
        self, staged: Path, target: str, names: Mapping[str, object], claim: Claim
    ) -> None:
        """Raise an error if another writer ended the claim before the version was complete."""
        try:
            claim.beat()
        except LostClaimError:
            if self._claims.has(claim.number):
                raise  # There is a tombstone.
            # A sweep deletes the claim of a published version.
            try:
                self._confirm(staged, target, set(names))
            except StorageError:
                raise LostClaimError from None

    def _newest(self) -> int:
        with contextlib.suppress(StorageError):
            return max(self.versions(), default=0)
        return 0

    def remove(self, version: int) -> None:
        """Remove a version. The first write marks it, and it does not count from then on."""
        if not self._is_version(version):  # It raises if a key cannot be read.
            raise FileNotFoundError(f"There is no version {version} in '{self.root}'.")
        highest = max(self._taken_numbers(), default=0)
        self._bucket.put(f"{self._key}{REMOVALS}/{version}", b"removed")
        self._complete_removal(str(version), highest)

    def _complete_removal(self, name: str, highest: int) -> None:
        number = parse(name)
        if number is not None and not self._is_cleared(number):
            return
        # The mark of the highest number stays, because nothing else shows that this number was
        # given out.
        if number is None or number < highest:
            self._bucket.delete([f"{self._key}{REMOVALS}/{name}"])

    def _is_cleared(self, number: int) -> bool:
        """Remove the files of a number, and return whether none is left.

        An object whose key is no path, or ends with a slash, cannot be removed.
        """
        with contextlib.suppress(UnreadableKeyError):
            self._claims.clear(number)
            return not self._bucket.below(f"{self._key}{number}")
        return False

    def sweep(self) -> None:
        """Complete removals, end the claims of dead writers, and delete their uploads."""
        kinds = [
            partial(self._bucket.below, f"{self._key}{name}")
            for name in (REMOVALS, STAGING, CLAIMS)
        ]
        removals, staged, claims_there = side_by_side(kinds)
        claims = numbered(
            {self._relative(entry).partition("/")[2]: entry for entry in claims_there}
        )
        self._claims.retire_dead(claims)
        self._claims.sweep_folders(staged)
        if removals or claims.tombstones or claims.free:
            taken = self._taken_numbers()
            for entry in removals:
                name = self._relative(entry).partition("/")[2]
                self._complete_removal(name, max(taken, default=0))
            self._sweep_tombstones(claims, taken)

    def _taken_numbers(self) -> set[int]:
        """Return the numbers that were given out, as far as the base directory shows them."""
        return {claimed(name) or 0 for name in self._taken()}

    def _taken(self) -> list[str]:
        """Return the names in the base directory, and the numbers that were removed there."""
        removals = self._bucket.below(f"{self._key}{REMOVALS}")
        return [*super().names(), *(entry.key.rpartition("/")[2] for entry in removals)]

    def _sweep_tombstones(self, claims: Numbered, taken: set[int]) -> None:
        for number in claims.tombstones.keys() & taken:
            self._claims.clear(number)  # Its writer was frozen, and went on for a moment.
        highest = max(taken | claims.tombstones.keys(), default=0)
        for number in {*self._claims.expired(claims.tombstones), *claims.free}:
            if number < highest:
                self._claims.forget(number)


class _TakenError(LostClaimError):
    """A program that knows no claims has written a version with the claimed number."""


# The buckets and base directories that passed `check`. These buckets honour conditional writes, and
# versions can be written to these directories.
_probed: set[tuple[Bucket, str]] = set()


def _holds_versions(files: BucketFiles) -> bool:
    """Return whether a directory holds SavedModels with numbers as their names."""
    try:
        numbers = [name for name in files.names() if parse(name) is not None]
        return any(files.stat(f"{number}/{SAVED_MODEL}") is not None for number in numbers)
    except UnreachableError:
        raise
    except StorageError:
        return False  # The credentials may be only for the base directory.


def _below(directory: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the entries below a directory, by their paths relative to it."""
    start = f"{directory}/"
    return {
        path.removeprefix(start): entry for path, entry in entries.items() if path.startswith(start)
    }


def _stats(root: Path) -> dict[str, tuple[int, ...]]:
    """Return a value for each file below a directory. It changes if the file is rewritten."""
    found: dict[str, tuple[int, ...]] = {}
    for name in relative_files(root):
        status = os.lstat(root / name)
        found[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found
