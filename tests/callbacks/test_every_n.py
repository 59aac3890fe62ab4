"""`ExportEveryN` in a real `fit`: when it exports."""

from __future__ import annotations

import copy
import math
from typing import Any

import keras
import pytest
import tensorflow as tf
from support.fits import fit
from support.models import classifier, data

from keras_export_callbacks import (
    ExportDirectory,
    ExportError,
    ExportEveryN,
    ExportOnImprove,
)
from keras_export_callbacks.archive.graph.plan import Plan


class TestEveryN:
    def test_exports_after_every_second_epoch(self) -> None:
        callback = ExportEveryN("base", n=2, log_dir=None)
        fit([callback], epochs=5)
        assert [(e.version, e.epoch, e.step) for e in callback.exports] == [(1, 1, 8), (2, 3, 16)]
        assert [e.reason for e in callback.exports] == ["every 2 epochs"] * 2
        assert ExportDirectory("base").versions() == [1, 2]
        assert callback.last_export == ExportDirectory("base").latest()

    @pytest.mark.parametrize("steps_per_execution", [1, 4, 16])
    def test_exports_at_the_first_callback_after_every_tenth_step(
        self, steps_per_execution: int
    ) -> None:
        x, y = data(rows=23)
        seen: list[int] = []
        model = classifier(steps_per_execution=steps_per_execution)
        watch = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: seen.append(
                int(watch.model.optimizer.iterations)
            )
        )
        callback = ExportEveryN("base", n=10, unit="batch", log_dir=None)
        model.fit(x, y, epochs=3, batch_size=1, verbose=0, callbacks=[watch, callback])
        expected = [
            min(step for step in seen if step >= multiple) for multiple in range(10, 70, 10)
        ]
        assert [e.step for e in callback.exports] == list(dict.fromkeys(expected))

    def test_exports_after_seconds_of_training(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter(range(0, 1000, 3))
        monkeypatch.setattr("keras_export_callbacks.pipeline.time.monotonic", lambda: next(clock))
        callback = ExportEveryN("base", n=6, unit="second", log_dir=None)
        fit([callback], epochs=2)
        # The clock is read twice at the start, and after each of 8 batches and 2 epochs.
        assert [e.step for e in callback.exports] == [1, 3, 4, 6, 8]

    def test_seconds_are_counted_over_fits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter(range(1000))  # At most 7 in a fit of 4 batches.
        monkeypatch.setattr("keras_export_callbacks.pipeline.time.monotonic", lambda: next(clock))
        callback = ExportEveryN("base", n=10, unit="second", log_dir=None)
        model = fit([callback])
        assert callback.exports == []
        fit([callback], model=model)
        assert len(callback.exports) == 1
        assert copy.copy(callback).exports == callback.exports

    @pytest.mark.tensorflow_only("the model's step uses a GradientTape")
    def test_steps_that_nothing_counts_are_told(self) -> None:
        class OwnOptimizer(keras.Sequential):  # type: ignore[misc]
            own = keras.optimizers.SGD(0.1)

            def train_step(self, batch: Any) -> Any:
                x, y = batch
                with tf.GradientTape() as tape:
                    loss = self.compute_loss(x, y, self(x, training=True))
                variables = self.trainable_variables
                self.own.apply(tape.gradient(loss, [v.value for v in variables]), variables)
                return {"loss": loss}

        model = OwnOptimizer(classifier().layers)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.own.build(model.trainable_variables)
        by_batch = ExportEveryN("base", n=2, unit="batch", log_dir=None)
        with pytest.raises(ExportError, match="left at 0, so nothing was exported"):
            fit([by_batch], model=model)
        # A fit that has nothing left to do is not one of them.
        fit([by_batch], model=model, initial_epoch=1)

    def test_only_what_may_be_exported_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reads = []
        original = Plan.read

        def read(plan: Plan) -> Any:
            reads.append(plan)
            return original(plan)

        monkeypatch.setattr(Plan, "read", read)
        callbacks = [
            ExportEveryN("third", n=3, log_dir=None),
            ExportEveryN("batch", n=1000, unit="batch", log_dir=None),
            ExportOnImprove("loss", "none", mode="min", log_dir=None, on_error="warn"),
        ]
        with pytest.warns(UserWarning, match="'none' was never in the logs"):
            fit(callbacks, epochs=4, validation_data=data(seed=1))
        assert len(reads) == 1
        assert callbacks[0].last_export.weights == "validated"

    def test_an_epoch_trigger_adds_no_batch_hook(self) -> None:
        empty = keras.callbacks.Callback.on_train_batch_end
        assert ExportEveryN("base").on_train_batch_end.__func__ is empty  # type: ignore[attr-defined]
        batch = ExportEveryN("base", unit="batch").on_train_batch_end
        assert batch.__func__ is not empty  # type: ignore[attr-defined]

    def test_a_subclass_may_have_a_batch_hook_of_its_own(self) -> None:
        batches = []

        class Counting(ExportEveryN):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                batches.append(batch)
                super().on_train_batch_end(batch, logs)

        callback = Counting("base", n=2, unit="batch", log_dir=None)
        fit([callback])
        assert batches == [0, 1, 2, 3]
        assert [e.step for e in callback.exports] == [2, 4]

    def test_steps_restored_when_training_begins_are_not_taken_for_new_ones(self) -> None:
        model = classifier()
        restored = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: model.optimizer.iterations.assign(57)
        )
        callback = ExportEveryN("base", n=10, unit="batch", log_dir=None)
        fit([callback, restored], model=model)
        assert [e.step for e in callback.exports] == [60]

    @pytest.mark.parametrize("n", [0, -1, 1.5, "3", None, True, math.nan])
    def test_refuses_what_is_no_count(self, n: Any) -> None:
        with pytest.raises(ExportError, match="Expected a positive int"):
            ExportEveryN("base", n=n)

    def test_refuses_an_unknown_unit(self) -> None:
        with pytest.raises(ValueError, match="'epoch', 'batch' or 'second'"):
            ExportEveryN("base", unit="step")  # type: ignore[arg-type]
