"""The callbacks in a real `fit` on JAX, which gives the arrays of each step to the next one.

What is the same on all backends is in `tests/callbacks` and the files beside it.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

import keras
import pytest
import tensorflow as tf
from support.models import assert_equal_state, classifier, data, state
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
    "options",
    [{}, {"steps_per_execution": 2}, {"optimizer": "sgd", "run_eagerly": True}],
    ids=str,
)
def test_versions_are_of_their_step_though_the_write_is_held_up(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = States()
    fit([states], classifier(**options), epochs=2)
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
    fit([released, callback], classifier(**options), epochs=2)
    assert published == []
    assert [record.step for record in callback.exports] == sorted(states.after)
    for record in callback.exports:
        assert_equal_state(exported_state(record.path), states.after[record.step])


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
