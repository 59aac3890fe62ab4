"""A local file system on which directories cannot be renamed: versions are copied file by file."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from support.models import FEATURES, classifier, data
from support.places import refuse_renames
from support.versions import write_version

from keras_export_callbacks import ExportDirectory, ExportError, ExportEveryN
from keras_export_callbacks.archive.store import copying

BASE = Path("base")


@pytest.fixture(autouse=True, params=["EXDEV", "ENOTSUP"])
def refuse(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_renames(monkeypatch, getattr(errno, request.param))


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(write_version(tmp_path / "source", 1))


def test_versions_are_copied_and_removed_in_place() -> None:
    model = classifier()
    callback = ExportEveryN(BASE, log_dir=None, keep=2)
    model.fit(*data(), epochs=3, verbose=0, callbacks=[callback])
    directory = ExportDirectory(BASE)
    assert directory.versions() == [2, 3]
    assert directory.verify(2) == directory.verify(3) == []
    assert sorted(path.name for path in BASE.iterdir()) == ["2", "3"]
    revived = tf.saved_model.load("base/3")
    x = np.ones((2, FEATURES), "float32")
    np.testing.assert_array_equal(revived.serve(x), model(x))


def test_what_another_machine_is_writing_is_left_alone(source: str) -> None:
    other = Path("base/1/.unfinished-elsewhere-0123")
    other.parent.mkdir(parents=True)
    other.touch()
    assert ExportDirectory(BASE).publish(source).version == 2
    assert other.exists()


# The steps of a copy, one by one.


def test_graph_comes_last_and_everything_is_confirmed(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    original = copying._copy

    def copy(path: Path, target: Path) -> None:
        copied.append(target.name)
        original(path, target)

    monkeypatch.setattr(copying, "_copy", copy)
    ExportDirectory(BASE).publish(source)
    assert copied[-1] == "saved_model.pb"
    assert copied.count("saved_model.pb") == 1


def test_a_copy_that_arrives_cut_off_is_no_version(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = copying._copy

    def cut(path: Path, target: Path) -> None:
        original(path, target)
        if target.name == "variables.index":
            target.write_bytes(b"")

    directory = ExportDirectory(BASE)
    with monkeypatch.context() as patch:
        patch.setattr(copying, "_copy", cut)
        with pytest.raises(ExportError, match=r"variables.index' is not as long"):
            directory.publish(source)
    assert list(BASE.iterdir()) == []
    assert directory.publish(source).version == 1


def test_two_writers_that_take_the_same_number_get_different_ones(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, intruded = Path.write_bytes, []

    def write_bytes(path: Path, content: bytes) -> int:
        written = original(path, content)
        if path.name.startswith(".unfinished-") and not intruded:
            intruded.append(path.parent)
            original(path.parent / ".unfinished-other", b"")
        return written

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    directory = ExportDirectory(BASE)
    assert directory.publish(source).version == 2
    assert directory.versions() == [2]
    assert [path.name for path in Path(BASE, "1").iterdir()] == [".unfinished-other"]
