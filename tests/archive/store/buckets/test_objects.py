"""Requests that fail, answers that get lost, and URLs that name no bucket."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sys
import threading
from concurrent.futures import Future
from typing import Any

import pytest
from support import object_stores
from support.buckets import left, sweep, told
from support.object_stores import SERVERS, Relay, Server
from support.places import Place, commit, export, patched, place_of
from support.versions import FILES, file_infos, write_files

from keras_export_callbacks import ExportDirectory, KeepLatest
from keras_export_callbacks.archive.errors import StorageError
from keras_export_callbacks.archive.store.buckets import claims, objects
from keras_export_callbacks.archive.store.buckets.objects import PART, Bucket, bucket_at
from keras_export_callbacks.archive.store.store import open_store

GRAPH = "saved_model.pb"


@pytest.mark.parametrize("kind", SERVERS)
def test_answers_that_get_lost_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "azure":
        pytest.skip("azurite runs in a process of its own")
    place = place_of(kind)
    place.enter(monkeypatch)
    server = SERVERS[kind]()
    commit(place.store())
    dice = random.Random(3)
    server.lose = lambda environ: dice.random() < 0.05
    try:
        numbers = [export(place.store()).version for _ in range(8)]
        place.directory().prune(KeepLatest(4))
    finally:
        server.reset()
    directory = place.directory()
    assert numbers == list(range(2, 10))
    assert directory.versions() == [1, 6, 7, 8, 9]
    assert all(directory.verify(version) == [] for version in range(6, 10))
    sweep(str(place.base))
    assert left(str(place.base)) == []


def test_a_short_outage_costs_only_time(relay: Relay, url: str) -> None:
    store = open_store(url)
    assert commit(store) == 1
    mending = threading.Timer(1.0, relay.mend)

    def cut(version: int) -> None:
        relay.cut()
        mending.start()

    assert commit(store, finish=cut) == 2
    assert sorted(store.versions()) == [1, 2]


def test_a_long_outage_is_told_and_publishes_nothing(
    relay: Relay, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "RETRY_SECONDS", 0.5)
    store = open_store(url)
    assert commit(store) == 1
    with pytest.raises(StorageError, match=rf"nobody answers at http://127.0.0.1:{relay.port}"):
        commit(store, finish=lambda version: relay.cut())
    relay.mend()
    assert sorted(store.versions()) == [1]
    with patched(claims, LEASE=-1.0, STAGING_LEASE=-1.0):
        assert commit(open_store(url)) == 3
    sweep(url)
    assert left(url) == []


@pytest.mark.usefixtures("interrupts")
def test_a_silent_server_can_be_interrupted(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_stores.silent() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        store = open_store("s3://somewhere/base")
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            store.check()


def test_a_forked_child_is_refused(url: str) -> None:
    store = open_store(url)
    commit(store)
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                store.versions()
            except StorageError as error:
                code = 0 if "forked" in str(error) else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert commit(store) == 2


def test_the_extra_is_not_installed(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    text = told(lambda: open_store("s3://somewhere/base"))
    assert text.endswith("pip install 'keras-export-callbacks[cloud]'")


@pytest.mark.parametrize("url", ["hdfs://host/base", "ram://base", "file:///base", "S3://b/x"])
def test_other_schemes_are_to_be_mounted(url: str) -> None:
    text = told(lambda: ExportDirectory(url))
    assert text.startswith(f"Received '{url}'. Expected a local or mounted directory, or a URL")


@pytest.mark.parametrize("url", ["s3://", "s3:///base", "s3://b//x", "s3://b/../x", "s3://b/a\nb"])
def test_urls_that_name_no_place(url: str) -> None:
    assert "Expected 's3://bucket/prefix'" in told(lambda: ExportDirectory(url))


def test_a_file_is_one_request(s3: Server, url: str) -> None:
    with open_store(url).stage() as staged:
        write_files(staged)
        infos = file_infos(FILES)
        assert open_store(url).commit(staged, lambda version: None, infos) == 1
    s3.requests.clear()
    assert b"".join(open_store(url).at("1").blocks(GRAPH)) == FILES[GRAPH]
    assert s3.requests == {"GET": 1}


@pytest.mark.parametrize("status", ["lost", "404 Not Found"])
def test_an_upload_whose_parts_are_lost_is_sent_again(s3: Server, url: str, status: str) -> None:
    seen = itertools.count()

    def is_first(environ: dict[str, Any]) -> bool:
        is_end = environ["REQUEST_METHOD"] == "POST" and "uploadId" in environ["QUERY_STRING"]
        return is_end and next(seen) < (3 if status == "lost" else 1)

    if status == "lost":
        s3.lose = is_first
    else:
        body = b"<Error><Code>NoSuchUpload</Code></Error>"
        s3.before = lambda environ: (status, body) if is_first(environ) else None
    files = FILES | {"variables/large": os.urandom(PART + 1)}
    assert export(open_store(url), files).version == 1
    assert ExportDirectory(url).verify(1) == []


@pytest.mark.parametrize("name", [GRAPH, "claim"])
def test_a_conflict_is_no_other_object(s3: Server, url: str, name: str) -> None:
    """S3 answers so while another request for the key is under way."""
    seen = itertools.count()
    body = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
    path = f"base/1/{GRAPH}" if name == GRAPH else "base/.claims/1"
    s3.before = lambda environ: (
        ("409 Conflict", body)
        if environ["REQUEST_METHOD"] == "PUT"
        and environ["PATH_INFO"].endswith(path)
        and next(seen) < 2
        else None
    )
    assert export(open_store(url)).version == 1
    assert next(seen) > 2
    assert ExportDirectory(url).verify(1) == []


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_does_not_wait_for_what_is_cleaned_up(s3: Server, url: str) -> None:
    is_silent, may_answer = threading.Event(), threading.Event()

    def wait(environ: dict[str, Any]) -> None:
        if "variables.index" in environ["PATH_INFO"]:
            is_silent.set()
            os.kill(os.getpid(), signal.SIGINT)
        if is_silent.is_set():
            may_answer.wait()

    s3.before = wait  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        export(open_store(url))
    may_answer.set()


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", ""])
def test_an_endpoint_that_is_no_url(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    told(open_store("s3://somewhere/base").check)


def test_an_object_looks_the_same_to_every_request(place: Place) -> None:
    """Azure lists ETags without their quotes."""
    bucket, base = bucket_at(str(place.base))
    written = bucket.put(f"{base}/one", b"content")
    (listed,) = bucket.below(base)
    _, (child,) = bucket.children(base)
    _, read = bucket.read(f"{base}/one")
    asked = bucket.head(f"{base}/one")
    assert asked is not None
    assert {each.tag for each in (listed, child, read, asked)} == {written.tag}


def test_a_long_object_that_is_replaced_while_its_beginning_is_read(s3: Server, url: str) -> None:
    """A long object takes two requests. Both must be answered with the same contents."""
    bucket, base = bucket_at(url)
    bucket.put(f"{base}/long", b"first" * 10)
    replaced = []

    def replace(environ: dict[str, Any]) -> None:
        if environ.get("HTTP_RANGE") and not replaced:
            replaced.append(bucket.put(f"{base}/long", b"other" * 20))

    s3.before = replace
    try:
        content, entry = bucket.read(f"{base}/long", limit=10)
    finally:
        s3.reset()
    assert (content, entry.size, entry.tag) == (b"other" * 2, 100, replaced[0].tag)


def test_an_answer_at_the_last_moment_counts(
    s3: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, base = bucket_at(url)
    found.put(f"{base}/one", b"content")
    new = Bucket(*url.partition("/base")[0].split("://"))

    class Late(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            if timeout is not None:
                super().result()
                raise TimeoutError  # As if the answer came between the two.
            return super().result()

    def begin(run: Any) -> Future[Any]:
        late = Late()
        late.set_result(run())
        return late

    monkeypatch.setattr(objects, "in_thread", begin)
    assert new.read(f"{base}/one")[0] == b"content"
