"""The background half of an export, in its order; the only file that knows it.

write in staging → compare with the model → publish → retention → events →
`on_export`. What fails before publishing leaves the base directory as it was.
"""

from __future__ import annotations

import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from . import texts
from .archive.errors import ExportError, SupersededError
from .archive.export_archive import ExportArchive, Snapshot
from .archive.parity.compare import Expected, check
from .archive.store.directory import ExportDirectory, publish_record, version_problems
from .archive.store.files import FileInfo, KnownFile, names_in
from .archive.store.objective import Objective
from .archive.store.publish import Workspace
from .archive.store.record import WARMUP, ExportRecord, ParityInfo, Scalar, TrialInfo, Weights
from .archive.store.versions import Numbers
from .settings import Settings
from .summaries import SummaryWriter
from .worker import Worker

# How many bytes of snapshots may wait while one is written; one may wait whatever its size.
# Saving the graph takes as long as many short epochs, and a snapshot is often a few megabytes.
ROOM = 10**9

# Which versions, if they are the same, make another superfluous.
Unless = Literal["newest", "any"] | None


@dataclass(frozen=True)
class State:
    """What there is to export, as it was at one moment.

    Attributes:
        archive: what was registered.
        snapshot: the variables.
        expected: what the endpoints computed of the sample inputs.
        skipped: why other signatures cannot be compared, by name.
        seconds: how long training waited for all this.
        live_seconds: how much of that was for `expected`.
    """

    archive: ExportArchive
    snapshot: Snapshot
    expected: Sequence[Expected]
    skipped: Mapping[str, str]
    seconds: float
    live_seconds: float

    def completed(self) -> State:
        """With seeds and optimizer state as they are now, on the thread that trains."""
        return replace(self, snapshot=self.archive.completed(self.snapshot))


@dataclass(frozen=True)
class Request:
    """Why and when an export was asked for."""

    reason: str
    step: int | None
    epoch: int | None
    metrics: Mapping[str, float]
    objective: Objective | None
    is_wanted: Callable[[], bool]
    unless: Unless
    weights: Weights
    stall_seconds: float

    @property
    def value(self) -> float | None:
        return self.metrics.get(self.objective.monitor) if self.objective else None


class Publisher:
    """Publishes states of a model, one at a time and in order.

    Args:
        directory: where the versions appear.
        settings: what the user said.

    Attributes:
        exports: the records of what was published, oldest first.
        failures: what failed, until it is reported on the training thread.
    """

    def __init__(self, directory: ExportDirectory, settings: Settings) -> None:
        self.exports: list[ExportRecord] = []
        self.failures: list[ExportError] = []
        self._directory = directory
        self._settings = settings
        self._in_flight: list[Request] = []
        self._told: set[str] = set()
        self._last_size = 0
        self._space: Workspace | None = None
        self._numbers = Numbers()
        with suppress(OSError):  # There is no directory yet.
            self._numbers.see(names_in(directory.path))
        self._trial: TrialInfo | None = None
        self._worker: Worker[ExportRecord] = Worker(settings.background, self._idle, ROOM)
        self._summaries = self._summary_writer(parts=1)

    def within(self, trial: TrialInfo) -> None:
        """Publish as a part of a search, to a directory for the trial and the execution."""
        self._trial = trial
        self._summaries = self._summary_writer(parts=3, hyperparameters=trial.hyperparameters)

    def wait_for_room(self) -> None:
        """Return when there is room for a state as large as the last to wait.

        Call it before a state is read, because it may take memory from then on.
        """
        self._worker.wait_for_room(self._last_size)

    def submit(self, state: State, request: Request) -> Future[ExportRecord]:
        """Publish a state after those before it."""
        snapshot_time = time.perf_counter()
        # Handed over: should it fail, the error holds this function, and not the state.
        states = [state]
        self._last_size = size = state.snapshot.size
        self._in_flight.append(request)
        try:
            return self._worker.submit(
                lambda: self._run(states.pop(), request, snapshot_time), size
            )
        except BaseException:
            with suppress(ValueError):  # It was run, on this thread.
                self._in_flight.remove(request)
            raise

    def settle(self) -> None:
        """Return when every state is published or failed, without saying which."""
        self._worker.wait()

    def finish(self) -> None:
        """`settle`, and close the events file; a later export opens another."""
        self.settle()
        if self._summaries is not None:
            self._summaries.close()

    def failed(self, what: str, error: BaseException) -> ExportError:
        """Note a failure, to be reported on the training thread."""
        failure = as_export_error(what, error)
        self.failures.append(failure)
        return failure

    def best(self, objective: Objective, own: bool = False) -> float | None:
        """The best value published in the base directory, or on its way there.

        Args:
            objective: the metric and its direction.
            own: look only at what was published here.
        """
        best = _best_of(self.exports, objective) if own else self.published_best(objective)
        for request in list(self._in_flight):
            if (
                request.objective == objective
                and request.value is not None
                and objective.improves(request.value, best)
            ):
                best = request.value
        return best

    def published_best(self, objective: Objective) -> float | None:
        """The best value published in the base directory, by whatever process.

        In a search, by this attempt of the trial: what another left does not count.
        """
        records, damage = self._directory.survey()
        self._warn_of(damage)
        if self._trial is not None:
            records = [record for record in records if record.attempt == self._trial.attempt]
        return _best_of(records, objective)

    def _warn_of(self, damage: Iterable[ExportError]) -> None:
        """Say once of each manifest that cannot be read that its version is not compared with."""
        for error in damage:
            if str(error) not in self._told:
                self._told.add(str(error))
                warnings.warn(f"{error} A worse version may be published after it.", stacklevel=2)

    def _summary_writer(
        self, parts: int, hyperparameters: Mapping[str, Scalar] | None = None
    ) -> SummaryWriter | None:
        if self._settings.log_dir is None:
            return None
        path = self._directory.path
        base_dir = str(path.resolve() if isinstance(path, Path) else path)
        return SummaryWriter(self._settings.log_dir, base_dir, parts, hyperparameters)

    def _run(self, state: State, request: Request, snapshot_time: float) -> ExportRecord:
        try:
            record = self._publish(state, request, snapshot_time)
            self.exports.append(record)
        except _PublishedBeforeError as error:
            self.exports.append(error.record)
            return error.record
        except SupersededError:
            raise
        except Exception as error:
            # Without a name here: its traceback holds this frame, and that the snapshot.
            raise self.failed(f"An export to '{self._directory.path}' failed", error) from error
        finally:
            self._in_flight.remove(request)
        self._after_publishing(record)
        return record

    def _publish(self, state: State, request: Request, snapshot_time: float) -> ExportRecord:
        base_dir = self._directory.path
        staged = self._stage()
        try:
            written = state.archive.write(state.snapshot, staged, self._sound_version)
            parity = _compared(staged, state)
            files = {**written.files, **_warmup_files(staged)}
            record = ExportRecord(
                path=staged,
                version=0,
                created="",
                epoch=request.epoch,
                step=request.step,
                reason=request.reason,
                monitor=request.objective.monitor if request.objective else None,
                mode=request.objective.mode if request.objective else None,
                value=request.value,
                metrics=dict(request.metrics),
                endpoints=written.endpoints,
                collections=written.collections,
                bytes=sum(info.size for info in files.values()),
                graph_reused=written.graph_reused,
                stall_seconds=request.stall_seconds,
                write_seconds=0.0,
                libraries={name: version(name) for name in _LIBRARIES},
                files=files,
                weights=request.weights,
                parity=parity,
                **(vars(self._trial) if self._trial else {}),
            )
            record = publish_record(
                staged,
                record,
                base_dir,
                snapshot_time,
                check=lambda: self._check(request, record),
                numbers=self._numbers,
            )
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        if isinstance(record.path, Path):
            state.archive.moved(record.path)
        return record

    def _stage(self) -> Path:
        """An empty directory to write a version in."""
        if self._space is not None:
            with suppress(FileNotFoundError):  # The base directory was removed meanwhile.
                return self._space.stage()
            self._idle()
        self._space = Workspace(self._directory.path)
        return self._space.stage()

    def _check(self, request: Request, record: ExportRecord) -> None:
        """Raise if what others have published meanwhile makes a version superfluous."""
        if not request.is_wanted():
            raise SupersededError(
                f"Not published to '{self._directory.path}': another writer has published a "
                f"version with a better {record.monitor} than {record.value} in the meantime."
            )
        others = self._directory.records() if request.unless else []
        for other in others[-1:] if request.unless == "newest" else others:
            if _is_same(record, other):
                raise _PublishedBeforeError(other)

    def _sound_version(self) -> ExportRecord | None:
        """The newest version that files can be linked from, if nothing is wrong with it."""
        record = self._directory.latest()
        if record is None or record.is_newer or not isinstance(record.path, Path):
            return None
        return None if version_problems(record.path) else record

    def _after_publishing(self, record: ExportRecord) -> None:
        """What follows a publish; a failure here takes nothing back."""
        for step in (self._prune, self._summarize, self._call_back, self._say):
            try:
                step(record)
            except BaseException as error:
                what = f"Version {record.version} was published, but what follows failed"
                self.failed(what, error)
                if not isinstance(error, Exception):
                    raise  # Such as Ctrl-C; a background thread ends of it, and nothing else.

    def _prune(self, record: ExportRecord) -> None:
        try:
            if self._settings.keep is not None:
                self._directory.prune(self._settings.keep)
        except OSError as error:
            warnings.warn(f"Old versions could not be removed: {error}.", stacklevel=2)

    def _summarize(self, record: ExportRecord) -> None:
        if self._summaries is not None:
            self._summaries.write(record)

    def _call_back(self, record: ExportRecord) -> None:
        if self._settings.on_export is not None:
            self._settings.on_export(record)

    def _say(self, record: ExportRecord) -> None:
        if self._settings.verbose:
            _print_line(texts.line(record))

    def _idle(self) -> None:
        """Leave no staging behind while there is nothing to write."""
        if self._space is not None:
            with suppress(Exception):  # What is left there the next writer sweeps.
                self._space.close()
            self._space = None


class _PublishedBeforeError(SupersededError):
    """The very version is there already, as `record`."""

    def __init__(self, record: ExportRecord) -> None:
        super().__init__(f"Published before as '{record.path}'.")
        self.record = record


_LIBRARIES = ("keras-export-callbacks", "keras", "tensorflow")


def _best_of(records: Iterable[ExportRecord], objective: Objective) -> float | None:
    record = objective.best(records)
    return record.measured(objective.monitor) if record else None


def _compared(staged: Path, state: State) -> ParityInfo | None:
    """Compare the artifact with what the endpoints computed live, if that is known."""
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
    """Whether two exports are of the same moment, with the same variables."""
    moments = [(record.epoch, record.step, record.reason) for record in (one, other)]
    variables = [
        {info.sha256 for name, info in record.files.items() if name.startswith("variables/")}
        for record in (one, other)
    ]
    return moments[0] == moments[1] and variables[0] == variables[1]


def as_export_error(what: str, error: BaseException) -> ExportError:
    """`error`, or one of ours that says where it came from."""
    if isinstance(error, ExportError):
        return error
    failure = ExportError(f"{what}: {type(error).__name__}: {error}")
    # Keras's traceback filter drops the cause of what passes through `fit`.
    failure.__cause__ = failure.__context__ = error
    return failure


def _print_line(line: str) -> None:
    """Print a line where Keras may be drawing a progress bar, which it goes on with below."""
    is_drawn_over = sys.stdout.isatty() or "ipykernel" in sys.modules
    # In a file, the bar's line is an open one; Keras's own callbacks begin like that, too.
    print(f"\r\x1b[K{line}" if is_drawn_over else f"\n{line}", flush=True)
