"""Keras hooks → trigger → `Exporter`."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Literal

import keras

from ._keras import Keras3Callback, infer_mode, validates_later
from .archive.checks import is_real
from .archive.errors import ExportError, ExportValueError
from .archive.state.models import has_call
from .archive.store.objective import Mode, Objective
from .archive.store.paths import absolute_path, check_base_dir
from .archive.store.record import ExportRecord, TrialInfo
from .archive.store.retention import RetentionPolicy
from .endpoints import standard_endpoints
from .exporter import Exporter
from .metrics import Sightings, averages_weights, finite_scalars, steps_taken
from .publisher import State
from .settings import Endpoints, OnError, Settings
from .triggers import EveryN, Moment, OnImprove, Unit


class ExportCallback(Keras3Callback):
    """What the callbacks share: an `Exporter` for the model in training."""

    def __init__(self, base_dir: str | os.PathLike[str], settings: Settings) -> None:
        super().__init__()
        self.root_dir = self.base_dir = absolute_path(base_dir)
        self._settings = settings
        self._exporter: Exporter | None = None
        self._earlier: list[ExportRecord] = []
        self._epoch: int | None = None
        self._batches: int | None = None
        self._validated: State | ExportError | None = None
        self._is_resumed = False
        self._is_copy = False
        self._trial: TrialInfo | None = None
        check_base_dir(self.base_dir)

    def within(self, trial: TrialInfo) -> None:
        """Export as a part of a search, to a directory of that trial and execution."""
        self._leave()
        self.base_dir = self.root_dir / f"trial_{trial.trial}" / f"execution_{trial.execution}"
        self._trial = trial

    @property
    def exports(self) -> list[ExportRecord]:
        """The records of all versions published so far, oldest first.

        Waits for versions that are still being written. After `fit` there are
        none, unless it was left by an exception.
        """
        if self._exporter is None:
            return list(self._earlier)
        self._exporter.settle()
        return [*self._earlier, *self._exporter.exports]

    @property
    def last_export(self) -> ExportRecord | None:
        """The newest of `exports`, or None."""
        exports = self.exports
        return exports[-1] if exports else None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._exporter is not None and self._exporter.model is not self.model:
            self._leave()
        if self._exporter is None:
            if self._is_copy and self._trial is None:
                _check_no_search()
            self._exporter = Exporter(self.base_dir, self.model, **vars(self._settings))
            if self._trial is not None:
                self._exporter.within(self._trial)
        self._exporter.report_failures()
        # A model that the first batch builds is prepared after it.
        self._batches = 0
        if self.model.built or (
            self._settings.endpoints is standard_endpoints and not has_call(self.model)
        ):
            self._prepare()
        self._epoch = None
        self._start(self._moment(logs))

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._epoch is None:
            # Again: a callback after this one may have restored an earlier run,
            # as `BackupAndRestore` does when training begins.
            self._start(self._moment(logs))
        self._epoch = epoch
        self._validated = None

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._batches is not None:
            self._batches += 1
            if self._batches > 1:
                self._prepare()

    def on_test_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Validation begins: hold what it runs on, until the epoch ends.

        Every `on_test_begin` has run, whatever the order of the callbacks. One
        may have put in other weights, and takes them out when validation ends.
        """
        if self._epoch is None or self._validated is not None or not self._may_want_validated():
            return
        try:
            self._validated = self._running.state()
        except ExportError as error:
            self._validated = error  # Told at the end of the epoch, if it is to be exported.

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._running.report_failures()
        self._prepare()
        self._running.tell_of_unusable(logs or {})
        self._consider(self._moment(logs))
        self._validated = None

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._epoch = self._validated = None
        self._running.finish()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: settings and records, neither model nor threads."""
        state = self.__dict__.copy()
        state.update(
            _earlier=self.exports, _exporter=None, _model=None, _validated=None, _is_copy=True
        )
        return state

    def _prepare(self) -> None:
        """Once in each training: find what is wrong with the endpoints."""
        if self._batches is not None:
            self._running.prepare()
            self._batches = None

    @property
    def _running(self) -> Exporter:
        if self._exporter is None:
            raise ExportError(
                f"{type(self).__name__} was called outside training. Call `set_model` and "
                "`on_train_begin` first, as `fit` and `keras.callbacks.CallbackList` do."
            )
        return self._exporter

    def _moment(self, logs: Mapping[str, Any] | None) -> Moment:
        since = time.perf_counter()
        return Moment(
            step=steps_taken(self.model),
            seconds=time.monotonic(),
            epoch=self._epoch,
            metrics=finite_scalars(logs or {}),
            since=since,
        )

    def _export(
        self,
        moment: Moment,
        reason: str,
        objective: Objective | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        if isinstance(self._validated, ExportError):
            self._running.fail(self._validated)
            return
        self._running.request(
            reason=reason,
            step=moment.step,
            epoch=moment.epoch,
            metrics=moment.metrics,
            objective=objective,
            is_wanted=is_wanted,
            # A training that is resumed may repeat all that came after its checkpoint;
            # one that starts anew, what came before it had one.
            unless="any" if self._is_resumed else "newest",
            validated=self._validated,
            since=moment.since,
        )

    def _start(self, moment: Moment) -> None:
        self._is_resumed = bool(moment.step)
        self._begin(moment)

    def _leave(self) -> None:
        """Be done with the exporter, and tell what failed since it last did."""
        if self._exporter is not None:
            self._earlier, exporter, self._exporter = self.exports, self._exporter, None
            exporter.finish()

    def _begin(self, moment: Moment) -> None:
        """Training starts; may come twice."""

    def _may_want_validated(self) -> bool:
        """Whether what validation runs on may be exported at the end of this epoch."""
        raise NotImplementedError

    def _consider(self, moment: Moment) -> None:
        """Export if it is time to; what was validated, where the metrics are of that."""
        raise NotImplementedError


class ExportEveryN(ExportCallback):
    """Publish a servable version every n epochs, steps or seconds of `model.fit`.

    A version holds an inference endpoint, a training-mode endpoint and the
    optimizer's variables, unless `endpoints` says otherwise. Training waits only
    while the variables are read; the version is written in the background.

    Args:
        base_dir: the directory of the versions, that a model server polls.
        n: how many units from one export to the next.
        unit: ``"epoch"``: after epochs n, 2n, … of each fit, as Keras counts
            them; ``"batch"``: at the first callback at or after every n-th
            optimizer step, over all fits, whatever `steps_per_execution` is;
            ``"second"``: at the first end of a batch or epoch n seconds or more
            after the last export, be it in an earlier fit, or after the first start.
        endpoints: function ``(archive, model)`` that registers what to export.
        keep: which versions to keep after each export: None for all, an int for
            that many of the newest, or policies combined with ``|``.
        log_dir: TensorBoard's directory; events go to
            ``<log_dir>/exports/<name of base_dir>``. None writes none.
        background: False writes on the training thread.
        on_error: ``"raise"`` raises a failed export at the next hook, at the
            latest at the end of training; ``"warn"`` warns and keeps training.
            What is wrong with an endpoint is raised when training begins.
        sample_inputs: a batch of model inputs, as the model takes them. Before a
            version is published, it is loaded in another process, as a model
            server does, and must compute of them what the model does.
        on_export: called with the `ExportRecord` of each version after it is
            published, on the thread that published it.
        verbose: 1 prints one line per export; 0 prints nothing.

    Raises:
        ExportError: an argument cannot be used, or `base_dir` cannot be written to.

    Example:

    >>> import keras, numpy as np
    >>> from keras_export_callbacks import ExportEveryN
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> callback = ExportEveryN("every_other", n=2, keep=3, log_dir=None)
    >>> x, y = np.ones((8, 3)), np.ones((8, 1))
    >>> _ = model.fit(x, y, epochs=4, verbose=0, callbacks=[callback])
    >>> [(record.version, record.epoch) for record in callback.exports]
    [(1, 1), (2, 3)]
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str],
        n: float = 1,
        *,
        unit: Unit = "epoch",
        endpoints: Endpoints = standard_endpoints,
        keep: int | RetentionPolicy | None = None,
        log_dir: str | os.PathLike[str] | None = "logs",
        background: bool = True,
        on_error: OnError = "raise",
        sample_inputs: Any = None,
        on_export: Callable[[ExportRecord], None] | None = None,
        verbose: int = 0,
    ) -> None:
        self._trigger = EveryN(n, unit)
        self._last: Moment | None = None
        self._first_step: int | None = None
        self._has_run = False
        super().__init__(
            base_dir,
            Settings(
                endpoints=endpoints,
                keep=keep,
                log_dir=log_dir,
                background=background,
                on_error=on_error,
                sample_inputs=sample_inputs,
                on_export=on_export,
                verbose=verbose,
            ),
        )

    @property
    def on_train_batch_end(self) -> Callable[..., None]:
        """The hook at the end of a batch, Keras's own empty one unless it is needed.

        Keras turns every batch's logs into numbers, which waits for the device,
        as soon as some callback has a batch hook.
        """
        empty: Callable[..., None] = super().on_train_batch_end
        return empty if self._trigger.unit == "epoch" else self._batch_end

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        super().on_train_end(logs)
        step = steps_taken(self.model)
        if self._trigger.unit == "batch" and self._has_run and step == self._first_step:
            self._running.fail(
                ExportError(
                    "Batches are counted by `model.optimizer.iterations`, which training has left "
                    f"at {step}, so nothing was exported. Let `train_step` apply gradients by "
                    "`self.optimizer`, or export by 'epoch' or 'second'."
                )
            )

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_last": None}  # Elsewhere the clock is another.

    def _batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._has_run = True
        self._running.report_failures()
        self._consider(self._moment(logs))

    def _begin(self, moment: Moment) -> None:
        self._first_step, self._has_run = moment.step, False
        if self._last is None or self._trigger.unit != "second":
            self._last = moment

    def _may_want_validated(self) -> bool:
        # Validation takes seconds, but neither epochs nor optimizer steps.
        return self._trigger.unit == "second" or self._is_due(self._moment(None))

    def _is_due(self, moment: Moment) -> bool:
        return self._last is not None and self._trigger.is_due(moment, self._last)

    def _consider(self, moment: Moment) -> None:
        if self._is_due(moment):
            self._last = moment
            self._export(moment, self._trigger.reason)


class ExportOnImprove(ExportCallback):
    """Publish a servable version whenever a metric is better than it ever was.

    "Ever" means in this base directory: the best value is read from the versions
    in it, so that training that is started again never publishes a worse one. It
    advances only when a version is published; one still being written counts
    until it fails.

    Args:
        base_dir: the directory of the versions, that a model server polls.
        monitor: the metric's name in the logs. An epoch without it, or with a value
            that is no finite number, exports nothing.
        mode: ``"min"``, ``"max"``, or ``"auto"`` for the direction that Keras
            gives the metric; one that Keras does not know is an error.
        min_delta: by how much more than this the metric must be better.
        baseline: what to improve on first, instead of the best in `base_dir`:
            with it, a version worse than one from an earlier training may follow.
        endpoints: function ``(archive, model)`` that registers what to export.
        keep: which versions to keep after each export: None for all, an int for
            that many of the newest, or policies combined with ``|``.
        log_dir: TensorBoard's directory; events go to
            ``<log_dir>/exports/<name of base_dir>``. None writes none.
        background: False writes on the training thread.
        on_error: ``"raise"`` raises a failed export at the next hook, at the
            latest at the end of training; ``"warn"`` warns and keeps training.
            What is wrong with an endpoint is raised when training begins.
        sample_inputs: a batch of model inputs, as the model takes them. Before a
            version is published, it is loaded in another process, as a model
            server does, and must compute of them what the model does.
        on_export: called with the `ExportRecord` of each version after it is
            published, on the thread that published it.
        verbose: 1 prints one line per export; 0 prints nothing.

    Raises:
        ExportError: an argument cannot be used, or `base_dir` cannot be written
            to; at the end of training, the metric was never a finite number.

    Example:

    >>> import keras, numpy as np
    >>> from keras_export_callbacks import ExportOnImprove
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> callback = ExportOnImprove("best", monitor="loss", log_dir=None)
    >>> x, y = np.ones((8, 3)), np.ones((8, 1))
    >>> _ = model.fit(x, y, epochs=2, verbose=0, callbacks=[callback])
    >>> callback.last_export.reason
    'improved'
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str],
        monitor: str = "val_loss",
        *,
        mode: Mode | Literal["auto"] = "auto",
        min_delta: float = 0.0,
        baseline: float | None = None,
        endpoints: Endpoints = standard_endpoints,
        keep: int | RetentionPolicy | None = None,
        log_dir: str | os.PathLike[str] | None = "logs",
        background: bool = True,
        on_error: OnError = "raise",
        sample_inputs: Any = None,
        on_export: Callable[[ExportRecord], None] | None = None,
        verbose: int = 0,
    ) -> None:
        if mode not in ("auto", "min", "max"):
            raise ExportValueError(f"Received mode={mode!r}. Expected 'auto', 'min' or 'max'.")
        Objective(monitor, "min")
        _check_number("min_delta", min_delta)
        if baseline is not None:
            _check_number("baseline", baseline)
        self.monitor = monitor
        self._mode = mode
        self._min_delta = abs(float(min_delta))
        self._baseline = baseline
        self._sightings = Sightings(monitor)
        self._was_measured = False
        self._was_told = False
        super().__init__(
            base_dir,
            Settings(
                endpoints=endpoints,
                keep=keep,
                log_dir=log_dir,
                background=background,
                on_error=on_error,
                sample_inputs=sample_inputs,
                on_export=on_export,
                verbose=verbose,
            ),
        )

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        super().on_train_end(logs)
        seen = self._sightings
        # In a later fit it may be left out on purpose, but not be NaN throughout.
        is_told_before = self._was_measured and seen.is_missing
        if seen.epochs and not seen.is_measured and not is_told_before:
            self._running.fail(ExportError(f"Nothing was exported. {seen}"))

    def _begin(self, moment: Moment) -> None:
        self._sightings = Sightings(self.monitor)
        self._was_told = False
        if self._mode == "auto" and _metrics_are_known(self.model):
            self._objective()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._sightings.see(logs or {})
        self._was_measured |= self._sightings.is_measured
        self._tell_if_missing(epoch)
        super().on_epoch_end(epoch, logs)

    def _tell_if_missing(self, epoch: int) -> None:
        """Warn in the first epoch without the metric, rather than only when training is over."""
        seen = self._sightings
        is_missing = seen.is_missing and not self._was_measured
        if self._was_told or not (is_missing or seen.is_no_number):
            return
        if is_missing and seen.may_come and validates_later(self.model, epoch):
            return
        self._was_told = True
        warnings.warn(f"Nothing can be exported in this epoch. {seen}", stacklevel=3)

    def _may_want_validated(self) -> bool:
        return self.monitor.startswith("val_")  # Others are measured while training goes on.

    def _consider(self, moment: Moment) -> None:
        if self.monitor not in moment.metrics:
            return
        trigger = OnImprove(self._objective(), self._min_delta)
        if not trigger.is_due(moment, self._best(trigger.objective)):
            return

        def still_improves() -> bool:
            """Another process may have published something better while this was written."""
            best = self._running.published_best(trigger.objective)
            return self._baseline is not None or trigger.is_due(moment, best)

        if self._validated is None and self._may_want_validated() and averages_weights(self.model):
            warnings.warn(
                f"{self.monitor!r} was not measured by the validation of `fit`, and the optimizer "
                "averages weights. The current weights are exported, which may not be those that "
                "were measured.",
                stacklevel=2,
            )
        self._export(moment, trigger.reason, trigger.objective, still_improves)

    def _objective(self) -> Objective:
        mode = infer_mode(self.monitor, self.model) if self._mode == "auto" else self._mode
        return Objective(self.monitor, mode)

    def _best(self, objective: Objective) -> float | None:
        if self._baseline is None:
            return self._running.best(objective)
        own = self._running.best(objective, own=True)
        return self._baseline if own is None else own


def _check_no_search() -> None:
    """Raise in a search of KerasTuner: its trials would all export to one directory.

    A tuner copies its callbacks and calls `fit`, and tells neither which trial it is
    for. So look, for a copy, whether one called this.
    """
    tuner = sys.modules.get("keras_tuner")
    frame: FrameType | None = sys._getframe()
    while tuner is not None and frame is not None:
        if isinstance(frame.f_locals.get("self"), tuner.Tuner):
            # Of another error KerasTuner would only take note, and go on to the next trial.
            kind = type("ExportError", (ExportError, tuner.errors.FatalError), {})
            raise kind(
                "An export callback is used in a search of KerasTuner, where every trial would "
                "export to the same directory. Wrap the hypermodel: "
                "`keras_export_callbacks.tuner.ExportTrials(build_model)`; a tuner of your own "
                "must fit by `self.hypermodel.fit(hp, model, …)`, and not by `model.fit`."
            )
        frame = frame.f_back


def _metrics_are_known(model: keras.Model) -> bool:
    return all(getattr(metric, "built", True) for metric in model.metrics)


def _check_number(name: str, value: object) -> None:
    if not is_real(value) or value != value:
        raise ExportValueError(f"Received {name}={value!r}. Expected a number.")
