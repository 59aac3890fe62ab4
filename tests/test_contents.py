"""What users put into a version: `extra_files` and `metadata`."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from support.models import classifier, data
from support.versions import tree
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from keras_export_callbacks import (
    ExportDirectory,
    Exporter,
    ExportError,
    ExportEveryN,
    ExportRecord,
)
from keras_export_callbacks.archive.store.record import OWN_EXTRA
from keras_export_callbacks.cli import main
from keras_export_callbacks.formats import litert


def export(times: int = 1, **options: Any) -> list[ExportRecord]:
    with Exporter("base", classifier(), **{"log_dir": None} | options) as exporter:
        for _ in range(times):
            exporter.export()
    return exporter.exports


def shown(*options: str) -> str:
    return CliRunner().invoke(main, ["show", "base", *options]).output


def test_files_are_in_place_and_digested_before_the_version_appears() -> None:
    Path("labels.txt").write_text("cat\ndog")
    seen: list[Any] = []

    def served(saved_model_dir: Path) -> bytes:
        revived = tf.saved_model.load(str(saved_model_dir))
        seen.append(ExportDirectory("base").versions())
        return bytes(revived.serve(data()[0]).numpy().tobytes())

    files = {"labels.txt": "labels.txt", "a/b.bin": b"\0\1", "outputs": served}
    (record,) = export(extra_files=files, sample_inputs=data()[0][:2])
    extra = record.path / "assets.extra"  # type: ignore[operator]
    assert (extra / "labels.txt").read_bytes() == b"cat\ndog"
    assert (extra / "a" / "b.bin").read_bytes() == b"\0\1"
    published = tf.saved_model.load(str(record.path))
    expected = published.serve(data()[0]).numpy()
    np.testing.assert_array_equal(
        np.frombuffer((extra / "outputs").read_bytes(), "f4"), expected.flat
    )
    assert seen == [[]]
    assert {name: info.size for name, info in record.extra_files.items()} == {
        "labels.txt": 7,
        "a/b.bin": 2,
        "outputs": expected.nbytes,
    }
    assert record.bytes == sum(info.size for info in record.files.values())
    assert ExportDirectory("base").verify(1) == []
    (extra / "labels.txt").write_bytes(b"cow\ndog")
    assert "'assets.extra/labels.txt' has other contents" in ExportDirectory("base").verify(1)[0]


def test_all_other_files_there_are_of_this_library() -> None:
    (record,) = export(sample_inputs=data()[0][:2])
    extra = (record.path / "assets.extra").iterdir()  # type: ignore[operator]
    assert {path.name for path in extra} == set(OWN_EXTRA)
    assert record.extra_files == {}


def test_the_same_contents_are_linked() -> None:
    Path("labels.txt").write_text("cat")
    records = export(3, extra_files={"l": "labels.txt", "n": lambda _: next(numbers)})
    inodes = [os.stat(record.path / "assets.extra" / "l").st_ino for record in records]  # type: ignore
    assert len(set(inodes)) == 1
    assert os.stat("labels.txt").st_ino not in inodes
    found = [(record.path / "assets.extra" / "n").read_bytes() for record in records]  # type: ignore
    assert found == [b"1", b"2", b"3"]
    assert [ExportDirectory("base").verify(record.version) for record in records] == [[]] * 3


numbers = iter([b"1", b"2", b"3"])


def test_copies_and_retention_take_them_along() -> None:
    export(3, extra_files={"a/b": b"c"}, metadata={"fold": 3}, keep=2)
    directory = ExportDirectory("base")
    assert directory.versions() == [2, 3]
    copied = ExportDirectory("other").publish("base/3")
    assert copied.metadata == {"fold": 3}
    assert list(copied.extra_files) == ["a/b"]
    assert ExportDirectory("other").verify(1) == []
    assert (directory.download(3, "copy") / "assets.extra/a/b").read_bytes() == b"c"


def failing(saved_model_dir: Path) -> bytes:
    raise ZeroDivisionError("three bears")


def leaving(saved_model_dir: Path) -> bytes:
    raise SystemExit(0)  # As the `main` of a command-line tool does.


def writing(saved_model_dir: Path) -> bytes:
    with open(saved_model_dir / "saved_model.pb", "r+b") as file:
        file.write(b"other")
    return b""


def deleting(saved_model_dir: Path) -> bytes:
    (saved_model_dir / "fingerprint.pb").unlink()
    return b""


def littering(saved_model_dir: Path) -> bytes:
    (saved_model_dir / "litter").touch()
    return b""


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (failing, "ZeroDivisionError: three bears."),
        (lambda _: "text", "the function returned <class 'str'>, expected bytes."),
        (leaving, "SystemExit: 0."),
        (writing, r"changed or removed \['saved_model.pb'\].*Earlier versions may share"),
        (deleting, r"changed or removed \['fingerprint.pb'\]"),
        (littering, r"left \['litter'\] in the version.*temporary directory"),
    ],
)
def test_a_function_that_fails_is_a_failed_export(function: Any, told: str) -> None:
    callback = ExportEveryN("base", extra_files={"e.tflite": function}, log_dir=None)
    with pytest.raises(ExportError, match=rf"extra file 'e.tflite' cannot be made.*{told}"):
        classifier().fit(*data(), verbose=0, callbacks=[callback])
    warned = ExportEveryN(
        "base", extra_files={"e": function}, log_dir=None, on_error="warn", background=False
    )
    with pytest.warns(UserWarning, match=told):
        classifier().fit(*data(), verbose=0, callbacks=[warned])
    assert ExportDirectory("base").versions() == []
    assert tree(Path("base")) == {}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["/etc/passwd"], "is absolute"),
        (["C:/x"], "is absolute"),
        (["a\\b"], "backslash"),
        (["../saved_model.pb"], r"part '\.' or '\.\.'"),
        (["a/../b"], r"part '\.' or '\.\.'"),
        (["./a"], r"part '\.' or '\.\.'"),
        ([""], "empty"),
        (["a//b"], "empty"),
        (["a/"], "empty"),
        (["a\nb"], "cannot be printed"),
        (["a\0"], "cannot be printed"),
        (["\udcff"], "cannot be printed"),
        (["é" * 128], "longer than 255 bytes"),
        (
            ["x" * 255 + "/" + "y" * 255 + "/" + "z" * 255 + "/n"],
            "the name is longer than 768 bytes",
        ),
        (["export.json"], "'export.json' of this library"),
        (["Export.JSON"], "differs from 'export.json' of this library only in case"),
        (["variables.json"], "this library"),
        (["TF_serving_warmup_requests"], "this library"),
        (["shards"], "this library"),
        (["Shards/x"], "'shards' of this library would be its directory"),
        (["export.json/x"], "would be its directory"),
        (["a", "A"], "differs from 'a' only in case"),
        (["\u00e9", "e\u0301"], "differs from"),
        (["a", "a/b"], "'a' would be its directory"),
        (["a/b", "A"], "it is a directory of 'a/b'"),
        ([7], "of type <class 'int'>"),
    ],
)
def test_names_that_cannot_be_are_refused_when_the_callback_is_made(names: Any, told: str) -> None:
    with pytest.raises(ExportError, match=f"{told}.*Expected a relative name"):
        ExportEveryN("base", extra_files=dict.fromkeys(names, b""), log_dir=None)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"labels.txt": "cat\ndog"}, r"pass bytes, such as 'cat\\ndog'.encode\(\)"),
        ({"labels.txt": "."}, "Expected the path of a file, and there is none"),
        ({"labels.txt": "s3://bucket/labels.txt"}, "Expected the path of a file"),
        ({"m.tflite": litert}, r"Expected what this function returns: \{'m.tflite': litert\(\)\}"),
        ({"labels.txt": 7}, "of type <class 'int'>. Expected a path, bytes, or a function"),
        (["labels.txt"], "Expected a dict"),
    ],
)
def test_other_contents_are_refused_when_the_callback_is_made(files: Any, told: str) -> None:
    with pytest.raises(ExportError, match=told):
        Exporter("base", classifier(), extra_files=files, log_dir=None)


def test_a_path_is_where_it_was_when_the_callback_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("labels.txt").write_text("cat")
    callback = ExportEveryN(Path("base").absolute(), extra_files={"l": "labels.txt"}, log_dir=None)
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    classifier().fit(*data(), verbose=0, callbacks=[copy.deepcopy(callback)])
    assert Path("../base/1/assets.extra/l").read_text() == "cat"


def test_metadata_is_in_the_manifest_and_shown() -> None:
    metadata = {"commit": "1f0c2a", "fold": np.int32(3), "rate": 0.5, "frozen": True}
    (record,) = export(metadata=metadata, extra_files={"labels.txt": b"cat"}, log_dir="logs")
    plain = {"commit": "1f0c2a", "fold": 3, "rate": 0.5, "frozen": True}
    assert record.metadata == plain
    assert record.metadata["frozen"] is True
    assert ExportDirectory("base").record(1) == record
    assert json.loads(shown("--json"))["metadata"] == plain
    lines = {" ".join(line.split()) for line in shown().splitlines()}
    rows = {"metadata commit 1f0c2a", "metadata fold 3", "metadata rate 0.5"}
    assert lines >= rows | {"metadata frozen True", "extra file labels.txt 3 B"}
    events = EventAccumulator("logs/exports/base", {"tensors": 0})
    events.Reload()
    page = make_ndarray(events.Tensors("export/summary")[0].tensor_proto).item().decode()
    assert "| metadata `commit` | 1f0c2a |" in page
    assert "| extra file `labels.txt` | 3 B |" in page


def test_without_metadata_the_manifest_is_as_before() -> None:
    (record,) = export()
    assert record.metadata == {}
    assert "metadata" not in json.loads(record.to_json())


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        (["commit"], "Expected a dict"),
        ({7: "x"}, "the name 7"),
        ({"a": None}, r"'a': None.*Expected a string, a number or a bool"),
        ({"a": [1]}, "json.dumps"),
        ({"a": float("nan")}, "Expected a finite number"),
        ({"a": 2**63}, "64 bits"),
        ({"a": "J\udce9r"}, "bytes of another encoding"),
        ({"": 1}, "the name ''"),
        ({"a\nb": 1}, "can be printed"),
    ],
)
def test_other_metadata_is_refused_when_the_callback_is_made(metadata: Any, told: str) -> None:
    with pytest.raises(ExportError, match=told):
        ExportEveryN("base", metadata=metadata, log_dir=None)
