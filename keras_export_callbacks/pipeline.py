"""The half of an export that runs on the training thread.

`Exporter` and the callbacks export through a `Pipeline`. It reads the state at a moment in
training, hands it to the background half in `publisher`, and reports the failures of both
halves.
"""

from __future__ import annotations

import atexit
import time
import warnings
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import keras
import numpy as np

from . import texts
from .archive.backends.backend import current_backend
from .archive.errors import ExportError, ExportTypeError
from .archive.state.models import check_model
from .archive.store.directory import ExportDirectory
from .archive.store.objective import Objective
from .archive.store.record import ExportRecord, TrialInfo, Weights
from .archive.store.retention import as_policy
from .metrics import description, finite_scalars, scalar
from .options import ExportOptions
from .publisher import Publisher, Reason, Request
from .state import State, StateSource, as_export_error
from .triggers import Moment

_T = TypeVar("_T")

# In seconds. A longer wait is worth a warning. The manifest records every wait.
_NOTICEABLE = 1.0


class Pipeline:
    """Exports a model to a directory, from the thread that trains it.

    Args:
        directory: The directory where the versions appear.
        model: The model in training.
        options: The user's options.
        trial: The trial of a search that the versions belong to, or None.
        optimizer: The optimizer that trains the model, if it is not the one that the model is
            compiled with.

    Raises:
        ExportError: If `directory` cannot be written to, or if the model, its
            distribution strategy or Keras's backend is not supported.
    """

    def __init__(
        self,
        directory: ExportDirectory,
        model: keras.Model,
        options: ExportOptions,
        trial: TrialInfo | None = None,
        optimizer: Any = None,
    ) -> None:
        directory.store.check()
        self._backend = current_backend()
        check_model(model, "model=")
        self._backend.check_distribution(model)
        self.model = model
        self._directory = directory
        self._options = options
        self._failures: list[ExportError] = []
        self._optimizer = optimizer
        self._source = StateSource(model, options.endpoints, options.sample_inputs, optimizer)
        self._warnings: list[str] = []
        self._publisher = Publisher(
            directory, options, trial, self._failures.append, self._warnings.append
        )
        self._declined: int | None = None
        self._prepared = 0.0
        self._was_noticed = False
        self._told: set[str] = set()
        self._missed: set[str] = set()
        _pipelines.add(self)

    @property
    def exports(self) -> list[ExportRecord]:
        """The `ExportRecord`s of all versions published so far, oldest first."""
        return self._publisher.exports

    def moment(self, epoch: int | None, logs: Mapping[str, Any]) -> Moment:
        """Return the current moment in training, with the finite scalars in `logs`."""
        since = time.perf_counter()
        return Moment(
            step=self.steps_taken(),
            seconds=time.monotonic(),
            epoch=epoch,
            metrics=finite_scalars(logs),
            since=since,
        )

    def steps_taken(self) -> int | None:
        """Return the number of steps that the optimizer has taken, or None without optimizer.

        Only this count is right for every `steps_per_execution`. The `batch` argument
        of Keras's hooks runs ahead of it.
        """
        compiled = getattr(self.model, "optimizer", None)
        optimizer = compiled if self._optimizer is None else self._optimizer
        return None if optimizer is None else self._backend.steps_taken(self.model, optimizer)

    def prepare(self) -> None:
        """Trace the endpoints now, so that their errors show early.

        Raises:
            ExportError: If the model is not built, if an endpoint cannot be traced, or if an
                extra file is made of an endpoint that is not there.
        """
        start = time.perf_counter()
        signatures = self._source.prepare()
        self._options.extra_files.check_endpoints(signatures)
        self._prepared += time.perf_counter() - start

    def tell_what_is_left_out(self) -> None:
        """Warn if training cannot be resumed from the versions. Call this after `prepare`."""
        if lines := self._source.left_out():
            added = " and ".join(f"`{line}`" for line in lines)
            warnings.warn(
                "Training cannot be resumed from these versions, because your `endpoints` function "
                f"leaves out what `restore` needs. Add {added} to it. If you only serve the "
                "versions, ignore this warning.",
                stacklevel=4,
            )

    def hold(self) -> Future[State]:
        """Read the current weights, for an export at the end of the epoch.

        Returns:
            A future with the state, or with the error that keeps it from being exported.
        """
        held: Future[State] = Future()
        try:
            held.set_result(self._source.take())
        except ExportError as failure:
            held.set_exception(failure)
        return held

    def submit(
        self, moment: Moment, reason: Reason, held: Future[State] | None = None
    ) -> Future[ExportRecord]:
        """Export the model as it is now, or with the weights that `hold` read.

        Args:
            moment: When the export happens, and what was measured.
            reason: The reason for the export.
            held: What `hold` returned when validation began. None exports the current
                weights.

        Returns:
            A future with the `ExportRecord`. If the version was dropped, the future has
            a `SupersededError`. In a process that does not publish it is cancelled.

        Raises:
            ExportError: With ``on_error="raise"``, if an export failed since the last
                report, or if the model cannot be exported.
        """
        self.report_failures()
        unpublished: Future[ExportRecord] = Future()
        is_publisher = self._backend.is_publisher(self.model)
        if not is_publisher and not self._backend.reads_together:
            unpublished.cancel()
            return unpublished
        self._wait_for_room()
        try:
            self._backend.synchronize(self.model)
            state = (held or self.hold()).result().completed()
        except ExportError as failure:
            self.fail(failure)
            unpublished.set_exception(failure)
            return unpublished
        if not is_publisher:
            # It had to take part above, because all workers read the variables that they share.
            unpublished.cancel()
            return unpublished
        stall = time.perf_counter() - moment.since + self._prepared
        stall += state.seconds if held else 0.0
        self._prepared = 0.0
        weights: Weights = "validated" if held else "current"
        return self._publisher.submit(state, Request(moment, reason, weights, stall))

    def declines(self, moment: Moment) -> bool:
        """Return whether `only_if` prevents an export that is due.

        An error of the function prevents the export too, and is reported like a failed
        export. If the function only misses a metric, a warning tells so once.
        """
        if self._options.only_if is None:
            return False
        try:
            answer = self._options.only_if(dict(moment.metrics))
            # A comparison of tensors returns a tensor.
            if np.asarray(answer).dtype != bool or np.ndim(answer):
                raise ExportTypeError(
                    f"`only_if` returned {answer!r} for the metrics {dict(moment.metrics)}. "
                    "Expected True or False."
                )
        except Exception as error:
            missing = error.args[0] if isinstance(error, KeyError) and error.args else None
            if isinstance(missing, str) and missing not in moment.metrics:
                self._tell_of_missing(missing, moment.metrics)
            else:
                self.fail(as_export_error("`only_if` failed, so nothing was exported", error))
            return True
        if not answer and (moment.epoch is None or moment.epoch != self._declined):
            self._declined = moment.epoch  # With the unit "second", each batch may ask.
            self.say(moment.epoch, "not exported, because `only_if` returned False.")
        return not answer

    def _tell_of_missing(self, name: str, metrics: Mapping[str, float]) -> None:
        """Warn once that `only_if` reads a metric that is missing, as it may be after a batch."""
        if name not in self._missed:
            self._missed.add(name)
            warnings.warn(
                f"`only_if` reads the metric {name!r}, which is missing now. Available are "
                f"{sorted(metrics)}. Nothing is exported until it is there. To decide without it, "
                f"write metrics.get({name!r}).",
                stacklevel=4,
            )

    def say(self, epoch: int | None, text: str) -> None:
        """Print a line about an epoch with ``verbose=1``, if this process publishes."""
        if self._options.verbose and self._backend.is_publisher(self.model):
            texts.say(texts.about(epoch, text))

    def best(self, objective: Objective, own: bool = False) -> float | None:
        """Return the best value of a metric in the base directory, or None.

        Versions that are still being written count as well.

        Args:
            objective: The metric and its direction.
            own: Bool. Whether only the versions of this pipeline count.
        """
        return self._publisher.best(objective, own)

    def published_best(self, objective: Objective) -> float | None:
        """Return the best value that any process has published in the base directory, or None."""
        return self._publisher.published_best(objective)

    def settle(self) -> None:
        """Wait until every export is published or has failed. Failures are not reported here."""
        self._publisher.settle()

    def finish(self) -> None:
        """Wait for all exports, close the events file, and report failures.

        A later export opens another events file.

        Raises:
            ExportError: If an export failed, with ``on_error="raise"``.
        """
        self._publisher.finish()
        self.report_failures()

    def fail(self, failure: ExportError) -> None:
        """Report an error, as if an export had failed with it."""
        self._failures.append(failure)
        self.report_failures()

    def unreported_failures(self) -> list[ExportError]:
        """Return the errors since the last report. They count as reported from now on."""
        return _drained(self._failures)

    def report_failures(self) -> None:
        """Issue the warnings since the last report, and raise or warn of the errors."""
        for warning in _drained(self._warnings):
            warnings.warn(warning, stacklevel=3)
        failures = self.unreported_failures()
        if not failures:
            return
        if self._options.on_error == "warn":
            for failure in failures:
                warnings.warn(str(failure), stacklevel=3)
            return
        for other in failures[1:]:
            warnings.warn(f"Another export failed as well: {other}", stacklevel=3)
        raise failures[0]

    def tell_of_unusable(self, metrics: Mapping[str, Any], is_by_hand: bool = False) -> None:
        """Warn once of each metric that is left out, if that matters to the user.

        Only finite numbers are exported. A value that the user passed matters if it is
        not a number, or if `keep` ranks versions by the metric. A value in the logs of
        `fit` matters only if both are true, because metrics are often NaN in an epoch.

        Args:
            metrics: Values by name.
            is_by_hand: Bool. Whether the user passed the values.
        """
        policy = as_policy(self._options.keep)
        ranking = policy.monitors() if policy is not None else set()
        finite = finite_scalars(metrics)
        for name in metrics.keys() - finite.keys() - self._told:
            value, is_ranked = metrics[name], name in ranking
            is_no_number = scalar(value) is None
            matters = (is_ranked or is_no_number) if is_by_hand else (is_ranked and is_no_number)
            if value is None or not matters:
                continue
            self._told.add(name)
            lost = " `keep` does not count this version as one of the best." if is_ranked else ""
            warnings.warn(
                f"The metric {name!r} is {description(value)}, so it is left out. Expected one "
                f"finite number.{lost}",
                stacklevel=3,
            )

    def _wait_for_room(self) -> None:
        """Wait until there is memory for a state. Warn once if the wait is long."""
        start = time.perf_counter()
        self._publisher.wait_for_room()
        waited = time.perf_counter() - start
        if waited > _NOTICEABLE and not self._was_noticed:
            self._was_noticed = True
            warnings.warn(
                f"Training waited {texts.duration(waited)} for earlier versions to be written. "
                f"Exports come faster than '{self._directory.path}' takes them. Export less often, "
                "or to a faster disk.",
                stacklevel=4,
            )


def _drained(items: list[_T]) -> list[_T]:
    """Take all items out of a list to which another thread may append."""
    return [items.pop(0) for _ in range(len(items))]


# All pipelines that a script holds when it ends.
_pipelines: weakref.WeakSet[Pipeline] = weakref.WeakSet()


@atexit.register
def _tell_of_failures() -> None:
    """Warn of exports that failed while the script ended, because nobody asks for them then."""
    for pipeline in _pipelines:
        for failure in pipeline.unreported_failures():
            warnings.warn(f"An export failed while the process ended: {failure}", stacklevel=2)
