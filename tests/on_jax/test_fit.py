"""The callbacks in a real `fit` on JAX, which gives the arrays of each step to the next one."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import Logs, assert_equal_state, classifier, data, state
from support.processes import started

from keras_export_callbacks import (
    ExportDirectory,
    ExportEveryN,
    ExportOnImprove,
    publisher,
    restore,
)

VALIDATION = data(seed=1)


class States(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types.
    """Records all state of the model after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.after: dict[int, list[Any]] = {}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        values = state(self.model)
        self.after[int(self.model.optimizer.iterations)] = [value.copy() for value in values]


def fit(callbacks: list[Any], model: Any = None, **options: Any) -> Any:
    model = model or classifier()
    options = {"batch_size": 8, "verbose": 0, "shuffle": False} | options
    model.fit(*data(), callbacks=callbacks, **options)
    return model


def exported_state(path: Any) -> list[Any]:
    revived = tf.saved_model.load(str(path))
    return [v.numpy() for v in [*revived.variables, *revived.optimizer_variables]]


def test_exports_change_nothing_and_are_of_their_step() -> None:
    options = {"epochs": 2, "validation_data": VALIDATION}
    states = States()
    alone = fit([states], **options)
    by_batch = ExportEveryN("batch", n=3, unit="batch", log_dir="logs")
    by_epoch = ExportEveryN("epoch", log_dir=None)
    best = ExportOnImprove("best", "val_loss", log_dir=None)
    model = fit([by_batch, best, by_epoch], **options)
    assert model.history.history == alone.history.history
    assert_equal_state(state(model), state(alone))
    assert [record.step for record in by_batch.exports] == [3, 6]
    assert [(record.step, record.weights) for record in by_epoch.exports] == [
        (4, "validated"),
        (8, "validated"),
    ]
    assert best.exports[-1].value == min(model.history.history["val_loss"])
    for record in [*by_batch.exports, *by_epoch.exports, *best.exports]:
        assert_equal_state(exported_state(record.path), states.after[record.step])
        assert record.metrics.keys() <= {"accuracy", "loss", "val_accuracy", "val_loss"}
    directory = ExportDirectory("batch")
    assert directory.records() == by_batch.exports
    assert all(directory.verify(version) == [] for version in directory.versions())


@pytest.mark.parametrize(
    "options", [{}, {"steps_per_execution": 2}, {"run_eagerly": True}], ids=str
)
def test_versions_are_of_their_step_though_the_write_is_held_up(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = 1 if "run_eagerly" in options else 2  # It takes a second for each step.
    states = States()
    fit([states], classifier(**options), epochs=epochs)
    go_on, write = threading.Event(), publisher.write

    def held_up(*args: Any) -> Any:
        go_on.wait()
        return write(*args)

    published: list[int] = []

    def release(logs: Any) -> None:
        published.extend(ExportDirectory("base").versions())
        go_on.set()

    monkeypatch.setattr(publisher, "write", held_up)
    callback = ExportEveryN("base", unit="batch", log_dir=None)
    released = keras.callbacks.LambdaCallback(on_train_end=release)
    fit([released, callback], classifier(**options), epochs=epochs)
    assert published == []
    assert [record.step for record in callback.exports] == sorted(states.after)
    for record in callback.exports:
        assert_equal_state(exported_state(record.path), states.after[record.step])


def test_exports_after_seconds_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr("keras_export_callbacks.pipeline.time.monotonic", lambda: next(clock))
    callback = ExportEveryN("base", n=6, unit="second", log_dir=None)
    fit([callback], epochs=2)
    # The clock is read twice at the start, and after each of 8 batches and 2 epochs.
    assert [record.step for record in callback.exports] == [1, 3, 4, 6, 8]


def test_exports_exactly_when_the_metric_improves_in_several_fits() -> None:
    callback = ExportOnImprove("base", "score", mode="min", min_delta=0.01, log_dir=None)
    model = fit([Logs("score", [np.nan, 0.5, 0.495, 0.3]), callback], epochs=4)
    fit([Logs("score", [0.31, 0.2]), callback], model, epochs=2)
    found = [(record.epoch, record.step, record.value) for record in callback.exports]
    assert found == [(1, 8, 0.5), (3, 16, 0.3), (1, 24, 0.2)]
    assert_equal_state(exported_state(callback.exports[-1].path), state(model))


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=3),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
    ],
    ids=["accumulated", "scaled"],
)
def test_steps_are_those_that_the_optimizer_counts(make: Any) -> None:
    seen: list[int] = []
    model = classifier(make())
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(
            int(watch.model.optimizer.iterations)  # `watch.model` has the current values.
        )
    )
    callback = ExportEveryN("base", unit="batch", log_dir=None)
    fit([watch, callback], model)
    assert [record.step for record in callback.exports] == sorted({*seen} - {0})


def test_another_optimizer_and_another_model_are_exported_too() -> None:
    callback = ExportEveryN("base", log_dir=None)
    model = fit([callback])
    model.compile(keras.optimizers.SGD(momentum=0.9), "sparse_categorical_crossentropy")
    fit([callback], model)
    assert_equal_state(exported_state(callback.exports[-1].path), state(model))
    other = fit([callback])
    assert_equal_state(exported_state(callback.exports[-1].path), state(other))
    assert [record.version for record in callback.exports] == [1, 2, 3]


def averaging() -> Any:
    """Weights move far in each step, and their average hardly."""
    return classifier(keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.9))


@pytest.mark.parametrize("is_first", [False, True])
def test_averaged_weights_are_exported_if_they_were_validated(is_first: bool) -> None:
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=is_first)
    callback = ExportOnImprove("base", "val_loss", log_dir=None)
    callbacks = [callback, swap] if is_first else [swap, callback]
    fit(callbacks, averaging(), epochs=3, validation_data=VALIDATION)
    again = averaging()
    for record in callback.exports:
        assert record.weights == "validated"
        restore(again, record.path)
        measured = again.evaluate(*VALIDATION, verbose=0, return_dict=True)["loss"]
        assert record.metrics["val_loss"] == pytest.approx(measured, rel=1e-5)


# Trains for two epochs, exports each, and is killed in the third.
KILLED = f"""
import os, signal
import keras
from support.models import classifier, data
from keras_export_callbacks import ExportEveryN
callback = ExportEveryN("base", log_dir=None, background=False)
kill = keras.callbacks.LambdaCallback(
    on_epoch_begin=lambda epoch, logs: epoch == 2 and os.kill(os.getpid(), {signal.SIGKILL:d}))
model = classifier()
model.fit(*data(), epochs=4, batch_size=8, verbose=0, shuffle=False, callbacks=[callback, kill])
"""


def test_a_killed_training_is_resumed_bit_for_bit() -> None:
    with started(KILLED) as process:
        assert process.wait() == -signal.SIGKILL
    directory = ExportDirectory("base")
    assert directory.versions() == [1, 2]
    assert [record.epoch for record in directory.records()] == [0, 1]
    resumed = classifier()
    restore(resumed, directory.latest().path)
    fit([], resumed, initial_epoch=2, epochs=4)
    assert_equal_state(state(resumed), state(fit([], epochs=4)))


def test_events_are_written_for_each_export() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = ExportOnImprove("base", "val_loss")
    fit([callback], epochs=2, validation_data=VALIDATION)
    events = EventAccumulator(str(Path("logs", "exports", "base"))).Reload()
    points = {event.step: tf.make_ndarray(event.tensor_proto) for event in
              events.Tensors("export/val_loss")}  # fmt: skip
    assert points == {record.step: np.float32(record.value) for record in callback.exports}
    assert not [name for name in os.listdir("base") if not name.isdigit() and name[0] != "."]
