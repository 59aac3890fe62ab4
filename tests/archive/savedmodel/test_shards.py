"""A shard knows what is in it, whoever wrote it, and is linked only while it is intact."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.models import classifier

from keras_export_callbacks import ExportDirectory, Exporter
from keras_export_callbacks.archive.savedmodel import shards
from keras_export_callbacks.archive.savedmodel.shards import Shard, write_shard
from keras_export_callbacks.archive.store.files import KnownFile

TENSORS = {
    "b": tf.constant([1.0, -0.0, float("nan")]),
    "a": tf.constant([[1, 2]], tf.int8),
    "empty": tf.zeros((0, 3)),
    "scalar": tf.constant(7, tf.int64),
}
WORDS = {"words": tf.constant(["a", "bc"])}


def written(tensors: dict[str, Any]) -> Shard:
    return write_shard(Path("shard").absolute(), tensors)


def test_size_and_digest_are_those_of_the_file() -> None:
    shard = written(TENSORS)
    content = shard.data.path.read_bytes()
    assert shard.data.info.size == len(content) == 12 + 2 + 0 + 8
    assert shard.data.info.sha256 == hashlib.sha256(content).hexdigest()


def test_it_tells_which_tensors_are_bit_for_bit_the_same() -> None:
    shard = written(TENSORS)
    assert sorted(shard.unchanged(TENSORS)) == sorted(TENSORS)
    others = {
        "b": tf.constant([1.0, 0.0, float("nan")]),  # Another zero.
        "a": tf.constant([1, 2], tf.int8),  # Another shape.
        "empty": tf.zeros((0, 3), tf.float64),  # Another dtype.
        "scalar": TENSORS["scalar"],
        "more": tf.zeros(1),
    }
    assert shard.unchanged(others) == ["scalar"]
    assert written(WORDS).unchanged({"words": tf.constant(["a", "bd"])}) == []
    assert written(WORDS).unchanged(WORDS) == ["words"]


def test_a_file_that_was_written_to_holds_nothing_that_is_known() -> None:
    shard = written(TENSORS)
    os.utime(shard.data.path, ns=(0, 0))
    assert shard.unchanged(TENSORS) == []


def test_a_link_is_the_same_shard_elsewhere() -> None:
    shard = written(TENSORS)
    link = shard.link(Path("other").absolute())
    assert link is not None
    assert link.data.path.samefile(shard.data.path)
    assert link.layout == shard.layout
    shard.data.path.unlink()
    assert shard.link(Path("third").absolute()) is None


def test_the_shards_of_a_version_are_known_to_another_process() -> None:
    with Exporter("base", classifier(), log_dir=None) as exporter:
        record = exporter.export().result()
    stored = shards.stored_shards(Path(record.path), record.files)
    reader = tf.train.load_checkpoint(str(Path(record.path, "variables/variables")))
    tensors = {
        key: tf.constant(np.asarray(reader.get_tensor(key)))
        for key in reader.get_variable_to_shape_map()
    }
    assert sorted(key for shard in stored for key in shard.unchanged(tensors)) == sorted(tensors)


def test_a_digest_that_cannot_be_taken_while_writing_is_taken_from_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(tensor: Any) -> Any:
        raise MemoryError

    with Exporter("base", classifier(), log_dir=None) as exporter:
        monkeypatch.setattr(shards, "_memory", no_memory)
        exporter.export().result()
    assert ExportDirectory("base").verify(1) == []


def test_an_export_that_fails_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> None:
        raise OSError("No space left on device")

    with Exporter("base", classifier(), log_dir=None, on_error="warn") as exporter:
        monkeypatch.setattr(tf.raw_ops, "SaveV2", fail)
        exporter.export().exception()
        assert not [each for each in threading.enumerate() if each.name == "keras-export-digest"]
        with pytest.warns(UserWarning, match="No space left"):
            exporter.wait()


def test_a_file_that_is_truncated_while_it_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the missing part of a file that is mapped to memory would end the process."""
    tensors = {"weights": tf.random.normal((300, 1000))}
    shard = write_shard(tmp_path / "part", tensors)
    assert shard.unchanged(tensors) == ["weights"]

    def truncate(file: KnownFile) -> bool:
        os.truncate(file.path, 4096)
        return True

    monkeypatch.setattr(KnownFile, "is_intact", truncate)
    assert shard.unchanged(tensors) == []
