"""The objects of one bucket, read and written by key.

A request cannot be interrupted. The main thread therefore sends its requests on other
threads and waits for them. Ctrl-C ends the wait, and the process can end before the
request does.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from ...errors import ExportValueError, StorageError
from ..threads import in_thread
from . import clients
from .clients import SCHEMES, exceptions, obstore
from .failures import (
    ChangedError,
    ConflictError,
    UnreachableError,
    UnreadableKeyError,
    advice,
    is_missing_bucket,
    is_temporary,
    reason,
)

# How long an outage may last before a request fails, in seconds.
RETRY_SECONDS = 120.0

# How long a server may take if it has never answered this process, in seconds. A wrong address or
# a missing credential is then reported sooner than after `RETRY_SECONDS`.
FIRST_ANSWER_SECONDS = 12.0

# Large files are sent in parts. This is the size of a part, and the number of parts of a file that
# are sent at the same time. Two files at the same time take 64 MB of memory.
PART = 8 * 2**20
PARTS_AT_ONCE = 4

# The name of the metadata with the SHA-256 digest of an object's contents. If another program
# replaces the object, the metadata is gone.
_DIGEST = "sha256"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Seen:
    """The state of an object that a conditional write expects.

    Attributes:
        tag: The ETag of the object.
        generation: The version of the object, in stores that number the versions.
    """

    tag: str | None
    generation: str | None


@dataclass(frozen=True)
class Entry:
    """An object as the store lists it.

    Attributes:
        key: The whole name of the object in the bucket.
        size: The size of the object in bytes.
        modified: When the object was written, by the clock of the store.
        tag: The ETag of the object. It differs if the contents differ.
        generation: The version of the object, in stores that number the versions.
    """

    key: str
    size: int
    modified: datetime
    tag: str | None
    generation: str | None

    @property
    def identity(self) -> tuple[int | str, ...]:
        """A value that changes when the contents of the object change."""
        # Some stores leave the generation out of a listing.
        return (self.size, self.tag or self.generation or "")

    @property
    def seen(self) -> Seen:
        """The state of the object, for a conditional write."""
        return Seen(self.tag, self.generation)


@dataclass(frozen=True)
class _State:
    """An object that was found after the store refused a conditional write.

    Attributes:
        seen: The state of the object.
        own: The same state if the object has the contents that the write had, else None.
    """

    seen: Seen
    own: Seen | None


class Bucket:
    """The objects of one bucket.

    Every method raises `StorageError` if the store cannot be reached or refuses the request.

    Args:
        scheme: One of `SCHEMES`.
        name: The name of the bucket. Azure calls a bucket a container.
    """

    def __init__(self, scheme: str, name: str) -> None:
        self.url = f"{scheme}://{name}"
        self._scheme, self._name = scheme, name
        self._clients: dict[bool, Any] = {}
        self._is_connecting = threading.Lock()
        self._has_answered = False

    def __reduce__(self) -> tuple[Any, ...]:
        # KerasTuner copies callbacks, and connections cannot be copied.
        return _bucket, (self._scheme, self._name)

    def create(self, key: str, content: bytes) -> Seen | None:
        """Write a new object and return its state, or None if there is another object already.

        An object that exists already is not changed. If it has the same contents, it counts
        as written now. `_state` says why.
        """

        def act(client: Any) -> Seen | None:
            try:
                return _seen(obstore().put(client, key, content, mode="create"))
            except (exceptions().AlreadyExistsError, exceptions().PreconditionError):
                there = self._state(client, key, content)
                if there is None:
                    raise ConflictError("another request for it is under way") from None
                return there.own

        return self._do(act, "write", key)

    def replace(self, key: str, content: bytes, seen: Seen) -> Seen:
        """Replace an object if it is still in the state that was seen. Return its new state.

        Raises:
            ChangedError: If the object has changed or does not exist any more.
        """
        mode = {"e_tag": seen.tag, "version": seen.generation}
        mode = {name: value for name, value in mode.items() if value is not None}

        def act(client: Any) -> Seen | None:
            try:
                return _seen(obstore().put(client, key, content, mode=mode))
            except (
                exceptions().PreconditionError,
                exceptions().AlreadyExistsError,
                FileNotFoundError,
            ):
                there = self._state(client, key, content)
                if there is not None and there.own is None and there.seen == seen:
                    raise ConflictError("another request for it is under way") from None
                return None if there is None else there.own

        written = self._do(act, "write", key)
        if written is None:
            raise ChangedError(key)
        return written

    def put(self, key: str, content: bytes | Path, sha256: str | None = None) -> Seen:
        """Write or replace an object, and return its state.

        Args:
            key: The key of the object.
            content: The contents, or the path of a file.
            sha256: The digest of the contents. The object keeps it, and so do its copies.
        """

        def act(client: Any) -> Seen:
            try:
                return _put(client, key, content, {} if sha256 is None else {_DIGEST: sha256})
            except FileNotFoundError as error:
                self._raise_if_no_bucket(error)
                raise ConflictError("the upload of its parts was lost") from None

        return self._do(act, "write", key)

    def digest(self, key: str) -> str | None:
        """Return the digest that was written together with an object, or None if there was none.

        Raises:
            FileNotFoundError: If the object does not exist.
        """

        def act(client: Any) -> str | None:
            attributes = obstore().get(client, key, options={"head": True}).attributes
            return cast("str | None", attributes.get(_DIGEST))

        return self._do(act, "read", key)

    def copy(self, source: str, target: str) -> None:
        """Let the store copy an object to the key `target`. An object there is replaced.

        Raises:
            FileNotFoundError: If the object `source` does not exist.
        """
        self._do(lambda client: obstore().copy(client, source, target), "copy", source)

    def head(self, key: str) -> Entry | None:
        """Return the listing of one object, or None if the object does not exist."""

        def act(client: Any) -> Entry | None:
            try:
                return _entry(obstore().head(client, key))
            except FileNotFoundError as error:
                self._raise_if_no_bucket(error)
                return None

        return self._do(act, "read", key)

    def read(self, key: str, limit: int | None = None) -> tuple[bytes, Entry]:
        """Return the first `limit` bytes of an object, and its listing.

        Without a limit, all bytes are returned.

        Raises:
            FileNotFoundError: If the object does not exist.
        """

        def act(client: Any) -> tuple[bytes, Entry]:
            found = obstore().get(client, key)
            entry = _entry(found.meta)
            if limit is None or entry.size <= limit:
                return bytes(found.bytes()), entry
            try:
                options = {"range": (0, limit), **_if_same(entry)}
                return bytes(obstore().get(client, key, options=options).bytes()), entry
            except exceptions().PreconditionError:
                raise ConflictError("it was replaced while it was read") from None

        return self._do(act, "read", key)

    def blocks(self, key: str) -> Iterator[bytes]:
        """Yield the contents of an object in blocks. The next blocks are read ahead.

        Raises:
            FileNotFoundError: If the object does not exist.
            OSError: If the object was replaced while it was read.
        """

        def first(client: Any) -> tuple[bytes | None, Entry]:
            found = obstore().get(client, key)
            entry = _entry(found.meta)
            return (bytes(found.bytes()) if entry.size <= PART else None), entry

        content, entry = self._do(first, "read", key)
        if content is not None:
            yield content
            return

        def part(start: int) -> Callable[[Any], bytes]:
            options = {"range": (start, min(start + PART, entry.size)), **_if_same(entry)}
            return lambda client: bytes(obstore().get(client, key, options=options).bytes())

        ahead: list[Future[bytes]] = []
        try:
            for start in range(0, entry.size, PART):
                ahead.append(self._begin(part(start), "read", key))
                if len(ahead) > 2:
                    yield ahead.pop(0).result()
            while ahead:
                yield ahead.pop(0).result()
        except ChangedError:
            raise OSError(f"'{self.url}/{key}' was replaced while it was read.") from None

    def below(self, key: str) -> list[Entry]:
        """Return all objects below a key, at any depth.

        Raises:
            UnreadableKeyError: If one of their keys cannot be used.
        """
        start = f"{key}/" if key else ""
        return self._do(
            lambda client: [
                entry
                for chunk in obstore().list(client, key or None, chunk_size=1000)
                for entry in map(_entry, chunk)
                if entry.key.startswith(start)
            ],
            "list",
            key,
        )

    def children(self, key: str) -> tuple[set[str], list[Entry]]:
        """Return the names of the directories directly below a key, and the objects there.

        Raises:
            UnreadableKeyError: If the key of an object there cannot be used.
        """
        start = f"{key}/" if key else ""

        def act(client: Any) -> tuple[set[str], list[Entry]]:
            found = obstore().list_with_delimiter(client, key or None)
            prefixes = (prefix.removeprefix(start) for prefix in found["common_prefixes"])
            entries = map(_entry, found["objects"])
            return (
                {prefix.rstrip("/") for prefix in prefixes} - {""},
                [entry for entry in entries if entry.key.startswith(start)],
            )

        return self._do(act, "list", key)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects. Some of them may be gone already."""
        doomed = list(keys)

        def act(client: Any) -> None:
            with contextlib.suppress(FileNotFoundError):
                obstore().delete(client, doomed)
                return
            for key in doomed:  # Azure stops at the first object that is gone.
                with contextlib.suppress(FileNotFoundError):
                    obstore().delete(client, key)

        if doomed:
            self._do(act, "delete", doomed[0])

    def _state(self, client: Any, key: str, content: bytes) -> _State | None:
        """Return what is at a key after a conditional write of `content` was refused, or None.

        The answer to a write may get lost although the store has written the object. The
        request is then repeated, and the store refuses it, because the object has changed.
        """
        with contextlib.suppress(FileNotFoundError):
            found = obstore().get(client, key)
            seen = _seen(found.meta)
            is_own = found.meta["size"] == len(content) and bytes(found.bytes()) == content
            return _State(seen, seen if is_own else None)
        return None

    def _do(self, act: Callable[[Any], _T], what: str, key: str) -> _T:
        if self._has_answered and threading.current_thread() is not threading.main_thread():
            _check_process()
            return self._patiently(act, what, key)  # Ctrl-C interrupts only the main thread.
        limit = None if self._has_answered else FIRST_ANSWER_SECONDS
        future = self._begin(act, what, key)
        try:
            return future.result(limit)
        except FutureTimeoutError:
            if future.done():  # The answer came just now, or the request itself ran out of time.
                return future.result()
            raise UnreachableError(
                f"'{self.url}/{key}' cannot be reached: no answer within {limit:.0f} seconds."
            ) from None

    def _begin(self, act: Callable[[Any], _T], what: str, key: str) -> Future[_T]:
        _check_process()
        return in_thread(lambda: self._patiently(act, what, key))

    def _patiently(self, act: Callable[[Any], _T], what: str, key: str) -> _T:
        """Send a request, and repeat it for `RETRY_SECONDS` if it fails for a passing reason.

        It is not repeated if the server has never answered.
        """
        end = time.monotonic() + RETRY_SECONDS
        pause = 0.2
        while True:
            try:
                result = act(self._client())
                self._has_answered = True
                return result
            except FileNotFoundError as error:
                self._raise_if_no_bucket(error)
                self._has_answered = True
                raise FileNotFoundError(f"There is no '{self.url}/{key}'.") from None
            except StorageError:
                raise
            except Exception as error:
                if isinstance(error, exceptions().PreconditionError):
                    raise ChangedError(key) from None
                self._raise_if_no_bucket(error)
                if isinstance(error, exceptions().InvalidPathError):
                    raise UnreadableKeyError(
                        f"'{self.url}/{key}' cannot be listed: {reason(error)}. Remove or rename "
                        "that object."
                    ) from None
                # If the main thread has ended, the process waits only for this request.
                may_repeat = self._has_answered and threading.main_thread().is_alive()
                is_over = not may_repeat or time.monotonic() + pause > end
                if is_over or not is_temporary(error):
                    kind = UnreachableError if is_temporary(error) else StorageError
                    raise kind(
                        f"Cannot {what} '{self.url}/{key}': {reason(error)}."
                        f"{advice(error, self._scheme)}"
                    ) from None
            except BaseException as error:
                if type(error).__name__ != "PanicException":
                    raise
                raise StorageError(
                    f"Cannot {what} '{self.url}/{key}': obstore stopped with {error!s:.200}. "
                    "Check the URL, and the environment variables of the store, such as "
                    "AWS_ENDPOINT_URL='https://host:port'."
                ) from None
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _raise_if_no_bucket(self, error: Exception) -> None:
        if is_missing_bucket(error):
            raise StorageError(
                f"There is no bucket '{self.url}', or these credentials do not see it."
            ) from None

    def _client(self) -> Any:
        with self._is_connecting:
            is_patient = self._has_answered
            if is_patient not in self._clients:
                self._clients[is_patient] = clients.connect(self._scheme, self._name, is_patient)
            return self._clients[is_patient]


_buckets: dict[tuple[Any, ...], Bucket] = {}


def bucket_at(url: str) -> tuple[Bucket, str]:
    """Return the bucket of a URL, and the key in it that the URL stands for.

    Raises:
        ExportValueError: If the scheme is unknown, if the URL cannot be used, or if obstore
            is not installed.
    """
    scheme, _, rest = url.partition("://")
    name, _, key = rest.partition("/")
    if scheme not in SCHEMES:
        raise ExportValueError(
            f"Received '{url}'. Expected a local or mounted directory, or a URL such as "
            "'s3://bucket/prefix', 'gs://bucket/prefix' or 'az://container/prefix'. Mount other "
            f"places as a directory, for example with 'rclone mount', instead of '{scheme}://'."
        )
    key = key.rstrip("/")
    if not name or {"", ".", ".."} & set(key.split("/") if key else ()) or not key.isprintable():
        raise ExportValueError(
            f"Received {url!r}. Expected '{scheme}://bucket/prefix' without empty parts, '.', '..' "
            "and control characters."
        )
    if not clients.is_installed():
        raise ExportValueError(
            f"Received '{url}', for which obstore is not installed. "
            "Run: pip install 'keras-export-callbacks[cloud]'"
        )
    return _bucket(scheme, name), key


def _bucket(scheme: str, name: str) -> Bucket:
    """Return this process's `Bucket` for the settings in the environment. It is made once."""
    known = (scheme, name, *sorted(clients.settings().items()))
    return _buckets.setdefault(known, Bucket(scheme, name))


def _put(client: Any, key: str, content: bytes | Path, attributes: Mapping[str, str]) -> Seen:
    return _seen(
        obstore().put(
            client,
            key,
            content,
            attributes=attributes,
            chunk_size=PART,
            max_concurrency=PARTS_AT_ONCE,
        )
    )


def _seen(result: Mapping[str, Any]) -> Seen:
    return Seen(_quoted(result.get("e_tag")), result.get("version"))


def _entry(meta: Mapping[str, Any]) -> Entry:
    return Entry(
        meta["path"],
        meta["size"],
        meta["last_modified"],
        _quoted(meta.get("e_tag")),
        meta.get("version"),
    )


def _if_same(entry: Entry) -> dict[str, Any]:
    """Return the option of a request that fails if the object was replaced."""
    return {} if entry.tag is None else {"if_match": entry.tag}


def _quoted(tag: str | None) -> str | None:
    """Return an ETag as HTTP headers have it. Azure leaves out the quotes in a listing."""
    return f'"{tag}"' if tag and not tag.endswith('"') else tag


_first_process: int | None = None


def _check_process() -> None:
    """Raise an error in a forked child, because obstore would hang there."""
    global _first_process
    if _first_process is None:
        _first_process = os.getpid()
    elif _first_process != os.getpid():
        raise StorageError(
            "A bucket cannot be used in a process that was forked from one that has used a "
            "bucket. Use it in the parent, or start processes with the method 'spawn'."
        )
