"""A moment in training → the model's state → a version, and what failed on the way.

`Exporter` and the callbacks both stand on a `Pipeline`. It is the training
thread's half of an export; `publisher` has the background half.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import keras

from .archive.backends.backend import current_backend
from .archive.errors import ExportError
from .archive.state.models import check_model
from .archive.store.directory import ExportDirectory
from .archive.store.objective import Objective
from .archive.store.record import ExportRecord, TrialInfo, Weights
from .archive.store.retention import as_policy
from .metrics import description, finite_scalars, scalar
from .options import ExportOptions
from .publisher import Publisher, Request, Why
from .state import State, StateSource
from .texts import duration
from .triggers import Moment

# In seconds; a shorter wait is in the manifest only.
_NOTICEABLE = 1.0


class Pipeline:
    """Exports a model to a directory, from the thread that trains it.

    Args:
        directory: where the versions appear.
        model: the model in training.
        options: what the user said.
        trial: the part of a search that the versions belong to, if they do.

    Raises:
        ExportError: `directory` cannot be written to, or the model cannot be exported.
    """

    def __init__(
        self,
        directory: ExportDirectory,
        model: keras.Model,
        options: ExportOptions,
        trial: TrialInfo | None = None,
    ) -> None:
        directory.store.check()
        self._backend = current_backend()
        check_model(model, "model=")
        self._backend.check_distribution(model)
        self.model = model
        self._directory = directory
        self._options = options
        self._failures: list[ExportError] = []
        self._source = StateSource(model, options.endpoints, options.sample_inputs)
        self._publisher = Publisher(directory, options, trial, self._failures.append)
        self._prepared = 0.0
        self._was_noticed = False
        self._told: set[str] = set()

    @property
    def exports(self) -> list[ExportRecord]:
        """The records of all versions published so far, oldest first."""
        return self._publisher.exports

    def moment(self, epoch: int | None, logs: Mapping[str, Any]) -> Moment:
        """This moment in training."""
        since = time.perf_counter()
        return Moment(
            step=self.steps_taken(),
            seconds=time.monotonic(),
            epoch=epoch,
            metrics=finite_scalars(logs),
            since=since,
        )

    def steps_taken(self) -> int | None:
        """How many steps the model's optimizer has taken, or None without an optimizer.

        The only count that is right under any `steps_per_execution`: the `batch`
        that Keras's hooks are given runs ahead of it.
        """
        optimizer = getattr(self.model, "optimizer", None)
        return None if optimizer is None else self._backend.steps_taken(optimizer)

    def prepare(self) -> None:
        """Trace the endpoints now, so that what is wrong with them shows at once.

        Raises:
            ExportError: the model is not built, or an endpoint cannot be traced.
        """
        start = time.perf_counter()
        self._source.prepare()
        self._prepared += time.perf_counter() - start

    def hold(self) -> Future[State]:
        """The weights as they are now, or why they cannot be exported."""
        held: Future[State] = Future()
        try:
            held.set_result(self._source.take())
        except ExportError as failure:
            held.set_exception(failure)
        return held

    def submit(
        self, moment: Moment, why: Why, held: Future[State] | None = None
    ) -> Future[ExportRecord]:
        """Export the model as it is now, or with the weights that were held before.

        Args:
            moment: when it is, and what was measured.
            why: what made it happen.
            held: what `hold` gave when validation began.

        Returns:
            A future with the record. It holds a `SupersededError` if the version was
            dropped, and is cancelled in a process that does not publish.

        Raises:
            ExportError: with ``on_error="raise"``, what failed since the last report, or
                why the model cannot be exported.
        """
        self.report_failures()
        self._wait_for_room()
        unpublished: Future[ExportRecord] = Future()
        try:
            state = (held or self.hold()).result().completed()
        except ExportError as failure:
            self.fail(failure)
            unpublished.set_exception(failure)
            return unpublished
        if not self._backend.is_publisher(self.model):
            # It had to take part in reading what the workers have in common.
            unpublished.cancel()
            return unpublished
        stall = time.perf_counter() - moment.since + self._prepared
        stall += state.seconds if held else 0.0
        self._prepared = 0.0
        weights: Weights = "validated" if held else "current"
        return self._publisher.submit(state, Request(moment, why, weights, stall))

    def best(self, objective: Objective, own: bool = False) -> float | None:
        """The best value published in the base directory, or on its way there.

        Args:
            objective: the metric and its direction.
            own: look only at what was published here.
        """
        return self._publisher.best(objective, own)

    def published_best(self, objective: Objective) -> float | None:
        """The best value published in the base directory, by whatever process."""
        return self._publisher.published_best(objective)

    def settle(self) -> None:
        """Return when every export is published or failed, without saying which."""
        self._publisher.settle()

    def finish(self) -> None:
        """`settle`, close the events file, and report; a later export opens another file.

        Raises:
            ExportError: an export failed, and ``on_error="raise"``.
        """
        self._publisher.finish()
        self.report_failures()

    def fail(self, failure: ExportError) -> None:
        """Treat `failure` as that of an export: raise it, or warn of it."""
        self._failures.append(failure)
        self.report_failures()

    def report_failures(self) -> None:
        """Raise, or warn of, what failed in the background since the last report."""
        failures = [self._failures.pop(0) for _ in range(len(self._failures))]
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
        """Warn once of each metric that is left out, where that matters to someone.

        It matters if `keep` chooses versions by the metric, and if it was given by
        hand and is no number. That a metric of `fit` is NaN in an epoch is usual.
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
                f"The metric {name!r} is {description(value)}, and left out. Expected one finite "
                f"number.{lost}",
                stacklevel=3,
            )

    def _wait_for_room(self) -> None:
        """Wait until a state may take memory; say so once if training notices the wait."""
        start = time.perf_counter()
        self._publisher.wait_for_room()
        waited = time.perf_counter() - start
        if waited > _NOTICEABLE and not self._was_noticed:
            self._was_noticed = True
            warnings.warn(
                f"Training waited {duration(waited)} for earlier versions to be written: exports "
                f"come faster than '{self._directory.path}' takes them. Export less often, or to a "
                "faster disk.",
                stacklevel=4,
            )
