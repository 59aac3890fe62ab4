"""Claims: which writer may publish the next number in a bucket.

A writer claims a number by creating ``.claims/<number>``. The store lets only one
writer create it. The writer renews its claim again and again, and other writers wait
as long as it does. If a claim was not renewed for `LEASE` seconds, by the clock of
the store, its writer counts as dead. The next writer then replaces the claim by a
tombstone, which is an empty object. A number with a tombstone is not a version,
whatever files it has, and no writer gets that number again. This is because its
writer may only have been frozen, and may go on. Tombstones stay for at least
`TOMBSTONE_LEASE` seconds.

A writer that gives up a number replaces its claim by a free mark. The next writer
replaces the free mark by its own claim. The claim is not deleted, because the answer
to a delete may get lost. The request would then be repeated, and would delete the
claim of another writer. Claims and marks are deleted only if no writer can get their
number any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from ...errors import StorageError
from ..threads import in_thread
from ..versions import SAVED_MODEL, Numbers, parse
from .failures import ChangedError, UnreachableError
from .objects import Bucket, Entry, Seen

CLAIMS, STAGING, REMOVALS = ".claims", ".staging", ".removed"

# A writer holds a claim while the store copies files, which takes far less time than this.
LEASE = 60.0

# Uploaded files are kept for longer, because it takes time to upload them again.
STAGING_LEASE = 600.0

# A writer may be frozen for a long time, for example on a laptop that sleeps.
TOMBSTONE_LEASE = 7 * 24 * 3600.0

# The contents of a free mark. Claims and tombstones have other lengths.
_FREE = b"-"

# How long Ctrl-C waits for the cleaning up, in seconds.
_PATIENCE = 3.0

# The name of the object that shows that a writer is alive. Each writer has one in its folder.
_ALIVE = "alive"


class LostClaimError(Exception):
    """Another writer took this writer for dead and ended its claim."""


@dataclass(frozen=True)
class Numbered:
    """The claims and tombstones in a base directory.

    Attributes:
        claims: The claims, by number. The writer of a claim may be dead.
        tombstones: The tombstones, by number. No writer gets these numbers again.
        free: The numbers with a free mark, because their claims were given up.
    """

    claims: dict[int, Entry]
    tombstones: dict[int, Entry]
    free: set[int]


class Claims:
    """The claims in one base directory.

    Args:
        bucket: The bucket.
        base: The key of the base directory, with a slash at the end. It is empty for the
            whole bucket.
    """

    def __init__(self, bucket: Bucket, base: str) -> None:
        self._bucket, self._base = bucket, base

    def all(self) -> Numbered:
        """Return the claims, tombstones and free marks that exist now."""
        entries = self._bucket.below(f"{self._base}{CLAIMS}")
        return numbered({self._name(entry): entry for entry in entries})

    def has(self, number: int) -> bool:
        """Return whether a number has a claim or a tombstone."""
        found = self._bucket.head(self._key(number))
        return found is not None and found.size != len(_FREE)

    def has_tombstone(self, number: int) -> bool:
        """Return whether a number has a tombstone."""
        found = self._bucket.head(self._key(number))
        return found is not None and found.size == 0

    def forget(self, number: int) -> None:
        """Delete the claim, tombstone or free mark of a number that no writer can get any more."""
        self._bucket.delete([self._key(number)])

    @contextlib.contextmanager
    def claimed(self, numbers: Numbers, taken: Callable[[], list[str]]) -> Iterator[Claim]:
        """Claim the next number for the length of a ``with`` block. Other writers wait meanwhile.

        Args:
            numbers: The numbers that this writer has seen.
            taken: A function that returns the names in the base directory.
        """
        claim = self._claim(numbers, taken)
        beating = Heartbeat(claim.beat, LEASE / 5)

        def end() -> None:
            if claim.is_published:
                self.forget(claim.number)
            elif not claim.is_lost and not claim.is_kept:
                claim.give_up()

        try:
            yield claim
        finally:
            beating.stop()
            clean_up(end)  # If it fails, the claim expires after `LEASE`.

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        """Make a folder for uploads, and yield its key. It is deleted after the ``with`` block.

        Other writers leave the folder alone meanwhile.
        """
        folder = f"{self._base}{STAGING}/{uuid.uuid4().hex}"
        alive = f"{folder}/{_ALIVE}"
        self._bucket.put(alive, b"alive")
        beating = Heartbeat(lambda: self._bucket.put(alive, uuid.uuid4().bytes), STAGING_LEASE / 10)
        try:
            yield folder
        finally:
            beating.stop()
            # If it fails, the folder expires after `STAGING_LEASE`.
            clean_up(
                lambda: self._bucket.delete([entry.key for entry in self._bucket.below(folder)])
            )

    def sweep_folders(self, staged: Iterable[Entry]) -> None:
        """Delete what dead writers left in ``.staging``.

        Args:
            staged: All objects in ``.staging``.
        """
        folders: dict[str, list[Entry]] = {}
        for entry in staged:
            name = entry.key.removeprefix(f"{self._base}{STAGING}/").partition("/")[0]
            folders.setdefault(name, []).append(entry)
        if not folders:
            return
        now = self._now()
        for entries in folders.values():
            age = now - max(entry.modified for entry in entries)
            if age.total_seconds() > STAGING_LEASE:
                self._bucket.delete([entry.key for entry in entries])

    def retire_dead(self, there: Numbered) -> None:
        """Replace the claims of dead writers by tombstones, and remove their files.

        If the version of a claim was published, the claim is only deleted.
        """
        if not there.claims:
            return
        now = self._now()
        for number, entry in there.claims.items():
            if (now - entry.modified).total_seconds() <= LEASE:
                continue
            current = self._bucket.head(entry.key)
            if current is None or (now - current.modified).total_seconds() <= LEASE:
                continue
            if current.size == 0:
                continue  # Another writer has replaced it.
            if self._bucket.head(f"{self._base}{number}/{SAVED_MODEL}") is not None:
                self.forget(number)  # The version was published before its writer died.
                continue
            with contextlib.suppress(ChangedError):
                # The writer of the claim and others may replace it at the same time. The store
                # lets only one of them succeed.
                self._bucket.replace(current.key, b"", current.seen)
                self.clear(number)

    def expired(self, tombstones: Mapping[int, Entry]) -> list[int]:
        """Return the numbers of tombstones that are older than `TOMBSTONE_LEASE`.

        A writer that was frozen for so long does not go on any more.
        """
        if not tombstones:
            return []
        now = self._now()
        return [
            number
            for number, entry in tombstones.items()
            if (now - entry.modified).total_seconds() > TOMBSTONE_LEASE
        ]

    def clear(self, number: int) -> None:
        """Remove the files of a number that is not a version. The graph is removed first."""
        graph = f"{self._base}{number}/{SAVED_MODEL}"
        self._bucket.delete([graph])
        left = [entry.key for entry in self._bucket.below(f"{self._base}{number}")]
        self._bucket.delete(left)

    def _claim(self, numbers: Numbers, taken: Callable[[], list[str]]) -> Claim:
        pause = 0.02
        began = time.monotonic()
        while True:
            there = self.all()
            if there.claims:
                if time.monotonic() - began > LEASE / 10:
                    self.retire_dead(there)
                    began = time.monotonic()
                time.sleep(random.uniform(pause / 2, pause))
                pause = min(2 * pause, 0.3)
                continue
            number = numbers.next([*taken(), *map(str, there.tombstones)])
            body = json.dumps(
                {"writer": uuid.uuid4().hex, "host": platform.node(), "pid": os.getpid()}
            ).encode()
            try:
                seen = self._take(number, body, number in there.free)
                if seen is None:
                    continue
                claim = Claim(self._bucket, self._key(number), number, body, seen)
                # Since we listed, another writer may have claimed, published and released a
                # number.
                now = self.all()
                others = [*now.claims.keys() - {number}, *now.tombstones]
                if numbers.next([*taken(), *map(str, others)]) == number and len(now.claims) == 1:
                    return claim
                claim.give_up()
            except UnreachableError:
                raise
            except BaseException:
                clean_up(partial(self._withdraw, number, body))
                raise
            time.sleep(random.uniform(0, 0.1))

    def _withdraw(self, number: int, body: bytes) -> None:
        """Give up a claim, if it was written. The answer may not have been received."""
        with contextlib.suppress(FileNotFoundError, ChangedError):
            content, entry = self._bucket.read(self._key(number))
            if content == body:
                self._bucket.replace(self._key(number), _FREE, entry.seen)

    def _take(self, number: int, body: bytes, is_free: bool) -> Seen | None:
        """Write a claim. Return its state, or None if another writer was faster."""
        key = self._key(number)
        if not is_free:
            return self._bucket.create(key, body)
        current = self._bucket.head(key)
        if current is None or current.size != len(_FREE):
            return None
        with contextlib.suppress(ChangedError):
            return self._bucket.replace(key, body, current.seen)
        return None

    def _now(self) -> datetime:
        """Return the time by the clock of the store."""
        key = f"{self._base}{STAGING}/clock-{uuid.uuid4().hex}/now"
        self._bucket.put(key, b"now")
        found = self._bucket.head(key)
        self._bucket.delete([key])
        if found is None:
            raise StorageError(f"'{self._bucket.url}/{key}' is gone right after it was written.")
        return found.modified

    def _key(self, number: int) -> str:
        return f"{self._base}{CLAIMS}/{number}"

    def _name(self, entry: Entry) -> str:
        return entry.key.rpartition("/")[2]


def numbered(entries: dict[str, Entry]) -> Numbered:
    """Sort the objects in ``.claims`` into claims, tombstones and free marks.

    Args:
        entries: The objects, by name. Names that are not numbers are ignored.
    """
    by_number = {number: entry for name, entry in entries.items() if (number := parse(name))}
    free = {number for number, entry in by_number.items() if entry.size == len(_FREE)}
    return Numbered(
        {number: each for number, each in by_number.items() if each.size and number not in free},
        {number: each for number, each in by_number.items() if not each.size},
        free,
    )


def clean_up(function: Callable[[], object]) -> None:
    """Call a function that may fail. After Ctrl-C, wait for it a few seconds at most."""
    if isinstance(sys.exc_info()[1], Exception | None):
        with contextlib.suppress(StorageError, LostClaimError):
            function()
        return
    with contextlib.suppress(Exception):
        in_thread(function).result(_PATIENCE)


class Claim:
    """A number that no other writer may publish while the claim is renewed.

    Attributes:
        number: The number.
        is_lost: Whether another writer has ended the claim.
        is_kept: Whether the claim stays when its writer is done. Other writers then remove
            the files of the number.
        is_published: Whether the version with the number is published.
    """

    def __init__(self, bucket: Bucket, key: str, number: int, body: bytes, seen: Seen) -> None:
        self.number = number
        self.is_lost = False
        self.is_kept = False
        self.is_published = False
        self._bucket, self._key, self._body, self._seen = bucket, key, body, seen
        self._renewed = time.monotonic()
        self._is_over = False
        self._lock = threading.Lock()

    def beat(self) -> None:
        """Renew the claim.

        Raises:
            LostClaimError: If another writer has ended the claim.
        """
        with self._lock:
            if self._is_over:
                return  # The thread of the heartbeat may call this once more.
            began = time.monotonic()
            self._replace(self._body + uuid.uuid4().hex.encode())
            self._renewed = began

    def give_up(self) -> None:
        """Let other writers claim the number.

        Raises:
            LostClaimError: If another writer has ended the claim.
        """
        with self._lock:
            self._is_over = True
            self._replace(_FREE)

    def _replace(self, body: bytes) -> None:
        if self.is_lost:
            raise LostClaimError
        try:
            self._seen = self._bucket.replace(self._key, body, self._seen)
        except ChangedError:
            self.is_lost = True
            raise LostClaimError from None

    def check(self) -> None:
        """Renew the claim unless it was renewed a moment ago.

        Raises:
            LostClaimError: If another writer has ended the claim.
        """
        if self.is_lost or time.monotonic() - self._renewed > LEASE / 4:
            self.beat()


class Heartbeat:
    """Calls a function every few seconds on a thread, until it is stopped.

    Args:
        beat: The function. It is called again even if it fails.
        seconds: The time between two calls, in seconds.
    """

    def __init__(self, beat: Callable[[], object], seconds: float) -> None:
        self._beat, self._seconds = beat, seconds
        self._ended = threading.Event()
        thread = threading.Thread(target=self._run, daemon=True, name="keras-export-claim")
        with contextlib.suppress(RuntimeError):  # Python 3.12 starts none after a script's end.
            thread.start()

    def stop(self) -> None:
        """Stop calling the function."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            with contextlib.suppress(Exception):
                self._beat()
