"""A bucket of S3, Google Cloud Storage or Azure: objects by key, and what can go wrong there.

The only file that knows obstore, which is imported on first use (extra ``cloud``).
Every request runs on a thread of its own, because a request cannot be interrupted:
Ctrl-C ends the wait for it, and a process can end while one is under way.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ExportValueError, StorageError

SCHEMES = ("s3", "gs", "az")

# How long an outage may last before what was asked for has failed.
RETRY_SECONDS = 120.0

# How long a server that has never answered this process may take. A wrong
# address or a missing credential is told soon, and not after `RETRY_SECONDS`.
FIRST_ANSWER_SECONDS = 12.0

# Files are sent in parts of this size, this many of each file at a time. With two
# files at a time these take 96 MB of memory.
PART = 16 * 2**20
PARTS_AT_ONCE = 3

_T = TypeVar("_T")


class ChangedError(Exception):
    """An object is not any more what it was when it was read."""


@dataclass(frozen=True)
class Entry:
    """An object as the store lists it.

    Attributes:
        key: its whole name in the bucket.
        size: in bytes.
        modified: when it was written, by the clock of the store.
        tag: what tells it from what is written there later; with `generation`.
    """

    key: str
    size: int
    modified: datetime
    tag: str | None
    generation: str | None

    @property
    def identity(self) -> tuple[int | str, ...]:
        """What tells it from what is written there before and after."""
        # A list may lack the generation.
        return (self.size, self.tag or self.generation or "")


@dataclass(frozen=True)
class Seen:
    """What a conditional write compares with."""

    tag: str | None
    generation: str | None


class Bucket:
    """The objects of one bucket.

    Every method raises `StorageError` if the store cannot be reached, or refuses.

    Args:
        scheme: one of `SCHEMES`.
        name: of the bucket, which Azure calls a container.
    """

    def __init__(self, scheme: str, name: str) -> None:
        self.url = f"{scheme}://{name}"
        self._scheme, self._name = scheme, name
        self._clients: dict[bool, Any] = {}
        self._is_making = threading.Lock()
        self._has_answered = False

    def create(self, key: str, content: bytes) -> Seen | None:
        """Write an object that is not there; None if there is one, which is left alone."""

        def act(client: Any) -> Seen | None:
            try:
                return _seen(_obstore().put(client, key, content, mode="create"))
            except (_errors().AlreadyExistsError, _errors().PreconditionError):
                return self._own(client, key, content)

        return self._do(act, "write", key)

    def replace(self, key: str, content: bytes, seen: Seen) -> Seen:
        """Replace an object, if it is still what was seen.

        Raises:
            ChangedError: it is not.
        """
        mode = {"e_tag": seen.tag, "version": seen.generation}
        mode = {name: value for name, value in mode.items() if value is not None}

        def act(client: Any) -> Seen | None:
            try:
                return _seen(_obstore().put(client, key, content, mode=mode))
            except (
                _errors().PreconditionError,
                _errors().AlreadyExistsError,
                FileNotFoundError,
            ):
                return self._own(client, key, content)

        written = self._do(act, "write", key)
        if written is None:
            raise ChangedError(key)
        return written

    def put(self, key: str, content: bytes | Path) -> Seen:
        """Write or replace an object."""
        return self._do(lambda client: _put(client, key, content), "write", key)

    def copy(self, source: str, target: str) -> None:
        """Write or replace an object by a copy that is made inside the store.

        Raises:
            FileNotFoundError: there is no `source`.
        """
        self._do(lambda client: _obstore().copy(client, source, target), "copy", source)

    def head(self, key: str) -> Entry | None:
        """An object without its contents; None if there is none."""

        def act(client: Any) -> Entry | None:
            try:
                return _entry(_obstore().head(client, key))
            except FileNotFoundError as error:
                self._raise_if_no_bucket(error)
                return None

        return self._do(act, "read", key)

    def read(self, key: str, limit: int | None = None) -> tuple[bytes, Entry]:
        """The first `limit` bytes of an object, by default all, and what it is.

        Raises:
            FileNotFoundError: there is none.
        """

        def act(client: Any) -> tuple[bytes, Entry]:
            found = _obstore().get(client, key)
            entry = _entry(found.meta)
            if limit is not None and entry.size > limit:
                options = {"range": (0, limit)}
                return bytes(_obstore().get(client, key, options=options).bytes()), entry
            return bytes(found.bytes()), entry

        return self._do(act, "read", key)

    def blocks(self, key: str) -> Iterator[bytes]:
        """The contents of an object, a part at a time; the next one is read meanwhile.

        Raises:
            FileNotFoundError: there is none.
            OSError: it was replaced while it was read.
        """

        def first(client: Any) -> tuple[bytes | None, Entry]:
            found = _obstore().get(client, key)
            entry = _entry(found.meta)
            return (bytes(found.bytes()) if entry.size <= PART else None), entry

        content, entry = self._do(first, "read", key)
        if content is not None:
            yield content
            return

        def part(start: int) -> Callable[[Any], bytes]:
            options: dict[str, Any] = {"range": (start, min(start + PART, entry.size))}
            if entry.tag is not None:
                options["if_match"] = entry.tag
            return lambda client: bytes(_obstore().get(client, key, options=options).bytes())

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
        """All objects below a key, at any depth.

        Raises:
            UnreadableKeyError: the key of one cannot be used.
        """
        start = f"{key}/" if key else ""
        return self._do(
            lambda client: [
                entry
                for chunk in _obstore().list(client, key or None, chunk_size=1000)
                for entry in map(_entry, chunk)
                if entry.key.startswith(start)
            ],
            "list",
            key,
        )

    def children(self, key: str) -> tuple[set[str], list[Entry]]:
        """The names of what is right below a key: those with more below them, and objects.

        Raises:
            UnreadableKeyError: the key of one cannot be used.
        """
        start = f"{key}/" if key else ""

        def act(client: Any) -> tuple[set[str], list[Entry]]:
            found = _obstore().list_with_delimiter(client, key or None)
            prefixes = (prefix.removeprefix(start) for prefix in found["common_prefixes"])
            entries = map(_entry, found["objects"])
            return (
                {prefix.rstrip("/") for prefix in prefixes} - {""},
                [entry for entry in entries if entry.key.startswith(start)],
            )

        return self._do(act, "list", key)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; some of them may be gone already."""
        doomed = list(keys)

        def act(client: Any) -> None:
            with contextlib.suppress(FileNotFoundError):
                _obstore().delete(client, doomed)
                return
            for key in doomed:  # Azure stops at one that is not there.
                with contextlib.suppress(FileNotFoundError):
                    _obstore().delete(client, key)

        if doomed:
            self._do(act, "delete", doomed[0])

    def _own(self, client: Any, key: str, content: bytes) -> Seen | None:
        """What is at `key`, if it is what we wrote: an answer may get lost, and we write again."""
        with contextlib.suppress(FileNotFoundError):
            found = _obstore().get(client, key)
            if found.meta["size"] == len(content) and bytes(found.bytes()) == content:
                return _seen(found.meta)
        return None

    def _do(self, act: Callable[[Any], _T], what: str, key: str) -> _T:
        if self._has_answered and threading.current_thread() is not threading.main_thread():
            _check_process()
            return self._patiently(act, what, key)  # Ctrl-C does not come here.
        limit = None if self._has_answered else FIRST_ANSWER_SECONDS
        future = self._begin(act, what, key)
        try:
            return future.result(limit)
        except FutureTimeoutError:
            if future.done():
                raise
            raise UnreachableError(
                f"'{self.url}/{key}' cannot be reached: no answer within {limit:.0f} seconds."
            ) from None

    def _begin(self, act: Callable[[Any], _T], what: str, key: str) -> Future[_T]:
        _check_process()
        return _in_thread(lambda: self._patiently(act, what, key))

    def _patiently(self, act: Callable[[Any], _T], what: str, key: str) -> _T:
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
                if isinstance(error, _errors().PreconditionError):
                    raise ChangedError(key) from None
                self._raise_if_no_bucket(error)
                text = str(error)
                if isinstance(error, _errors().InvalidPathError):
                    raise UnreadableKeyError(
                        f"'{self.url}/{key}' cannot be listed: {_short(text)}. Remove or rename "
                        "that object."
                    ) from None
                # When the main thread has ended, the process waits for this alone.
                is_waited_for = self._has_answered and threading.main_thread().is_alive()
                is_over = not is_waited_for or time.monotonic() + pause > end
                if is_over or not _is_temporary(text):
                    kind = UnreachableError if _is_temporary(text) else StorageError
                    raise kind(
                        f"Cannot {what} '{self.url}/{key}': {_short(text)}.{_hint(text)}"
                    ) from None
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _raise_if_no_bucket(self, error: Exception) -> None:
        if re.search("NoSuchBucket|ContainerNotFound|bucket does not exist", str(error)):
            raise StorageError(
                f"There is no bucket '{self.url}', or these credentials do not see it."
            ) from None

    def _client(self) -> Any:
        with self._is_making:
            if self._has_answered not in self._clients:
                self._clients[self._has_answered] = _make_client(
                    self._scheme, self._name, self._has_answered
                )
            return self._clients[self._has_answered]


class UnreachableError(StorageError):
    """The store does not answer."""


class UnreadableKeyError(StorageError):
    """The key of an object cannot be part of a path."""


_buckets: dict[tuple[Any, ...], Bucket] = {}


def bucket_at(url: str) -> tuple[Bucket, str]:
    """The bucket that a URL is in, and the key that the URL stands for.

    Raises:
        ExportValueError: the scheme is none that we know, or the key cannot be used.
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
    if importlib.util.find_spec("obstore") is None:
        raise ExportValueError(
            f"Received '{url}', for which obstore is not installed. "
            "Run: pip install 'keras-export-callbacks[cloud]'"
        )
    known = (scheme, name, *sorted(_settings().items()))
    return _buckets.setdefault(known, Bucket(scheme, name)), key


def _settings() -> dict[str, str]:
    """The environment variables that say where the stores are, and who we are."""
    prefixes = ("AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR_HOST")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def _make_client(scheme: str, name: str, is_patient: bool) -> Any:
    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=5 if is_patient else 3),
        "read_timeout": timedelta(seconds=60 if is_patient else 5),
        "timeout": timedelta(minutes=30),
    }
    retries: dict[str, Any] = {
        "max_retries": 2,
        "retry_timeout": timedelta(seconds=20 if is_patient else 5),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }
    make = {"s3": _s3, "gs": _google, "az": _azure}[scheme]
    return make(name, client_options=options, retry_config=retries)


def _s3(name: str, client_options: dict[str, Any], **more: Any) -> Any:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    client_options["allow_http"] = endpoint.startswith("http://")
    has_key = any(name in os.environ for name in _S3_KEYS)
    if not has_key and importlib.util.find_spec("boto3") is not None:
        # Profiles and SSO. Where it finds nothing, obstore looks on its own.
        with contextlib.suppress(Exception):
            more["credential_provider"] = importlib.import_module(
                "obstore.auth.boto3"
            ).Boto3CredentialProvider()
    return _stores().S3Store(name, client_options=client_options, **more)


_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE")


def _google(name: str, client_options: dict[str, Any], **more: Any) -> Any:
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        emulator = emulator if "://" in emulator else f"http://{emulator}"
        more["base_url"] = emulator.rstrip("/")
        # An emulator takes any token; without one, Google's metadata server is asked.
        more["credential_provider"] = lambda: {"token": "anonymous", "expires_at": None}
    base = emulator or os.environ.get("GOOGLE_BASE_URL", "")
    client_options["allow_http"] = base.startswith("http://")
    return _stores().GCSStore(name, client_options=client_options, **more)


def _azure(name: str, client_options: dict[str, Any], **more: Any) -> Any:
    text = os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
    parts = dict(part.split("=", 1) for part in (text or "").split(";") if "=" in part)
    for key, argument in _AZURE_PARTS.items():
        if key in parts:
            more[argument] = parts[key]
    endpoint = parts.get("BlobEndpoint") or os.environ.get("AZURE_STORAGE_ENDPOINT", "")
    is_emulator = bool(os.environ.get("AZURE_STORAGE_USE_EMULATOR"))
    client_options["allow_http"] = endpoint.startswith("http://") or is_emulator
    return _stores().AzureStore(name, client_options=client_options, **more)


_AZURE_PARTS = {
    "AccountName": "account_name",
    "AccountKey": "account_key",
    "BlobEndpoint": "endpoint",
    "SharedAccessSignature": "sas_key",
}


def _put(client: Any, key: str, content: bytes | Path) -> Seen:
    return _seen(
        _obstore().put(client, key, content, chunk_size=PART, max_concurrency=PARTS_AT_ONCE)
    )


def _obstore() -> Any:
    return importlib.import_module("obstore")


def _stores() -> Any:
    return importlib.import_module("obstore.store")


def _errors() -> Any:
    return importlib.import_module("obstore.exceptions")


def _seen(result: Mapping[str, Any]) -> Seen:
    return Seen(result.get("e_tag"), result.get("version"))


def _entry(meta: Mapping[str, Any]) -> Entry:
    return Entry(
        meta["path"], meta["size"], meta["last_modified"], meta.get("e_tag"), meta.get("version")
    )


# What is said of an error. obstore's texts run to 1,400 characters.


def _is_temporary(text: str) -> bool:
    return bool(
        re.search(
            r"HTTP error|status code: (50[02-9]|5[1-9]\d|429|408)", text.split("\n\nDebug")[0]
        )
    )


def _short(text: str) -> str:
    """An error of obstore in one short line."""
    first, _, debug = text.partition("\n\nDebug source")
    where = re.search(r"https?://[^/\s]+", first)
    server = where[0] if where else "the server"
    if "HTTP error" in first:
        if "kind: Connect" in debug:
            return f"nobody answers at {server}"
        if "kind: Timeout" in debug:
            return f"{server} accepted the connection and did not answer"
    status = re.search(r"status code: (\d+ [A-Za-z ]+)", first)
    if status:
        tags = ("Code", "Message")
        details = [re.search(rf"<{tag}>\s*([^<]+?)\s*</{tag}>", first) for tag in tags]
        said = ": ".join(found[1] for found in details if found)
        first = f"{server} said {status[1].strip()}{f' ({said})' if said else ''}"
    line = " ".join(first.split()).rstrip(".")
    return line if len(line) <= 300 else f"{line[:299]}…"


def _hint(text: str) -> str:
    if "169.254.169.254" in text or "Account must be" in text or "metadata.google" in text:
        return (
            " No credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS, or AZURE_STORAGE_ACCOUNT_NAME and "
            "AZURE_STORAGE_ACCOUNT_KEY."
        )
    if re.search(r"status code: 40[13]", text):
        return " Check the credentials, and what they permit: list, get, put and delete."
    return ""


# Threads that requests run on. They are no obstacle to the end of a process.


def side_by_side(jobs: Iterable[Callable[[], _T]], width: int = 8) -> list[_T]:
    """What each of `jobs` returns; `width` of them run at a time."""
    left = deque(enumerate(jobs))
    results: dict[int, _T] = {}

    def work() -> None:
        while True:
            try:
                index, job = left.popleft()
            except IndexError:
                return
            results[index] = job()

    count = len(left)
    running = [_in_thread(work) for _ in range(min(width, count))]
    try:
        for future in running:
            future.result()
    finally:
        left.clear()  # After an error, or Ctrl-C, nothing more is begun.
    return [results[index] for index in range(count)]


def _in_thread(act: Callable[[], _T]) -> Future[_T]:
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="keras-export-bucket").start()
    return future


_first_process: int | None = None


def _check_process() -> None:
    """Raise in a forked child: obstore would hang there."""
    global _first_process
    if _first_process is None:
        _first_process = os.getpid()
    elif _first_process != os.getpid():
        raise StorageError(
            "A bucket cannot be used in a process that was forked from one that has used a "
            "bucket. Use it in the parent, or start processes with the method 'spawn'."
        )
