"""`Exporter` in training loops of one's own."""

from __future__ import annotations

import gc
import math
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import IS_JAX, assert_equal_state, classifier, data, state

from keras_export_callbacks import (
    ExportDirectory,
    Exporter,
    ExportError,
    ExportEveryN,
    ExportOnImprove,
    ExportRecord,
    KeepBest,
    publisher,
)
from keras_export_callbacks.pipeline import Pipeline


def train(model: Any, steps: int) -> None:
    """A loop of one's own, with a plain `GradientTape` on TensorFlow."""
    x, y = data()
    if IS_JAX:  # A loop by hand is in tests/on_jax/test_loops.py.
        for _ in range(steps):
            model.train_on_batch(x, y)
        return
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        model.optimizer.apply(gradients, model.trainable_variables)


@pytest.mark.tensorflow_only("a GradientTape")
def test_a_gradient_tape_loop() -> None:
    model = classifier()
    x, _ = data()
    outputs = []
    with Exporter("base", model, log_dir=None) as exporter:
        for epoch in range(3):
            train(model, 2)
            outputs.append(np.asarray(model(x, training=False)))
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
    write = publisher.write
    held_up = lambda *args: go_on.wait() and write(*args)  # noqa: E731
    monkeypatch.setattr(publisher, "write", held_up)
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


class HeldUp:
    """Writes that wait until they may go on; whether an export waits for one, meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, exporter: Exporter | Pipeline) -> None:
        self.exporter = exporter
        pipeline = exporter if isinstance(exporter, Pipeline) else exporter._pipeline
        self.waits = 0
        self._started, self.go_on = threading.Event(), threading.Event()
        write = publisher.write

        def held_up(*args: Any) -> Any:
            self._started.set()
            self.go_on.wait()
            return write(*args)

        monkeypatch.setattr(publisher, "write", held_up)
        changed = pipeline._publisher._worker._changed
        wait = changed.wait

        def noted(timeout: float | None = None) -> bool:
            self.waits += 1
            self.go_on.set()
            return wait(timeout)

        changed.wait = noted  # type: ignore[method-assign]

    def export(self, **options: Any) -> Any:
        future = self.exporter.export(**options)
        self._started.wait()
        return future

    def __enter__(self) -> HeldUp:
        return self

    def __exit__(self, *exception: object) -> None:
        self.go_on.set()
        self.exporter.close()


def snapshot_size(model: Any) -> int:
    """Every number of a classifier takes four bytes, but for step counts, seeds and the like."""
    return sum(array.nbytes for array in state(model))


@pytest.mark.parametrize("room_for", [1, 2, 5])
def test_an_export_waits_only_when_there_is_no_room_for_its_snapshot(
    monkeypatch: pytest.MonkeyPatch, room_for: int
) -> None:
    model = classifier()
    train(model, 1)
    monkeypatch.setattr(publisher, "ROOM", room_for * snapshot_size(model))
    with HeldUp(monkeypatch, Exporter("base", model, log_dir=None)) as held_up:
        for step in range(1 + room_for):  # One is written, the others wait.
            held_up.export(step=step)
        assert held_up.waits == 0
        held_up.export(step=1 + room_for)
        assert held_up.waits > 0
    assert [e.step for e in held_up.exporter.exports] == list(range(2 + room_for))


def test_a_snapshot_larger_than_the_room_waits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "ROOM", 1)
    with HeldUp(monkeypatch, Exporter("base", classifier(), log_dir=None)) as held_up:
        held_up.export(step=1)
        held_up.export(step=2)
        assert held_up.waits == 0
        held_up.export(step=3)
        assert held_up.waits > 0
    assert [e.step for e in held_up.exporter.exports] == [1, 2, 3]


def test_small_snapshots_wait_for_nothing_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier()
    with HeldUp(monkeypatch, Exporter("base", model, log_dir=None)) as held_up:
        expected = []
        for _ in range(6):
            train(model, 1)
            expected.append(state(model))
            held_up.export()
        assert held_up.waits == 0
    for record, then in zip(held_up.exporter.exports, expected, strict=True):
        revived = tf.saved_model.load(str(record.path))
        exported = [*revived.variables, *revived.optimizer_variables]
        assert_equal_state([variable.numpy() for variable in exported], then)


def test_a_fit_with_short_epochs_does_not_wait_for_the_first_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callback = ExportEveryN("base", log_dir=None)

    class Hold(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types.
        """Holds up the first write until the last epoch is over."""

        def on_train_begin(self, logs: Any = None) -> None:
            assert callback._pipeline is not None
            self.held_up = HeldUp(monkeypatch, callback._pipeline)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 4:
                self.waits = self.held_up.waits
                self.held_up.go_on.set()

    hold = Hold()
    classifier().fit(*data(), epochs=5, verbose=0, callbacks=[callback, hold])
    assert hold.waits == 0
    assert [e.epoch for e in callback.exports] == [0, 1, 2, 3, 4]


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
        with pytest.warns(UserWarning, match="it is left out. Expected one finite number") as told:
            record = exporter.export(metrics=given).result()
        exporter.export(metrics=given)
    assert sorted(str(warning.message) for warning in told) == [
        "The metric 'confusion' is an array of shape (2, 2), so it is left out. Expected one "
        "finite number.",
        "The metric 'f1' is nan, so it is left out. Expected one finite number. `keep` does not "
        "count this version as one of the best.",
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


def test_no_version_is_where_a_server_would_take_its_directory_for_a_version() -> None:
    with Exporter("base", classifier(), log_dir=None) as exporter:
        exporter.export()
    before = sorted(Path().rglob("*"))
    told = "base_dir='.*/base/12', but '.*/base' holds versions"
    for make in (ExportEveryN, ExportOnImprove):
        with pytest.raises(ExportError, match=told):
            make("base/12", log_dir=None)
    with pytest.raises(ExportError, match=told):
        Exporter("base/12", classifier(), log_dir=None)
    with pytest.raises(ExportError, match=r"log_dir='.*/base/12', but '.*/base' holds"):
        Exporter("other", classifier(), log_dir="base/12")
    assert sorted(Path().rglob("*")) == before


def test_an_error_in_the_background_is_in_the_future_and_raised_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exporter = Exporter("base", classifier(), log_dir=None)
    with monkeypatch.context() as broken:
        broken.setattr(publisher, "write", lambda *_: 1 / 0)
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
    monkeypatch.setattr(publisher, "write", lambda *_: 1 / 0)

    def loop() -> None:
        with Exporter("base", classifier(), log_dir=None) as exporter:
            exporter.export()
            raise KeyError("loop")

    with pytest.warns(UserWarning, match="ZeroDivisionError"), pytest.raises(KeyError):
        loop()


def test_a_failed_export_holds_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would be as large as the model, until someone drops the error."""
    held = []
    write = publisher.write

    def failing(snapshot: Any, *args: Any) -> Any:
        held.append(weakref.ref(snapshot))
        raise OSError("no luck")

    monkeypatch.setattr(publisher, "write", failing)
    with Exporter("base", classifier(), log_dir=None, on_error="warn") as exporter:
        future = exporter.export()
        with pytest.warns(UserWarning, match="no luck"):
            exporter.wait()
        assert future.exception() is not None
        if IS_JAX:  # Errors that tracing has caught keep their frames until then.
            gc.collect()
        assert held[0]() is None
        monkeypatch.setattr(publisher, "write", write)
        assert exporter.export().result().version == 1


def test_a_wait_that_one_notices_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras_export_callbacks.pipeline._NOTICEABLE", -1.0)
    with Exporter("base", classifier(), log_dir=None) as exporter:
        with pytest.warns(UserWarning, match="waited .* Export less often") as said:
            exporter.export()
        exporter.export()
    assert [warning.filename for warning in said] == [__file__]


def test_what_on_export_raises_is_told_whatever_it_is() -> None:
    def leave(record: Any) -> None:
        raise SystemExit(3)

    with (
        pytest.warns(UserWarning, match="was published, but a later step failed: SystemExit: 3"),
        Exporter("base", classifier(), log_dir=None, on_export=leave) as exporter,
    ):
        exporter.export()
    with pytest.raises(SystemExit):
        Exporter("other", classifier(), background=False, log_dir=None, on_export=leave).export()


STEPS = {
    "int": lambda: 5,
    "numpy": lambda: np.int32(5),
    "array": lambda: np.array(5, np.uint8),
    "float": lambda: 5.0,
    "numpy float": lambda: np.float32(5),
    "tensor": lambda: tf.constant(5, tf.int64),
    "float tensor": lambda: tf.constant(5.0),
    "tf.Variable": lambda: tf.Variable(5),
    "keras.Variable": lambda: keras.Variable(5, dtype="int32"),
    "iterations": lambda: _after_five_steps().iterations,
}


def _after_five_steps() -> Any:
    model = classifier()
    train(model, 5)
    return model.optimizer


@pytest.fixture(scope="module")
def an_exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    base_dir = tmp_path_factory.mktemp("one") / "base"
    with Exporter(base_dir, classifier(), log_dir=None) as exporter:
        yield exporter


@pytest.mark.parametrize("argument", ["step", "epoch"])
@pytest.mark.parametrize("kind", STEPS)
def test_a_step_or_epoch_is_a_whole_number_of_any_kind(
    an_exporter: Exporter, argument: str, kind: str
) -> None:
    record = an_exporter.export(**{argument: STEPS[kind]()}).result()
    assert getattr(record, argument) == 5
    assert type(getattr(record, argument)) is int


@pytest.mark.parametrize("argument", ["step", "epoch"])
@pytest.mark.parametrize(
    "value",
    ["5", b"5", 5.5, float("nan"), float("inf"), True, np.bool_(False), [5], np.array([5]), 2**63,
     1e30, tf.constant([5]), tf.constant("5"), tf.constant(True), {}, 5j],
    ids=str,
)  # fmt: skip
def test_another_step_or_epoch_is_refused_at_the_call(
    an_exporter: Exporter, argument: str, value: Any
) -> None:
    before = len(an_exporter.exports)
    with pytest.raises(ExportError, match=f"Received {argument}=.* Expected a whole number"):
        an_exporter.export(**{argument: value})
    an_exporter.wait()
    assert len(an_exporter.exports) == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"reason": 3}, "Received reason=3 .* Expected a string"),
        ({"reason": None}, "Received reason=None .* Expected a string"),
        ({"reason": b"because"}, "Received reason=b'because' .* Expected a string"),
        ({"metrics": 0.5}, "Received metrics=0.5 .* Expected a mapping"),
        ({"metrics": [("loss", 0.5)]}, r"Received metrics=\[.* Expected a mapping"),
        ({"metrics": {"loss"}}, "Received metrics={'loss'} .* Expected a mapping"),
    ],
)
def test_another_reason_or_other_metrics_are_refused_at_the_call(
    an_exporter: Exporter, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(TypeError, match=expected) as raised:
        an_exporter.export(**options)
    assert isinstance(raised.value, ExportError)
    an_exporter.wait()


def empty(base_dir: str) -> None:
    for version in Path(base_dir).iterdir():
        shutil.rmtree(version)


@pytest.mark.parametrize("empty", [empty, shutil.rmtree])
def test_numbers_go_on_when_the_directory_is_emptied(empty: Any) -> None:
    """A server keeps the version that it has loaded, and never loads a lower one."""
    model = classifier()
    with Exporter("base", model, log_dir=None) as exporter:
        assert exporter.export().result().version == 1
        exporter.wait()
        assert exporter.export().result().version == 2
        exporter.wait()
        empty("base")
        assert exporter.export().result().version == 3
    with Exporter("base", model, log_dir=None) as later:
        empty("base")  # Before it has published anything.
        assert later.export().result().version == 4
    assert ExportDirectory("base").versions() == [4]
    assert ExportDirectory("base").verify(4) == []


@pytest.mark.parametrize("is_another", [False, True], ids=["one model", "several"])
def test_numbers_go_on_over_fits_of_a_callback(is_another: bool) -> None:
    callback = ExportEveryN("base", log_dir=None)
    model = classifier()
    for _ in range(2):
        model = classifier() if is_another else model
        model.fit(*data(), epochs=2, verbose=0, callbacks=[callback])
        empty("base")
    assert [record.version for record in callback.exports] == [1, 2, 3, 4]


def test_exports_that_wait_go_on_when_the_directory_is_removed() -> None:
    all_wait = threading.Event()

    def remove_once(record: ExportRecord) -> None:
        if record.version == 1:
            all_wait.wait()
            shutil.rmtree("base")

    with Exporter("base", classifier(), log_dir=None, on_export=remove_once) as exporter:
        futures = [exporter.export() for _ in range(2)]
        all_wait.set()
        assert [future.result().version for future in futures] == [1, 2]
    assert ExportDirectory("base").verify(2) == []


class Slow(keras.layers.Layer):
    """Takes its time to be traced."""

    def call(self, inputs: Any) -> Any:
        if not tf.executing_eagerly():
            time.sleep(0.2)
        return inputs


def test_the_stall_counts_all_that_training_waited_for() -> None:
    """The endpoints are traced when training begins, for the first export."""
    model = keras.Sequential([keras.Input((4,)), Slow(), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    callback = ExportEveryN("base", log_dir=None)
    x = np.ones((4, 4), "float32")
    model.fit(x, x[:, :3], epochs=2, verbose=0, callbacks=[callback])
    first, second = callback.exports
    assert first.stall_seconds > 0.4  # Two endpoints.
    assert second.stall_seconds < first.stall_seconds


def test_the_stall_counts_the_look_at_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    survey = ExportDirectory.survey

    def slowly(directory: ExportDirectory) -> Any:
        time.sleep(0.2)
        return survey(directory)

    monkeypatch.setattr(ExportDirectory, "survey", slowly)
    callback = ExportOnImprove("base", "loss", log_dir=None)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    x = np.ones((4, 4), "float32")
    model.fit(x, x[:, :3], epochs=2, verbose=0, callbacks=[callback])
    assert [record.stall_seconds > 0.2 for record in callback.exports] == [True, True]


def test_an_export_needs_no_metadata_of_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow is also installed as `tensorflow-cpu`, and this package runs from a checkout."""

    def not_found(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(publisher, "version", not_found)
    with Exporter("base", classifier(), log_dir=None) as exporter:
        record = exporter.export().result()
    assert record.libraries == {"keras": keras.__version__, "tensorflow": tf.__version__}
