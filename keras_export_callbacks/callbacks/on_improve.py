"""`ExportOnImprove`: when a metric is better than it ever was."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras

from .._keras import infer_mode, validates_later
from ..archive.checks import is_real
from ..archive.errors import ExportError, ExportValueError
from ..archive.store.objective import Mode, Objective
from ..archive.store.record import ExportRecord
from ..archive.store.retention import RetentionPolicy
from ..endpoints import standard_endpoints
from ..metrics import Sightings, averages_weights
from ..options import Endpoints, ExportOptions, OnError
from ..triggers import Moment, OnImprove
from .base import ExportCallback


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
            ExportOptions(
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

        if self._held is None and self._may_want_validated() and averages_weights(self.model):
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


def _metrics_are_known(model: keras.Model) -> bool:
    return all(getattr(metric, "built", True) for metric in model.metrics)


def _check_number(name: str, value: object) -> None:
    if not is_real(value) or value != value:
        raise ExportValueError(f"Received {name}={value!r}. Expected a number.")
