"""The background half of an export. Only this file knows the order of its steps.

The steps are: write in staging → compare with the model → extra files → publish →
retention → events → `on_export`. A failure before publishing leaves the base directory as it was.
"""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import keras
import tensorflow as tf

from . import texts
from .archive.errors import ExportError, SupersededError
from .archive.parity.compare import check
from .archive.store.directory import ExportDirectory
from .archive.store.files import FileInfo, KnownFile
from .archive.store.objective import Objective
from .archive.store.publish import publish_record
from .archive.store.record import (
    WARMUP,
    ExportRecord,
    ParityInfo,
    TrialInfo,
    Weights,
    standing,
)
from .archive.store.retention import as_policy
from .archive.store.verify import version_problems
from .archive.writer import Reuse, Written, write
from .options import ExportOptions
from .state import State, as_export_error
from .summaries import SummaryWriter
from .triggers import Moment
from .worker import Worker

# How many bytes of snapshots may wait while one is written. A single one may be larger.
# Several may wait, because saving the first graph takes as long as many short epochs.
ROOM = 10**9


# The versions that a new one is compared with. If one of them is the same, the new one is not
# published.
Unless = Literal["newest", "any", "unchanged"]


@dataclass(frozen=True)
class Reason:
    """The reason for an export, and the conditions under which its version is dropped.

    Attributes:
        text: String. The `reason` in the manifest.
        objective: The metric that triggered the export, or None.
        is_wanted: Function that is called just before publishing, while no other
            process can publish. If it returns False, the version is dropped. That is
            not a failure.
        unless: ``"newest"``, ``"any"``, ``"unchanged"`` or None. The version is dropped if
            the newest version, or any version, is of the same moment and has the same
            variables. A training that resumes from a checkpoint repeats the steps after
            it. With ``"unchanged"`` the version is dropped if the last version of this
            publisher has the same variables.
    """

    text: str
    objective: Objective | None = None
    is_wanted: Callable[[], bool] = lambda: True
    unless: Unless | None = None


@dataclass(frozen=True)
class Request:
    """A requested export: its moment, its reason, and how long training waited for it."""

    moment: Moment
    reason: Reason
    weights: Weights
    stall_seconds: float

    @property
    def value(self) -> float | None:
        """The value of the metric that triggered the export, or None."""
        objective = self.reason.objective
        return self.moment.metrics.get(objective.monitor) if objective else None


class Publisher:
    """Publishes states of a model, one at a time and in order.

    Args:
        directory: The directory where the versions appear.
        options: The user's options.
        trial: The trial of a search that the versions belong to, or None.
        on_failure: Function that is called with each error, on the thread where it
            happened.
        on_warning: Function that is called with each warning, on the thread where it was
            noticed.

    Attributes:
        exports: The `ExportRecord`s of the published versions, oldest first.
    """

    def __init__(
        self,
        directory: ExportDirectory,
        options: ExportOptions,
        trial: TrialInfo | None,
        on_failure: Callable[[ExportError], None],
        on_warning: Callable[[str], None],
    ) -> None:
        self.exports: list[ExportRecord] = []
        self._directory = directory
        self._options = options
        self._trial = trial
        self._on_failure = on_failure
        self._on_warning = on_warning
        self._said: str | None = None
        self._in_flight: list[Request] = []
        self._told: set[str] = set()
        self._last_size = 0
        with suppress(OSError):  # The directory may not be readable yet.
            directory.store.names()  # The store notes which numbers are taken.
        self._reuse = Reuse()
        # The last staged version is kept if the next one can link files of it.
        self._keeps_staged = True
        self._last_staged: Path | None = None
        self._staged = ExitStack()
        weakref.finalize(self, self._staged.close)
        self._extra_files: Mapping[str, KnownFile] = {}
        self._worker: Worker[ExportRecord] = Worker(options.background, ROOM)
        self._summaries = self._summary_writer()

    def wait_for_room(self) -> None:
        """Wait until there is room for a state as large as the last one.

        Call this before a state is read, because the state takes memory from then on.
        """
        self._worker.wait_for_room(self._last_size)

    def submit(self, state: State, request: Request) -> Future[ExportRecord]:
        """Publish a state after the states that were submitted before it."""
        snapshot_time = time.perf_counter()
        # The job takes the state out of this list. If the job fails, its error keeps this
        # frame alive, but not the state.
        states = [state]
        self._last_size = size = state.snapshot.size
        self._in_flight.append(request)
        try:
            return self._worker.submit(
                lambda: self._run(states.pop(), request, snapshot_time), size
            )
        except BaseException:
            with suppress(ValueError):  # The job ran on this thread and removed it.
                self._in_flight.remove(request)
            raise

    def settle(self) -> None:
        """Wait until every state is published or has failed. Failures are not reported here."""
        self._worker.wait()

    def finish(self) -> None:
        """Wait like `settle`, and close the files that are still open for a next export."""
        self.settle()
        self._give_up_staged()
        if self._summaries is not None:
            self._summaries.close()

    def best(self, objective: Objective, own: bool = False) -> float | None:
        """Return the best value of a metric in the base directory, or None.

        Versions that are still being written count as well.

        Args:
            objective: The metric and its direction.
            own: Bool. Whether only the versions of this publisher count.
        """
        best = _best_of(self.exports, objective) if own else self.published_best(objective)
        for request in list(self._in_flight):
            if (
                request.reason.objective == objective
                and request.value is not None
                and objective.improves(request.value, best)
            ):
                best = request.value
        return best

    def published_best(self, objective: Objective) -> float | None:
        """Return the best value that any process has published in the base directory, or None.

        It is None if no version has the metric. In a search, only the versions of this
        attempt of the trial count.
        """
        records, damage = self._directory.survey()
        self._warn_of(damage)
        if self._trial is not None:
            records = [record for record in records if record.attempt == self._trial.attempt]
        return _best_of(standing(records), objective)

    def _warn_of(self, damage: Iterable[ExportError]) -> None:
        """Warn once of each manifest that cannot be read, because its version does not count."""
        for error in damage:
            if str(error) not in self._told:
                self._told.add(str(error))
                warnings.warn(f"{error} A worse version may be published after it.", stacklevel=2)

    def _summary_writer(self) -> SummaryWriter | None:
        if self._options.log_dir is None:
            return None
        base_dir = str(self._directory.path.resolve())
        # A trial's run is named after three directories: the search, the trial, the execution.
        parts, values = (3, self._trial.hyperparameters) if self._trial else (1, None)
        return SummaryWriter(self._options.log_dir, base_dir, parts, values)

    def _run(self, state: State, request: Request, snapshot_time: float) -> ExportRecord:
        try:
            newest = self._newest()
            record = self._publish(state, request, snapshot_time)
            self.exports.append(record)
        except _PublishedBeforeError as error:
            if error.record not in self.exports[-1:]:
                self.exports.append(error.record)
            return error.record
        except SupersededError:
            raise
        except BaseException as error:
            self._give_up_staged()  # Its files may be the reason.
            if _ends_more(error):
                raise
            # Do not bind the new error to a name: its traceback would keep the snapshot alive.
            raise self._failed(f"An export to '{self._directory.path}' failed", error) from error
        finally:
            self._in_flight.remove(request)
        if newest is not None:
            self._tell_of_changes(newest, record)
        self._after_publishing(record)
        return record

    def _publish(self, state: State, request: Request, snapshot_time: float) -> ExportRecord:
        store = self._directory.store
        with ExitStack() as stack:
            written = self._written(state, stack)
            staged = written.staged
            if request.reason.unless == "unchanged":
                self._check_changed(written)
            parity = _compared(staged, state)
            files = {**written.files, **_warmup_files(staged)}
            extras = self._options.extra_files
            added = extras.add(staged, state.expected, self._extra_files)
            files |= {name: file.info for name, file in added.files.items()}
            parity = parity and replace(parity, files=added.differences)
            record = self._record(staged, written, request)
            record = replace(record, parity=parity, files=files, bytes=_size(files))
            record = publish_record(
                staged,
                record,
                store,
                snapshot_time,
                check=lambda: self._check(request, record),
            )
            published = store.local_path(record.version)
            if published is None:
                self._give_up_staged()
                if self._keeps_staged and written.can_share_variables():
                    self._staged.enter_context(stack.pop_all())
                    published = self._last_staged = staged
        if published:
            self._reuse = written.at(published)
            self._extra_files = added.at(staged, published)
        return record

    def _written(self, state: State, stack: ExitStack) -> Written:
        """Write a state into a new staged directory, which the stack holds.

        The last staged version may be damaged, or leave no room for another one. If writing
        fails beside it, it is given up, and everything is written.
        """
        stage = self._directory.store.stage
        try:
            return write(state.snapshot, stack.enter_context(stage()), self._reusable())
        except Exception:
            if self._last_staged is None:
                raise
        stack.close()
        self._give_up_staged()
        self._keeps_staged = False
        return write(state.snapshot, stack.enter_context(stage()), self._reusable())

    def _give_up_staged(self) -> None:
        self._staged.close()
        self._last_staged = None

    def _record(self, staged: Path, written: Written, request: Request) -> ExportRecord:
        moment, objective = request.moment, request.reason.objective
        return ExportRecord(
            path=staged,
            version=0,
            created="",
            epoch=moment.epoch,
            step=moment.step,
            reason=request.reason.text,
            monitor=objective.monitor if objective else None,
            mode=objective.mode if objective else None,
            value=request.value,
            metrics=dict(moment.metrics),
            endpoints=written.endpoints,
            collections=written.collections,
            bytes=0,
            graph_reused=written.graph_reused,
            stall_seconds=request.stall_seconds,
            write_seconds=0.0,
            libraries=_libraries(),
            files={},
            weights=request.weights,
            metadata=self._options.metadata,
            **(vars(self._trial) if self._trial else {}),
        )

    def _check_changed(self, written: Written) -> None:
        """Raise an error if the last version of this publisher has the same variables."""
        for last in self.exports[-1:]:
            if _variables(last.files) == _variables(written.files):
                raise _PublishedBeforeError(last)

    def _check(self, request: Request, record: ExportRecord) -> None:
        """Raise `SupersededError` if a version is not wanted any more, or is already published."""
        if not request.reason.is_wanted():
            raise SupersededError(
                f"A version was not published to '{self._directory.path}', because another writer "
                f"has published one whose {record.monitor} is better than {record.value}."
            )
        unless = request.reason.unless
        others = self._directory.records() if unless in ("newest", "any") else []
        for other in others[-1:] if unless == "newest" else others:
            if _is_same(record, other):
                raise _PublishedBeforeError(other)

    def _reusable(self) -> Reuse:
        """Return what can be linked: from the last export, or else from the newest version."""
        if self._reuse.has_variables():
            return self._reuse
        return self._reuse.with_variables_of(self._verified_version())

    def _verified_version(self) -> ExportRecord | None:
        """Return the newest version, or None if it cannot be reused.

        It cannot be reused if it is damaged, if a newer release wrote it, or if its files
        cannot be linked.
        """
        if not self._directory.store.can_link:
            return None
        record = self._directory.latest()
        if record is None or record.is_newer:
            return None
        return None if version_problems(record.path) else record

    def _newest(self) -> ExportRecord | None:
        """Return the newest version of this publisher, or else of the directory, or None."""
        if self.exports:
            return self.exports[-1]
        with suppress(ExportError, OSError):
            return self._directory.record(max(self._directory.versions(), default=0))
        return None

    def _tell_of_changes(self, newest: ExportRecord, record: ExportRecord) -> None:
        changes = texts.changes(newest.endpoints, record.endpoints)
        if changes:
            self._on_warning(
                f"Version {record.version} in '{self._directory.path}' has other inputs or outputs "
                f"than version {newest.version}, so its clients may fail: {'; '.join(changes)}."
            )

    def _after_publishing(self, record: ExportRecord) -> None:
        """Run the steps after a publish. The version stays published if one of them fails."""
        for step in (self._prune, self._summarize, self._call_back, self._say):
            try:
                step(record)
            except BaseException as error:
                what = f"Version {record.version} was published, but a later step failed"
                if _ends_more(error):
                    raise
                self._on_warning(str(as_export_error(what, error)))

    def _prune(self, record: ExportRecord) -> None:
        try:
            policy = as_policy(self._options.keep)
            if policy is not None:
                self._directory.prune(policy.bound(record.objective))
        except OSError as error:
            self._on_warning(f"Old versions could not be removed: {error}.")

    def _summarize(self, record: ExportRecord) -> None:
        if self._summaries is not None:
            self._summaries.write(record)

    def _call_back(self, record: ExportRecord) -> None:
        if self._options.on_export is not None:
            self._options.on_export(record)

    def _say(self, record: ExportRecord) -> None:
        if not self._options.verbose:
            return
        texts.say(texts.line(record))
        compared = texts.compared(record)
        if compared is not None and compared != self._said:
            self._said = compared
            texts.say(compared)

    def _failed(self, what: str, error: BaseException) -> ExportError:
        failure = as_export_error(what, error)
        self._on_failure(failure)
        return failure


class _PublishedBeforeError(SupersededError):
    """Raised if the same version is already published, as `record`."""

    def __init__(self, record: ExportRecord) -> None:
        super().__init__(f"The same version is already published as '{record.path}'.")
        self.record = record


def _ends_more(error: BaseException) -> bool:
    """Return whether an error ends more than an export, such as Ctrl-C on the main thread."""
    is_on_main_thread = threading.current_thread() is threading.main_thread()
    return not isinstance(error, Exception) and is_on_main_thread


def _libraries() -> dict[str, str]:
    """Return the versions of the libraries that write a SavedModel."""
    # TensorFlow is installed under several names, such as `tensorflow-cpu`.
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
    with suppress(PackageNotFoundError):  # It runs from a checkout.
        versions["keras-export-callbacks"] = version("keras-export-callbacks")
    return dict(sorted(versions.items()))


def _best_of(records: Iterable[ExportRecord], objective: Objective) -> float | None:
    record = objective.best(records)
    return record.measured(objective.monitor) if record else None


def _compared(staged: Path, state: State) -> ParityInfo | None:
    """Compare the artifact's outputs with the live endpoints' outputs, if these are known."""
    if not state.expected:
        return None
    start = time.perf_counter()
    compared = check(staged, state.expected)
    return ParityInfo(
        live_seconds=state.live_seconds,
        check_seconds=time.perf_counter() - start,
        differences=compared.differences,
        allowed=compared.allowed,
        skipped=state.skipped,
    )


def _warmup_files(staged: Path) -> dict[str, FileInfo]:
    path = staged / WARMUP
    return {WARMUP: KnownFile.at(path).info} if path.exists() else {}


def _is_same(one: ExportRecord, other: ExportRecord) -> bool:
    """Return whether two exports are of the same moment and have the same variables."""
    moments = [(record.epoch, record.step, record.reason) for record in (one, other)]
    return moments[0] == moments[1] and _variables(one.files) == _variables(other.files)


def _variables(files: Mapping[str, FileInfo]) -> set[str]:
    """Return the digests of the files that hold the variables."""
    return {info.sha256 for name, info in files.items() if name.startswith("variables/")}


def _size(files: Mapping[str, FileInfo]) -> int:
    return sum(info.size for info in files.values())
