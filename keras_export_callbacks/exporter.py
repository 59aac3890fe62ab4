"""`Exporter` exports from training loops of your own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any

import keras

from .archive.errors import ExportError
from .archive.state.models import check_optimizer
from .archive.store.directory import ExportDirectory
from .archive.store.record import ExportRecord
from .archive.store.retention import RetentionPolicy
from .arguments import check_metrics, check_reason, checked_metadata, whole_number
from .endpoints import standard_endpoints
from .extra_files import ExtraFiles, Source
from .options import Endpoints, ExportOptions, OnError, OnlyIf
from .pipeline import Pipeline
from .publisher import Reason


class Exporter:
    r"""Publishes servable versions of a model from a training loop of your own.

    `export` reads the model's variables, which takes milliseconds, and returns. The
    first call also traces the endpoints, which takes longer. A background thread
    writes and publishes the versions one at a time, in order. While it writes one,
    snapshots may wait in memory: up to 1 GB together, or a single larger one. If
    there is no room, `export` waits.

    Args:
        base_dir: String or `PathLike`. The directory for the versions, which a model
            server polls.
        model: Keras model. The model to export. It must be built.
        optimizer: Keras optimizer. The optimizer of your training loop, if it is not the one
            that the model is compiled with. Its variables and its step count are exported,
            and `restore` takes it as well.
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
        background: Bool. With False, `export` writes and publishes on the calling
            thread.
        on_error: String. What to do about a failed export. ``"raise"`` raises its error,
            and ``"warn"`` issues a warning. If an export fails in the background, the next
            call of `export`, `wait` or `close` does this.
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

    Attributes:
        directory: The `ExportDirectory` of `base_dir`.

    Raises:
        ExportError: If an argument cannot be used, or if `base_dir` cannot be written
            to.

    Examples:
        >>> import keras
        >>> from keras_export_callbacks import Exporter
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> extra_files = {"labels.txt": "cat\ndog".encode()}
        >>> with Exporter("served", model, extra_files=extra_files, log_dir=None) as exporter:
        ...     record = exporter.export(step=100, metrics={"loss": 0.5}).result()
        >>> record.version, record.metrics
        (1, {'loss': 0.5})
        >>> (record.path / "assets.extra" / "labels.txt").read_text()
        'cat\ndog'

        A loop with an optimizer of its own:

        >>> optimizer = keras.optimizers.Adam()
        >>> optimizer.build(model.trainable_variables)
        >>> with Exporter("loop", model, optimizer, log_dir=None) as exporter:
        ...     record = exporter.export().result()
        >>> record.step, record.collections["optimizer_variables"]
        (0, 6)
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str],
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer | None = None,
        *,
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
        options = ExportOptions(
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
        )
        self.directory = ExportDirectory(base_dir)
        if optimizer is not None:
            check_optimizer(optimizer)
        self._pipeline = Pipeline(self.directory, model, options, optimizer=optimizer)
        self._closed = False

    @property
    def exports(self) -> list[ExportRecord]:
        """The `ExportRecord`s of all versions published so far, oldest first."""
        return list(self._pipeline.exports)

    def export(
        self,
        step: Any = None,
        epoch: Any = None,
        metrics: Mapping[str, Any] | None = None,
        reason: str = "requested",
    ) -> Future[ExportRecord]:
        """Export the model as it is now.

        Call it on the thread that trains, between two steps. If several machines
        train together, call it in every worker. The chief publishes the version.

        Args:
            step: Int, or scalar tensor or variable. The number of optimizer steps taken.
                The default is `iterations` of the optimizer.
            epoch: Int, or scalar tensor or variable. The index of the epoch, from 0.
            metrics: Dict. Numbers by name. A number may be a tensor or array of one
                number. Values that are not finite numbers are left out.
            reason: String. The reason for the export. The manifest records it.

        Returns:
            A `concurrent.futures.Future` with the `ExportRecord`. It is done when the
            version is published. It is cancelled if `only_if` returns False, and in a worker
            that is not the chief.

        Raises:
            ExportError: If an argument cannot be used, or if the `Exporter` is closed.
                With ``on_error="raise"``, also if the model cannot be exported, if
                `only_if` fails, or if an earlier export failed in the background.
        """
        pipeline = self._pipeline
        given = {} if metrics is None else metrics
        check_reason(reason)
        check_metrics(given)
        pipeline.tell_of_unusable(given, is_by_hand=True)
        counted, epoch = whole_number("step", step), whole_number("epoch", epoch)
        if self._closed:
            pipeline.report_failures()
            raise ExportError("This Exporter is closed. Create another Exporter to export again.")
        moment = pipeline.moment(epoch, given)
        if counted is not None:
            moment = replace(moment, step=counted)
        if pipeline.declines(moment):
            declined: Future[ExportRecord] = Future()
            declined.cancel()
            return declined
        return pipeline.submit(moment, Reason(reason))

    def wait(self) -> None:
        """Wait until every export is published or has failed.

        Raises:
            ExportError: If an export failed, with ``on_error="raise"``.
        """
        self._pipeline.settle()
        self._pipeline.report_failures()

    def close(self) -> None:
        """Wait like `wait`, and refuse later calls of `export`.

        Raises:
            ExportError: If an export failed, with ``on_error="raise"``.
        """
        self._closed = True
        self._pipeline.finish()

    def __enter__(self) -> Exporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except ExportError as failure:
            if error is None:
                raise
            # The error that ended the block matters more than an export that failed.
            warnings.warn(str(failure), stacklevel=2)
