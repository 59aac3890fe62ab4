"""`Exporter`: the training thread's half of an export; `publisher` has the other.

A state of the model is taken in milliseconds, and handed over.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import keras

from .archive.errors import ExportError
from .archive.export_archive import ExportArchive, check_backend
from .archive.graph.samples import known_sample
from .archive.state.identities import Identities
from .archive.state.models import check_model
from .archive.state.owners import owned_variables
from .archive.store.directory import ExportDirectory
from .archive.store.objective import Objective
from .archive.store.paths import check_base_dir
from .archive.store.record import ExportRecord, TrialInfo
from .archive.store.retention import RetentionPolicy, as_policy
from .arguments import check_metrics, check_reason, whole_number
from .distribution import check_strategy, is_publisher
from .endpoints import standard_endpoints
from .metrics import description, finite_scalars, scalar, steps_taken
from .publisher import Publisher, Request, State, Unless, as_export_error
from .settings import Endpoints, OnError, Settings
from .texts import duration

# In seconds; a shorter wait is in the manifest only.
_NOTICEABLE = 1.0


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
        self._settings = Settings(
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
        check_base_dir(self.directory.path)
        check_backend()
        check_model(model, "model=")
        check_strategy(model)
        self.model = model
        self._archive: ExportArchive | None = None
        self._optimizer: Any = None
        self._owned: Identities | None = None
        self._closed = False
        self._was_noticed = False
        self._prepared = 0.0
        self._has_guessed = False
        self._told: set[str] = set()
        self._publisher = Publisher(self.directory, self._settings)

    @property
    def exports(self) -> list[ExportRecord]:
        """The records of all versions published so far, oldest first."""
        return self._publisher.exports

    def within(self, trial: TrialInfo) -> None:
        """Export as a part of a search."""
        self._publisher.within(trial)

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
        given = {} if metrics is None else metrics
        check_reason(reason)
        check_metrics(given)
        self.tell_of_unusable(given, is_by_hand=True)
        return self.request(
            reason=reason,
            step=whole_number("step", step),
            epoch=whole_number("epoch", epoch),
            metrics=finite_scalars(given),
        )

    def tell_of_unusable(self, metrics: Mapping[str, Any], is_by_hand: bool = False) -> None:
        """Warn once of each metric that is left out, where that matters to someone.

        It does of one by which `keep` chooses versions, and of one given by hand
        that is no number. That a metric of `fit` is NaN in an epoch is usual.
        """
        policy = as_policy(self._settings.keep)
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

    def request(
        self,
        *,
        reason: str,
        step: int | None,
        epoch: int | None,
        metrics: Mapping[str, float],
        objective: Objective | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
        unless: Unless = None,
        validated: State | None = None,
        since: float | None = None,
    ) -> Future[ExportRecord]:
        """`export`, telling also which metric made it happen.

        `is_wanted` is asked once more just before publishing, while no other
        process can publish. If it says no, the version is dropped, which is no
        failure, and the future holds a `SupersededError`.

        `unless` the newest or any version is of the same moment, with the same
        variables: then the future holds its record. A training that is resumed
        from a checkpoint repeats what came after it.

        `validated` is what `state` gave when validation began. Its weights are
        exported instead of those that there are now.

        `since` is when training began to wait for this, by `time.perf_counter`, if that
        was before the call.
        """
        self.report_failures()
        if self._closed:
            raise ExportError("This Exporter is closed. Make another to export again.")
        start = time.perf_counter()
        self._publisher.wait_for_room()
        self._notice(time.perf_counter() - start)
        try:
            state = (self.state() if validated is None else validated).completed()
        except ExportError as failure:
            if self._settings.on_error == "raise":
                raise
            self.fail(failure)
            failed: Future[ExportRecord] = Future()
            failed.set_exception(failure)
            return failed
        if not is_publisher(self.model):
            # It had to take part in reading what the workers have in common.
            cancelled: Future[ExportRecord] = Future()
            cancelled.cancel()
            return cancelled
        request = Request(
            reason=reason,
            step=steps_taken(self.model) if step is None else step,
            epoch=epoch,
            metrics=metrics,
            objective=objective,
            is_wanted=is_wanted,
            unless=unless,
            weights="current" if validated is None else "validated",
            stall_seconds=self._stall(start if since is None else since, validated),
        )
        return self._publisher.submit(state, request)

    def _stall(self, since: float, validated: State | None) -> float:
        """How long training has waited for an export, all that prepared it included."""
        prepared, self._prepared = self._prepared, 0.0
        held = validated.seconds if validated else 0.0
        return time.perf_counter() - since + held + prepared

    def state(self) -> State:
        """The weights as they are now, to be `completed`, on the thread that trains.

        Raises:
            ExportError: the model is not built, or an endpoint cannot be traced.
        """
        start = time.perf_counter()
        with _as_export_errors(), known_sample(self._settings.sample_inputs):
            archive = self._current_archive()
            self._warn_of_guesses(archive)
            snapshot = archive.snapshot()
            read = time.perf_counter()
            sample = self._settings.sample_inputs
            probe = None if sample is None else archive.probe(sample)
            expected = probe.expect() if probe else []
        end = time.perf_counter()
        skipped = probe.skipped if probe else {}
        return State(archive, snapshot, expected, skipped, end - start, end - read)

    def prepare(self) -> None:
        """Trace the endpoints now, so that what is wrong with them shows at once.

        Raises:
            ExportError: the model is not built, or an endpoint cannot be traced.
        """
        start = time.perf_counter()
        with _as_export_errors(), known_sample(self._settings.sample_inputs):
            archive = self._current_archive()
            archive.trace()
            if self._settings.sample_inputs is not None:
                archive.probe(self._settings.sample_inputs)
        self._prepared += time.perf_counter() - start

    def best(self, objective: Objective, own: bool = False) -> float | None:
        """The best value published in the base directory, or on its way there.

        Args:
            objective: the metric and its direction.
            own: look only at what this exporter has published.
        """
        return self._publisher.best(objective, own)

    def published_best(self, objective: Objective) -> float | None:
        """The best value published in the base directory, by whatever process."""
        return self._publisher.published_best(objective)

    def settle(self) -> None:
        """Return when every export is published or failed, without saying which."""
        self._publisher.settle()

    def wait(self) -> None:
        """Return when every export is published or failed.

        Raises:
            ExportError: one failed, and ``on_error="raise"``.
        """
        self.settle()
        self.report_failures()

    def finish(self) -> None:
        """`wait`, and close the events file; a later export opens another.

        Raises:
            ExportError: as `wait`.
        """
        self._publisher.finish()
        self.report_failures()

    def close(self) -> None:
        """`finish`, for good: nothing can be exported afterwards.

        Raises:
            ExportError: as `wait`.
        """
        self._closed = True
        self.finish()

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

    def fail(self, failure: ExportError) -> None:
        """Treat `failure` as that of an export: raise it, or warn of it."""
        self._publisher.failures.append(failure)
        self.report_failures()

    def report_failures(self) -> None:
        """Raise, or warn of, what failed in the background since the last report."""
        failures, self._publisher.failures = self._publisher.failures, []
        if not failures:
            return
        if self._settings.on_error == "warn":
            for failure in failures:
                warnings.warn(str(failure), stacklevel=3)
            return
        for other in failures[1:]:
            warnings.warn(f"Another export failed as well: {other}", stacklevel=3)
        raise failures[0]

    def _notice(self, waited: float) -> None:
        """Say once that training waited for the write of an earlier version, if one notices."""
        if waited > _NOTICEABLE and not self._was_noticed:
            self._was_noticed = True
            warnings.warn(
                f"Training waited {duration(waited)} for earlier versions to be written: exports "
                f"come faster than '{self.directory.path}' takes them. Export less often, or to a "
                "faster disk.",
                stacklevel=4,
            )

    def _warn_of_guesses(self, archive: ExportArchive) -> None:
        """Say once that a model is exported for a dtype that nothing has told."""
        if not self._has_guessed and (models := archive.guessed()):
            self._has_guessed = True
            warnings.warn(
                f"Model '{models[0].name}' does not record the dtype of its inputs, so it is "
                f"exported for {models[0].input_dtype}. Pass `sample_inputs`, a batch as the model "
                "is called with, to export it for the right one.",
                stacklevel=4,
            )

    def _current_archive(self) -> ExportArchive:
        """The archive, registered anew when there are other variables to register.

        As when an optimizer makes its own only in the first step; what is traced
        does not use them.
        """
        optimizer = getattr(self.model, "optimizer", None)
        roots = [self.model, self._settings.endpoints]
        is_other = self._optimizer is not optimizer
        if self._archive is None or is_other or self._archive.has_other_dtypes():
            self._archive = self._registered()
        elif self._owned == owned_variables(roots):
            return self._archive
        elif not self._archive.take_collections(again := self._registered()):
            self._archive = again
        self._optimizer, self._owned = optimizer, owned_variables(roots)
        return self._archive

    def _registered(self) -> ExportArchive:
        archive = ExportArchive()
        self._settings.endpoints(archive, self.model)
        return archive


@contextlib.contextmanager
def _as_export_errors() -> Iterator[None]:
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        raise as_export_error("The model cannot be exported", error) from error
