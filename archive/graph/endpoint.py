"""An endpoint: a function with a name, its traces, and its signature.

Tracing runs Keras layers, so it belongs to the training thread.
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
    """An endpoint as it was registered.

    Attributes:
        name: its name as a method and as a signature.
        fn: what was registered.
        signature: one structure of `tf.TensorSpec` per argument; None for a
            traced `tf.function`, which carries its own.
        function: the `tf.function` that computes it now.
        returned: the one that computed it when it was registered.
    """

    name: str
    fn: Any
    signature: Any
    function: Any
    returned: Any

    @classmethod
    def of(cls, name: str, fn: Any, signature: Any) -> Endpoint:
        """An endpoint for a function that is yet to be traced, or was by its owner."""
        function = _function(name, fn, signature)
        return cls(name, fn, signature, function, returned=function)

    def renewed(self) -> Endpoint:
        """The same endpoint, to be traced again.

        What its owner traced stays as it is: only the owner can trace it again.
        """
        if self.signature is None:
            return self
        return replace(self, function=_function(self.name, self.fn, self.signature))

    def traces(self, options: tf.saved_model.SaveOptions | None) -> list[Any]:
        """Its traces as they will be saved with `options`; the first is the signature's.

        Raises:
            ExportError: it cannot be traced with its signature.
        """
        try:
            traces = saved_traces(self.function, options)
        except Exception as error:
            hint = _hint(self.fn, self.signature)
            raise _misfit(self.name, self.signature, error, hint) from error
        if not traces:
            raise ExportValueError(
                f"The tf.function of endpoint '{self.name}' was only called with arguments that a "
                "SavedModel cannot hold. Expected tensors, numbers and strings; pass an "
                "`input_signature` to export it with other ones."
            )
        return traces


def signature_of(name: str, trace: Any) -> Any:
    """The function behind a signature: a trace, with its outputs made flat.

    Raises:
        ExportValueError: it returns what a signature cannot.
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
    """A `tf.function` that computes `fn`; `fn` itself if its owner has traced it."""
    if signature is not None:
        try:
            return _traceable(fn, signature)
        except (TypeError, ValueError) as error:
            raise _misfit(name, signature, error) from error
    if not isinstance(fn, tf.types.experimental.GenericFunction):
        raise ExportValueError(
            f"Endpoint '{name}' has no input_signature, and its function is no `tf.function`. "
            "Give the shape and dtype of each argument:\n\n"
            f"archive.add_endpoint(\n    {name!r},\n    fn,\n"
            "    input_signature=[keras.InputSpec(shape=(None, 3), dtype='float32')],\n)"
        )
    if not concrete_functions(fn):
        raise ExportValueError(
            f"The tf.function of endpoint '{name}' has never been called, so the shapes of its "
            "arguments are not known. Call it once, or pass an `input_signature`."
        )
    return fn


def _traceable(fn: Any, signature: Any) -> Any:
    function = current_backend().traceable(fn, signature)
    return tf.function(function, input_signature=signature, autograph=False)


def _misfit(name: str, signature: Any, error: Exception, hint: str = "") -> ExportError:
    given = "" if signature is None else f" with input_signature={signature}"
    return error_like(error)(
        f"Endpoint '{name}' cannot be traced{given}. Expected one spec per positional argument of "
        f"its function, which says: {type(error).__name__}: {error}{hint}"
    )


def _hint(fn: Any, signature: Any) -> str:
    """What to write if a function can be traced for inputs of one size only."""
    fixed = tf.nest.map_structure(_fixed, signature)
    if signature is None or fixed == signature:
        return ""
    try:
        _traceable(fn, fixed).get_concrete_function()
    except Exception:
        return ""
    return (
        "\n\nIt can be traced if no axis is free, so a layer in it needs to know all sizes. Pass "
        "`endpoints` that register it for one size, and serve batches of that size:\n\n"
        f"archive.add_endpoint('serve', model, {fixed})"
    )


def _fixed(spec: tf.TensorSpec) -> tf.TensorSpec:
    if spec.shape.rank is None:
        return spec
    return tf.TensorSpec([axis or 1 for axis in spec.shape.as_list()], spec.dtype, spec.name)
