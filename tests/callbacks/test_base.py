"""What both callbacks do in a real `fit`, and what they leave alone."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.fits import breaking_base_dir, cause, counted, fit, no_threads_left
from support.models import Logs, assert_equal_state, classifier, data, state

from keras_export_callbacks import (
    ExportDirectory,
    ExportError,
    ExportEveryN,
    ExportOnImprove,
    KeepBest,
    KeepLatest,
)
from keras_export_callbacks.archive.graph.plan import Plan
from keras_export_callbacks.summaries import SummaryWriter


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
