"""`Exporter`: the way of an export. The only file that knows its order.

snapshot (training thread) → write in staging → publish → retention → events →
`on_export`. What fails before publishing leaves the base directory as it was.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import keras

from .archive.directory import ExportDirectory, publish_record, version_problems
from .archive.errors import ExportError, ExportTypeError, ExportValueError, SupersededError
from .archive.export_archive import ExportArchive, Snapshot, check_backend
from .archive.files import FileInfo, KnownFile
from .archive.objective import Objective
from .archive.parity import Expected, check
from .archive.paths import check_base_dir
from .archive.publish import Workspace
from .archive.record import ExportRecord, ParityInfo, Weights
from .archive.retention import RetentionPolicy, as_policy
from .archive.warmup import WARMUP
from .endpoints import standard_endpoints
from .metrics import finite_scalars, steps_taken
from .summaries import SummaryWriter, check_log_dir
from .worker import Worker

OnError = Literal["raise", "warn"]
Endpoints = Callable[[ExportArchive, keras.Model], None]


@dataclass(frozen=True)
class Settings:
    """What `Exporter` and the callbacks can be told in common, checked.

    The arguments are those of `Exporter`.
    """

    endpoints: Endpoints = standard_endpoints
    keep: int | RetentionPolicy | None = None
    log_dir: str | os.PathLike[str] | None = "logs"
    background: bool = True
    on_error: OnError = "raise"
    sample_inputs: Any = None
    on_export: Callable[[ExportRecord], None] | None = None
    verbose: int = 0

    def __post_init__(self) -> None:
        as_policy(self.keep)
        if self.log_dir is not None:
            object.__setattr__(self, "log_dir", check_log_dir(self.log_dir))
        if self.on_error not in ("raise", "warn"):
            raise ExportValueError(
                f"Received on_error={self.on_error!r}. Expected 'raise' or 'warn'."
            )
        if not callable(self.endpoints):
            raise ExportTypeError(
                f"Received endpoints={self.endpoints!r}. Expected a function (archive, model) that "
                "registers endpoints, such as `standard_endpoints`."
            )
        if self.on_export is not None and not callable(self.on_export):
            raise ExportTypeError(
                f"Received on_export={self.on_export!r}. Expected a function (ExportRecord)."
            )


@dataclass(frozen=True)
class State:
    """What there is to export, as it was at one moment.

    Attributes:
        archive: what was registered.
        snapshot: the variables.
        expected: what the endpoints computed of the sample inputs.
        seconds: how long training waited for all this.
        live_seconds: how much of that was for `expected`.
    """

    archive: ExportArchive
    snapshot: Snapshot
    expected: Sequence[Expected]
    seconds: float
    live_seconds: float


@dataclass(frozen=True)
class _Request:
    """Why and when an export was asked for."""

    reason: str
    step: int | None
    epoch: int | None
    metrics: Mapping[str, float]
    objective: Objective | None
    is_wanted: Callable[[], bool]
    once: bool
    weights: Weights
    stall_seconds: float

    @property
    def value(self) -> float | None:
        return self.metrics.get(self.objective.monitor) if self.objective else None


class Exporter:
    """Publish servable versions of a model from a training loop of your own.

    `export` reads the model's variables, which takes milliseconds, and returns;
    the version is written and published on a background thread, one at a time
    and in order. While one is written, one more may wait; a third `export` waits
    for room, so that at most one snapshot waits in memory.

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
        if not isinstance(model, keras.Model):
            raise ExportTypeError(f"Received model={model!r}. Expected a `keras.Model`.")
        self.model = model
        self.exports: list[ExportRecord] = []
        self._archive: ExportArchive | None = None
        self._optimizer: Any = None
        self._optimizer_was_built = False
        self._failures: list[ExportError] = []
        self._in_flight: list[_Request] = []
        self._space: Workspace | None = None
        self._closed = False
        self._worker: Worker[ExportRecord] = Worker(background, self._idle)
        base = self.directory.path
        run = (base.resolve() if isinstance(base, Path) else base).name
        log_dir = self._settings.log_dir
        self._summaries = SummaryWriter(log_dir, run) if log_dir is not None else None

    def export(
        self,
        step: int | None = None,
        epoch: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        reason: str = "requested",
    ) -> Future[ExportRecord]:
        """Export the model as it is now.

        Call it on the thread that trains, between two steps.

        Args:
            step: optimizer steps taken; by default `model.optimizer.iterations`.
            epoch: the epoch, from 0.
            metrics: scalars by name; what is not finite is left out.
            reason: what the manifest says about why.

        Returns:
            A future with the record, done once the version is published.

        Raises:
            ExportError: the endpoints cannot be traced; or, with
                ``on_error="raise"``, an earlier export failed in the background.
        """
        return self.request(
            reason=reason, step=step, epoch=epoch, metrics=finite_scalars(metrics or {})
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
        once: bool = False,
        validated: State | None = None,
    ) -> Future[ExportRecord]:
        """`export`, telling also which metric made it happen.

        `is_wanted` is asked once more just before publishing, while no other
        process can publish. If it says no, the version is dropped, which is no
        failure, and the future holds a `SupersededError`. So is one that is to
        be published `once` when the same one is there already: a training that
        is resumed from a checkpoint repeats what came after it.

        `validated` is what `state` gave when validation began, to be exported
        instead of what there is now.
        """
        self.report_failures()
        if self._closed:
            raise ExportError("This Exporter is closed. Make another to export again.")
        start = time.perf_counter()
        try:
            self._worker.wait_for_room()
            step = steps_taken(self.model) if step is None else step
            waited = time.perf_counter() - start
            state = self.state() if validated is None else validated
        except Exception as error:
            failure = _as_export_error("The model cannot be exported", error)
            if self._settings.on_error == "raise":
                raise failure from error
            self.fail(failure)
            failed: Future[ExportRecord] = Future()
            failed.set_exception(failure)
            return failed
        weights: Weights = "current" if validated is None else "validated"
        request = _Request(
            reason, step, epoch, metrics, objective, is_wanted, once, weights,
            stall_seconds=waited + state.seconds,
        )  # fmt: skip
        self._in_flight.append(request)
        end = time.perf_counter()
        return self._worker.submit(lambda: self._run(state, request, end))

    def state(self) -> State:
        """What there is to export now, on the thread that trains.

        Raises:
            ExportError: the model is not built, or an endpoint cannot be traced.
        """
        start = time.perf_counter()
        archive = self._current_archive()
        snapshot = archive.snapshot()
        read = time.perf_counter()
        sample = self._settings.sample_inputs
        expected = [] if sample is None else archive.probe(sample).expect()
        end = time.perf_counter()
        return State(archive, snapshot, expected, end - start, end - read)

    def prepare(self) -> None:
        """Trace the endpoints now, so that what is wrong with them shows at once.

        Raises:
            ExportError: the model is not built, or an endpoint cannot be traced.
        """
        archive = self._current_archive()
        archive.trace()
        if self._settings.sample_inputs is not None:
            archive.probe(self._settings.sample_inputs)

    def best(self, objective: Objective, own: bool = False) -> float | None:
        """The best value published in the base directory, or on its way there.

        Args:
            objective: the metric and its direction.
            own: look only at what this exporter has published.
        """
        best = _best_of(self.exports if own else self.directory.records(), objective)
        for request in list(self._in_flight):
            if (
                request.objective == objective
                and request.value is not None
                and objective.improves(request.value, best)
            ):
                best = request.value
        return best

    def published_best(self, objective: Objective) -> float | None:
        """The best value published in the base directory, by whatever process."""
        return _best_of(self.directory.records(), objective)

    def settle(self) -> None:
        """Return when every export is published or failed, without saying which."""
        self._worker.wait()

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
        self.settle()
        if self._summaries is not None:
            self._summaries.close()
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
        self._failures.append(failure)
        self.report_failures()

    def report_failures(self) -> None:
        """Raise, or warn of, what failed in the background since the last report."""
        failures, self._failures = self._failures, []
        if not failures:
            return
        if self._settings.on_error == "warn":
            for failure in failures:
                warnings.warn(str(failure), stacklevel=3)
            return
        for other in failures[1:]:
            warnings.warn(f"Another export failed as well: {other}", stacklevel=3)
        raise failures[0]

    def _current_archive(self) -> ExportArchive:
        """The archive, registered anew when the model has another optimizer."""
        optimizer = getattr(self.model, "optimizer", None)
        is_built = optimizer is not None and optimizer.built
        if self._archive is None or self._optimizer is not optimizer:
            self._archive = self._registered()
        elif is_built and not self._optimizer_was_built:
            # It has made its variables only now; what is traced does not use them.
            self._archive.take_collections(self._registered())
        self._optimizer, self._optimizer_was_built = optimizer, is_built
        return self._archive

    def _registered(self) -> ExportArchive:
        archive = ExportArchive()
        self._settings.endpoints(archive, self.model)
        return archive

    def _run(self, state: State, request: _Request, snapshot_time: float) -> ExportRecord:
        try:
            record = self._publish(state, request, snapshot_time)
            self.exports.append(record)
        except SupersededError:
            raise
        except Exception as error:
            # Without a name here: its traceback holds this frame, and that the snapshot.
            raise self._failed(f"An export to '{self.directory.path}' failed", error) from error
        finally:
            self._in_flight.remove(request)
        self._after_publishing(record)
        return record

    def _publish(self, state: State, request: _Request, snapshot_time: float) -> ExportRecord:
        base_dir = self.directory.path
        if self._space is None:
            self._space = Workspace(base_dir)
        staged = self._space.stage()
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
            )
            if request.once and any(_is_same(record, other) for other in self.directory.records()):
                raise SupersededError(f"Epoch {record.epoch}, step {record.step} is published.")
            record = publish_record(staged, record, base_dir, snapshot_time, request.is_wanted)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        if isinstance(record.path, Path):
            state.archive.moved(record.path)
        return record

    def _sound_version(self) -> ExportRecord | None:
        """The newest version that files can be linked from, if nothing is wrong with it."""
        record = self.directory.latest()
        if record is None or not isinstance(record.path, Path):
            return None
        return None if version_problems(record.path) else record

    def _after_publishing(self, record: ExportRecord) -> None:
        """What follows a publish; a failure here takes nothing back."""
        try:
            if self._settings.keep is not None:
                self.directory.prune(self._settings.keep)
        except OSError as error:
            warnings.warn(f"Old versions could not be removed: {error}.", stacklevel=2)
        try:
            if self._summaries is not None:
                self._summaries.write(record)
            if self._settings.on_export is not None:
                self._settings.on_export(record)
            if self._settings.verbose:
                print(_line(record), flush=True)
        except Exception as error:
            self._failed(f"Version {record.version} was published, but what follows failed", error)

    def _failed(self, what: str, error: Exception) -> ExportError:
        """Note a failure, to be reported on the training thread."""
        failure = _as_export_error(what, error)
        self._failures.append(failure)
        return failure

    def _idle(self) -> None:
        """Leave no staging behind while there is nothing to write."""
        if self._space is not None:
            with suppress(OSError):
                self._space.close()
            self._space = None


_LIBRARIES = ("keras-export-callbacks", "keras", "tensorflow")


def _best_of(records: Iterable[ExportRecord], objective: Objective) -> float | None:
    record = objective.best(records)
    return record.measured(objective.monitor) if record else None


def _compared(staged: Path, state: State) -> ParityInfo | None:
    """Compare the artifact with what the endpoints computed live, if that is known."""
    if not state.expected:
        return None
    start = time.perf_counter()
    differences = check(staged, state.expected)
    return ParityInfo(state.live_seconds, time.perf_counter() - start, differences)


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


def _as_export_error(what: str, error: Exception) -> ExportError:
    if isinstance(error, ExportError):
        return error
    failure = ExportError(f"{what}: {type(error).__name__}: {error}")
    # Keras's traceback filter drops the cause of what passes through `fit`.
    failure.__cause__ = failure.__context__ = error
    return failure


def _line(record: ExportRecord) -> str:
    value = f" {record.monitor}={record.value:.6g}" if record.value is not None else ""
    return (
        f"Exported version {record.version} ({record.reason}{value}) to {record.path}; "
        f"training waited {1000 * record.stall_seconds:.0f} ms."
    )
