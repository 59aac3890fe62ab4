"""What only buckets do: they hold any key, copy inside, and are asked in few requests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support import object_stores
from support.buckets import told
from support.command_line import run
from support.object_stores import SERVERS, Server
from support.places import Place, commit, export, patched, place_of
from support.versions import FILES

from keras_export_callbacks import ExportDirectory, KeepLatest
from keras_export_callbacks.archive.errors import StorageError
from keras_export_callbacks.archive.store.buckets import claims, objects, store
from keras_export_callbacks.archive.store.buckets.objects import Bucket, bucket_at
from keras_export_callbacks.archive.store.record import MANIFEST
from keras_export_callbacks.archive.store.store import open_store

GRAPH = "saved_model.pb"


def test_a_store_that_ignores_conditions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    server = object_stores.careless()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    url = f"{server.bucket()}/base"
    text = told(open_store(url).check)
    assert "does not honour conditional writes" in text
    assert open_store(url).files() == []


def test_stores_that_honour_conditions_are_asked_once(place: Place) -> None:
    place.store().check()
    assert place.contents() == {}
    place.store().check()
    assert len(store._probed) == 1


def test_a_model_that_another_program_puts_there_is_left_alone(url: str) -> None:
    found, key = bucket_at(url)

    def intrude(version: int) -> None:
        if version == 1:
            found.put(f"{key}/1/{GRAPH}", b"theirs")

    assert commit(open_store(url), finish=intrude) == 2
    assert found.read(f"{key}/1/{GRAPH}")[0] == b"theirs"


HOSTILE = ["x//y", "7//saved_model.pb", "7/./f", "7/a/../b", "7/", "1/"]


@pytest.mark.parametrize("key", HOSTILE)
def test_keys_that_are_no_paths_do_not_hide_the_versions(s3: Server, url: str, key: str) -> None:
    export(open_store(url))
    put_raw(s3, f"{url}/{key}")
    directory = ExportDirectory(url)
    assert 1 in directory.versions()
    assert directory.record(1).version == 1
    assert export(open_store(url)).version in (2, 8)


def test_a_key_that_cannot_be_listed_is_told(s3: Server, url: str) -> None:
    put_raw(s3, f"{url}/./x")
    with pytest.raises(StorageError, match=r"cannot be listed: .*Remove or rename that object"):
        ExportDirectory(url).versions()


@pytest.mark.parametrize("key", ["1//notes.txt", "1/notes/"])
def test_an_old_version_with_a_key_that_cannot_be_removed_stops_nobody(
    s3: Server, url: str, key: str
) -> None:
    export(open_store(url))
    put_raw(s3, f"{url}/{key}")
    directory, store = ExportDirectory(url), open_store(url)
    assert export(store).version == 2
    if "//" in key:
        with pytest.raises(StorageError, match="cannot be listed"):
            directory.prune(KeepLatest(1))
        assert directory.versions() == [1, 2]
    else:
        assert directory.prune(KeepLatest(1)) == [1]
        assert directory.versions() == [2]
    assert [export(writer).version for writer in (store, open_store(url))] == [3, 4]
    assert directory.versions()[-2:] == [3, 4]


def put_raw(server: Server, url: str) -> None:
    """Write an object whose key no client of ours would take."""
    import boto3

    name, _, key = url.removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=server.address)
    client.put_object(Bucket=name, Key=key, Body=b"")


@pytest.mark.parametrize("is_one_process", [True, False])
def test_what_is_unchanged_is_copied_inside_the_store(
    place: Place, is_one_process: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[str]] = []
    put = Bucket.put

    def noted(bucket: Bucket, key: str, *content: Any) -> Any:
        sent[-1].append(key)
        return put(bucket, key, *content)

    monkeypatch.setattr(Bucket, "put", noted)
    store, frozen = place.store(), os.urandom(1000)
    for turn in range(3):
        sent.append([])
        export(
            store if is_one_process else place.store(),
            FILES | {"variables/frozen": frozen, "new": b"%d" % turn},
        )
    assert [any(key.endswith("/frozen") for key in keys) for keys in sent] == [True, False, False]
    assert all(any(key.endswith("/new") for key in keys) for keys in sent)
    assert [place.directory().verify(version) for version in (1, 2, 3)] == [[], [], []]
    place.store().remove(1)
    assert [place.directory().verify(version) for version in (2, 3)] == [[], []]


@pytest.mark.parametrize("change", ["replaced", "removed"])
@pytest.mark.parametrize("is_one_process", [True, False])
def test_what_somebody_touched_is_sent_again(
    s3: Server, url: str, change: str, is_one_process: bool
) -> None:
    store = open_store(url)
    frozen = os.urandom(1000)
    export(store, FILES | {"frozen": frozen})
    found, key = bucket_at(url)
    if change == "replaced":
        found.put(f"{key}/1/frozen", os.urandom(1000))
    else:
        open_store(url).remove(1)
    writer = store if is_one_process else open_store(url)
    version = export(writer, FILES | {"frozen": frozen}).version
    assert ExportDirectory(url).verify(version) == []


def test_what_somebody_touches_during_an_export_harms_that_version_alone(
    s3: Server, url: str
) -> None:
    store, frozen = open_store(url), os.urandom(1000)
    export(store, FILES | {"frozen": frozen})
    found, key = bucket_at(url)
    replaced = []

    def replace(environ: dict[str, Any]) -> None:
        is_claim = environ["REQUEST_METHOD"] == "PUT" and "/.claims/2" in environ["PATH_INFO"]
        if is_claim and not replaced:
            replaced.append(found.put(f"{key}/1/frozen", os.urandom(1000)))

    s3.before = replace
    try:
        numbers = [export(store, FILES | {"frozen": frozen}).version for _ in range(2)]
    finally:
        s3.reset()
    assert numbers == [2, 3]
    assert replaced
    assert ExportDirectory(url).verify(3) == []


def test_credentials_may_be_for_a_base_directory_alone(s3: Server) -> None:
    def refuse(environ: dict[str, Any]) -> tuple[str, bytes] | None:
        is_listing = "list-type=2" in environ["QUERY_STRING"]
        is_inside = "prefix=team%2F2024%2F" in environ["QUERY_STRING"]
        return ("403 Forbidden", b"") if is_listing and not is_inside else None

    url = f"{s3.bucket()}/team/2024"
    s3.before = refuse
    open_store(url).check()
    assert export(open_store(url)).version == 1
    for command in ("list", "show", "verify"):
        run(command, url)
    with pytest.raises(StorageError, match="403"):
        open_store(url.removesuffix("/2024")).names()


def test_a_store_that_cannot_copy_is_sent_everything(s3: Server, url: str) -> None:
    s3.before = lambda environ: (
        ("501 Not Implemented", b"") if "HTTP_X_AMZ_COPY_SOURCE" in environ else None
    )
    with patched(objects, RETRY_SECONDS=0.0):
        assert export(open_store(url)).version == 1
    assert ExportDirectory(url).verify(1) == []


def test_versions_go_from_bucket_to_bucket(place: Place, s3: Server, url: str) -> None:
    export(place.store(), reason="moved")
    place_url = str(place.base / "1")
    assert ExportDirectory(url).publish(place_url).reason == "moved"
    assert ExportDirectory(url).publish(f"{url}/1").version == 2
    assert [ExportDirectory(url).verify(version) for version in (1, 2)] == [[], []]


def test_what_a_killed_writer_staged_here_is_removed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    abandoned = tmp_path / "keras-export-0" / ".staging" / "writer"
    abandoned.mkdir(parents=True)
    (abandoned / "large").write_bytes(b"weights")
    commit(open_store(url))
    assert not abandoned.parents[1].exists()


def test_many_manifests_are_read_side_by_side(s3: Server, url: str) -> None:
    for _ in range(3):
        export(open_store(url))
    directory = ExportDirectory(url)
    s3.requests.clear()
    assert [record.version for record in directory.records()] == [1, 2, 3]
    assert s3.requests == {"GET": 5}  # One counts the versions, one lists all files.
    assert [record.version for record in directory.records()] == [1, 2, 3]
    assert s3.requests == {"GET": 6}


@pytest.mark.parametrize("kind", SERVERS)
def test_many_versions_are_looked_at_one_by_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_MANY", 2)
    place = place_of(kind)
    place.enter(monkeypatch)
    for _ in range(4):
        export(place.store())
    place.store().remove(4)
    found, key = bucket_at(str(place.base))
    found.create(f"{key}/{claims.CLAIMS}/6", b"writing")
    place.put("6/file", b"")
    directory = place.directory()
    for _ in range(2):
        assert directory.versions() == [1, 2, 3]
        assert [record.version for record in directory.records()] == [1, 2, 3]
    place.put(f"2/{MANIFEST}", b"{")
    assert [record.version for record in directory.records()] == [1, 3]
