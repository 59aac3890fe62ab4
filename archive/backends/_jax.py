"""Calls to private API of JAX and of Keras on JAX, each with the reason for it.

They work with JAX 0.10 to 0.12 and Keras 3.15. `tests/on_jax/test_private_calls.py` fails if one of
them changes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import keras
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy, stablehlo
from jaxlib.mlir.passmanager import PassManager
from keras.src.backend.jax import nn

from ..errors import ExportError, ExportTypeError

# The newest version of StableHLO that TensorFlow 2.20 and 2.21 can read.
STABLEHLO = "1.8.0"

_WITHOUT_COMPOSITES = (
    "builtin.module(func.func(stablehlo-legalize-composite-to-call),inline,symbol-dce)"
)

# The beginnings of the names of functions that only JAX has on a processor.
_MISSING = ("lapack_", "blas_")

stablehlo.register_stablehlo_passes()


def portable_artifact(exported: Any) -> bytes:
    """Return the module of a `jax.export.Exported` in a form that TensorFlow can run.

    `mlir_module_serialized` is public, but TensorFlow cannot always use it. From JAX 0.11.2 on,
    its version is newer than TensorFlow can read, and no public function serializes a module
    for a chosen version. In addition, some operations, such as `erf` and `top_k`, are
    composites with a function that computes them. With free axes, TensorFlow finds no sizes for
    the arrays in that function. Its body is therefore put in the place of the composite.

    Raises:
        ExportTypeError: If the module calls a function that TensorFlow does not have.
    """
    with ir.Context() as context:
        stablehlo.register_dialect(context)
        sdy.register_dialect(context)  # Of the parts of arrays on several devices.
        module = stablehlo.deserialize_portable_artifact(context, exported.mlir_module_serialized)
        PassManager.parse(_WITHOUT_COMPOSITES).run(module.operation)
        missing = sorted(name for name in _called_functions(module) if name.startswith(_MISSING))
        if missing:
            raise ExportTypeError(
                f"The endpoint uses linear algebra for which JAX calls {missing}, such as an "
                "inverse, a decomposition or a solution of equations. TensorFlow does not have "
                "these functions, so a server could not run the endpoint. Leave that part out, or "
                "write it as a `tf.function` that calls the function that `add_endpoint` returned, "
                "and register it as an endpoint with an `input_signature`."
            )
        return bytes(stablehlo.serialize_portable_artifact(module, STABLEHLO))


def _called_functions(module: ir.Module) -> set[str]:
    """Return the names of the functions outside of a module that it calls."""
    names = set()

    def visit(operation: ir.Operation) -> ir.WalkResult:
        if operation.name == "stablehlo.custom_call":
            names.add(ir.StringAttr(operation.attributes["call_target_name"]).value)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return names


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Let Keras compute attention with operations that every device has.

    For half precision on an accelerator, Keras chooses a fused kernel of that accelerator. A
    module for other devices cannot contain it. `flash_attention=False` is public, but a layer
    reads it when it is created, and there is no setting for `keras.ops.dot_product_attention`.
    For float16, JAX uses products that processors do not have. This function therefore
    computes attention of float16 in float32.
    """
    attention = nn.dot_product_attention

    @functools.wraps(attention)
    def plain(query: Any, key: Any, value: Any, **options: Any) -> Any:
        dtype = keras.backend.result_type(query.dtype, key.dtype, value.dtype)
        if dtype == "float16":
            query, key, value = (keras.ops.cast(item, "float32") for item in (query, key, value))
        options["flash_attention"] = False
        return keras.ops.cast(attention(query, key, value, **options), dtype)

    nn.dot_product_attention = plain
    try:
        yield
    finally:
        nn.dot_product_attention = attention


def synchronize(model: keras.Model) -> None:
    """Give the variables of a model in training their values.

    While `fit` runs, the trainer has the values, and the variables have none. Keras does
    this itself when a callback reads its `model`. A training loop does not always do it.
    """
    sync = getattr(model, "jax_state_sync", None)
    if sync is not None:
        sync()


def trained_steps(model: keras.Model) -> Any | None:
    """Return the trainer's value of `optimizer.iterations`, or None if it does not hold one.

    Outside of `fit`, and after `synchronize`, the variable holds the value. Synchronizing all
    variables for one number would take a millisecond per batch.
    """
    state = getattr(model, "_jax_state", None)
    if not state or getattr(model, "_jax_state_synced", True):
        return None
    variables = state.get("optimizer_variables")
    if not variables:
        return None
    # `iterations` may be computed from another scalar, such as a count of batches.
    pairs = zip(model.optimizer.variables, variables, strict=True)
    counts = [(variable, value) for variable, value in pairs if not variable.shape]
    with keras.StatelessScope(counts):
        return keras.ops.convert_to_tensor(model.optimizer.iterations)


def is_compiled(fn: Any) -> bool:
    """Return whether a function comes from `jax.jit`. The class of these has no public name."""
    return isinstance(fn, type(_compiled))


@jax.jit
def _compiled() -> None:
    pass


def held_array(variable: keras.Variable) -> Any:
    """Return the array in a variable. `variable.value` may be cast, or come from a scope.

    If each of several processes has a copy of the array, this is the copy of this process.
    A program that uses it does not need the other processes.

    Raises:
        ExportError: If the variable has no array.
    """
    array = variable._value
    if array is None or (isinstance(array, jax.Array) and array.is_deleted()):
        raise ExportError(
            f"Variable '{variable.path}' has no value now, because a training step has taken its "
            "array. Assign what the step returned before you export, as in "
            "`for variable, value in zip(model.trainable_variables, values): "
            "variable.assign(value)`."
        )
    if isinstance(array, jax.Array) and array.is_fully_replicated:
        return array if array.is_fully_addressable else array.addressable_data(0)
    return array
