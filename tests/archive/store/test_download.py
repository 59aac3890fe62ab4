"""Copies of versions in local directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.places import Place, export
from support.versions import FILES, tree, write_version

from keras_export_callbacks import ExportDirectory, ExportError
from keras_export_callbacks.archive.errors import DamagedVersionError
from keras_export_callbacks.archive.store.buckets.objects import PART, bucket_at
from keras_export_callbacks.archive.store.store import open_store

GRAPH = "saved_model.pb"


def test_a_version_is_downloaded(place: Place) -> None:
    export(place.store(), FILES | {"variables/large": os.urandom(PART + 1)})
    directory = place.directory()
    Path("empty").mkdir()
    for to in ("new/and/deep", "empty"):
        path = directory.download(1, to)
        assert path == Path(to).absolute()
        copied = {
            each.relative_to(path).as_posix(): each.read_bytes()
            for each in path.rglob("*")
            if each.is_file()
        }
        assert copied == place.contents("1")
    assert sorted(os.listdir()) == ["empty", "new"]


def test_what_is_downloaded_is_compared(url: str) -> None:
    export(open_store(url))
    found, key = bucket_at(url)
    found.put(f"{key}/1/{GRAPH}", b"other")
    with pytest.raises(DamagedVersionError, match=f"'{GRAPH}' has 5 bytes, 7 were"):
        ExportDirectory(url).download(1, "copy")
    found.delete([f"{key}/1/{GRAPH}"])
    with pytest.raises(DamagedVersionError, match=f"'{GRAPH}' is missing"):
        ExportDirectory(url).download(1, "copy")
    assert os.listdir() == []


def test_nothing_is_downloaded_over_something(url: str) -> None:
    export(open_store(url))
    Path("full/of").mkdir(parents=True)
    Path("file").touch()
    for to in ("full", "file"):
        with pytest.raises(ExportError, match=f"Received to='.*{to}', which is not empty"):
            ExportDirectory(url).download(1, to)
    assert ExportDirectory(url).download(1, "full/of") == Path("full/of").absolute()


def test_a_copy_is_not_taken_for_another_version() -> None:
    write_version(Path("base"), 2)
    before = tree(Path.cwd())
    for wrong in ("base/3", "other/1"):
        with pytest.raises(ExportError, match=rf"to='.*/{wrong}' for version 2\. .*/version-2'\.$"):
            ExportDirectory("base").download(2, wrong)
    assert tree(Path.cwd()) == before
    ExportDirectory("base").download(2, "mirror/2")
    assert ExportDirectory("mirror").verify(2) == []


def test_a_downloaded_local_version_shares_no_bytes() -> None:
    write_version(Path("base"), 1)
    copied = ExportDirectory("base").download(1, "copy")
    (copied / GRAPH).write_bytes(b"edited")
    assert ExportDirectory("base").verify(1) == []


def test_progress_counts_every_byte() -> None:
    write_version(Path("base"), 1)
    directory = ExportDirectory("base")
    size = sum(path.stat().st_size for path in Path("base/1").rglob("*") if path.is_file())
    copied: list[int] = []
    directory.download(1, "copy", copied.append)
    assert sum(copied) == size
    read: list[int] = []
    assert directory.verify(1, read.append) == []
    assert sum(read) == directory.record(1).bytes
