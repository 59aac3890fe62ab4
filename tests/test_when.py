"""`only_if` and `at_end`: an export that is due and not wanted, and one when training ends."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from support.models import Logs, classifier, data, state

from keras_export_callbacks import (
    ExportDirectory,
    Exporter,
    ExportError,
    ExportEveryN,
    ExportOnImprove,
    restore,
)


def fit(*callbacks: Any, epochs: int = 1, model: Any = None, **options: Any) -> Any:
    model = model or classifier()
    x, y = data()
    model.fit(x, y, epochs=epochs, batch_size=8, verbose=0, callbacks=[*callbacks], **options)
    return model


def reasons(callback: Any) -> list[tuple[int | None, str]]:
    return [(record.epoch, record.reason) for record in callback.exports]


class TestOnlyIf:
    def test_what_is_declined_is_not_the_best(self) -> None:
        asked = []

        def fair(metrics: Any) -> bool:
            asked.append(metrics["m"])
            return bool(metrics["gap"] < 0.5)

        callback = ExportOnImprove("base", "m", mode="max", only_if=fair, log_dir=None)
        logs = Logs("m", [1.0, 5.0, 2.0, 3.0]), Logs("gap", [0.1, 0.9, 0.2, float("nan")])
        with pytest.warns(UserWarning, match="`only_if` reads the metric 'gap', which is missing"):
            fit(*logs, callback, epochs=4)
        # The second epoch is better than the third, and was not exported.
        assert [record.value for record in callback.exports] == [1.0, 2.0]
        assert asked == [1.0, 5.0, 2.0, 3.0]

    def test_it_is_asked_only_when_an_export_is_due(self) -> None:
        asked: list[Any] = []
        only_if = lambda metrics: bool(asked.append(metrics["m"]))  # noqa: E731
        callback = ExportEveryN("base", n=2, only_if=only_if, log_dir=None)
        fit(Logs("m", [1.0, 2.0, 3.0, 4.0]), callback, epochs=4)
        assert asked == [2.0, 4.0]
        assert ExportDirectory("base").versions() == []

    def test_after_seconds_it_stays_due_until_the_function_agrees(self) -> None:
        callback = ExportEveryN(
            "base",
            n=1e-9,
            unit="second",
            only_if=lambda metrics: metrics.get("val_loss", 1e9) < 1e9,
            log_dir=None,
        )
        fit(callback, epochs=2, validation_data=data())
        assert [record.epoch for record in callback.exports] == [0, 1]
        assert all("val_loss" in record.metrics for record in callback.exports)

    def test_an_exporter_gives_a_cancelled_future(self) -> None:
        only_if = lambda metrics: np.float32(metrics["loss"]) < 1  # noqa: E731
        with Exporter("base", classifier(), only_if=only_if, log_dir=None) as exporter:
            assert exporter.export(metrics={"loss": 2}).cancelled()
            assert exporter.export(metrics={"loss": 0.5}).result().version == 1

    def test_its_errors_can_be_warned_of(self) -> None:
        callback = ExportEveryN("base", only_if=lambda m: 1 / 0, on_error="warn", log_dir=None)
        with pytest.warns(UserWarning, match="`only_if` failed, so nothing was exported: ZeroDiv"):
            fit(callback)
        assert callback.exports == []

    @pytest.mark.parametrize(("unit", "epochs"), [("epoch", [1, 3]), ("second", [1, 1, 3])])
    def test_a_metric_that_is_missing_means_not_now(self, unit: Any, epochs: list[int]) -> None:
        callback = ExportEveryN(
            "base",
            1 if unit == "epoch" else 1e-9,
            unit=unit,
            only_if=lambda metrics: metrics["val_loss"] < 1e9,
            log_dir=None,
        )
        with pytest.warns(
            UserWarning, match=r"'val_loss', which is missing now\. Available.*'loss'"
        ) as told:
            fit(callback, epochs=4, validation_data=data(), validation_freq=2)
        assert len(told) == 1
        assert {record.epoch for record in callback.exports} == {*epochs}

    @pytest.mark.parametrize("answer", [np.bool_(True), np.array(True), keras.ops.less(1, 2)])
    def test_the_answer_may_be_an_array(self, answer: Any) -> None:
        callback = ExportEveryN("base", only_if=lambda m: answer, log_dir=None)
        fit(callback)
        assert len(callback.exports) == 1

    def test_a_forgotten_return_is_told(self) -> None:
        callback = ExportEveryN("base", only_if=lambda m: None, log_dir=None)  # type: ignore
        with pytest.raises(ExportError, match=r"returned None.*Expected True or False"):
            fit(callback)

    def test_refuses_what_is_no_function(self) -> None:
        with pytest.raises(ExportError, match=r"only_if='m'.*lambda metrics"):
            ExportEveryN("base", only_if="m", log_dir=None)  # type: ignore[arg-type]


class TestAtEnd:
    def test_exports_what_the_last_epochs_left(self) -> None:
        callback = ExportEveryN("base", n=2, at_end=True, log_dir=None)
        model = fit(callback, epochs=3, validation_data=data())
        assert reasons(callback) == [(1, "every 2 epochs"), (2, "end of training")]
        assert "val_loss" in callback.exports[-1].metrics
        other = classifier()
        restore(other, callback.exports[-1].path)
        for one, two in zip(state(model), state(other), strict=True):
            np.testing.assert_array_equal(one, two)

    @pytest.mark.parametrize(("unit", "n"), [("epoch", 2), ("batch", 8)])
    def test_not_again_at_the_step_of_the_last_export(self, unit: Any, n: int) -> None:
        callback = ExportEveryN("base", n=n, unit=unit, at_end=True, log_dir=None)
        fit(callback, epochs=2)
        assert len(callback.exports) == 1
        fit(callback, epochs=1, model=callback.model)
        assert [record.step for record in callback.exports] == [8, 12]

    def test_steps_that_nothing_counts_are_no_reason_to_leave_it_out(self) -> None:
        class OwnStep(keras.Model):
            def __init__(self) -> None:
                inputs = keras.Input((4,))
                super().__init__(inputs, keras.layers.Dense(3)(inputs))

            def train_step(self, data: Any) -> Any:
                return {"loss": 1.0}

        model = OwnStep()
        model.compile("sgd", "mse")
        callback = ExportEveryN("base", n=2, at_end=True, log_dir=None)
        fit(callback, epochs=3, model=model)
        assert [(record.epoch, record.step) for record in callback.exports] == [(1, 0), (2, 0)]

    def test_early_stopping_and_its_weights(self) -> None:
        logs = Logs("m", [1.0, 2.0, 3.0])
        stop = keras.callbacks.EarlyStopping("m", mode="min", patience=1, restore_best_weights=True)
        first = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: epoch or seen.extend(model.get_weights())
        )
        seen: list[Any] = []
        model = classifier()
        callback = ExportEveryN("base", n=9, at_end=True, log_dir=None)
        fit(logs, first, stop, callback, epochs=3, model=model)
        assert reasons(callback) == [(1, "end of training")]
        other = classifier()
        restore(other, callback.exports[-1].path)
        for one, two in zip(seen, other.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)

    @pytest.mark.parametrize("background", [True, False])
    def test_weights_that_changed_after_the_last_export_are_exported(
        self, background: bool
    ) -> None:
        stop = keras.callbacks.EarlyStopping(
            "loss", mode="max", patience=1, restore_best_weights=True
        )
        model = classifier()
        callback = ExportEveryN("base", at_end=True, log_dir=None, background=background)
        fit(stop, callback, epochs=9, model=model)
        assert reasons(callback)[-1][1] == "end of training"
        other = classifier()
        restore(other, "base")
        for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)

    def test_averages_that_keras_puts_in_at_the_end_are_exported(self) -> None:
        model = classifier()
        model.compile(keras.optimizers.Adam(0.1, use_ema=True), "sparse_categorical_crossentropy")
        callback = ExportEveryN("base", at_end=True, log_dir=None)
        fit(callback, epochs=2, model=model)
        assert [reason for _, reason in reasons(callback)] == [
            *["every epoch"] * 2,
            "end of training",
        ]
        other = classifier()
        other.compile(keras.optimizers.Adam(0.1, use_ema=True), "sparse_categorical_crossentropy")
        restore(other, "base")
        for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)

    def test_only_if_is_asked(self) -> None:
        callback = ExportEveryN("base", n=9, at_end=True, only_if=lambda m: False, log_dir=None)
        fit(callback)
        assert callback.exports == []

    def test_a_fit_without_epochs_leaves_nothing(self) -> None:
        callback = ExportEveryN("base", at_end=True, log_dir=None)
        fit(callback, epochs=0)
        assert callback.exports == []
