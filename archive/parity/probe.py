"""What the live endpoints compute of sample inputs; on the thread that trains.

A `Probe` finds the inference endpoints that take the sample. `Probe.expect` asks
them while the variables are those of the snapshot; `compare` asks the artifact.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..errors import ExportValueError, ParityError
from ..graph.endpoint import Endpoint
from ..graph.host_state import find_host_state
from ..graph.model_call import ModelCall
from ..graph.operations import dtypes, operations
from ..graph.outputs import named_outputs
from ..graph.samples import Arguments, arguments
from ..graph.servable import ServableGraph, Signature
from ..state.identities import Identities
from .compare import Expected, compare
from .rounding import resolution_of

# Operations that change a variable or table, or draw from a generator of their own: an
# endpoint with one of them is no inference, and calling it would disturb training.
_CHANGES_STATE = re.compile(
    r"(?!Stateless).*(Assign|CountUpTo|Resource(Sparse)?(Apply|Scatter)"
    r"|LookupTable(Insert|Import|Remove)|Enqueue|Dequeue|IteratorGetNext"
    r"|Random(?!IndexShuffle)|TruncatedNormal|Multinomial|Rng|Stateful(?!PartitionedCall)"
    r"|NonDeterministicInts|SampleDistorted|CandidateSampler|Fractional(Max|Avg)Pool$)"
)


@dataclass
class _Call:
    """An inference endpoint, and arguments for it."""

    signature: Signature
    names: list[str]
    arguments: Arguments
    resolution: float
    moves_seeds: bool
    watched: Watched | None = None

    def expected(self) -> list[Expected]:
        is_as_traced = self.watched is not None and self.watched.is_unchanged()
        outputs = self.traced() if is_as_traced else self.live()
        return [
            Expected(name, self.arguments.inputs, outputs, self.resolution) for name in self.names
        ]

    def live(self) -> dict[str, Any]:
        """What the endpoint's function computes; the model's seeds stay where they are."""
        with keras.StatelessScope() if self.moves_seeds else nullcontext():
            return _arrays(self._returned())

    def traced(self) -> dict[str, Any]:
        """What the traced function computes, which is much faster."""
        return _arrays(self.signature.trace(*tf.nest.flatten(self.arguments.sent)))

    def _returned(self) -> Any:
        arguments = self.arguments
        fn, _ = _called(self.signature.endpoint)
        if arguments.are_equal:
            return fn(*arguments.live)
        try:
            return fn(*arguments.live)
        except Exception:
            # A function of TensorFlow's operations may take one dtype only.
            return fn(*arguments.sent)


class Watched:
    """Layers of Keras, of which no attribute was set since this was made.

    What they compute then is what they computed. Layers and functions of the user's
    may depend on anything.
    """

    def __init__(self, layers: Sequence[keras.Layer]) -> None:
        # A model of Keras's is what its layers are; `fit` sets attributes of it.
        self._layers = [layer for layer in layers if not isinstance(layer, keras.Model)]
        self._values = self._attributes()

    def is_unchanged(self) -> bool:
        return self._values == self._attributes()

    def _attributes(self) -> Identities:
        return Identities([value for layer in self._layers for value in vars(layer).values()])


class Probe:
    """Sample inputs, and the inference endpoints that take them.

    Args:
        graph: the traced endpoints.
        sample_inputs: one batch, nested as the model takes it; for an endpoint
            of several arguments a list or tuple of them.

    Attributes:
        skipped: why other signatures are not compared, by name.

    Raises:
        ExportValueError: no inference endpoint takes them.
    """

    def __init__(self, graph: ServableGraph, sample_inputs: Any) -> None:
        self.sample_inputs = sample_inputs
        self.skipped: dict[str, str] = {}
        self._graph = graph
        calls: dict[str, _Call | str] = {}
        for name, signature in graph.signatures().items():
            endpoint = signature.endpoint.name
            if endpoint not in calls:
                calls[endpoint] = self._call(signature)
            call = calls[endpoint]
            if isinstance(call, str):
                self.skipped[name] = call
            else:
                call.names.append(name)
        self._calls = [call for call in calls.values() if isinstance(call, _Call)]
        if not self._calls:
            told = " ".join(f"Signature '{name}' {why}." for name, why in self.skipped.items())
            raise ExportValueError(
                f"No endpoint can be compared on the sample_inputs. {told} Leave the sample_inputs "
                "out, or register an endpoint that can be compared."
            )

    def expect(self) -> list[Expected]:
        """What the endpoints' functions compute now; on the thread that trains."""
        return [expected for call in self._calls for expected in call.expected()]

    def _call(self, signature: Signature) -> _Call | str:
        """A call of a signature, or why it cannot be compared."""
        nodes = operations(signature.trace)
        if problem := _obstacle(signature.trace):
            return problem
        moves_state = any(_CHANGES_STATE.match(node.op) for node in nodes)
        if moves_state and not self._moves_seeds_in_vain(signature):
            return _NO_INFERENCE
        try:
            found = arguments(_specs(signature.trace), signature.inputs, self.sample_inputs)
        except (TypeError, ValueError) as error:
            return (
                f"expects {_specs(signature.trace)}, one batch, as the model is called with: "
                f"{error}"
            )
        call = _Call(signature, [], found, resolution_of(dtypes(nodes)), moves_state)
        fn = signature.endpoint.fn
        is_plain = found.are_equal and not moves_state and isinstance(fn, ModelCall)
        if is_plain and (state := find_host_state([fn])).is_of_keras:
            expected = Expected(signature.endpoint.name, found.inputs, call.live(), call.resolution)
            with suppress(ParityError):
                compare(expected, call.traced())
                call.watched = Watched(state.layers)
        return call

    def _moves_seeds_in_vain(self, signature: Signature) -> bool:
        """Whether all that an endpoint changes is seeds, of which its outputs do not depend.

        Recurrent layers with dropout do that. Traced in a scope of Keras's, a function
        leaves Keras's variables alone, and the scope tells which it would have changed.
        """
        fn, specs = _called(signature.endpoint)
        if specs is None:
            return False
        with keras.StatelessScope() as scope:
            function = tf.function(fn, input_signature=specs, autograph=False)
            trace = function.get_concrete_function()
            if any(_CHANGES_STATE.match(node.op) for node in operations(trace)):
                return False
            if any("Random" in node.op for node in operations(trace, leading_to=trace.outputs)):
                return False
            return set(scope.state_mapping) <= {id(seed) for seed in self._graph.host_state.seeds}


def _called(endpoint: Endpoint) -> tuple[Any, Any]:
    """What to call to compute an endpoint anew, and the specs it is called with, if known."""
    fn = endpoint.fn
    if endpoint.signature is None and getattr(fn, "input_signature", None) is not None:
        return fn.python_function, fn.input_signature
    return fn, endpoint.signature


_NO_INFERENCE = (
    "changes variables or draws random numbers, so that calling it would disturb training"
)


def _obstacle(trace: Any) -> str | None:
    """Why what a trace returns cannot be compared, whatever the sample."""
    for name, output in named_outputs(trace.structured_outputs).items():
        if not isinstance(output, tf.Tensor):
            return (
                f"returns a {type(output).__name__} as '{name}', which no server returns. Return "
                "dense tensors, such as its `to_tensor()` or its components"
            )
    return None


def _arrays(returned: Any) -> dict[str, Any]:
    # `np.asarray` of a tensor fails for scalars of few digits.
    return {
        name: np.asarray(value.numpy() if isinstance(value, tf.Tensor) else value)
        for name, value in named_outputs(returned).items()
    }


def _specs(trace: Any) -> tuple[Any, ...]:
    positional, _ = trace.structured_input_signature
    return tuple(positional)
