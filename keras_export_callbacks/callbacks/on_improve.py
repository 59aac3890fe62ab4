"""`ExportOnImprove` exports when a metric is better than in every earlier version."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras

from .._keras import infer_mode, validates_later
from ..archive.checks import is_real
from ..archive.errors import ExportError, ExportValueError, StorageError
from ..archive.store.objective import Mode, Objective
from ..archive.store.record import ExportRecord
from ..archive.store.retention import RetentionPolicy
from ..arguments import checked_metadata
from ..endpoints import standard_endpoints
from ..extra_files import ExtraFiles, Source
from ..metrics import Sightings, averages_weights
from ..options import Endpoints, ExportOptions, OnError, OnlyIf
from ..publisher import Reason
from ..triggers import Moment, OnImprove
from .base import ExportCallback


class ExportOnImprove(ExportCallback):
    """Publishes a servable version when a metric beats every version in `base_dir`.

    Versions of earlier runs count, too. A training that is started again never
    publishes a worse version. If no epoch beats the earlier versions, `last_export` is
    None. Use a new directory or a `baseline` for a new experiment. A version that is
    still being written counts until it fails.

    Args:
        base_dir: String or `PathLike`. The directory for the versions, which a model
            server polls.
        monitor: String. The metric's name in the logs. If the metric is missing in an
            epoch, or is not a finite number, that epoch exports nothing.
        mode: String. ``"min"`` if lower is better, or ``"max"`` if higher is better.
            ``"auto"`` takes the direction that Keras gives the metric. If Keras gives
            none, that is an error.
        min_delta: Float. The metric must be better by more than this.
        baseline: Float. The value that the first export must beat, instead of the best
            value in `base_dir`. A version may then be worse than a version of an
            earlier training.
        endpoints: Function ``(archive, model)``. It registers what to export. The default
            is `standard_endpoints`.
        keep: Int or retention policy. The versions to keep after each export. None keeps
            all, and an int keeps that many of the newest. Retention policies, such as
            `KeepLatest` and `KeepBest`, can be combined with ``|``.
        only_if: Function ``(metrics) -> bool``. It is called when an export is due, with
            the finite metrics of that moment by name. If it returns False, nothing is
            exported. If it reads a metric that is missing then, nothing is exported either,
            with a warning the first time.
        extra_files: Dict. The files that each version gets below ``assets.extra``, by name.
            A file is a path, bytes, or a function ``(saved_model_dir: Path) -> bytes`` that
            is called with the complete SavedModel, on the thread that writes the version.
            If it raises an error, the export fails. `keras_export_callbacks.formats` has
            such functions.
        metadata: Dict. Strings, numbers or bools by name, which the manifest keeps.
        log_dir: String or `PathLike`. TensorBoard's log directory. The events go to
            ``<log_dir>/exports/<name of base_dir>``. With None, no events are written.
        background: Bool. With False, versions are written and published on the
            training thread.
        on_error: String. What to do about a failed export. ``"raise"`` raises its error in
            the next hook, at the latest when training ends. ``"warn"`` issues a warning,
            and training goes on. If an endpoint cannot be traced when training begins, that
            is always an error.
        sample_inputs: Array, or a nested structure of arrays. A batch of inputs, as the
            model takes them. With it, each version is tested before it is published:
            another process loads it, as a model server does, and its outputs are compared
            with the model's outputs. If they differ by more than rounding, the version is
            not published. To give endpoints samples of their own, pass a dict of samples by
            the names of the endpoints.
        on_export: Function ``(record)``. It is called with the `ExportRecord` of each
            version after the version is published, on the thread that published it.
        verbose: Int. 1 prints a line per export, and the reason if nothing was exported. 0
            prints nothing.

    Raises:
        ExportError: If an argument cannot be used, or if `base_dir` cannot be written
            to. Training also ends with this error if the metric was never a finite number.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_export_callbacks import ExportOnImprove
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> callback = ExportOnImprove(
        ...     "best", monitor="loss", only_if=lambda metrics: metrics["loss"] < 100, log_dir=None
        ... )
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
        only_if: OnlyIf | None = None,
        extra_files: Mapping[str, Source] | None = None,
        metadata: Mapping[str, str | float | bool] | None = None,
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
            ExportOptions(
                endpoints=endpoints,
                keep=keep,
                only_if=only_if,
                extra_files=ExtraFiles.of(extra_files),
                metadata=checked_metadata(metadata),
                log_dir=log_dir,
                background=background,
                on_error=on_error,
                sample_inputs=sample_inputs,
                on_export=on_export,
                verbose=verbose,
                has_metric=True,
            ),
        )

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        super().on_train_end(logs)
        seen = self._sightings
        # A later fit may leave the metric out on purpose. NaN in all of its epochs is an error.
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
        """Warn early that the metric cannot be used. The error comes only when training is over."""
        seen = self._sightings
        is_missing = seen.is_missing and not self._was_measured
        if self._was_told or not (is_missing or seen.is_no_number):
            return
        if is_missing and seen.may_come and validates_later(self.model, epoch):
            return
        self._was_told = True
        warnings.warn(f"Nothing can be exported in this epoch. {seen}", stacklevel=3)

    def _may_want_validated(self) -> bool:
        return self.monitor.startswith("val_")  # Other metrics are measured during training.

    def _due(self, moment: Moment) -> Reason | None:
        if self.monitor not in moment.metrics:
            self._reason_for_none = f"{self.monitor} had no finite value"
            self._running.say(moment.epoch, f"not exported, because {self._reason_for_none}.")
            return None
        trigger = OnImprove(self._objective(), self._min_delta)
        try:
            best = self._best(trigger.objective)
        except StorageError as error:
            self._running.fail(error)  # Nobody knows whether this is the best.
            return None
        if not trigger.is_due(moment, best):
            value = f"{self.monitor}={moment.metrics[self.monitor]:.6g}"
            self._running.say(moment.epoch, f"{value} did not improve from {best:.6g}.")
            self._reason_for_none = f"no epoch was better than {self.monitor}={best:.6g}"
            return None

        def still_improves() -> bool:
            """Compare again, because another process may have published a better version by now."""
            return self._baseline is not None or trigger.is_due(
                moment, self._running.published_best(trigger.objective)
            )

        if self._held is None and self._may_want_validated() and averages_weights(self.model):
            warnings.warn(
                f"{self.monitor!r} was not measured by the validation of `fit`, and the optimizer "
                "averages weights. The current weights are exported. They may differ from the "
                "weights that were measured.",
                stacklevel=2,
            )
        return Reason(trigger.reason, trigger.objective, still_improves, self._unless)

    def _objective(self) -> Objective:
        mode = infer_mode(self.monitor, self.model) if self._mode == "auto" else self._mode
        return Objective(self.monitor, mode)

    def _best(self, objective: Objective) -> float | None:
        if self._baseline is None:
            return self._running.best(objective)
        own = self._running.best(objective, own=True)
        return self._baseline if own is None else own


def _metrics_are_known(model: keras.Model) -> bool:
    return all(getattr(metric, "built", True) for metric in model.metrics)


def _check_number(name: str, value: object) -> None:
    if not is_real(value) or value != value:
        raise ExportValueError(f"Received {name}={value!r}. Expected a number.")
