"""What is served is what was measured: endpoints, live and in the artifact, on the same inputs.

`expect` asks the live endpoints on the training thread, while the variables are
those of the snapshot. `check` asks the artifact on any thread, by TensorFlow's C
library in a process of its own, as a model server would.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf

from .c_library import run_apart
from .endpoint import Endpoint
from .errors import ExportValueError, ParityError
from .graph import ServableGraph
from .signatures import named_outputs
from .warmup import can_write_requests, read_requests, write_requests

# Operations that change a variable or table, or draw from a generator of their own: an
# endpoint with one of them is no inference, and calling it would disturb training.
_CHANGES_STATE = re.compile(
    r"(?!Stateless).*(Assign|CountUpTo|Resource(Sparse)?(Apply|Scatter)"
    r"|LookupTable(Insert|Import|Remove)|Enqueue|Dequeue|IteratorGetNext"
    r"|Random(?!IndexShuffle)|TruncatedNormal|Multinomial|Rng|Stateful(?!PartitionedCall)"
    r"|NonDeterministicInts|SampleDistorted|CandidateSampler|Fractional(Max|Avg)Pool$)"
)


# How many roundings of the largest value may meet in a small one.
_SUMS = 128


@dataclass(frozen=True)
class Expected:
    """What the endpoint behind a signature computed live.

    Attributes:
        signature: the signature's name.
        inputs: what it was given, by the signature's names.
        outputs: what it returned, by the signature's names.
        tolerance: by how much of itself rounding may move a value; see `_difference`.
    """

    signature: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    tolerance: float


@dataclass(frozen=True)
class _Call:
    """An inference endpoint, and arguments for it."""

    signatures: list[str]
    endpoint: Endpoint
    arguments: Sequence[Any]
    names: Sequence[str]
    tolerance: float

    def expected(self) -> list[Expected]:
        arrays = [np.asarray(item) for item in tf.nest.flatten(self.arguments)]
        inputs = dict(zip(self.names, arrays, strict=True))
        returned = named_outputs(self.endpoint.fn(*self.arguments))
        outputs = {name: np.asarray(value) for name, value in returned.items()}
        return [Expected(name, inputs, outputs, self.tolerance) for name in self.signatures]


class Probe:
    """Sample inputs, and the inference endpoints that take them.

    Args:
        graph: the traced endpoints.
        sample_inputs: one batch, nested as the model takes it; for an endpoint
            of several arguments a list or tuple of them.

    Raises:
        ExportValueError: no inference endpoint takes them.
    """

    def __init__(self, graph: ServableGraph, sample_inputs: Any) -> None:
        self.sample_inputs = sample_inputs
        calls: dict[str, _Call] = {}
        refused = []
        for name, (endpoint, trace) in graph.signatures().items():
            if endpoint.name in calls:
                calls[endpoint.name].signatures.append(name)
                continue
            nodes = _nodes(trace)
            if problem := _obstacle(trace, nodes):
                refused.append(f"Signature '{name}' {problem}")
                continue
            try:
                arguments = _arguments(trace, sample_inputs)
            except (TypeError, ValueError) as error:
                refused.append(
                    f"Signature '{name}' expects {_specs(trace)}, one batch, as the model is "
                    f"called with: {error}."
                )
            else:
                names = [spec.name for spec in tf.nest.flatten(_specs(trace))]
                call = _Call([name], endpoint, arguments, names, _tolerance(nodes))
                calls[endpoint.name] = call
        self._calls = list(calls.values())
        if not self._calls:
            raise ExportValueError(
                f"No endpoint can be compared on the sample_inputs. {' '.join(refused)}"
            )

    def expect(self) -> list[Expected]:
        """What the endpoints' functions compute now; on the thread that trains."""
        return [expected for call in self._calls for expected in call.expected()]


def _nodes(trace: Any) -> list[Any]:
    """The operations in a trace and in the functions it calls, as `NodeDef`s."""
    graph = trace.graph.as_graph_def()
    return [
        *graph.node,
        *(node for function in graph.library.function for node in function.node_def),
    ]


def _obstacle(trace: Any, nodes: Sequence[Any]) -> str | None:
    """Why what a trace computes cannot be compared, whatever the sample."""
    if any(_CHANGES_STATE.match(node.op) for node in nodes):
        return (
            "changes variables or draws random numbers, so that calling it would disturb training. "
            "Leave the sample_inputs out, or register an endpoint that does not."
        )
    for name, output in named_outputs(trace.structured_outputs).items():
        if not isinstance(output, tf.Tensor):
            return (
                f"returns a {type(output).__name__} as '{name}', which no server returns. Return "
                "dense tensors, such as its `to_tensor()` or its components."
            )
    return None


def check(directory: Path, expected: Sequence[Expected]) -> dict[str, float]:
    """Raise unless the artifact in `directory` computes what was expected.

    Where that can be done, the inputs are written into the artifact as warm-up
    requests, and it is these that are sent.

    Returns:
        The largest absolute difference in each output, by ``signature/output``.

    Raises:
        ParityError: an output differs by more than rounding, or is not finite.
        LoaderError: the artifact cannot be loaded or run.
    """
    calls = [(item.signature, item.inputs) for item in expected]
    if can_write_requests():
        write_requests(directory, calls)
        calls = list(read_requests(directory))
    results = run_apart(str(directory), calls)
    return {
        f"{item.signature}/{name}": _output_difference(name, item, outputs)
        for item, outputs in zip(expected, results, strict=True)
        for name in sorted(item.outputs.keys() | outputs.keys())
    }


def _output_difference(name: str, expected: Expected, outputs: Mapping[str, Any]) -> float:
    try:
        return _difference(expected.outputs.get(name), outputs.get(name), expected.tolerance)
    except ValueError as error:
        raise ParityError(
            f"Output '{name}' of signature '{expected.signature}' cannot be published: {error}."
        ) from None


def _difference(live: Any, served: Any, tolerance: float) -> float:
    """The largest difference between an output of the artifact and the live one.

    Raises:
        ValueError: it is more than rounding.
    """
    if live is None or served is None:
        raise ValueError("the artifact lacks it" if served is None else "only the artifact has it")
    if live.shape != served.shape:
        raise ValueError(f"its shape is {served.shape}, live it is {live.shape}")
    if not _is_floating(live):
        # Strings are bytes on one side, objects that hold bytes on the other.
        differ = np.sum(np.asarray(live, object) != np.asarray(served, object))
        if differ:
            raise ValueError(f"{differ} of its {live.size} values differ")
        return 0.0
    live, served = _wide(live), _wide(served)
    if not np.all(np.isfinite(live)):
        raise ValueError("the model itself computes a value that is not finite")
    if not np.all(np.isfinite(served)):
        raise ValueError("it is not finite")
    differences = np.abs(live - served)
    # A sum rounds with its largest part, which the largest value may tell of.
    largest = float(np.max(np.abs(live), initial=0.0))
    allowed = tolerance * np.abs(live) + min(tolerance, _SUMS * tolerance**2) * largest
    if np.any(differences > allowed):
        worst = np.unravel_index(np.argmax(differences - allowed), live.shape)
        raise ValueError(
            f"it differs by up to {differences[worst]:.3g} from {live[worst]:.3g}, of which "
            f"{allowed[worst]:.3g} is rounding"
        )
    return float(np.max(differences, initial=0.0))


def _arguments(trace: Any, sample_inputs: Any) -> Sequence[Any]:
    """The sample as the positional arguments of an endpoint, as tensors.

    Raises:
        TypeError, ValueError: it does not fit.
    """
    specs = _specs(trace)
    several = len(specs) > 1 and isinstance(sample_inputs, list | tuple)
    arguments = list(sample_inputs) if several else [sample_inputs]
    try:
        tf.nest.assert_same_structure(list(specs), arguments, check_types=False)
    except (TypeError, ValueError):
        # What TensorFlow says of it prints every value.
        received = tf.nest.map_structure(_brief, sample_inputs)
        raise ValueError(f"received {received!s:.200}") from None
    tensors = [
        tf.convert_to_tensor(item, spec.dtype)
        for spec, item in zip(tf.nest.flatten(specs), tf.nest.flatten(arguments), strict=True)
    ]
    for spec, tensor in zip(tf.nest.flatten(specs), tensors, strict=True):
        if not spec.shape.is_compatible_with(tensor.shape):
            raise ValueError(f"'{spec.name}' is of shape {spec.shape}, received {tensor.shape}")
    packed: Sequence[Any] = tf.nest.pack_sequence_as(list(specs), tensors)
    return packed


def _brief(item: Any) -> str:
    """What an array is, or else the type of a thing."""
    if hasattr(item, "shape") and hasattr(item, "dtype"):
        return f"{tf.dtypes.as_dtype(item.dtype).name}{tuple(item.shape)}"
    return type(item).__name__


def _specs(trace: Any) -> tuple[Any, ...]:
    positional, _ = trace.structured_input_signature
    return tuple(positional)


def _tolerance(nodes: Sequence[Any]) -> float:
    """What rounding may do: the root of the resolution of the coarsest numbers in a trace.

    Graphs are compiled: what is fused or summed in another order rounds otherwise.
    """
    numbers = {
        number
        for node in nodes
        for value in node.attr.values()
        for number in (value.type, *value.list.type)
        if number
    }
    kinds = [kind for kind in map(tf.dtypes.as_dtype, numbers) if kind.is_floating]
    finfo: Any = ml_dtypes.finfo
    resolutions = [float(finfo(kind.as_numpy_dtype).eps) for kind in kinds]
    is_tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
    if is_tf32 and tf.config.list_logical_devices("GPU"):
        resolutions.append(2.0**-10)  # How NVIDIA's GPUs multiply float32.
    return math.sqrt(max(resolutions, default=0.0))


def _is_floating(array: Any) -> bool:
    return array.dtype.kind in "fc" or array.dtype == ml_dtypes.bfloat16


def _wide(array: Any) -> Any:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
