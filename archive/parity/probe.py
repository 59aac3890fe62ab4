"""The outputs of the model's own endpoints for a sample batch, before an export.

A `Probe` finds the inference endpoints that take the sample. `Probe.expect` calls them on
the training thread, while the variables have the values of the snapshot. Later, `compare`
calls the artifact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..backends.backend import current_backend
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

# Operations that change a variable or a table, or that draw random numbers from a generator with
# a state. An endpoint with such an operation is not an inference endpoint, and calling it would
# disturb training.
_CHANGES_STATE = re.compile(
    r"(?!Stateless).*(Assign|CountUpTo|Resource(Sparse)?(Apply|Scatter)"
    r"|LookupTable(Insert|Import|Remove)|Enqueue|Dequeue|IteratorGetNext"
    r"|Random(?!IndexShuffle)|TruncatedNormal|Multinomial|Rng|Stateful(?!PartitionedCall)"
    r"|NonDeterministicInts|SampleDistorted|CandidateSampler|Fractional(Max|Avg)Pool$)"
)


@dataclass
class _Call:
    """A call of an inference endpoint.

    Attributes:
        signature: The first signature of the endpoint.
        names: The names of all signatures of the endpoint.
        arguments: The arguments of the call.
        resolution: The resolution of the coarsest floats in the computation.
        moves_seeds: Whether the call changes the model's seeds.
        program: A fast function that returns the same outputs, if it was made.
        watched: The layers of the model. None if the function must be called itself.
    """

    signature: Signature
    names: list[str]
    arguments: Arguments
    resolution: float
    moves_seeds: bool
    program: Callable[[], Any] | None = None
    watched: Watched | None = None

    def expected(self) -> list[Expected]:
        is_as_before = self.watched is not None and self.watched.is_unchanged()
        outputs = self.again() if is_as_before else self.live()
        return [
            Expected(name, self.arguments.inputs, outputs, self.resolution) for name in self.names
        ]

    def live(self) -> dict[str, Any]:
        """Return the outputs of the endpoint's function. The model's seeds do not change."""
        if _is_of_tensorflow(self.signature.endpoint):
            current_backend().refresh(self.signature.trace.variables)
        scope = keras.StatelessScope() if self.moves_seeds else nullcontext()
        with scope, current_backend().exact_products():
            return _arrays(self._returned())

    def again(self) -> dict[str, Any]:
        """Return the outputs of a program that is made from the function, and is much faster."""
        backend = current_backend()
        if self.program is None:
            fn, _ = _called(self.signature.endpoint)
            self.program = backend.program(fn, self.signature.trace, self.arguments.sent)
        with backend.exact_products():
            return _arrays(self.program())

    def _returned(self) -> Any:
        endpoint = self.signature.endpoint
        fn, _ = _called(endpoint)
        live, sent = (
            args if _is_of_tensorflow(endpoint) else tf.nest.map_structure(_as_array, args)
            for args in (self.arguments.live, self.arguments.sent)
        )
        if self.arguments.are_equal:
            return fn(*live)
        try:
            return fn(*live)
        except Exception:
            # A function of TensorFlow operations may accept only the dtypes of its signature.
            return fn(*sent)


class Watched:
    """Detects whether an attribute of any of its Keras layers was set.

    If no attribute was set, the layers still compute the same function. This is not true
    for users' own layers, which may depend on anything.

    Args:
        layers: A sequence of Keras's own layers.
    """

    def __init__(self, layers: Sequence[keras.Layer]) -> None:
        # Models are left out, because `fit` sets their attributes. A Keras model computes what
        # its layers compute.
        self._layers = [layer for layer in layers if not isinstance(layer, keras.Model)]
        self._values = self._attributes()

    def is_unchanged(self) -> bool:
        return self._values == self._attributes()

    def _attributes(self) -> Identities:
        return Identities([value for layer in self._layers for value in vars(layer).values()])


class Probe:
    """A sample batch, and the inference endpoints that take it.

    Args:
        graph: The traced endpoints.
        sample_inputs: One batch, nested as the model takes it. If an endpoint takes several
            arguments, this is a list or tuple with one item per argument. It may also be a
            dict of such batches by the names of endpoints. A dict is one batch if its keys
            are also the names of inputs of one endpoint.

    Attributes:
        skipped: Dict. The reason for each signature that is not compared, by its name.

    Raises:
        ExportValueError: If no inference endpoint takes the sample.
    """

    def __init__(self, graph: ServableGraph, sample_inputs: Any) -> None:
        self.sample_inputs = sample_inputs
        self.skipped: dict[str, str] = {}
        self._graph = graph
        self._by_endpoint = _by_endpoint(graph, sample_inputs)
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
                f"No endpoint can be compared on the sample_inputs. {told} Leave out "
                "`sample_inputs`, or register an endpoint that can be compared."
            )

    def expect(self) -> list[Expected]:
        """Return the current outputs of the endpoints. Call this on the training thread."""
        return [expected for call in self._calls for expected in call.expected()]

    def _call(self, signature: Signature) -> _Call | str:
        """Return a call of a signature, or the reason why it cannot be compared."""
        nodes, reads_live = operations(signature.trace), current_backend().reads_live_values
        if problem := _obstacle(signature.trace):
            return problem
        moves_state = any(_CHANGES_STATE.match(node.op) for node in nodes)
        # Some functions move seeds although no output depends on them. Recurrent layers with
        # dropout do this, for example.
        if moves_state and reads_live and not self._uses_no_seed(signature):
            return _NO_INFERENCE
        sample, name = self.sample_inputs, signature.endpoint.name
        if self._by_endpoint is not None:
            if name not in self._by_endpoint:
                return "has no sample in `sample_inputs`"
            sample = self._by_endpoint[name]
        try:
            found = arguments(_specs(signature.trace), signature.inputs, sample)
        except (TypeError, ValueError) as error:
            reason = f"expects one batch that fits {_specs(signature.trace)}: {error}"
            if self._by_endpoint is None:
                return reason
            raise ExportValueError(
                f"Endpoint '{name}' cannot be compared on sample_inputs[{name!r}]. It {reason}."
            ) from error
        call = _Call(signature, [], found, _resolution(signature, nodes), moves_state)
        if moves_state and not reads_live and not self._depends_on_no_seed(call):
            return _NO_INFERENCE
        fn = signature.endpoint.fn
        is_plain = found.are_equal and not moves_state and isinstance(fn, ModelCall)
        if is_plain and (state := find_host_state([fn])).is_of_keras:
            expected = Expected(signature.endpoint.name, found.inputs, call.live(), call.resolution)
            with suppress(ParityError):
                compare(expected, call.again())
                call.watched = Watched(state.layers)
        return call

    def _depends_on_no_seed(self, call: _Call) -> bool:
        """Return whether a function returns the same outputs for different seeds.

        This calls the function twice, and works for JAX functions, whose operations
        TensorFlow does not know.
        """
        if _is_of_tensorflow(call.signature.endpoint):
            # Each call moves the seeds of the mirrors, and not the seeds of the model.
            return _are_equal(call.live(), call.live())
        fn, _ = _called(call.signature.endpoint)
        args = tf.nest.map_structure(_as_array, call.arguments.sent)
        seeds = self._graph.host_state.seeds
        outputs = []
        for offset in (0, 1):
            with keras.StatelessScope([(seed, seed.value + offset) for seed in seeds]) as scope:
                outputs.append(_arrays(fn(*args)))
                if not set(scope.state_mapping) <= set(map(id, seeds)):
                    return False
        return _are_equal(*outputs)

    def _uses_no_seed(self, signature: Signature) -> bool:
        """Return whether a function changes only seeds, and no output depends on them.

        The function is traced in a `StatelessScope`. There it does not change Keras
        variables, and the scope records which ones it would change.
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


def _by_endpoint(graph: ServableGraph, sample_inputs: Any) -> Mapping[str, Any] | None:
    """Return the samples by endpoint, or None if the sample is one batch for all endpoints."""
    if not isinstance(sample_inputs, Mapping) or not sample_inputs:
        return None
    signatures = graph.signatures()
    endpoints = {endpoint.name: endpoint.name for endpoint in graph.endpoints}
    endpoints |= {name: signature.endpoint.name for name, signature in signatures.items()}
    is_batch = any(sample_inputs.keys() <= set(each.inputs) for each in signatures.values())
    unknown = sample_inputs.keys() - endpoints.keys()
    if is_batch or unknown == sample_inputs.keys():
        return None
    if unknown:
        raise ExportValueError(
            f"Received sample_inputs for {sorted(map(str, unknown))}, and there is no such "
            f"endpoint. Expected some of {sorted(endpoints)}."
        )
    return {endpoints[name]: sample for name, sample in sample_inputs.items()}


def _resolution(signature: Signature, nodes: Sequence[Any]) -> float:
    """Return the resolution of the coarsest floats in the computation of a signature.

    TensorFlow cannot list the operations in a JAX function, so the dtypes of its layers
    count too.
    """
    found = dtypes(nodes)
    if not _is_of_tensorflow(signature.endpoint):
        layers = find_host_state([signature.endpoint.fn]).layers
        found |= {tf.as_dtype(layer.compute_dtype).as_datatype_enum for layer in layers}
    return resolution_of(found)


def _are_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def _is_of_tensorflow(endpoint: Endpoint) -> bool:
    """Return whether TensorFlow operations compute an endpoint, and not a JAX function."""
    is_function = isinstance(endpoint.fn, tf.types.experimental.GenericFunction)
    return is_function or current_backend().reads_live_values


def _called(endpoint: Endpoint) -> tuple[Any, Any]:
    """Return the function of an endpoint, and the specs of its arguments, or None if unknown."""
    fn = endpoint.fn
    if endpoint.signature is None and getattr(fn, "input_signature", None) is not None:
        return fn.python_function, fn.input_signature
    return fn, endpoint.signature


_NO_INFERENCE = "changes variables or draws random numbers, so calling it would disturb training"


def _obstacle(trace: Any) -> str | None:
    """Return the reason why the outputs of a trace cannot be compared, or None."""
    for name, output in named_outputs(trace.structured_outputs).items():
        if not isinstance(output, tf.Tensor):
            return (
                f"returns a {type(output).__name__} as '{name}'. A model server cannot return it. "
                "Return dense tensors instead, such as its `to_tensor()` or its components"
            )
    return None


def _arrays(returned: Any) -> dict[str, Any]:
    # `np.asarray` fails for scalar tensors of low precision.
    return {
        name: np.asarray(value.numpy() if isinstance(value, tf.Tensor) else value)
        for name, value in named_outputs(returned).items()
    }


def _as_array(item: Any) -> Any:
    return item.numpy() if isinstance(item, tf.Tensor) else item


def _specs(trace: Any) -> tuple[Any, ...]:
    positional, _ = trace.structured_input_signature
    return tuple(positional)
