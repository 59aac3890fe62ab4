"""`Exporter`: the door for training loops of your own."""

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
from .archive.store.directory import ExportDirectory
from .archive.store.record import ExportRecord
from .archive.store.retention import RetentionPolicy
from .arguments import check_metrics, check_reason, whole_number
from .endpoints import standard_endpoints
from .options import Endpoints, ExportOptions, OnError
from .pipeline import Pipeline
from .publisher import Why


class Exporter:
    """Publish servable versions of a model from a training loop of your own.

    `export` reads the model's variables, which takes milliseconds, and returns;
    the version is written and published on a background thread, one at a time
    and in order. While one is written, up to 1 GB of snapshots may wait in memory,
    or one that is larger. Then `export` waits until there is room.

    Args:
        base_dir: the directory of the versions, that a model server polls.
        model: a built model.
        endpoints: function ``(archive, model)`` that registers what to export.
        keep: which versions to keep after each export: None for all, an int for
            that many of the newest, or policies combined with ``|``.
        log_dir: TensorBoard's directory; events go to
            ``<log_dir>/exports/<name of base_dir>``. None writes none.
        background: False writes on the calling thread.
        on_error: ``"raise"`` raises what failed in the background at the next
            call of `export`, `wait` or `close`; ``"warn"`` warns instead.
        sample_inputs: a batch of model inputs, as the model takes them. Before a
            version is published, it is loaded in another process, as a model
            server does, and must compute of them what the model does.
        on_export: called with the record of each version after it is published,
            on the thread that published it.
        verbose: 1 prints one line per export; 0 prints nothing.

    Raises:
        ExportError: an argument cannot be used, or `base_dir` cannot be written to.

    Example:

    >>> import keras
    >>> from keras_export_callbacks import Exporter
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> with Exporter("served", model, log_dir=None) as exporter:
    ...     record = exporter.export(step=100, metrics={"loss": 0.5}).result()
    >>> record.version, record.metrics
    (1, {'loss': 0.5})
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str],
        model: keras.Model,
        *,
        endpoints: Endpoints = standard_endpoints,
        keep: int | RetentionPolicy | None = None,
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
            log_dir=log_dir,
            background=background,
            on_error=on_error,
            sample_inputs=sample_inputs,
            on_export=on_export,
            verbose=verbose,
        )
        self.directory = ExportDirectory(base_dir)
        self._pipeline = Pipeline(self.directory, model, options)
        self._closed = False

    @property
    def exports(self) -> list[ExportRecord]:
        """The records of all versions published so far, oldest first."""
        return self._pipeline.exports

    def export(
        self,
        step: Any = None,
        epoch: Any = None,
        metrics: Mapping[str, Any] | None = None,
        reason: str = "requested",
    ) -> Future[ExportRecord]:
        """Export the model as it is now.

        Call it on the thread that trains, between two steps.

        Args:
            step: optimizer steps taken; by default `model.optimizer.iterations`. A
                whole number of any kind: an int, a scalar tensor, a variable.
            epoch: the epoch, from 0; likewise.
            metrics: numbers by name, or tensors of one number; what is not finite
                is left out.
            reason: what the manifest says about why.

        Returns:
            A future with the record, done once the version is published. In a
            training on several machines the chief publishes, and every worker
            must call this; the futures of the others are cancelled.

        Raises:
            ExportError: an argument cannot be used, or the endpoints cannot be
                traced; or, with ``on_error="raise"``, an earlier export failed in
                the background.
        """
        pipeline = self._pipeline
        given = {} if metrics is None else metrics
        check_reason(reason)
        check_metrics(given)
        pipeline.tell_of_unusable(given, is_by_hand=True)
        counted, epoch = whole_number("step", step), whole_number("epoch", epoch)
        if self._closed:
            pipeline.report_failures()
            raise ExportError("This Exporter is closed. Make another to export again.")
        moment = pipeline.moment(epoch, given)
        if counted is not None:
            moment = replace(moment, step=counted)
        return pipeline.submit(moment, Why(reason))

    def wait(self) -> None:
        """Return when every export is published or failed.

        Raises:
            ExportError: one failed, and ``on_error="raise"``.
        """
        self._pipeline.settle()
        self._pipeline.report_failures()

    def close(self) -> None:
        """`wait`, and export no more.

        Raises:
            ExportError: as `wait`.
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
            # What ended the block matters more than what failed behind it.
            warnings.warn(str(failure), stacklevel=2)
