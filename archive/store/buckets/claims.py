"""Claims: which writer may publish the next number in a bucket.

A writer claims a number when it creates ``.claims/<number>``. The store lets one
writer create it. While a claim is alive, other writers wait. Its writer renews it
again and again. A claim that was not renewed for `LEASE` seconds, by the clock of
the store, belongs to a dead writer. The next writer replaces it by a tombstone,
which is an empty object. A number with a tombstone is no version, whatever lies
there, and nobody gets that number again: its writer may only have been frozen, and
may go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from ...errors import StorageError
from ..versions import SAVED_MODEL, Numbers, parse
from .failures import ChangedError
from .objects import Bucket, Entry, Seen

CLAIMS, STAGING, REMOVALS = ".claims", ".staging", ".removed"

# A writer holds a claim while the store copies files, which takes far less time than this.
LEASE = 60.0

# Uploaded files are kept for longer, because it takes time to upload them again.
STAGING_LEASE = 600.0

# In the folder of each writer, the object that tells that the writer is alive.
_ALIVE = "alive"


class LostClaimError(Exception):
    """Another writer took this writer for dead and ended its claim."""


@dataclass(frozen=True)
class Numbered:
    """The claims and tombstones in a base directory.

    Attributes:
        claims: the claims, by number. The writer of a claim may be dead.
        tombstones: the numbers that nobody may get again.
    """

    claims: dict[int, Entry]
    tombstones: set[int]


class Claims:
    """The claims in one base directory.

    Args:
        bucket: the bucket.
        base: the key of the base directory, with a slash at the end. It is empty for the
            whole bucket.
    """

    def __init__(self, bucket: Bucket, base: str) -> None:
        self._bucket, self._base = bucket, base

    def all(self) -> Numbered:
        """The claims and tombstones that are there now."""
        entries = self._bucket.below(f"{self._base}{CLAIMS}")
        return numbered({self._name(entry): entry for entry in entries})

    def has(self, number: int) -> bool:
        """Whether a number has a claim or a tombstone."""
        return self._bucket.head(self._key(number)) is not None

    def has_tombstone(self, number: int) -> bool:
        """Whether a number has a tombstone."""
        found = self._bucket.head(self._key(number))
        return found is not None and found.size == 0

    def retire(self, number: int) -> None:
        """Give a number a tombstone, so that nobody gets it again."""
        self._bucket.create(self._key(number), b"")

    def forget(self, number: int) -> None:
        """Remove a claim, or a tombstone that a higher number makes unnecessary."""
        self._bucket.delete([self._key(number)])

    @contextlib.contextmanager
    def claimed(self, numbers: Numbers, taken: Callable[[], list[str]]) -> Iterator[Claim]:
        """Claim the next number. Other writers wait until the block ends.

        Args:
            numbers: the numbers that this writer has seen.
            taken: a function that lists the names in the base directory.
        """
        claim = self._claim(numbers, taken)
        beating = Heartbeat(claim.beat, LEASE / 5)
        try:
            yield claim
        finally:
            beating.stop()
            if not claim.is_lost and not claim.is_kept:
                with contextlib.suppress(StorageError):  # It expires after `LEASE`.
                    self.forget(claim.number)

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        """The key of a folder for uploads, which other writers leave alone meanwhile."""
        folder = f"{self._base}{STAGING}/{uuid.uuid4().hex}"
        alive = f"{folder}/{_ALIVE}"
        self._bucket.put(alive, b"alive")
        beating = Heartbeat(lambda: self._bucket.put(alive, uuid.uuid4().bytes), STAGING_LEASE / 10)
        try:
            yield folder
        finally:
            beating.stop()
            with contextlib.suppress(StorageError):  # It expires after `STAGING_LEASE`.
                self._bucket.delete([entry.key for entry in self._bucket.below(folder)])

    def sweep_folders(self, staged: Iterable[Entry]) -> None:
        """Delete the uploads of dead writers.

        Args:
            staged: the uploads of all writers.
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
        """Replace the claims of dead writers by tombstones, and remove their files."""
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
                # If its writer and others do this at the same time, the store lets one succeed.
                self._bucket.replace(current.key, b"", Seen(current.tag, current.generation))
                self.clear(number)

    def clear(self, number: int) -> None:
        """Remove the files of a number that is no version. The graph goes first."""
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
            names = [*taken(), *map(str, there.tombstones)]
            number = numbers.next(names)
            body = json.dumps(
                {"writer": uuid.uuid4().hex, "host": platform.node(), "pid": os.getpid()}
            ).encode()
            seen = self._bucket.create(self._key(number), body)
            if seen is None:
                continue
            # Since we listed, another writer may have claimed, published and released a number.
            now = self.all()
            others = [*now.claims.keys() - {number}, *now.tombstones]
            if numbers.next([*taken(), *map(str, others)]) == number and len(now.claims) == 1:
                return Claim(self._bucket, self._key(number), number, body, seen)
            self.forget(number)
            time.sleep(random.uniform(0, 0.1))

    def _now(self) -> datetime:
        """The time by the clock of the store."""
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
    """The claims and tombstones among objects below ``.claims``, which are given by name."""
    by_number = {number: entry for name, entry in entries.items() if (number := parse(name))}
    return Numbered(
        {number: entry for number, entry in by_number.items() if entry.size},
        {number for number, entry in by_number.items() if not entry.size},
    )


class Claim:
    """A number that no other writer may publish while the claim is renewed.

    Attributes:
        number: the number.
        is_lost: whether another writer has ended the claim.
        is_kept: whether the claim stays there when its writer is done, so that others
            remove its files.
    """

    def __init__(self, bucket: Bucket, key: str, number: int, body: bytes, seen: Seen) -> None:
        self.number = number
        self.is_lost = False
        self.is_kept = False
        self._bucket, self._key, self._body, self._seen = bucket, key, body, seen
        self._renewed = time.monotonic()
        self._lock = threading.Lock()

    def beat(self) -> None:
        """Renew the claim.

        Raises:
            LostClaimError: If another writer has ended it.
        """
        with self._lock:
            if self.is_lost:
                raise LostClaimError
            began = time.monotonic()
            body = self._body + uuid.uuid4().hex.encode()
            try:
                self._seen = self._bucket.replace(self._key, body, self._seen)
            except ChangedError:
                self.is_lost = True
                raise LostClaimError from None
            self._renewed = began

    def check(self) -> None:
        """Renew the claim unless it was renewed a moment ago."""
        if self.is_lost or time.monotonic() - self._renewed > LEASE / 4:
            self.beat()


class Heartbeat:
    """Calls a function every few seconds on a thread, until it is stopped.

    Args:
        beat: the function. If it fails, it is called again the next time.
        seconds: the time between two calls.
    """

    def __init__(self, beat: Callable[[], object], seconds: float) -> None:
        self._beat, self._seconds = beat, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="keras-export-claim")
        self._thread.start()

    def stop(self) -> None:
        """Stop to call the function."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            with contextlib.suppress(Exception):
                self._beat()
