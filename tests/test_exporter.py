"""`Exporter` in training loops of one's own."""

from __future__ import annotations

import math
import threading
import weakref
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import assert_equal_state, classifier, data, state

from keras_export_callbacks import (
    ExportArchive,
    ExportDirectory,
    Exporter,
    ExportError,
    KeepBest,
)
from keras_export_callbacks.archive import shards


def train(model: Any, steps: int) -> None:
    """A plain `GradientTape` loop."""
    x, y = data()
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        model.optimizer.apply(gradients, model.trainable_variables)


def test_a_gradient_tape_loop() -> None:
    model = classifier()
    x, _ = data()
    outputs = []
    with Exporter("base", model, log_dir=None) as exporter:
        for epoch in range(3):
            train(model, 2)
            outputs.append(model(x, training=False).numpy())
            exporter.export(epoch=epoch, metrics={"loss": 1 / (epoch + 1), "nan": float("nan")})
    assert [(e.version, e.step, e.epoch) for e in exporter.exports] == [
        (1, 2, 0),
        (2, 4, 1),
        (3, 6, 2),
    ]
    assert exporter.exports[0].metrics == {"loss": 1.0}
    for record, expected in zip(exporter.exports, outputs, strict=True):
        revived = tf.saved_model.load(str(record.path))
        np.testing.assert_array_equal(revived.serve(x), expected)


def test_the_snapshot_is_of_the_moment_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on while the write is held up on purpose."""
    go_on = threading.Event()
    write = ExportArchive.write
    held_up = lambda self, *args: go_on.wait() and write(self, *args)  # noqa: E731
    monkeypatch.setattr(ExportArchive, "write", held_up)
    model = classifier()
    train(model, 1)
    with Exporter("base", model, log_dir=None) as exporter:
        expected = [state(model)]
        first = exporter.export()
        train(model, 3)
        expected.append(state(model))
        exporter.export()
        train(model, 3)
        assert not first.done()
        go_on.set()
    for record, then in zip(exporter.exports, expected, strict=True):
        revived = tf.saved_model.load(str(record.path))
        exported = [*revived.variables, *revived.optimizer_variables]
        assert_equal_state([variable.numpy() for variable in exported], then)


def test_a_third_export_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, waiting = threading.Event(), threading.Event()
    write = ExportArchive.write
    held_up = lambda self, *args: go_on.wait() and write(self, *args)  # noqa: E731
    monkeypatch.setattr(ExportArchive, "write", held_up)
    exporter = Exporter("base", classifier(), log_dir=None)
    exporter.export(step=1)
    exporter.export(step=2)

    def third() -> None:
        waiting.set()
        exporter.export(step=3)

    thread = threading.Thread(target=third)
    thread.start()
    waiting.wait()
    assert thread.is_alive()
    go_on.set()
    thread.join()
    exporter.close()
    assert [e.step for e in exporter.exports] == [1, 2, 3]


def test_metrics_given_by_hand_do_not_vanish_silently() -> None:
    keep = KeepBest(1, monitor="f1", mode="max")
    given: dict[str, Any] = {
        "loss": tf.constant([0.5]),
        "f1": math.nan,
        "other": math.nan,
        "confusion": np.zeros((2, 2)),
        "late": None,
    }
    with Exporter("base", classifier(), log_dir=None, keep=keep) as exporter:
        with pytest.warns(UserWarning, match="and left out. Expected one finite number") as told:
            record = exporter.export(metrics=given).result()
        exporter.export(metrics=given)
    assert sorted(str(warning.message) for warning in told) == [
        "The metric 'confusion' is an array of shape (2, 2), and left out. Expected one finite "
        "number.",
        "The metric 'f1' is nan, and left out. Expected one finite number. `keep` does not count "
        "this version as one of the best.",
    ]
    assert {warning.filename for warning in told} == {__file__}
    assert record.metrics == {"loss": 0.5}


def test_in_the_foreground() -> None:
    with Exporter("base", classifier(), background=False, log_dir=None) as exporter:
        future = exporter.export(reason="because")
        assert future.done()
        assert ExportDirectory("base").record(1).reason == "because"
    assert not Path("base/.staging").exists()


def test_a_closed_exporter_refuses() -> None:
    exporter = Exporter("base", classifier(), log_dir=None)
    exporter.close()
    with pytest.raises(ExportError, match="closed"):
        exporter.export()


def test_a_model_that_is_not_built() -> None:
    exporter = Exporter("base", keras.Sequential([keras.layers.Dense(1)]), log_dir=None)
    with pytest.raises(ExportError, match="has not been built"):
        exporter.export()
    assert not Path("base").exists()


def test_an_error_in_the_background_is_in_the_future_and_raised_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exporter = Exporter("base", classifier(), log_dir=None)
    with monkeypatch.context() as broken:
        broken.setattr(ExportArchive, "write", lambda *_: 1 / 0)
        future = exporter.export()
        error = future.exception()
    assert isinstance(error, ExportError)
    assert isinstance(error.__cause__, ZeroDivisionError)
    with pytest.raises(ExportError, match="ZeroDivisionError"):
        exporter.wait()
    assert exporter.export().result().version == 1
    exporter.close()
    assert sorted(path.name for path in Path("base").iterdir()) == ["1"]


def test_what_ends_the_block_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExportArchive, "write", lambda *_: 1 / 0)

    def loop() -> None:
        with Exporter("base", classifier(), log_dir=None) as exporter:
            exporter.export()
            raise KeyError("loop")

    with pytest.warns(UserWarning, match="ZeroDivisionError"), pytest.raises(KeyError):
        loop()


def test_exporting_twice_without_training_writes_no_variables_again() -> None:
    with Exporter("base", classifier(), log_dir=None) as exporter:
        first, second = exporter.export().result(), exporter.export().result()
    shared = [name for name in first.files if "variables.data" in name or name == "saved_model.pb"]
    assert len(shared) == 4
    for name in shared:
        assert (first.path / name).stat().st_ino == (second.path / name).stat().st_ino
    assert second.graph_reused
    assert not first.graph_reused


def test_backends_other_than_tensorflow_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(NotImplementedError, match="KERAS_BACKEND=tensorflow"):
        Exporter("base", classifier(compiled=False), log_dir=None).export()


def test_a_failed_export_holds_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would be as large as the model, until someone drops the error."""
    held = []
    write = ExportArchive.write

    def failing(archive: Any, snapshot: Any, *args: Any) -> Any:
        held.append(weakref.ref(snapshot))
        raise OSError("no luck")

    monkeypatch.setattr(ExportArchive, "write", failing)
    with Exporter("base", classifier(), log_dir=None, on_error="warn") as exporter:
        future = exporter.export()
        with pytest.warns(UserWarning, match="no luck"):
            exporter.wait()
        assert future.exception() is not None
        assert held[0]() is None
        monkeypatch.setattr(ExportArchive, "write", write)
        assert exporter.export().result().version == 1


def test_a_wait_that_one_notices_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras_export_callbacks.exporter._NOTICEABLE", -1.0)
    with Exporter("base", classifier(), log_dir=None) as exporter:
        with pytest.warns(UserWarning, match="waited .* Export less often") as said:
            exporter.export()
        exporter.export()
    assert [warning.filename for warning in said] == [__file__]


def test_what_on_export_raises_is_told_whatever_it_is() -> None:
    def leave(record: Any) -> None:
        raise SystemExit(3)

    with (
        pytest.raises(ExportError, match="was published, but what follows failed: SystemExit: 3"),
        Exporter("base", classifier(), log_dir=None, on_export=leave) as exporter,
    ):
        exporter.export()
    with pytest.raises(SystemExit):
        Exporter("other", classifier(), background=False, log_dir=None, on_export=leave).export()


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
