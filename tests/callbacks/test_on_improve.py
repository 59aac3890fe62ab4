"""`ExportOnImprove` in a real `fit`: what it takes for better."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from support.cases import mostly_zoo
from support.fits import fit
from support.models import Logs, classifier, data
from support.versions import rewrite_manifest

from keras_export_callbacks import (
    ExportDirectory,
    Exporter,
    ExportError,
    ExportEveryN,
    ExportOnImprove,
    KeepBest,
    publisher,
)
from keras_export_callbacks.archive.store.record import MANIFEST


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
