"""A model → its state at one moment, in milliseconds on the training thread."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
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
from .options import Endpoints


@dataclass(frozen=True)
class State:
    """What there is to export, as it was at one moment.

    Attributes:
        snapshot: the variables.
        seconds: how long training waited for all this.
        expected: what the endpoints computed of the sample inputs.
        skipped: why other signatures cannot be compared, by name.
        live_seconds: how much of `seconds` was for `expected`.
    """

    snapshot: Snapshot
    seconds: float
    expected: Sequence[Expected] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    live_seconds: float = 0.0

    def completed(self) -> State:
        """The state with seeds and optimizer variables as they are now."""
        return replace(self, snapshot=self.snapshot.completed())


class StateSource:
    """Takes the state of a model, and traces its endpoints when they have to be.

    Args:
        model: the model in training.
        endpoints: registers what to export.
        sample_inputs: a batch of model inputs to compare the artifact on, or None.
    """

    def __init__(self, model: keras.Model, endpoints: Endpoints, sample_inputs: Any) -> None:
        self._model = model
        self._endpoints = endpoints
        self._sample_inputs = sample_inputs
        self._current: Planner | None = None
        self._optimizer: Any = None
        self._owned: Identities | None = None
        self._probed: Plan | None = None
        self._probe: Probe | None = None
        self._has_warned = False

    def prepare(self) -> None:
        """Trace the endpoints now, so that what is wrong with them shows at once.

        Raises:
            ExportError: the model is not built, or an endpoint cannot be traced.
        """
        with self._tracing():
            plan = self._planner().plan()
            if self._sample_inputs is not None:
                self._probe_of(plan)

    def take(self) -> State:
        """The weights as they are now, to be `completed`.

        Raises:
            ExportError: the model is not built, or an endpoint cannot be traced.
        """
        start = time.perf_counter()
        with self._tracing():
            planner = self._planner()
            self._warn_of_guesses(planner)  # Before tracing, which may fail because of the guess.
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
        """The planner of what is registered, and registered anew when there are other variables.

        An optimizer, for one, makes its variables only in the first step. What is
        traced does not use them.
        """
        optimizer = getattr(self._model, "optimizer", None)
        roots = [self._model, self._endpoints]
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
        return registration_of(archive)

    def _probe_of(self, plan: Plan) -> Probe:
        if self._probe is None or self._probed is not plan:
            self._probed, self._probe = plan, Probe(plan.graph, self._sample_inputs)
        return self._probe

    def _warn_of_guesses(self, planner: Planner) -> None:
        """Say once that a model is exported for a dtype that nothing has told."""
        if not self._has_warned and (models := planner.registration.guessed()):
            self._has_warned = True
            warnings.warn(
                f"Model '{models[0].name}' does not record the dtype of its inputs, so it is "
                f"exported for {models[0].input_dtype}. Pass `sample_inputs`, a batch as the model "
                "is called with, to export it for the right one.",
                stacklevel=4,
            )

    @contextlib.contextmanager
    def _tracing(self) -> Iterator[None]:
        """Let the model know the sample, and give every error a type of ours."""
        try:
            current_backend().synchronize(self._model)
            with known_sample(self._sample_inputs):
                yield
        except ExportError:
            raise
        except Exception as error:
            raise as_export_error("The model cannot be exported", error) from error


def as_export_error(what: str, error: BaseException) -> ExportError:
    """`error`, or one of ours that says where it came from."""
    if isinstance(error, ExportError):
        return error
    failure = ExportError(f"{what}: {type(error).__name__}: {error}")
    # Keras's traceback filter drops the cause of what passes through `fit`.
    failure.__cause__ = failure.__context__ = error
    return failure
