"""The base of the callbacks. It has a `Pipeline` for the model in training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from .._keras import Keras3Callback
from ..archive.errors import ExportError
from ..archive.state.models import has_call
from ..archive.store.directory import ExportDirectory
from ..archive.store.record import ExportRecord, TrialInfo
from ..archive.store.store import open_store
from ..endpoints import standard_endpoints
from ..options import ExportOptions
from ..pipeline import Pipeline
from ..publisher import Reason, Unless
from ..state import State
from ..triggers import Moment
from .search import check_no_search


class ExportCallback(Keras3Callback):
    """The base of callbacks that decide in some of Keras's hooks whether to export.

    Args:
        base_dir: String or `PathLike`. The directory for the versions.
        options: The user's options.
    """

    def __init__(self, base_dir: str | os.PathLike[str], options: ExportOptions) -> None:
        super().__init__()
        # The store stays the same for every model, because it knows which numbers are taken.
        self._store = open_store(base_dir)
        self.root_dir = self.base_dir = self._store.root
        self._options = options
        self._pipeline: Pipeline | None = None
        self._trial: TrialInfo | None = None
        self._earlier: list[ExportRecord] = []
        self._epoch: int | None = None
        # The number of batches that have begun. It is None after `_prepare` has run.
        self._batches: int | None = None
        self._held: Future[State] | None = None
        self._is_resumed = False
        self._is_told_of_resuming = False
        # The number of versions when training started, and the reason if there is none since.
        self._count = 0
        self._reason_for_none = ""
        self._is_copy = False
        self._store.check()

    def within(self, trial: TrialInfo) -> None:
        """Export to the directory of a trial and an execution of a search."""
        self._leave()
        self.base_dir = self.root_dir / f"trial_{trial.trial}" / f"execution_{trial.execution}"
        self._store = open_store(self.base_dir)
        self._trial = trial

    @property
    def exports(self) -> list[ExportRecord]:
        """The `ExportRecord`s of all versions published so far, oldest first.

        Reading this attribute waits for versions that are still being written. After
        `fit` all are written, unless an exception ended it.
        """
        if self._pipeline is None:
            return list(self._earlier)
        self._pipeline.settle()
        return [*self._earlier, *self._pipeline.exports]

    @property
    def last_export(self) -> ExportRecord | None:
        """The newest of `exports`, or None."""
        exports = self.exports
        return exports[-1] if exports else None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._pipeline is not None and self._pipeline.model is not self.model:
            self._leave()
        if self._pipeline is None:
            if self._is_copy and self._trial is None:
                check_no_search()
            directory = ExportDirectory.over(self._store)
            self._pipeline = Pipeline(directory, self.model, self._options, self._trial)
        self._running.report_failures()
        # If the first batch builds the model, `_prepare` follows after that batch.
        self._batches = 0
        if self.model.built or (
            self._options.endpoints is standard_endpoints and not has_call(self.model)
        ):
            self._prepare()
        self._epoch = None
        self._start(self._moment(logs))

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._epoch is None:
            # Start again, because a callback after this one may have restored an earlier
            # run in `on_train_begin`, as `BackupAndRestore` does.
            self._start(self._moment(logs))
        self._epoch = epoch
        self._held = None

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._batches is not None:
            self._batches += 1
            if self._batches > 1:
                self._prepare()

    def on_test_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Hold the weights that validation uses until the epoch ends.

        Every callback's `on_test_begin` has run by now, in any order. A callback may have
        put in other weights there, and may take them out when validation ends.
        """
        if self._epoch is None or self._held is not None or not self._may_want_validated():
            return
        self._held = self._running.hold()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._running.report_failures()
        self._prepare()
        self._running.tell_of_unusable(logs or {})
        self._export_if_due(logs)
        self._held = None

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._epoch = self._held = None
        self._running.finish()
        if len(self._running.exports) == self._count:
            self._running.say(
                None, f"Nothing was exported to '{self.base_dir}': {self._reason_for_none}."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy: the options and records, but no model and no threads."""
        state = self.__dict__.copy()
        state.update(
            _earlier=self.exports,
            _pipeline=None,
            _model=None,
            _held=None,
            _is_copy=True,
        )
        return state

    @property
    def _running(self) -> Pipeline:
        if self._pipeline is None:
            raise ExportError(
                f"{type(self).__name__} was called outside training. Call `set_model` and "
                "`on_train_begin` first, as `fit` and `keras.callbacks.CallbackList` do."
            )
        return self._pipeline

    def _prepare(self) -> None:
        """Trace the endpoints once in each training, so that their errors show early."""
        if self._batches is not None:
            self._running.prepare()
            self._batches = None
            if not self._is_told_of_resuming:
                self._is_told_of_resuming = True
                self._running.tell_what_is_left_out()

    def _moment(self, logs: Mapping[str, Any] | None) -> Moment:
        return self._running.moment(self._epoch, logs or {})

    def _export_if_due(self, logs: Mapping[str, Any] | None) -> None:
        moment = self._moment(logs)
        self._export(moment, self._due(moment))

    def _export(self, moment: Moment, reason: Reason | None) -> bool:
        """Export if there is a reason, and if `only_if` allows it. Return whether both are true.

        If weights were held for validation, these are exported.
        """
        if reason is None:
            return False
        if self._running.declines(moment):
            self._reason_for_none = "`only_if` did not return True"
            return False
        self._reason_for_none = "the last version was not published"
        self._running.submit(moment, reason, self._held)
        return True

    @property
    def _unless(self) -> Unless:
        """The versions that an export may repeat. It is dropped if it equals one of them.

        A resumed training may repeat any version after its checkpoint. A training that
        starts anew may repeat the newest one, if it was killed before a checkpoint.
        """
        return "any" if self._is_resumed else "newest"

    def _start(self, moment: Moment) -> None:
        self._count, self._reason_for_none = len(self._running.exports), "no export was due"
        self._is_resumed = bool(moment.step)
        self._begin(moment)

    def _leave(self) -> None:
        """Finish the pipeline, which reports its last failures."""
        if self._pipeline is not None:
            self._earlier, pipeline, self._pipeline = self.exports, self._pipeline, None
            pipeline.finish()

    def _begin(self, moment: Moment) -> None:
        """Prepare for training. This is called when training starts, sometimes twice."""

    def _may_want_validated(self) -> bool:
        """Return whether this epoch may end with an export of the weights that were validated."""
        raise NotImplementedError

    def _due(self, moment: Moment) -> Reason | None:
        """Return the reason for an export that is due now, or None if none is due."""
        raise NotImplementedError
