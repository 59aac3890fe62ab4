"""The callbacks in a real `fit`: when they export, and what they leave alone."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import pty
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.cases import mostly_zoo
from support.models import Logs, assert_equal_state, classifier, data, state
from support.versions import rewrite_manifest

from keras_export_callbacks import (
    ExportDirectory,
    Exporter,
    ExportError,
    ExportEveryN,
    ExportOnImprove,
    KeepBest,
    KeepLatest,
    publisher,
)
from keras_export_callbacks.archive.graph.plan import Plan
from keras_export_callbacks.archive.store.record import MANIFEST
from keras_export_callbacks.summaries import SummaryWriter


def fit(callbacks: list[Any], epochs: int = 1, model: Any = None, **options: Any) -> Any:
    model = model or classifier()
    x, y = data()
    model.fit(x, y, epochs=epochs, batch_size=8, verbose=0, callbacks=callbacks, **options)
    return model


def cause(error: BaseException) -> BaseException | None:
    """What `error` was raised from. Keras's traceback filter drops `__cause__` in `fit`."""
    return error.__cause__ or error.__context__


def breaking_base_dir() -> Any:
    """A callback that puts a file in the place of ``base`` in the first epoch."""

    def replace(epoch: int, logs: Any) -> None:
        if not Path("base").is_file():
            Path("base").exists() and Path("base").rename("away")
            Path("base").touch()

    return keras.callbacks.LambdaCallback(on_epoch_begin=replace)


def no_threads_left() -> bool:
    return not [t for t in threading.enumerate() if t.name.startswith("keras-export")]


def counted(function: Any, calls: list[int]) -> Any:
    """Return a function that notes each call. On JAX, Keras gives a `train_step` its state, too."""

    def noted(*args: Any) -> Any:
        calls.append(1)
        return function(*args)

    return noted


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


class TestOnImprove:
    values = (math.nan, None, math.inf, 0.5, 0.5, 0.4999, 0.3)

    def callback(self, **options: Any) -> ExportOnImprove:
        options = {"mode": "min", "min_delta": 0.01, "log_dir": None} | options
        return ExportOnImprove("base", "score", **options)

    def test_exports_exactly_when_the_metric_improves(self) -> None:
        callback = self.callback()
        fit([Logs("score", list(self.values)), callback], epochs=7)
        assert [(e.epoch, e.value) for e in callback.exports] == [(3, 0.5), (6, 0.3)]
        assert {(e.monitor, e.mode, e.reason) for e in callback.exports} == {
            ("score", "min", "improved")
        }

    def test_a_restarted_run_publishes_nothing_worse(self) -> None:
        fit([Logs("score", [0.3]), self.callback()])
        again = self.callback()
        fit([Logs("score", [0.4]), again])
        assert again.exports == []
        assert ExportDirectory("base").versions() == [1]

    def test_what_was_rolled_back_need_not_be_beaten(self) -> None:
        fit([Logs("score", [0.3, 0.2]), self.callback()], epochs=2)
        ExportDirectory("base").rollback()
        again = self.callback()
        fit([Logs("score", [0.25, 0.35]), again], epochs=2)
        assert [record.value for record in again.exports] == [0.25]
        best = ExportDirectory("base").best("score", "min")
        assert best == again.exports[0]

    def test_what_another_writer_bettered_meanwhile_is_dropped(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = self.callback()
        fit([Logs("score", [0.5]), other])
        write = publisher.write

        def overtaken(*args: Any) -> Any:
            monkeypatch.setattr(publisher, "write", write)
            fit([Logs("score", [0.2]), other])
            return write(*args)

        monkeypatch.setattr(publisher, "write", overtaken)
        callback = self.callback()
        fit([Logs("score", [0.4]), callback])
        assert callback.exports == []
        assert [record.value for record in ExportDirectory("base").records()] == [0.5, 0.2]
        assert not Path("base/.staging").exists()

    def test_a_version_with_more_keys_in_its_manifest_is_not_forgotten(self) -> None:
        fit([Logs("score", [0.3]), self.callback()])
        content = json.loads(Path("base/1", MANIFEST).read_text())
        for info in content["files"].values():
            info["novelty"] = 1
        rewrite_manifest(Path("base/1"), files=content["files"], novelty=1)
        again = self.callback()
        fit([Logs("score", [0.4]), again])
        assert again.exports == []

    def test_a_newer_version_counts_if_its_metrics_can_be_read(self) -> None:
        fit([Logs("score", [0.3]), self.callback()])
        rewrite_manifest(Path("base/1"), schema=2, files=[])
        again = self.callback(keep=1)
        with pytest.warns(UserWarning, match=r"schema 2.* Not read: files\. Upgrade") as told:
            fit([Logs("score", [0.4, 0.5]), again], epochs=2)
        assert len(told) == 1
        assert again.exports == []
        with pytest.warns(UserWarning, match="This directory is not removed"):
            fit([Logs("score", [0.2]), again])
        assert ExportDirectory("base").versions() == [1, 2]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"schema": 2, "metrics": 1, "value": "low"}, "schema 2.* A worse version may be pub"),
            ({"metrics": 1}, r"'metrics' is 1, expected .*\. A worse version may be published"),
        ],
    )
    def test_what_may_be_better_and_cannot_be_read_is_told_once(
        self, changes: dict[str, Any], message: str
    ) -> None:
        fit([Logs("score", [0.3]), self.callback()])
        rewrite_manifest(Path("base/1"), **changes)
        again = self.callback()
        with pytest.warns(UserWarning, match=message) as told:
            fit([Logs("score", [0.4, 0.4]), again], epochs=2)
        assert len(told) == 1
        assert [record.value for record in again.exports] == [0.4]

    def test_keep_best_takes_the_monitored_metric(self) -> None:
        callback = self.callback(keep=KeepBest(1))
        fit([Logs("score", [0.5, 0.4, 0.3]), callback], epochs=3)
        assert ExportDirectory("base").versions() == [3]
        for make in (ExportEveryN, lambda base, keep: Exporter(base, classifier(), keep=keep)):
            with pytest.raises(ExportError, match=r"Received KeepBest\(n=1.* KeepBest\(1,"):
                make("base", keep=KeepBest(1))  # type: ignore[operator]

    def test_with_a_baseline_no_manifest_is_read(self) -> None:
        fit([Logs("score", [0.3]), self.callback()])
        Path("base/1", MANIFEST).write_text("{")  # Else this is told.
        again = self.callback(baseline=0.5)
        fit([Logs("score", [0.4]), again])
        assert [record.version for record in again.exports] == [2]

    def test_a_baseline_counts_instead_of_what_was_published(self) -> None:
        fit([Logs("score", [0.3]), self.callback()])
        again = self.callback(baseline=0.5)
        fit([Logs("score", [0.6, 0.45, 0.46, 0.4]), again], epochs=4)
        assert [e.value for e in again.exports] == [0.45, 0.4]

    def test_finds_the_direction_that_keras_knows(self) -> None:
        callback = ExportOnImprove("base", "val_accuracy", log_dir=None)
        fit([callback], validation_data=data(seed=1))
        assert callback.exports[0].mode == "max"

    def test_never_guesses_a_direction(self) -> None:
        with pytest.raises(ExportError, match="mode='max' if higher is better"):
            fit([Logs("score", [1.0]), ExportOnImprove("base", "score", log_dir=None)])

    def test_tells_an_unknown_direction_before_training_where_metrics_are_known(self) -> None:
        model = fit([])
        before = int(model.optimizer.iterations)
        with pytest.raises(ExportError, match="does not say"):
            fit([ExportOnImprove("base", "score", log_dir=None)], model=model)
        assert int(model.optimizer.iterations) == before

    def test_a_metric_missing_in_some_epochs_is_no_error(self) -> None:
        callback = ExportOnImprove("base", "val_loss", log_dir=None)
        fit([callback], epochs=4, validation_data=data(seed=1), validation_freq=2)
        assert callback.exports[0].epoch == 1

    def test_a_metric_never_seen_is_told_at_once_and_an_error_at_the_end(self) -> None:
        epochs: list[int] = []
        watch = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: epochs.append(epoch)
        )
        missing = r"'val_loss' was never in the logs\. Available are \['accuracy', 'loss'\]"
        with (
            pytest.warns(UserWarning, match=f"in this epoch.*{missing}") as told,
            pytest.raises(ExportError, match=f"Nothing was exported.*{missing}. Choose one"),
        ):
            fit([ExportOnImprove("base", log_dir=None), watch], epochs=3)
        assert (epochs, len(told)) == ([0, 1, 2], 1)
        with warnings.catch_warnings(), pytest.raises(UserWarning, match="in this epoch"):
            fit([watch, ExportOnImprove("base", log_dir=None)], epochs=3)
        assert epochs[3:] == [0]

    def test_a_metric_never_seen_can_be_warned_of_instead(self) -> None:
        with pytest.warns(UserWarning, match="'val_loss' was never in the logs") as told:
            fit([ExportOnImprove("base", log_dir=None, on_error="warn")], epochs=2)
        assert [str(warning.message).partition(".")[0] for warning in told] == [
            "Nothing can be exported in this epoch",
            "Nothing was exported",
        ]

    @pytest.mark.parametrize(
        ("epochs", "options", "told_in"),
        [
            (3, {"validation_freq": 3}, None),
            (3, {"validation_freq": [3]}, None),
            (2, {"validation_freq": 3}, 0),
            (3, {"validation_freq": 2, "monitor": "val_f1"}, 1),
            (3, {"validation_freq": 3, "monitor": "f1"}, 0),
        ],
    )
    def test_a_validation_yet_to_come_is_waited_for(
        self, epochs: int, options: dict[str, Any], told_in: int | None
    ) -> None:
        monitor = options.pop("monitor", "val_loss")
        callback = ExportOnImprove("base", monitor, mode="min", log_dir=None, on_error="warn")
        told: list[int] = []
        with warnings.catch_warnings(record=True, action="always") as caught:
            watch = keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: told.append(len(caught))
            )
            fit([callback, watch], epochs, validation_split=0.25, **options)
        expected = [int(told_in is not None and epoch >= told_in) for epoch in range(epochs)]
        assert told == expected
        assert (len(caught), len(callback.exports)) == ((0, 1) if told_in is None else (2, 0))

    def test_a_metric_of_one_number_in_an_array_counts(self) -> None:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, activation="sigmoid")])
        f1 = keras.metrics.F1Score(threshold=0.5)
        model.compile("sgd", "binary_crossentropy", metrics=[f1])
        x, _ = data()
        callback = ExportOnImprove(
            "base", "f1_score", log_dir=None, keep=KeepBest(1, "f1_score", "max")
        )
        model.fit(x, (x[:, :1] > 0).astype("float32"), verbose=0, callbacks=[callback])
        (record,) = callback.exports
        assert record.value == record.metrics["f1_score"] == pytest.approx(float(f1.result()[0]))

    def test_a_metric_of_several_numbers_is_told_at_once_and_an_error_at_the_end(self) -> None:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="sigmoid")])
        model.compile("sgd", "binary_crossentropy", metrics=[keras.metrics.F1Score()])
        x, _ = data()
        callback = ExportOnImprove("base", "val_f1_score", log_dir=None)
        told = r"'val_f1_score' is an array of shape \(2,\). Expected one number. Available are"
        with (
            pytest.warns(UserWarning, match=told) as warned,
            pytest.raises(ExportError, match=f"{told}.*average='macro'"),
        ):
            model.fit(
                x,
                (x[:, :2] > 0).astype("float32"),
                validation_split=0.25,
                epochs=2,
                verbose=0,
                callbacks=[callback],
            )
        assert len(warned) == 1
        assert not Path("base/1").exists()

    @pytest.mark.parametrize(
        "value", mostly_zoo([-math.inf, math.inf, np.float32("nan"), math.nan], -math.inf)
    )
    def test_a_metric_that_is_never_finite_is_an_error(self, value: float) -> None:
        callback = self.callback()
        told = rf"'score' was never finite: its last value was {value:g}\."
        with pytest.raises(ExportError, match=told):
            fit([Logs("score", [value, None, value]), callback], epochs=3)
        fit([Logs("score", [0.5, value]), callback], epochs=2)
        # What was finite in an earlier fit is not in one that diverges from its start.
        with pytest.raises(ExportError, match="never finite"):
            fit([Logs("score", [value]), callback])
        fit([Logs("score", [None]), callback])

    @pytest.mark.parametrize(
        "options", [{"mode": "best"}, {"min_delta": "x"}, {"baseline": math.nan}, {"monitor": 3}]
    )
    def test_refuses_bad_arguments(self, options: dict[str, Any]) -> None:
        with pytest.raises(ExportError, match=r"Received .* Expected"):
            ExportOnImprove("base", **options)


class TestBoth:
    @pytest.mark.parametrize(
        "options",
        [
            {"on_error": "ignore"},
            {"endpoints": "serve"},
            {"keep": 0},
            {"keep": "all"},
            {"on_export": 1},
        ],
    )
    def test_refuses_bad_arguments(self, options: dict[str, Any]) -> None:
        with pytest.raises(ExportError, match=r"Received .* Expected"):
            ExportEveryN("base", **options)

    def test_refuses_a_base_dir_that_is_a_file(self) -> None:
        Path("base").touch()
        with pytest.raises(ExportError, match="/base' is not a directory"):
            ExportEveryN("base")
        with pytest.raises(ExportError, match="/base' is not a directory"):
            ExportOnImprove("base/deeper")

    def test_training_is_not_perturbed(self) -> None:
        histories, states, traces = [], [], []
        for callbacks in [
            [],
            [
                ExportEveryN("base", unit="batch", log_dir="logs"),
                ExportOnImprove("best", "loss"),
            ],
        ]:
            model = classifier()
            count: list[int] = []
            model.train_step = counted(model.train_step, count)
            x, y = data()
            history = model.fit(
                x, y, epochs=3, batch_size=8, verbose=0, shuffle=False, callbacks=callbacks
            )
            histories.append(history.history)
            states.append(state(model))
            traces.append(len(count))
        assert histories[0] == histories[1]
        assert traces[0] == traces[1]
        assert_equal_state(*states)
        assert len(ExportDirectory("base").versions()) == 12

    @pytest.mark.tensorflow_only("JAX rounds otherwise in a compiled endpoint")
    def test_every_version_is_what_the_model_was_at_that_epoch(self) -> None:
        x, _ = data()
        outputs, optimizers = [], []
        model = classifier()

        def remember(epoch: int, logs: Any) -> None:
            outputs.append(model(x, training=False).numpy())
            optimizers.append([variable.numpy() for variable in model.optimizer.variables])

        callback = ExportEveryN("base", log_dir=None)
        fit([keras.callbacks.LambdaCallback(on_epoch_end=remember), callback], 3, model)
        for record, expected, optimizer in zip(callback.exports, outputs, optimizers, strict=True):
            revived = tf.saved_model.load(str(record.path))
            np.testing.assert_array_equal(revived.serve(x), expected)
            serving = revived.signatures["serving_default"](tf.constant(x))
            np.testing.assert_array_equal(serving["output_0"], expected)
            assert_equal_state([v.numpy() for v in revived.optimizer_variables], optimizer)

    def test_call_training_drops_out_and_uses_batch_statistics(self) -> None:
        callback = ExportEveryN("base", log_dir=None)
        model = fit([callback])
        x, _ = data()
        before = state(model)
        revived = tf.saved_model.load(str(callback.exports[0].path))
        moving_mean = next(v for v in revived.non_trainable_variables if v.shape == (8,))
        was = moving_mean.numpy()
        first, second = revived.call_training(x).numpy(), revived.call_training(x).numpy()
        assert not np.array_equal(first, second)
        assert not np.array_equal(moving_mean.numpy(), was)
        np.testing.assert_array_equal(revived.serve(x).shape, first.shape)
        assert_equal_state(before, state(model))

    def test_several_fits_go_on_in_one_directory(self) -> None:
        callback = ExportEveryN("base", log_dir=None)
        model = fit([callback], epochs=2)
        fit([callback], epochs=1, model=model)
        assert [e.version for e in callback.exports] == [1, 2, 3]
        assert callback.exports[-1].graph_reused
        fit([callback], epochs=1, model=classifier())
        assert [e.version for e in callback.exports] == [1, 2, 3, 4]

    def test_a_shallow_copy_is_of_its_own(self) -> None:
        callback = ExportEveryN("base", unit="batch", n=2, log_dir=None)
        fit([callback])
        again = copy.copy(callback)
        fit([again])
        assert len(callback.exports) == 2
        assert len(again.exports) == 4

    def test_base_dir_is_the_same_wherever_the_process_goes(self) -> None:
        for name in ("one", "other"):
            Path(name).mkdir()
        start = Path.cwd()
        move = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: os.chdir(start / ("one" if epoch % 2 else "other"))
        )
        callback = ExportEveryN("base")
        fit([move, callback], epochs=3)
        assert [e.path for e in callback.exports] == [start / "base" / str(n) for n in (1, 2, 3)]
        assert (start / "logs/exports/base").is_dir()
        assert list((start / "one").iterdir()) == list((start / "other").iterdir()) == []

    @pytest.mark.parametrize(
        "base_dir", ["", "a\0b", b"base", None, 3, "x" * 300, "run[lr=1]", "run*", "run?"]
    )
    def test_refuses_what_cannot_be_a_base_dir(self, base_dir: Any) -> None:
        with pytest.raises(ExportError, match=r"Received .* Expected"):
            ExportEveryN(base_dir)

    @pytest.mark.parametrize("log_dir", [3, b"logs", "file"])
    def test_refuses_what_cannot_be_a_log_dir(self, log_dir: Any) -> None:
        Path("file").touch()
        with pytest.raises(ExportError, match=r"Received log_dir=.* Expected"):
            ExportEveryN("base", log_dir=log_dir)

    def test_numpy_numbers_are_numbers(self) -> None:
        ExportEveryN("base", n=np.int64(3), keep=np.int64(3))
        ExportOnImprove("base", min_delta=np.float32(0.1), baseline=np.float32(0.1))

    def test_copies_are_of_their_own(self) -> None:
        callback = ExportEveryN("base", unit="batch", n=2, log_dir=None)
        first, second, same = copy.deepcopy([callback, ExportOnImprove("best", "loss"), callback])
        assert first is same
        assert first is not callback
        fit([first, second])
        again = copy.deepcopy(first)
        assert again.exports == first.exports
        fit([again])
        assert len(again.exports) == 4
        assert len(first.exports) == 2
        assert callback.exports == []

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_fit_left_by_an_exception_loses_no_export(self, error: type[BaseException]) -> None:
        def stop(epoch: int, logs: Any) -> None:
            if epoch == 1:
                raise error("stop")

        callback = ExportEveryN("base", log_dir=None)
        with pytest.raises(error, match="stop"):
            fit([callback, keras.callbacks.LambdaCallback(on_epoch_end=stop)], epochs=3)
        assert [e.epoch for e in callback.exports] == [0, 1]
        assert no_threads_left()
        assert sorted(p.name for p in Path("base").iterdir()) == ["1", "2"]
        assert [ExportDirectory("base").verify(v) for v in (1, 2)] == [[], []]

    def test_early_stopping(self) -> None:
        callback = ExportEveryN("base", log_dir=None)
        fit([keras.callbacks.EarlyStopping("loss", mode="max", patience=0), callback], epochs=9)
        assert 0 < len(callback.exports) < 9
        assert no_threads_left()
        assert not Path("base/.staging").exists()

    def test_retention_follows_each_export(self) -> None:
        keep = KeepLatest(1) | KeepBest(1, monitor="score", mode="min")
        callback = ExportEveryN("base", keep=keep, log_dir=None)
        fit([Logs("score", [3.0, 1.0, 2.0, 4.0]), callback], epochs=4)
        assert ExportDirectory("base").versions() == [2, 4]
        assert len(callback.exports) == 4

    def test_a_metric_that_retention_cannot_rank_by_is_told_once(self) -> None:
        keep = KeepLatest(1) | KeepBest(1, monitor="score", mode="max")
        callback = ExportEveryN("base", keep=keep, log_dir=None)
        values: list[Any] = [math.nan, np.array([3.0, 4.0]), np.array([3.0, 4.0]), np.array([1.0])]
        with pytest.warns(
            UserWarning, match=r"'score' is an array of shape \(2,\), so it is left"
        ) as told:
            fit([Logs("score", values), callback], epochs=4)
        assert len(told) == 1
        assert [record.metrics.get("score") for record in callback.exports] == [None] * 3 + [1.0]

    def test_manifest_tells_what_was_exported(self) -> None:
        callback = ExportOnImprove("base", "val_loss", log_dir=None)
        model = fit([callback], validation_data=data(seed=1))
        record = ExportDirectory("base").record(1)
        assert record == callback.exports[0]
        assert set(record.metrics) == {"accuracy", "loss", "val_accuracy", "val_loss"}
        assert record.value == record.metrics["val_loss"]
        assert set(record.endpoints) == {"serve", "serving_default", "call_training"}
        assert record.endpoints["serve"].inputs["inputs"].shape == (None, 4)
        assert record.collections == {"optimizer_variables": len(model.optimizer.variables)}
        assert record.libraries["keras"] == keras.__version__
        assert record.bytes == sum(info.size for info in record.files.values())

    def test_on_export_sees_each_record_and_may_read_the_callback(self) -> None:
        seen: list[Any] = []
        callback = ExportEveryN(
            "base", log_dir=None, on_export=lambda record: seen.append((record, callback.exports))
        )
        fit([callback], epochs=2)
        assert [record for record, _ in seen] == callback.exports
        assert [len(exports) for _, exports in seen] == [1, 2]

    def test_a_failing_on_export_takes_nothing_back(self) -> None:
        def fail(record: Any) -> None:
            raise OSError("disk on fire")

        callback = ExportEveryN("base", log_dir=None, on_export=fail)
        with pytest.warns(UserWarning, match=r"was published, but.*disk on fire"):
            fit([callback])
        assert ExportDirectory("base").versions() == [1]

    def test_a_failing_export_is_reported_once_with_its_cause(self) -> None:
        callback = ExportEveryN("base", log_dir=None)
        model = fit([callback])
        with pytest.raises(ExportError, match=r"An export to '.*/base' failed") as raised:
            fit([breaking_base_dir(), callback], epochs=3, model=model)
        assert isinstance(cause(raised.value), OSError)
        Path("base").unlink()
        fit([callback], epochs=1, model=model)
        # A server may have kept the first: the same writer never goes back.
        assert [e.version for e in callback.exports] == [1, 2]

    def test_a_failing_export_can_be_warned_of_instead(self) -> None:
        callback = ExportEveryN("base", log_dir=None, on_error="warn")
        with pytest.warns(UserWarning, match=r"An export to '.*/base' failed"):
            model = fit([breaking_base_dir(), callback], epochs=2)
        assert int(model.optimizer.iterations) == 8
        assert callback.exports == []

    @pytest.mark.tensorflow_only("on JAX, fit does not tell the dtype of the inputs")
    def test_a_subclassed_model_is_exported_once_it_is_built(self) -> None:
        class Model(keras.Model):
            def __init__(self) -> None:
                super().__init__()
                self.dense = keras.layers.Dense(3)

            def call(self, x: Any) -> Any:
                return self.dense(x)

        model = Model()
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        callback = ExportEveryN("base", log_dir=None)
        fit([callback], model=model)
        revived = tf.saved_model.load("base/1")
        x, _ = data()
        np.testing.assert_array_equal(revived.serve(x), model(x))

    def test_a_bad_endpoint_is_told_before_training(self) -> None:
        def endpoints(archive: Any, model: Any) -> None:
            archive.add_endpoint("serve", model.call, [tf.TensorSpec((None, 99))])

        model = classifier()
        with pytest.raises(ExportError, match="'serve' cannot be traced"):
            fit([ExportEveryN("base", endpoints=endpoints)], model=model)
        assert int(model.optimizer.iterations) == 0

    def test_recompiling_exports_the_new_optimizer(self) -> None:
        callback = ExportEveryN("base", log_dir=None)
        model = fit([callback])
        model.compile(keras.optimizers.SGD(momentum=0.9), "sparse_categorical_crossentropy")
        fit([callback], model=model)
        adam, sgd = (tf.saved_model.load(str(e.path)).optimizer_variables for e in callback.exports)
        assert len(adam) > len(sgd) == len(model.optimizer.variables)

    @pytest.mark.tensorflow_only("JAX has messages of its own in the log")
    def test_silent_unless_told_otherwise(self, own_directory: Path) -> None:
        script = (
            "from support.models import classifier, data\n"
            "from keras_export_callbacks import ExportEveryN\n"
            "import logging, sys\n"
            "logging.basicConfig(stream=sys.stdout, level=logging.DEBUG)\n"
            "print('begin', flush=True); print('begin', file=sys.stderr, flush=True)\n"
            "verbose = int(sys.argv[1])\n"
            "classifier().fit(*data(), epochs=2, verbose=verbose, callbacks=[\n"
            "    ExportEveryN('base', verbose=verbose)])\n"
        )
        for verbose in ("0", "1"):
            ran = subprocess.run(
                [sys.executable, "-c", script, verbose],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, ran.stderr
            said = ran.stdout.partition("begin\n")[2]
            assert ran.stderr.partition("begin\n")[2] == ""
            assert (said == "") == (verbose == "0")
        # Each in a line of its own, although Keras's progress is in the same file.
        lines = [line for line in said.splitlines() if "exported version" in line]
        assert [line.partition("; training")[0] for line in lines] == [
            f"Epoch {epoch}: exported version {epoch + 2} (every epoch) to "
            f"{Path.cwd()}/base/{epoch + 2}"
            for epoch in (1, 2)
        ]
        assert said.count("exported version") == 2


BAR = """
from keras_export_callbacks import ExportEveryN
from support.models import classifier, data
classifier().fit(*data(), epochs=3, verbose=1, callbacks=[ExportEveryN("base", verbose=1)])
"""


@pytest.mark.slow
def test_lines_stand_alone_where_a_progress_bar_is_drawn() -> None:
    terminal, end = pty.openpty()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", BAR]
    with subprocess.Popen(command, env=environment, stdout=end, stderr=subprocess.DEVNULL):
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # The other end is closed.
            while part := os.read(terminal, 4096):
                shown += part
    os.close(terminal)
    # What a terminal shows: a carriage return goes back, and the code clears the line.
    lines = [line.rpartition("\x1b[K")[2] for line in shown.decode().split("\r\n")]
    said = [line for line in lines if "exported version" in line]
    assert [line.partition(" (")[0] for line in said] == [
        f"Epoch {n}: exported version {n}" for n in (1, 2, 3)
    ]
    assert all(line.endswith("s.") for line in said)


FAILS_LATE = """
import threading
import keras
from keras_export_callbacks import ExportEveryN, publisher
from support.models import classifier, data

def fail(*args):
    threading.main_thread().join()
    raise OSError("the disk is full")

publisher.write = fail
raising = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: 1 / 0)
callback = ExportEveryN("base", log_dir=None)
classifier().fit(*data(), verbose=0, callbacks=[callback, raising])
"""


@pytest.mark.slow
def test_an_export_that_fails_after_fit_has_raised_is_told_once() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FAILS_LATE]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "ZeroDivisionError" in ran.stderr
    assert ran.stderr.count("An export failed while the process ended:") == 1
    assert "the disk is full" in ran.stderr


class Interrupt(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends a fit as Ctrl-C does, once an export has failed."""

    def __init__(self, callback: Any) -> None:
        super().__init__()
        self.callback = callback

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.callback.exports  # noqa: B018  # Waits.
        raise KeyboardInterrupt


def test_what_failed_before_an_interrupt_is_told_by_the_next_fit() -> None:
    callback = ExportEveryN("base", log_dir=None)
    with pytest.raises(KeyboardInterrupt):
        fit([breaking_base_dir(), callback, Interrupt(callback)])
    Path("base").unlink()
    other = classifier()
    with pytest.raises(ExportError, match=r"An export to '.*base' failed"):
        fit([callback], model=other)
    fit([callback], model=other)
    assert len(callback.exports) == 1


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_endpoints_that_fail_are_told_when_training_begins(on_error: Any) -> None:
    def endpoints(archive: Any, model: Any) -> None:
        raise RuntimeError("no endpoint today")

    model = classifier()
    model.optimizer.build(model.trainable_variables)
    before = state(model)
    with pytest.raises(ExportError, match="cannot be exported: RuntimeError: no endpoint today"):
        fit(
            [ExportEveryN("base", log_dir=None, endpoints=endpoints, on_error=on_error)],
            model=model,
        )
    assert_equal_state(state(model), before)


def test_what_cannot_be_read_for_validation_is_told_in_its_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callback = ExportEveryN("base", n=2, log_dir=None, on_error="warn")
    calls = []

    def read(plan: Plan) -> Any:
        calls.append(plan)
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    monkeypatch.setattr(Plan, "read", read)
    with pytest.warns(UserWarning, match="ResourceExhaustedError: out of memory"):
        fit([callback], epochs=2, validation_data=data(seed=1), validation_batch_size=8)
    assert len(calls) == 1  # And not once for each batch of the validation.
    assert callback.exports == []


def test_a_metric_that_one_fit_lacks_was_not_misspelled() -> None:
    callback = ExportOnImprove("base", "val_loss", log_dir=None)
    model = fit([callback], validation_data=data(seed=1))
    fit([callback], model=model, validation_data=data(seed=1), validation_freq=2)
    assert len(callback.exports) == 1


def test_a_full_log_dir_keeps_no_one_from_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(SummaryWriter, "write", fail)
    told: list[int] = []
    callback = ExportEveryN(
        "base", on_error="warn", on_export=lambda record: told.append(record.version)
    )
    with pytest.warns(UserWarning, match="was published, but a later step failed: .*No space left"):
        fit([callback])
    assert told == [1]


def test_warnings_are_errors_here() -> None:
    with pytest.raises(UserWarning, match="so"):
        warnings.warn("so", stacklevel=1)
