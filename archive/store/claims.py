"""Who may publish the next version in a bucket: one writer at a time, wherever they run.

A writer claims a number by creating ``.claims/<number>``, which only one can. As
long as a claim lives, other writers wait for it. Its writer renews it; one that
was not renewed for `LEASE` seconds, by the clock of the store, has lost its
writer, and whoever comes next replaces it by a gravestone: an empty object. A
number with a gravestone is no version, whatever is there, and is never given out
again: its writer may only have been frozen, and go on.
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

from ..errors import StorageError
from .cloud import Bucket, ChangedError, Entry, Seen
from .versions import SAVED_MODEL, Numbers, parse

CLAIMS, STAGING, REMOVALS = ".claims", ".staging", ".removed"

# A claim is held for as long as copies inside the store take, which is far below this.
LEASE = 60.0

# What a writer has uploaded is kept for longer: to upload it again takes time.
STAGING_LEASE = 600.0


# In the corner of each writer: when its writer was last seen.
_ALIVE = "alive"


class LostClaimError(Exception):
    """Others took this writer for dead, and its number is not its own any more."""


@dataclass(frozen=True)
class Numbered:
    """The claims that are there.

    Attributes:
        live: those that have a writer, or had one, by number.
        graves: the numbers that must never be given out again.
    """

    live: dict[int, Entry]
    graves: set[int]


class Claims:
    """The claims in one base directory.

    Args:
        bucket: where it is.
        base: its key, with a slash at the end; empty for the whole bucket.
    """

    def __init__(self, bucket: Bucket, base: str) -> None:
        self._bucket, self._base = bucket, base

    def all(self) -> Numbered:
        """The claims that are there now."""
        entries = self._bucket.below(f"{self._base}{CLAIMS}")
        return numbered({self._name(entry): entry for entry in entries})

    def has(self, number: int) -> bool:
        """Whether a number is claimed, or buried."""
        return self._bucket.head(self._key(number)) is not None

    def is_buried(self, number: int) -> bool:
        """Whether a number must never be given out again."""
        found = self._bucket.head(self._key(number))
        return found is not None and found.size == 0

    def bury(self, number: int) -> None:
        """Let nobody give out a number again that no higher one tells of."""
        self._bucket.create(self._key(number), b"")

    def forget(self, number: int) -> None:
        """Remove a claim or a gravestone, which a higher number makes superfluous."""
        self._bucket.delete([self._key(number)])

    @contextlib.contextmanager
    def claimed(self, numbers: Numbers, taken: Callable[[], list[str]]) -> Iterator[Claim]:
        """A claim to the next number; others wait until it is released.

        Args:
            numbers: those that this writer has seen.
            taken: lists what is in the base directory.
        """
        claim = self._claim(numbers, taken)
        beating = Heartbeat(claim.beat, LEASE / 5)
        try:
            yield claim
        finally:
            beating.stop()
            if not claim.is_lost and not claim.is_kept:
                with contextlib.suppress(StorageError):  # Others take it for dead in time.
                    self.forget(claim.number)

    @contextlib.contextmanager
    def corner(self) -> Iterator[str]:
        """A key to upload below, which others leave alone as long as this process lives."""
        corner = f"{self._base}{STAGING}/{uuid.uuid4().hex}"
        alive = f"{corner}/{_ALIVE}"
        self._bucket.put(alive, b"alive")
        beating = Heartbeat(lambda: self._bucket.put(alive, uuid.uuid4().bytes), STAGING_LEASE / 10)
        try:
            yield corner
        finally:
            beating.stop()
            with contextlib.suppress(StorageError):  # It is swept in time.
                self._bucket.delete([entry.key for entry in self._bucket.below(corner)])

    def sweep_corners(self, staged: Iterable[Entry]) -> None:
        """Delete what dead writers have uploaded.

        Args:
            staged: all that writers have uploaded.
        """
        corners: dict[str, list[Entry]] = {}
        for entry in staged:
            name = entry.key.removeprefix(f"{self._base}{STAGING}/").partition("/")[0]
            corners.setdefault(name, []).append(entry)
        if not corners:
            return
        now = self.now()
        for entries in corners.values():
            age = now - max(entry.modified for entry in entries)
            if age.total_seconds() > STAGING_LEASE:
                self._bucket.delete([entry.key for entry in entries])

    def _claim(self, numbers: Numbers, taken: Callable[[], list[str]]) -> Claim:
        pause = 0.02
        began = time.monotonic()
        while True:
            there = self.all()
            if there.live:
                if time.monotonic() - began > LEASE / 10:
                    self.bury_dead(there)
                    began = time.monotonic()
                time.sleep(random.uniform(pause / 2, pause))
                pause = min(2 * pause, 0.3)
                continue
            names = [*taken(), *map(str, there.graves)]
            number = numbers.next(names)
            body = json.dumps(
                {"writer": uuid.uuid4().hex, "host": platform.node(), "pid": os.getpid()}
            ).encode()
            seen = self._bucket.create(self._key(number), body)
            if seen is None:
                continue
            # Another may have claimed, published and released since we listed.
            now = self.all()
            others = [*now.live.keys() - {number}, *now.graves]
            if numbers.next([*taken(), *map(str, others)]) == number and len(now.live) == 1:
                return Claim(self._bucket, self._key(number), number, body, seen)
            self.forget(number)
            time.sleep(random.uniform(0, 0.1))

    def bury_dead(self, there: Numbered) -> None:
        """Replace the claims of writers that are dead by gravestones, and remove what they left."""
        if not there.live:
            return
        now = self.now()
        for number, entry in there.live.items():
            if (now - entry.modified).total_seconds() <= LEASE:
                continue
            current = self._bucket.head(entry.key)
            if current is None or (now - current.modified).total_seconds() <= LEASE:
                continue
            if current.size == 0:
                continue  # Another was faster.
            if self._bucket.head(f"{self._base}{number}/{SAVED_MODEL}") is not None:
                self.forget(number)  # It was published, and its writer died right then.
                continue
            with contextlib.suppress(ChangedError):
                # Of its writer and all who sweep, one wins.
                self._bucket.replace(current.key, b"", Seen(current.tag, current.generation))
                self.clear(number)

    def clear(self, number: int) -> None:
        """Remove what lies below a number that is no version; its graph first."""
        graph = f"{self._base}{number}/{SAVED_MODEL}"
        self._bucket.delete([graph])
        left = [entry.key for entry in self._bucket.below(f"{self._base}{number}")]
        self._bucket.delete(left)

    def now(self) -> datetime:
        """The time, by the clock of the store."""
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


def numbered(claims: dict[str, Entry]) -> Numbered:
    """What claims there are, by the name of each."""
    entries = {number: entry for name, entry in claims.items() if (number := parse(name))}
    return Numbered(
        {number: entry for number, entry in entries.items() if entry.size},
        {number for number, entry in entries.items() if not entry.size},
    )


class Claim:
    """A number that nobody else may publish, as long as it is renewed.

    Attributes:
        number: the number.
        is_lost: whether others took its writer for dead.
        is_kept: whether it stays when its writer is done, for others to sweep up.
    """

    def __init__(self, bucket: Bucket, key: str, number: int, body: bytes, seen: Seen) -> None:
        self.number = number
        self.is_lost = False
        self.is_kept = False
        self._bucket, self._key, self._body, self._seen = bucket, key, body, seen
        self._renewed = time.monotonic()
        self._lock = threading.Lock()

    def beat(self) -> None:
        """Renew it.

        Raises:
            LostClaimError: others took it for dead.
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
        """Renew it unless that was done a moment ago."""
        if self.is_lost or time.monotonic() - self._renewed > LEASE / 4:
            self.beat()


class Heartbeat:
    """Calls a function every now and then, on a thread of its own, until it is stopped.

    Args:
        beat: what to call; if it fails, it is called again.
        seconds: how often.
    """

    def __init__(self, beat: Callable[[], object], seconds: float) -> None:
        self._beat, self._seconds = beat, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="keras-export-claim")
        self._thread.start()

    def stop(self) -> None:
        """Do not call it any more."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            with contextlib.suppress(Exception):
                self._beat()
