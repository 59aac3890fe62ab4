"""`ExportEveryN`: every n epochs, steps or seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ..archive.errors import ExportError
from ..archive.store.record import ExportRecord
from ..archive.store.retention import RetentionPolicy
from ..endpoints import standard_endpoints
from ..options import Endpoints, ExportOptions, OnError
from ..triggers import EveryN, Moment, Unit
from .base import ExportCallback


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
        step = self._running.steps_taken()
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
