"""`write_out` replaces a SavedModel as a whole, refuses all else, and fails without a trace."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_export_callbacks import ExportArchive, ExportError

SPECS = [tf.TensorSpec((None,))]


def adding(value: float) -> tuple[ExportArchive, Any]:
    """An archive whose endpoint adds a variable, and the variable."""
    variable = tf.Variable([value])
    archive = ExportArchive()
    archive.add_endpoint("add", lambda x: x + variable, SPECS)
    return archive, variable


def served(path: str | Path) -> float:
    revived = tf.saved_model.load(str(path))
    return float(revived.add(tf.zeros(1))[0])


def tree(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def test_a_saved_model_is_replaced_as_a_whole() -> None:
    Path("vocabulary.txt").write_text("a\n")
    archive, _ = adding(1.0)
    archive.track(tf.saved_model.Asset("vocabulary.txt"))
    archive.write_out("artifact", verbose=False)
    other, variable = adding(2.0)
    for value in (2.0, 3.0):
        variable.assign([value])
        other.write_out("artifact", verbose=False)
        assert served("artifact") == value
        assert not Path("artifact", "assets", "vocabulary.txt").exists()
    assert sorted(os.listdir()) == ["artifact", "vocabulary.txt"]


@pytest.mark.parametrize(
    "filepath", ["artifact/", "new/deeper/artifact", Path("artifact"), "x/../artifact", "empty"]
)
def test_any_way_to_say_the_path(filepath: Any) -> None:
    Path("empty").mkdir()
    archive, variable = adding(1.0)
    for value in (1.0, 2.0):
        variable.assign([value])
        archive.write_out(filepath, verbose=False)
        assert served(os.path.normpath(filepath)) == value


def occupied_by_a_directory() -> None:
    Path("artifact/variables").mkdir(parents=True)
    Path("artifact/variables/variables.index").write_text("mine")


def occupied_by_a_file() -> None:
    Path("artifact").write_text("mine")


@pytest.mark.parametrize("occupy", [occupied_by_a_directory, occupied_by_a_file])
def test_what_is_no_saved_model_is_refused_and_left(occupy: Any) -> None:
    occupy()
    before = tree(Path()), sorted(os.listdir())
    archive, _ = adding(1.0)
    with pytest.raises(ExportError, match="holds something that is not a SavedModel"):
        archive.write_out("artifact", verbose=False)
    assert (tree(Path()), sorted(os.listdir())) == before


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_the_artifact_is_followed(exists: bool) -> None:
    if exists:
        Path("elsewhere").mkdir()
    Path("artifact").symlink_to("elsewhere")
    archive, _ = adding(1.0)
    archive.write_out("artifact", verbose=False)
    assert Path("artifact").readlink() == Path("elsewhere")
    assert Path("elsewhere", "saved_model.pb").is_file()


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """Let no file grow larger than `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("written_before", [False, True], ids=["first write", "second write"])
def test_a_write_that_fails_leaves_what_was_there(written_before: bool) -> None:
    large = tf.Variable(np.arange(100_000, dtype="float32"))
    adding(1.0)[0].write_out("artifact", verbose=False)
    archive, variable = adding(2.0)
    archive.add_variable_collection("large", [large])
    if written_before:
        archive.write_out("artifact", verbose=False)
        variable.assign([3.0])
        large.assign_add(tf.ones(100_000))
    before = tree(Path())
    with no_room(50_000), pytest.raises(Exception, match="File too large"):
        archive.write_out("artifact", verbose=False)
    assert tree(Path()) == before
    archive.write_out("artifact", verbose=False)
    assert served("artifact") == (3.0 if written_before else 2.0)
    assert os.listdir() == ["artifact"]


def test_an_endpoint_that_cannot_be_traced_leaves_what_was_there() -> None:
    archive, _ = adding(1.0)
    archive.write_out("artifact", verbose=False)
    before = tree(Path())
    layer = keras.layers.Dense(1)
    layer.build((None, 3))
    archive.add_endpoint("broken", layer.call, [tf.TensorSpec((None, 4))])
    with pytest.raises(ExportError, match="'broken' cannot be traced"):
        archive.write_out("artifact", verbose=False)
    assert tree(Path()) == before


def test_one_archive_may_write_to_many_places() -> None:
    archive, variable = adding(0.0)
    for value in (1.0, 2.0):
        variable.assign([value])
        for path in ("a", "b", "a"):
            archive.write_out(path, verbose=False)
        assert served("a") == served("b") == value
