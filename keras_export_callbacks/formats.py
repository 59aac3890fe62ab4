"""Functions for `extra_files` that write the model in another format."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from .archive.checks import is_real
from .archive.errors import ExportError, ExportTypeError, ExportValueError, ParityError
from .archive.parity.compare import Expected, compare

__all__ = ["litert"]

Quantize = Literal["float16", "int8"]

# The distance from 1 to the next larger float16.
_HALF = 2.0**-10

# How the converter names an operation, and its place in the graph.
_OPERATION = re.compile(r'fused\["(\w+):", "([^"]+)"')

# TensorFlow's interpreter says this each time it is made.
_DEPRECATED = r"\s*Warning: tf.lite.Interpreter is deprecated"


def litert(
    endpoint: str = "serve",
    *,
    quantize: Quantize | None = None,
    representative_inputs: Any = None,
    max_difference: float | None = None,
) -> LiteRT:
    """Return a function for `extra_files` that converts an endpoint to LiteRT (TensorFlow Lite).

    The conversion runs on the thread that writes the version, and takes a second or more.
    Training waits for it only with ``background=False``.

    With `sample_inputs`, LiteRT runs the file before the version is published, and its
    outputs are compared with the model's outputs. They may differ by `max_difference`. If
    they differ by more, the version is not published. The manifest has the largest
    difference (``record.parity.files``). The comparison uses the package `ai-edge-litert`
    if it is installed, or else `tf.lite.Interpreter`.

    Dense, convolutional, embedding and attention layers and `StringLookup` were converted
    with TensorFlow 2.21 and compared in this way, also on JAX. LSTM and GRU need
    ``unroll=True``. `TextVectorization`, layers that compute in half precision and
    quantized layers could not be converted.

    Args:
        endpoint: String. The name of the endpoint to convert.
        quantize: String. ``"float16"`` stores weights as float16, in half the bytes.
            ``"int8"`` stores most weights as int8, in a quarter of the bytes. None stores
            them as they are.
        representative_inputs: Array, or dict of arrays by the names of the inputs if the
            endpoint has several. A batch of inputs for ``quantize="int8"``. LiteRT then also
            computes in int8 where it can, with the ranges of values that it sees for this
            batch. Use some hundred rows of the training data.
        max_difference: Float. The largest allowed absolute difference of an output. By
            default, outputs may differ by rounding. With ``quantize="int8"``, any difference
            is allowed by default.

    Raises:
        ExportError: If an argument cannot be used.

    Examples:
        >>> import keras
        >>> from keras_export_callbacks import Exporter
        >>> from keras_export_callbacks.formats import litert
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> files = {"model.tflite": litert(quantize="float16")}
        >>> with Exporter("edge", model, extra_files=files, log_dir=None) as exporter:
        ...     record = exporter.export().result()
        >>> (record.path / "assets.extra" / "model.tflite").read_bytes()[4:8]
        b'TFL3'
    """
    return LiteRT(endpoint, quantize, representative_inputs, max_difference)


@dataclass(frozen=True)
class LiteRT:
    """The function that `litert` returns. `litert` describes its attributes."""

    endpoint: str
    quantize: Quantize | None
    representative_inputs: Any
    max_difference: float | None

    def __post_init__(self) -> None:
        if not isinstance(self.endpoint, str):
            raise ExportTypeError(
                f"Received endpoint={self.endpoint!r} of type {type(self.endpoint)}. Expected the "
                "name of an endpoint, such as 'serve'."
            )
        if self.quantize not in (None, "float16", "int8"):
            raise ExportValueError(
                f"Received quantize={self.quantize!r}. Expected None, 'float16' or 'int8'."
            )
        if self.representative_inputs is not None and self.quantize != "int8":
            raise ExportValueError(
                f"Received representative_inputs with quantize={self.quantize!r}. Only "
                "quantize='int8' uses them."
            )
        given = self.representative_inputs
        for array in given.values() if isinstance(given, Mapping) else [given]:
            if array is not None and not len(array if np.shape(array) else ()):
                raise ExportValueError(
                    f"Received representative_inputs with {array!r:.80}. Expected an array of at "
                    "least one row."
                )
        limit = self.max_difference
        if limit is not None and not (is_real(limit) and limit >= 0):
            raise ExportValueError(
                f"Received max_difference={limit!r}. Expected a number of at least 0."
            )

    @property
    def needs_sample(self) -> bool:
        """Whether the file must be compared before it is published."""
        return self.max_difference is not None

    def __call__(self, saved_model_dir: Path) -> bytes:
        """Return the endpoint of a SavedModel as the contents of a ``.tflite`` file."""
        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(saved_model_dir), signature_keys=[self.endpoint]
        )
        if self.quantize is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if self.quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if self.representative_inputs is not None:
            _ignore_deprecation()
            rows = list(self._representative_rows(saved_model_dir))
            converter.representative_dataset = lambda: iter(rows)
        try:
            return bytes(converter.convert())
        except Exception as error:
            raise ExportError(
                f"LiteRT cannot convert endpoint {self.endpoint!r}{_cause(str(error))}"
            ) from error

    def compare(self, content: bytes, expected: Sequence[Expected]) -> float | None:
        """Compare the outputs of a file with the model's outputs.

        Args:
            content: The contents of the file.
            expected: The outputs of the model for each signature.

        Returns:
            The largest absolute difference. None if the endpoint is not among `expected`.

        Raises:
            ParityError: If the outputs differ by more than is allowed, or if
                `max_difference` is given and the endpoint is not among `expected`.
        """
        of_endpoint = next((each for each in expected if each.signature == self.endpoint), None)
        if of_endpoint is None:
            if self.needs_sample:
                raise ParityError(
                    f"Endpoint {self.endpoint!r} was not compared with the model, so LiteRT's "
                    f"outputs have nothing to be compared with. Received max_difference="
                    f"{self.max_difference:.3g}. Pass a sample for this endpoint."
                )
            return None
        outputs = _run(content, self.endpoint, of_endpoint.inputs)
        # Int8 has no rounding that is known beforehand.
        if self.quantize != "int8" and self.max_difference is None:
            half = _HALF if self.quantize == "float16" else 0.0
            rounded = replace(of_endpoint, resolution=max(of_endpoint.resolution, half))
            return max(one.found for one in compare(rounded, outputs).values())
        found = max(_distance(of_endpoint.outputs[name], outputs[name]) for name in outputs)
        if self.max_difference is not None and not found <= self.max_difference:
            raise ParityError(
                f"LiteRT's outputs differ by {found:.3g} from the model's outputs. At most "
                f"max_difference={self.max_difference:.3g} is allowed."
            )
        return found

    def _representative_rows(self, saved_model_dir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the representative inputs row by row, because LiteRT looks at each row alone."""
        loaded = tf.saved_model.load(str(saved_model_dir))
        specs = loaded.signatures[self.endpoint].structured_input_signature[1]
        given = self.representative_inputs
        if not isinstance(given, Mapping) and len(specs) == 1:
            given = dict.fromkeys(specs, given)
        if not isinstance(given, Mapping) or given.keys() != specs.keys():
            raise ExportValueError(
                f"Received representative_inputs of type {type(given)}. Expected a dict of arrays "
                f"with the names {sorted(specs)}."
            )
        arrays = {
            name: np.asarray(given[name], spec.dtype.as_numpy_dtype) for name, spec in specs.items()
        }
        for row in range(min(len(array) for array in arrays.values())):
            yield self.endpoint, {name: array[row : row + 1] for name, array in arrays.items()}


def _cause(message: str) -> str:
    """Return the end of an error message, made of a message of the converter.

    It names the operation that cannot be converted. If the message names none, it is the
    beginning of that message.
    """
    found = _OPERATION.search(message)
    if found is None:
        return f": {' '.join(message.split()):.500}"
    place = found[2].split("@")[0]
    return (
        f", because it cannot convert the operation {found[1]} of '{place}'. Leave out the file, "
        "or convert an endpoint without this operation."
    )


def _run(content: bytes, endpoint: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Run a file in LiteRT, and return its outputs by name."""
    if find_spec("ai_edge_litert") is not None:
        from ai_edge_litert.interpreter import Interpreter
    else:
        _ignore_deprecation()
        Interpreter = tf.lite.Interpreter  # noqa: N806
    runner = Interpreter(model_content=content).get_signature_runner(endpoint)
    outputs: dict[str, Any] = runner(**inputs)
    return outputs


def _ignore_deprecation() -> None:
    """Ignore a warning of TensorFlow's interpreter, which the converter uses too.

    `warnings.catch_warnings` would also act on the thread that trains.
    """
    warnings.filterwarnings("ignore", _DEPRECATED, UserWarning)


def _distance(one: Any, other: Any) -> float:
    """Return the largest absolute difference of two arrays.

    If they hold neither real numbers nor bools, it is 1 if any value differs, and else 0.
    """
    if np.shape(one) != np.shape(other):
        raise ParityError(f"LiteRT's output has shape {np.shape(other)}, expected {np.shape(one)}.")
    if one.dtype.kind not in "fiub":
        return float(not np.array_equal(one, other))
    differences = np.abs(one.astype("float64") - other.astype("float64"))
    return float(np.max(differences, initial=0.0))
