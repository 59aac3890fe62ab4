"""What is exported is what the metric was measured on."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from support.models import Logs, classifier, data

from keras_export_callbacks import ExportDirectory, ExportEveryN, ExportOnImprove, restore

VALIDATION = data(seed=1)


def averaging(wrap: Any = lambda optimizer: optimizer) -> Any:
    """Weights move far in each step, and their average hardly."""
    return classifier(wrap(keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.9)))


def measured_again(path: Any, model: Any) -> float:
    """The validation loss of a version."""
    restore(model, path)
    return float(model.evaluate(*VALIDATION, verbose=0, return_dict=True)["loss"])


def fit(model: Any, callbacks: list[Any], **options: Any) -> Any:
    options = {"validation_data": VALIDATION} | options
    return model.fit(*data(), batch_size=8, epochs=4, verbose=0, callbacks=callbacks, **options)


@pytest.mark.parametrize("swap_on_epoch", [False, True])
@pytest.mark.parametrize("is_first", [False, True])
def test_averaged_weights_are_exported_if_they_were_validated(
    swap_on_epoch: bool, is_first: bool
) -> None:
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch)
    best = ExportOnImprove("best", "val_loss", log_dir=None)
    every = ExportEveryN("every", log_dir=None)
    history = fit(averaging(), [best, every, swap] if is_first else [swap, best, every]).history
    assert len(every.exports) == 4
    for record in [*best.exports, *every.exports]:
        assert record.weights == "validated"
        assert record.metrics["val_loss"] == pytest.approx(
            measured_again(record.path, averaging()), rel=1e-5
        )
    assert best.exports[-1].value == min(history["val_loss"])


def test_so_it_is_with_a_scaled_loss() -> None:
    callback = ExportEveryN("every", log_dir=None)
    model = averaging(keras.optimizers.LossScaleOptimizer)
    fit(model, [callback, keras.callbacks.SwapEMAWeights()])
    for record in callback.exports:
        again = measured_again(record.path, averaging(keras.optimizers.LossScaleOptimizer))
        assert record.metrics["val_loss"] == pytest.approx(again, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"use_ema": True, "ema_overwrite_frequency": 3}])
def test_an_optimizers_own_average_is_exported_as_it_was_validated(options: Any) -> None:
    def build() -> Any:
        return classifier(keras.optimizers.SGD(0.5, **options))

    callback = ExportOnImprove("best", "val_loss", log_dir=None)
    fit(build(), [callback])
    for record in callback.exports:
        assert record.value == pytest.approx(measured_again(record.path, build()), rel=1e-5)


def test_a_metric_of_training_and_epochs_without_validation_go_with_the_current_weights() -> None:
    by_loss = ExportOnImprove("loss", "loss", log_dir=None)
    every = ExportEveryN("every", log_dir=None)
    fit(classifier(), [by_loss, every], validation_freq=2)
    assert {record.weights for record in by_loss.exports} == {"current"}
    assert [record.weights for record in every.exports] == [
        "current", "validated", "current", "validated",
    ]  # fmt: skip
    assert ExportDirectory("every").record(2).weights == "validated"


def test_a_metric_that_someone_else_measured_is_warned_of_if_weights_are_averaged() -> None:
    callbacks = [
        Logs("val_own", [3.0, 2.0, 2.5, 1.0]),
        ExportOnImprove("own", "val_own", mode="min", log_dir=None),
    ]
    with pytest.warns(UserWarning, match="'val_own' was not measured by the validation"):
        fit(averaging(), callbacks, validation_data=None)
    assert {record.weights for record in callbacks[1].exports} == {"current"}


def test_early_stopping_restores_what_was_exported_as_best() -> None:
    best = ExportOnImprove("best", "val_loss", log_dir=None)
    stop = keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)
    values = iter([1.0, 0.5, 0.7, 0.9])

    def report(epoch: int, logs: Any) -> None:
        logs["val_loss"] = next(values)

    model = classifier(keras.optimizers.SGD(1.0))
    fit(model, [keras.callbacks.LambdaCallback(on_epoch_end=report), stop, best])
    assert best.last_export is not None
    assert best.last_export.epoch == 1
    exported = classifier(keras.optimizers.SGD(1.0))
    restore(exported, best.last_export.path)
    for ours, theirs in zip(exported.trainable_variables, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
