"""Claims: which writer may publish the next number in a bucket.

A writer claims a number when it creates ``.claims/<number>``. The store lets one
writer create it. While a claim is alive, other writers wait. Its writer renews it
again and again. A claim that was not renewed for `LEASE` seconds, by the clock of
the store, belongs to a dead writer. The next writer replaces it by a tombstone,
which is an empty object. A number with a tombstone is no version, whatever lies
there, and nobody gets that number again: its writer may only have been frozen, and
may go on. Tombstones stay for `TOMBSTONE_LEASE`.

A writer that gives up a number replaces its claim by a free mark, which the next
writer replaces by its own claim. The claim is not deleted: the answer to a delete
may get lost, and the repeated request would delete the claim of another writer. Only
what belongs to a number that nobody can get any more is deleted.
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

from ...errors import StorageError
from ..threads import in_thread
from ..versions import SAVED_MODEL, Numbers, parse
from .failures import ChangedError
from .objects import Bucket, Entry, Seen

CLAIMS, STAGING, REMOVALS = ".claims", ".staging", ".removed"

# A writer holds a claim while the store copies files, which takes far less time than this.
LEASE = 60.0

# Uploaded files are kept for longer, because it takes time to upload them again.
STAGING_LEASE = 600.0

# A writer may be frozen for long, as on a laptop that sleeps.
TOMBSTONE_LEASE = 7 * 24 * 3600.0

# The body of a claim that was given up. Its length tells it from claims and tombstones.
_FREE = b"-"

# How long Ctrl-C waits for what is cleaned up, in seconds.
_PATIENCE = 3.0

# In the folder of each writer, the object that tells that the writer is alive.
_ALIVE = "alive"


class LostClaimError(Exception):
    """Another writer took this writer for dead and ended its claim."""


@dataclass(frozen=True)
class Numbered:
    """The claims and tombstones in a base directory.

    Attributes:
        claims: the claims, by number. The writer of a claim may be dead.
        tombstones: the tombstones, by number. Nobody gets these numbers again.
        free: the numbers whose claims were given up.
    """

    claims: dict[int, Entry]
    tombstones: dict[int, Entry]
    free: set[int]


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
        found = self._bucket.head(self._key(number))
        return found is not None and found.size != len(_FREE)

    def has_tombstone(self, number: int) -> bool:
        """Whether a number has a tombstone."""
        found = self._bucket.head(self._key(number))
        return found is not None and found.size == 0

    def forget(self, number: int) -> None:
        """Remove what belongs to a number that nobody can get any more."""
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
        """The key of a folder for uploads, which other writers leave alone meanwhile."""
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
                self._bucket.replace(current.key, b"", current.seen)
                self.clear(number)

    def expired(self, tombstones: Mapping[int, Entry]) -> list[int]:
        """The numbers of tombstones that are older than any writer that may go on."""
        if not tombstones:
            return []
        now = self._now()
        return [
            number
            for number, entry in tombstones.items()
            if (now - entry.modified).total_seconds() > TOMBSTONE_LEASE
        ]

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
            number = numbers.next([*taken(), *map(str, there.tombstones)])
            body = json.dumps(
                {"writer": uuid.uuid4().hex, "host": platform.node(), "pid": os.getpid()}
            ).encode()
            seen = self._take(number, body, number in there.free)
            if seen is None:
                continue
            claim = Claim(self._bucket, self._key(number), number, body, seen)
            # Since we listed, another writer may have claimed, published and released a number.
            now = self.all()
            others = [*now.claims.keys() - {number}, *now.tombstones]
            if numbers.next([*taken(), *map(str, others)]) == number and len(now.claims) == 1:
                return claim
            claim.give_up()
            time.sleep(random.uniform(0, 0.1))

    def _take(self, number: int, body: bytes, is_free: bool) -> Seen | None:
        """Write a claim, and return its state, or None if another writer was faster."""
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
    free = {number for number, entry in by_number.items() if entry.size == len(_FREE)}
    return Numbered(
        {number: each for number, each in by_number.items() if each.size and number not in free},
        {number: each for number, each in by_number.items() if not each.size},
        free,
    )


def clean_up(function: Callable[[], object]) -> None:
    """Call a function that need not succeed. After Ctrl-C, wait a few seconds for it at most."""
    if isinstance(sys.exc_info()[1], Exception | None):
        with contextlib.suppress(StorageError, LostClaimError):
            function()
        return
    with contextlib.suppress(Exception):
        in_thread(function).result(_PATIENCE)


class Claim:
    """A number that no other writer may publish while the claim is renewed.

    Attributes:
        number: the number.
        is_lost: whether another writer has ended the claim.
        is_kept: whether the claim stays there when its writer is done, so that others
            remove its files.
        is_published: whether the version of the number is there.
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
            LostClaimError: If another writer has ended it.
        """
        with self._lock:
            if self._is_over:
                return  # The heart beat once more.
            began = time.monotonic()
            self._replace(self._body + uuid.uuid4().hex.encode())
            self._renewed = began

    def give_up(self) -> None:
        """Let others claim the number.

        Raises:
            LostClaimError: If another writer has ended it.
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
        thread = threading.Thread(target=self._run, daemon=True, name="keras-export-claim")
        with contextlib.suppress(RuntimeError):  # Python 3.12 starts none when a script has ended.
            thread.start()

    def stop(self) -> None:
        """Stop to call the function."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            with contextlib.suppress(Exception):
                self._beat()
