"""Requests that fail, answers that get lost, and URLs that name no bucket."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading

import pytest
from support import object_stores
from support.buckets import left, sweep, told
from support.object_stores import SERVERS, Relay, Server
from support.places import commit, export, patched, place_of
from support.versions import FILES, file_infos, write_files

from keras_export_callbacks import ExportDirectory, KeepLatest
from keras_export_callbacks.archive.errors import StorageError
from keras_export_callbacks.archive.store.buckets import claims, objects
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
