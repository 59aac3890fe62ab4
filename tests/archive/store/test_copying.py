"""Places where versions are copied file by file: memory, ``ram://``, and without renames."""

from __future__ import annotations

import errno
import itertools
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import FEATURES, assert_equal_state, classifier, data, state
from support.places import refuse_renames
from support.versions import write_version

from keras_export_callbacks import (
    ExportDirectory,
    ExportError,
    ExportEveryN,
    ExportOnImprove,
    restore,
)
from keras_export_callbacks.archive.store.copying import remove_in_place
from keras_export_callbacks.archive.store.remote import RemotePath

_COUNT = itertools.count()


@pytest.fixture
def base() -> str:
    """A base directory that no test before had: what is in memory stays there."""
    return f"ram://bucket/served-{next(_COUNT)}"


def fit(base: str, **options: Any) -> tuple[Any, ExportEveryN]:
    model = classifier()
    callback = ExportEveryN(base, log_dir=None, **options)
    model.fit(*data(), epochs=3, verbose=0, callbacks=[callback])
    return model, callback


def test_versions_load_and_verify_and_compute_what_the_model_does(base: str) -> None:
    model, callback = fit(base)
    directory = ExportDirectory(base)
    assert directory.versions() == [1, 2, 3]
    assert [directory.verify(version) for version in (1, 2, 3)] == [[], [], []]
    assert [str(record.path) for record in callback.exports] == [f"{base}/{i}" for i in (1, 2, 3)]
    assert directory.records() == callback.exports
    x, _ = data()
    revived = tf.saved_model.load(f"{base}/3")
    np.testing.assert_array_equal(revived.serve(x), model(x))


def test_nothing_but_the_version_is_left(base: str) -> None:
    fit(base)
    assert sorted(RemotePath(base).names()) == ["1", "2", "3"]
    assert not any(name.startswith(".") for name in RemotePath(f"{base}/3").names())


def test_training_is_restored_from_there(base: str) -> None:
    model, callback = fit(base)
    fresh = classifier()
    assert callback.last_export is not None
    restore(fresh, callback.last_export.path)
    assert_equal_state(state(fresh), state(model))


def test_numbers_go_on_when_the_directory_is_emptied(base: str) -> None:
    callback = ExportEveryN(base, log_dir=None)
    model = classifier()
    for _ in range(2):
        model.fit(*data(), epochs=2, verbose=0, callbacks=[callback])
        for version in ExportDirectory(base).versions():
            remove_in_place(RemotePath(f"{base}/{version}"))
    assert [record.version for record in callback.exports] == [1, 2, 3, 4]


def test_old_versions_are_removed(base: str) -> None:
    fit(base, keep=2)
    assert ExportDirectory(base).versions() == [2, 3]
    assert sorted(RemotePath(base).names()) == ["2", "3"]


def test_best_is_read_from_there_by_the_next_run(base: str) -> None:
    model = classifier()
    better = ExportOnImprove(base, "loss", log_dir=None, baseline=1e9)
    model.fit(*data(), verbose=0, callbacks=[better])
    assert ExportDirectory(base).versions() == [1]
    again = classifier()  # As bad as the first, at first.
    same = ExportOnImprove(base, "loss", log_dir=None)
    again.fit(*data(), verbose=0, callbacks=[same])
    assert same.exports == []


def test_a_scheme_that_tensorflow_does_not_know_is_refused_before_training() -> None:
    with pytest.raises(ExportError, match=r"base_dir='gopher://served'.*tf.io.gfile"):
        ExportEveryN("gopher://served")


# From here on without TensorFlow's exports: the steps of a copy, one by one.


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(write_version(tmp_path / "source", 1))


def test_graph_comes_last_and_everything_is_confirmed(
    base: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: list[str] = []
    original = RemotePath.upload

    def upload(path: RemotePath, file: Path) -> None:
        uploaded.append(path.name)
        original(path, file)

    monkeypatch.setattr(RemotePath, "upload", upload)
    ExportDirectory(base).publish(source)
    assert uploaded[-1] == "saved_model.pb"
    assert uploaded.count("saved_model.pb") == 1


def test_a_copy_that_arrives_cut_off_is_no_version(
    base: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RemotePath.upload

    def cut(path: RemotePath, file: Path) -> None:
        original(path, file)
        if path.name == "variables.index":
            path.unlink()  # Or `ram://` would append.
            path.write_bytes(b"")

    directory = ExportDirectory(base)
    with monkeypatch.context() as patch:
        patch.setattr(RemotePath, "upload", cut)
        with pytest.raises(ExportError, match=r"variables.index' is not as long"):
            directory.publish(source)
    assert RemotePath(base).names() == []
    assert directory.publish(source).version == 1


def test_two_writers_that_take_the_same_number_get_different_ones(
    base: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, intruded = RemotePath.write_bytes, []

    def write_bytes(path: RemotePath, content: bytes) -> None:
        original(path, content)
        if not intruded:
            intruded.append(path.parent)
            original(path.parent / ".unfinished-other", b"")

    monkeypatch.setattr(RemotePath, "write_bytes", write_bytes)
    directory = ExportDirectory(base)
    assert directory.publish(source).version == 2
    assert directory.versions() == [2]
    assert RemotePath(f"{base}/1").names() == [".unfinished-other"]


def test_what_a_killed_writer_staged_here_is_removed(base: str, source: str) -> None:
    abandoned = Path(tempfile.mkdtemp(prefix="keras-export-"), ".staging", "writer")
    abandoned.mkdir(parents=True)
    (abandoned / "large").write_bytes(b"weights")
    ExportDirectory(base).publish(source)
    assert not abandoned.parents[1].exists()


@pytest.mark.parametrize("error", ["EXDEV", "ENOTSUP"])
class TestWithoutRenames:
    """A local file system on which directories cannot be renamed."""

    @pytest.fixture(autouse=True)
    def refuse(self, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
        refuse_renames(monkeypatch, getattr(errno, error))

    def test_versions_are_copied_and_removed_in_place(self) -> None:
        model, _ = fit("base", keep=2)
        directory = ExportDirectory("base")
        assert directory.versions() == [2, 3]
        assert directory.verify(2) == directory.verify(3) == []
        assert sorted(path.name for path in Path("base").iterdir()) == ["2", "3"]
        revived = tf.saved_model.load("base/3")
        x = np.ones((2, FEATURES), "float32")
        np.testing.assert_array_equal(revived.serve(x), model(x))

    def test_what_another_machine_is_writing_is_left_alone(self, source: str) -> None:
        other = Path("base/1/.unfinished-elsewhere-0123")
        other.parent.mkdir(parents=True)
        other.touch()
        assert ExportDirectory("base").publish(source).version == 2
        assert other.exists()


def test_the_events_are_named_after_the_last_part(base: str) -> None:
    model = classifier()
    callback = ExportEveryN(base, log_dir="logs")
    model.fit(*data(), verbose=0, callbacks=[callback])
    assert [path.name for path in Path("logs/exports").iterdir()] == [base.rpartition("/")[2]]
    assert keras.backend.backend() == "tensorflow"
