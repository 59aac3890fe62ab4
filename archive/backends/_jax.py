"""The calls into JAX and Keras's JAX trainer that have no public way, and the reason for each.

Tried with JAX 0.10.2 and Keras 3.15; `tests/on_jax/test_private_calls.py` fails when one of
them moves.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import keras
from jaxlib.mlir.dialects import stablehlo
from keras.src.backend.jax import nn

from ..errors import ExportError

# The newest version of StableHLO that TensorFlow 2.20 and 2.21 can read.
STABLEHLO = "1.8.0"


def portable_artifact(exported: Any) -> bytes:
    """The module of a `jax.export.Exported`, as TensorFlow can read it.

    `mlir_module_serialized` is public, and from JAX 0.11.2 on of a newer version than
    TensorFlow reads. No public way serializes for a chosen version.
    """
    artifact = stablehlo.serialize_portable_artifact_str(exported.mlir_module(), STABLEHLO)
    return bytes(artifact)


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Let Keras compute attention with operations that every device has.

    For half precision on an accelerator, Keras chooses a fused kernel of that accelerator. A
    module for other devices cannot contain it. `flash_attention=False` is public, but a layer
    reads it when it is created, and there is no setting for `keras.ops.dot_product_attention`.
    JAX multiplies float16 in a way that processors do not have, so it becomes float32 here.
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

    While `fit` runs, the trainer has the values, and the variables have none. Keras
    does this itself wherever a callback asks for its `model`; a loop may not.
    """
    sync = getattr(model, "jax_state_sync", None)
    if sync is not None:
        sync()


def trained_steps(model: keras.Model) -> Any | None:
    """`optimizer.iterations` as the trainer has it, or None outside `fit`.

    To synchronize all variables for one number would take a millisecond a batch.
    """
    state = getattr(model, "_jax_state", None)
    if not state or getattr(model, "_jax_state_synced", True):
        return None
    variables = state.get("optimizer_variables")
    if not variables:
        return None
    # Scalars only: `iterations` may be computed from a count of batches.
    pairs = zip(model.optimizer.variables, variables, strict=True)
    counts = [(variable, value) for variable, value in pairs if not variable.shape]
    with keras.StatelessScope(counts):
        return keras.ops.convert_to_tensor(model.optimizer.iterations)


def is_compiled(fn: Any) -> bool:
    """Whether `jax.jit` returned a function. Its class has no public name."""
    return isinstance(fn, type(_compiled))


@jax.jit
def _compiled() -> None:
    pass


def held_array(variable: keras.Variable) -> Any:
    """The array in a variable. `variable.value` may be cast, or another one in a scope.

    If each of several processes has a copy, it is that of this process. A program that gets
    it does not need the others.

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
