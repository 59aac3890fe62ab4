"""Makes a plan of what was registered, traces it once for many exports, and takes snapshots.

Plans and snapshots must be made on the training thread.
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
    """A traced graph, with its readers and its saved files, which all its exports share.

    Attributes:
        graph: The traced endpoints.
        measured: Reads the weights and tables.
        progress: Reads the other state, such as seeds and optimizer variables.
        saved: The saved graph, or None until the first export has saved it.
    """

    graph: ServableGraph
    measured: Reader
    progress: Reader
    saved: SavedGraph | None = None

    def read(self) -> Snapshot:
        """Read the weights now. `Snapshot.completed` reads the other state.

        Validation may put other weights into the model for a while, and it may move the
        seeds of some layers. A version holds the weights that were measured, but the
        seeds and the optimizer state that training continues with.
        """
        return Snapshot(self, self.measured.read())


@dataclass(frozen=True)
class Snapshot:
    """The state to export, read at one or two points in time.

    Attributes:
        plan: The plan that the state belongs to.
        measured: The weights and tables.
        progress: The other state, or None until `completed` has read it.
    """

    plan: Plan
    measured: Reading
    progress: Reading | None = None

    def completed(self) -> Snapshot:
        """Return the snapshot with the other state as it is now."""
        return replace(self, progress=self.plan.progress.read())

    @property
    def size(self) -> int:
        """The memory that the snapshot takes at most, in bytes."""
        return self.measured.size + (self.progress.size if self.progress else 0)


class Planner:
    """Makes a plan of what is registered, and makes it again only if it is stale.

    A plan is stale if endpoints, tracked objects, the set of variables, a `trainable`
    flag, the vocabulary of a layer, or the save options have changed.

    Attributes:
        registration: The endpoints, variables and objects to export.
    """

    def __init__(self, registration: Registration) -> None:
        self.registration = registration
        self._plan: Plan | None = None
        self._origin: _Origin | None = None
        self._options: dict[str, Any] | None = None

    def plan(self, options: tf.saved_model.SaveOptions | None = None) -> Plan:
        """Return the current plan. Make it again if it is stale, which may run the layers' code.

        Raises:
            ExportValueError: If there are no endpoints.
            ExportError: If an endpoint cannot be traced.
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
        lists, optimizer = registration.lists(), registration.optimizer
        graph = ServableGraph(endpoints, lists, registration.tracked, options, optimizer)
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
            # A layer may have replaced its table, so search again.
            functions = [endpoint.function for endpoint in registration.endpoints.values()]
            state = find_host_state([*registration.tracked, *functions])
        collections = registration.collections.items()
        return _Origin(
            behaviour=Identities([*registration.tracked, *state.dependencies()]),
            contents=Identities(
                [
                    *registration.endpoints.values(),
                    # Freezing a single variable changes this list, but not `behaviour`.
                    *registration.variables("trainable_variables"),
                    *(item for name, variables in collections for item in (name, *variables)),
                ]
            ),
        )


@dataclass(frozen=True)
class _Origin:
    """The objects that a plan was made from.

    Attributes:
        behaviour: The objects that the endpoints' code depends on. If they change, the
            endpoints are traced again.
        contents: The other objects in the artifact. If they change, the artifact is
            saved again as a whole, with the existing traces.
    """

    behaviour: Identities
    contents: Identities


def _content(options: tf.saved_model.SaveOptions | None) -> dict[str, Any] | None:
    """Return the current contents of `options`, to compare them with later ones."""
    if options is None:
        return None
    names = [name for name in dir(options) if not name.startswith("_")]
    return {name: copy.copy(getattr(options, name)) for name in names}
