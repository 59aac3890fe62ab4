"""An endpoint: a function with a name, its traces, and its signature.

Tracing runs Keras layers, so it must happen on the training thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from .._tensorflow import concrete_functions, saved_traces
from ..backends.backend import current_backend
from ..errors import ExportError, ExportValueError, error_like
from .outputs import check_outputs, flat_outputs


@dataclass(frozen=True)
class Endpoint:
    """A function that was registered to be served.

    Attributes:
        name: The name of the method and of the signature.
        fn: The function as it was registered.
        signature: One structure of `tf.TensorSpec`s per argument, or None for a traced
            `tf.function`, which has its own signature.
        function: The `tf.function` that computes the endpoint now.
        returned: The `tf.function` that computed the endpoint when it was registered.
            `add_endpoint` returned it to the user.
    """

    name: str
    fn: Any
    signature: Any
    function: Any
    returned: Any

    @classmethod
    def of(cls, name: str, fn: Any, signature: Any) -> Endpoint:
        """Make an endpoint for a function.

        The function is traced later, unless it is a `tf.function` that its owner has
        traced.
        """
        function = _function(name, fn, signature)
        return cls(name, fn, signature, function, returned=function)

    def renewed(self) -> Endpoint:
        """Return the same endpoint with a new `tf.function`, so that it is traced again.

        A `tf.function` that its owner has traced is kept, because only its owner can
        trace it again.
        """
        if self.signature is None:
            return self
        return replace(self, function=_function(self.name, self.fn, self.signature))

    def traces(self, options: tf.saved_model.SaveOptions | None) -> list[Any]:
        """Return the traces that will be saved with `options`. The first is the signature's.

        Raises:
            ExportError: If the endpoint cannot be traced with its signature.
        """
        try:
            traces = saved_traces(self.function, options)
        except Exception as error:
            hint = _hint(self.fn, self.signature)
            raise _misfit(self.name, self.signature, error, hint) from error
        if not traces:
            raise ExportValueError(
                f"The tf.function of endpoint '{self.name}' was only called with arguments that a "
                "SavedModel cannot hold. Expected tensors, numbers and strings. Call it with "
                "these, or pass an `input_signature`."
            )
        return traces


def signature_of(name: str, trace: Any) -> Any:
    """Return the function behind a signature. It is a trace whose outputs are flat.

    Raises:
        ExportValueError: If a signature cannot return what the trace returns.
    """
    outputs = trace.structured_outputs
    check_outputs(name, outputs)
    if flat_outputs(outputs) is None:
        return trace
    args, kwargs = trace.structured_input_signature

    def flat(*args: Any, **kwargs: Any) -> Any:
        return flat_outputs(trace(*args, **kwargs))

    return tf.function(flat, autograph=False).get_concrete_function(*args, **kwargs)


def _function(name: str, fn: Any, signature: Any) -> Any:
    """Return a `tf.function` that computes `fn`, or `fn` itself if its owner has traced it."""
    if signature is not None:
        try:
            return _traceable(fn, signature)
        except (TypeError, ValueError) as error:
            raise _misfit(name, signature, error) from error
    if not isinstance(fn, tf.types.experimental.GenericFunction):
        raise ExportValueError(
            f"Endpoint '{name}' has no `input_signature`, and its function is not a `tf.function`. "
            "Pass the shape and dtype of each argument:\n\n"
            f"archive.add_endpoint(\n    {name!r},\n    fn,\n"
            "    input_signature=[keras.InputSpec(shape=(None, 3), dtype='float32')],\n)"
        )
    if not concrete_functions(fn):
        raise ExportValueError(
            f"The tf.function of endpoint '{name}' has never been called, so the shapes of its "
            "arguments are unknown. Call it once, or pass an `input_signature`."
        )
    return fn


def _traceable(fn: Any, signature: Any) -> Any:
    function = current_backend().traceable(fn, signature)
    return tf.function(function, input_signature=signature, autograph=False)


def _misfit(name: str, signature: Any, error: Exception, hint: str = "") -> ExportError:
    if isinstance(error, ExportError):  # It says what was expected.
        return error_like(error)(f"Endpoint '{name}' cannot be exported. {error}{hint}")
    given = "" if signature is None else f" with input_signature={signature}"
    return error_like(error)(
        f"Endpoint '{name}' cannot be traced{given}. Expected one spec per positional argument of "
        f"its function. Tracing it raised {type(error).__name__}: {error}{hint}"
    )


def _hint(fn: Any, signature: Any) -> str:
    """Return a hint for an error, or an empty text.

    There is a hint if the function can be traced only for inputs of one size.
    """
    fixed = tf.nest.map_structure(_fixed, signature)
    if signature is None or fixed == signature:
        return ""
    try:
        _traceable(fn, fixed).get_concrete_function()
    except Exception:
        return ""
    return (
        "\n\nIt can be traced if no axis is free, so a layer in it needs fixed sizes. Pass an "
        "`endpoints` function that registers it for one size, and serve batches of that "
        "size:\n\n"
        f"archive.add_endpoint('serve', model, {fixed})"
    )


def _fixed(spec: tf.TensorSpec) -> tf.TensorSpec:
    if spec.shape.rank is None:
        return spec
    return tf.TensorSpec([axis or 1 for axis in spec.shape.as_list()], spec.dtype, spec.name)
