"""`ExportEveryN` exports every n epochs, steps or seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ..archive.errors import ExportError
from ..archive.store.record import ExportRecord
from ..archive.store.retention import RetentionPolicy
from ..arguments import checked_metadata
from ..endpoints import standard_endpoints
from ..extra_files import ExtraFiles, Source
from ..options import Endpoints, ExportOptions, OnError, OnlyIf
from ..publisher import Reason, Unless
from ..triggers import EveryN, Moment, Unit
from .base import ExportCallback


class ExportEveryN(ExportCallback):
    """Publishes a servable version every n epochs, steps or seconds of `model.fit`.

    A version holds an inference endpoint, a training endpoint and the optimizer's
    variables, unless you pass other `endpoints`. Training waits while the endpoints are
    traced at its start, and then only while the variables are read. The version is
    written in the background.

    Args:
        base_dir: String or `PathLike`. The directory for the versions, which a model
            server polls.
        n: Int, or with the unit ``"second"`` also float. The number of epochs, steps or
            seconds from one export to the next. It must be positive.
        unit: String. ``"epoch"`` exports after the epochs n, 2n, … of each `fit`, as Keras
            counts them. ``"batch"`` exports after every n-th optimizer step, counted over
            all calls of `fit`. If `steps_per_execution` is larger than 1, the export happens
            in the first hook at or after that step. ``"second"`` exports at the first end of
            a batch or epoch that is at least n seconds after the last export, or after the
            start of the first `fit`.
        at_end: Bool. With True, also export the model as `fit` leaves it, unless the last
            version already holds that state. If `EarlyStopping` restores the best
            weights, put this callback after it to export them.
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
            to.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_export_callbacks import ExportEveryN
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> callback = ExportEveryN(
        ...     "every_other", n=2, at_end=True, metadata={"commit": "1f0c2a"}, log_dir=None
        ... )
        >>> x, y = np.ones((8, 3)), np.ones((8, 1))
        >>> _ = model.fit(x, y, epochs=5, verbose=0, callbacks=[callback])
        >>> [(record.version, record.epoch, record.reason) for record in callback.exports]
        [(1, 1, 'every 2 epochs'), (2, 3, 'every 2 epochs'), (3, 4, 'end of training')]
        >>> callback.last_export.metadata
        {'commit': '1f0c2a'}
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str],
        n: float = 1,
        *,
        unit: Unit = "epoch",
        at_end: bool = False,
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
        self._trigger = EveryN(n, unit)
        self._at_end = bool(at_end)
        self._last: Moment | None = None
        self._first_step: int | None = None
        self._has_run = False
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
            ),
        )

    @property
    def on_train_batch_end(self) -> Callable[..., None]:
        """The hook at the end of a batch. With the unit ``"epoch"`` it is Keras's empty hook.

        If any callback has a batch hook of its own, Keras turns the logs of every batch
        into numbers, and waits for the device.
        """
        empty: Callable[..., None] = super().on_train_batch_end
        return empty if self._trigger.unit == "epoch" else self._batch_end

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        try:
            if self._at_end and self._epoch is not None:
                self._export_at_end(logs)
        finally:
            super().on_train_end(logs)
        step = self._running.steps_taken()
        if self._trigger.unit == "batch" and self._has_run and step == self._first_step:
            self._running.fail(
                ExportError(
                    "Batches are counted by `model.optimizer.iterations`, which training has left "
                    f"at {step}, so nothing was exported. Apply gradients with `self.optimizer` in "
                    "`train_step`, or write unit='epoch' or unit='second'."
                )
            )

    def _export_at_end(self, logs: Mapping[str, Any] | None) -> None:
        self._running.settle()
        moment, last = self._moment(logs), self._running.exports[-1:]
        # A model with optimizers of its own has no step count, so the epoch counts as well.
        is_exported = (moment.step, moment.epoch) in [
            (record.step, record.epoch) for record in last
        ]
        # Other callbacks, or averages of weights, may have changed the weights since then.
        unless: Unless = "unchanged" if is_exported else self._unless
        self._export(moment, Reason("end of training", unless=unless))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_last": None}  # Another process has another clock.

    def _batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._has_run = True
        self._running.report_failures()
        self._export_if_due(logs)

    def _begin(self, moment: Moment) -> None:
        self._first_step, self._has_run = moment.step, False
        if self._last is None or self._trigger.unit != "second":
            self._last = moment

    def _may_want_validated(self) -> bool:
        # Only seconds pass during validation, and no epochs or optimizer steps.
        return self._trigger.unit == "second" or self._is_due(self._moment(None))

    def _is_due(self, moment: Moment) -> bool:
        return self._last is not None and self._trigger.is_due(moment, self._last)

    def _due(self, moment: Moment) -> Reason | None:
        return Reason(self._trigger.reason, unless=self._unless) if self._is_due(moment) else None

    def _export(self, moment: Moment, reason: Reason | None) -> bool:
        is_allowed = super()._export(moment, reason)
        # With the unit "second", the export stays due until `only_if` agrees. At the end of a
        # batch, the metrics of the validation are missing.
        if reason is not None and (is_allowed or self._trigger.unit != "second"):
            self._last = moment
        return is_allowed
