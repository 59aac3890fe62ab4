"""What was registered → a plan, traced once for many exports → a snapshot of its state.

All of it belongs to the training thread.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from ..backends.backend import current_backend
from ..backends.interface import Reader, Reading
from ..errors import ExportValueError
from ..state.identities import Identities
from .host_state import find_host_state
from .registration import Registration
from .servable import SavedGraph, ServableGraph


@dataclass
class Plan:
    """A traced graph, and what every export of it shares.

    Attributes:
        graph: the traced endpoints.
        measured: reads the weights and tables.
        progress: reads the other state: seeds, and that of optimizers.
        saved: the saved graph, once the first export has saved it.
    """

    graph: ServableGraph
    measured: Reader
    progress: Reader
    saved: SavedGraph | None = None

    def read(self) -> Snapshot:
        """Read the weights now. `Snapshot.completed` reads the rest.

        Validation may run on weights that are put in for it, and it moves the seeds
        of some layers. A version holds the weights that were measured, and the seeds
        and the optimizer state that training goes on with.
        """
        return Snapshot(self, self.measured.read())


@dataclass(frozen=True)
class Snapshot:
    """The state to export, read at one point in time, or at two.

    Attributes:
        plan: what to export.
        measured: the weights and tables.
        progress: the other state, None until it is `completed`.
    """

    plan: Plan
    measured: Reading
    progress: Reading | None = None

    def completed(self) -> Snapshot:
        """The snapshot with all other state as it is now."""
        return replace(self, progress=self.plan.progress.read())

    @property
    def size(self) -> int:
        """The memory that it takes at most, in bytes."""
        return self.measured.size + (self.progress.size if self.progress else 0)


class Planner:
    """Plans the export of what is registered, and traces it again only when that is stale.

    A plan is stale when endpoints, tracked objects, the set of variables, a
    `trainable` flag or the vocabulary of a layer changed.

    Attributes:
        registration: what is registered.
    """

    def __init__(self, registration: Registration) -> None:
        self.registration = registration
        self._plan: Plan | None = None
        self._origin: _Origin | None = None
        self._options: dict[str, Any] | None = None

    def plan(self, options: tf.saved_model.SaveOptions | None = None) -> Plan:
        """The plan as of now; tracing runs the layers' code.

        Raises:
            ExportValueError: there are no endpoints, or one cannot be traced.
        """
        registration = self.registration
        if not registration.endpoints:
            raise ExportValueError(
                "No endpoints have been set yet. Register one with `add_endpoint` first."
            )
        wanted = _content(options)
        if self._plan is not None and self._origin is not None:
            origin = self._origin_of(self._plan.graph)
            if self._origin == origin and self._options == wanted:
                return self._plan
            if self._origin.behaviour != origin.behaviour:
                registration.renew_endpoints()
        endpoints = list(registration.endpoints.values())
        graph = ServableGraph(endpoints, registration.lists(), registration.tracked, options)
        backend = current_backend()
        self._plan = Plan(
            graph,
            measured=backend.reader(graph.measured, graph.tables),
            progress=backend.reader(graph.progress, []),
        )
        self._origin, self._options = self._origin_of(graph), wanted
        return self._plan

    def _origin_of(self, graph: ServableGraph) -> _Origin:
        registration, state = self.registration, graph.host_state
        if state.resources:
            # A layer may have replaced its table, so look for it again.
            functions = [endpoint.function for endpoint in registration.endpoints.values()]
            state = find_host_state([*registration.tracked, *functions])
        collections = registration.collections.items()
        return _Origin(
            behaviour=Identities([*registration.tracked, *state.dependencies()]),
            contents=Identities(
                [
                    *registration.endpoints.values(),
                    # A variable can be frozen by itself; the others are those of the layers.
                    *registration.variables("trainable_variables"),
                    *(item for name, variables in collections for item in (name, *variables)),
                ]
            ),
        )


@dataclass(frozen=True)
class _Origin:
    """What a plan was made from.

    Attributes:
        behaviour: what the endpoints' code depends on; if it changed, they are
            traced again.
        contents: what else is in the artifact; if it changed, it is saved as a
            whole, with the functions that are already traced.
    """

    behaviour: Identities
    contents: Identities


def _content(options: tf.saved_model.SaveOptions | None) -> dict[str, Any] | None:
    """What `options` say now, to be compared with what they say later."""
    if options is None:
        return None
    names = [name for name in dir(options) if not name.startswith("_")]
    return {name: copy.copy(getattr(options, name)) for name in names}
