"""Reads the state of a model at one moment, in milliseconds, on the training thread."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras

from .archive.backends.backend import current_backend
from .archive.errors import ExportError
from .archive.export_archive import ExportArchive, registration_of
from .archive.graph.plan import Plan, Planner, Snapshot
from .archive.graph.registration import Registration
from .archive.graph.samples import known_sample
from .archive.parity.compare import Expected
from .archive.parity.probe import Probe
from .archive.state.identities import Identities
from .archive.state.owners import owned_variables
from .archive.state.variable_index import OPTIMIZER_VARIABLES
from .options import Endpoints


@dataclass(frozen=True)
class State:
    """The state of a model at one moment.

    Attributes:
        snapshot: The values of the variables.
        seconds: Float. How long training waited for the state, in seconds.
        expected: The outputs that the endpoints computed for the sample inputs.
        skipped: Dict. The reason for each signature that is not compared, by its name.
        live_seconds: Float. The part of `seconds` that `expected` took.
    """

    snapshot: Snapshot
    seconds: float
    expected: Sequence[Expected] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    live_seconds: float = 0.0

    def completed(self) -> State:
        """Return the state with the current seeds and optimizer variables."""
        return replace(self, snapshot=self.snapshot.completed())


class StateSource:
    """Takes the state of a model, and traces its endpoints when necessary.

    Args:
        model: The model in training.
        endpoints: Function ``(archive, model)`` that registers what to export.
        sample_inputs: A batch of model inputs to compare the artifact on, or None.
        optimizer: The optimizer to export in the place of the one that the model is compiled
            with, or None.
    """

    def __init__(
        self,
        model: keras.Model,
        endpoints: Endpoints,
        sample_inputs: Any,
        optimizer: Any = None,
    ) -> None:
        self._model = model
        self._own_optimizer = optimizer
        self._endpoints = endpoints
        self._sample_inputs = sample_inputs
        self._current: Planner | None = None
        self._optimizer: Any = None
        self._owned: Identities | None = None
        self._probed: Plan | None = None
        self._probe: Probe | None = None
        self._has_warned = False

    def prepare(self) -> Collection[str]:
        """Trace the endpoints now, so that their errors show early.

        Returns:
            The names of the signatures.

        Raises:
            ExportError: If the model is not built, or if an endpoint cannot be traced.
        """
        with self._tracing():
            plan = self._planner().plan()
            if self._sample_inputs is not None:
                self._probe_of(plan)
            return plan.graph.signatures().keys()

    def left_out(self) -> list[str]:
        """Return the lines that `endpoints` lacks to resume training from a version.

        Call this after `prepare`. Each line exports something that `restore` needs.
        """
        assert self._current is not None
        registration, optimizer = self._current.registration, self._optimizer
        exported = set(map(id, registration.variables("variables")))
        lines = []
        if not exported >= set(map(id, self._model.weights)):
            lines.append("archive.track(model)")
        collected = set(map(id, registration.collections.get(OPTIMIZER_VARIABLES, ())))
        if optimizer is not None and not collected >= set(map(id, optimizer.variables)):
            lines.append(
                "archive.add_variable_collection('optimizer_variables', model.optimizer.variables)"
            )
        return lines

    def take(self) -> State:
        """Read the current weights. `State.completed` reads the rest.

        Raises:
            ExportError: If the model is not built, or if an endpoint cannot be traced.
        """
        start = time.perf_counter()
        with self._tracing():
            planner = self._planner()
            self._warn_of_guesses(planner)  # Before tracing, which may fail because of a guess.
            plan = planner.plan()
            snapshot = plan.read()
            if self._sample_inputs is None:
                return State(snapshot, time.perf_counter() - start)
            read = time.perf_counter()
            probe = self._probe_of(plan)
            expected = probe.expect()
        end = time.perf_counter()
        return State(snapshot, end - start, expected, probe.skipped, end - read)

    def _planner(self) -> Planner:
        """Return the planner. Register the endpoints again first if variables have changed.

        An optimizer, for example, creates its variables in the first step. If only the
        collections of variables changed, the traced endpoints are kept.
        """
        own, compiled = self._own_optimizer, getattr(self._model, "optimizer", None)
        optimizer = compiled if own is None else own
        roots = [self._model, self._endpoints, own]
        current, is_other = self._current, self._optimizer is not optimizer
        if current is None or is_other or current.registration.has_other_dtypes():
            current = Planner(self._registered())
        elif self._owned == owned_variables(roots):
            return current
        elif not current.registration.take_collections(again := self._registered()):
            current = Planner(again)
        self._current, self._optimizer = current, optimizer
        self._owned = owned_variables(roots)
        return current

    def _registered(self) -> Registration:
        archive = ExportArchive()
        self._endpoints(archive, self._model)
        registration, optimizer = registration_of(archive), self._own_optimizer
        if optimizer is not None:
            archive.add_variable_collection(OPTIMIZER_VARIABLES, optimizer.variables)
            registration.optimizer = optimizer
        return registration

    def _probe_of(self, plan: Plan) -> Probe:
        if self._probe is None or self._probed is not plan:
            self._probed, self._probe = plan, Probe(plan.graph, self._sample_inputs)
        return self._probe

    def _warn_of_guesses(self, planner: Planner) -> None:
        """Warn once if a model is exported for a dtype that is only a guess."""
        if not self._has_warned and (models := planner.registration.guessed()):
            self._has_warned = True
            warnings.warn(
                f"Model '{models[0].name}' does not record the dtype of its inputs, so it is "
                f"exported for {models[0].input_dtype}. If the model is called with another "
                "dtype, pass `sample_inputs`, a batch of that dtype.",
                stacklevel=4,
            )

    @contextlib.contextmanager
    def _tracing(self) -> Iterator[None]:
        """Make the sample known to the model, and turn every error into an `ExportError`."""
        try:
            current_backend().synchronize(self._model)
            with known_sample(self._sample_inputs):
                yield
        except ExportError:
            raise
        except Exception as error:
            raise as_export_error("The model cannot be exported", error) from error


def as_export_error(what: str, error: BaseException) -> ExportError:
    """Return `error` as an `ExportError` that says what failed."""
    if isinstance(error, ExportError):
        return error
    failure = ExportError(f"{what}: {type(error).__name__}: {error}")
    # Keras's traceback filter drops the cause of an error that passes through `fit`.
    failure.__cause__ = failure.__context__ = error
    return failure
