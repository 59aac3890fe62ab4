"""The JAX backend. It reads variables between two steps, without a copy where possible.

JAX's arrays never change, but `fit` gives the buffers of a step's state to the next
step, which may write to them. A NumPy view of an array in host memory protects its
buffer: while the view exists, XLA copies the buffer instead of taking it over. There are
no such views of an accelerator's memory, so one program copies all arrays there.

A SavedModel holds TensorFlow variables. Each Keras variable therefore has a mirror. This
is a `tf.Variable` that stands for it in the checkpoint. A mirror keeps the value that the
variable had when the mirror was made or refreshed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import keras
import numpy as np
import tensorflow as tf

from ..errors import ExportError, ExportTypeError
from . import _jax, tensorflow
from ._jax import held_array
from .interface import Reading
from .lowering import compiled, lowered

# A trace reads the mirrors, and their values may be old.
reads_live_values = False

# This backend does not use `jax2tf`, and it finds the variables itself.
ignored_options = frozenset({"jax2tf_kwargs", "is_static"})

# Each process holds all values, so only one of them needs to read.
reads_together = False

# The mirror of each variable by the variable's `id`, and the variable by the mirror's `id`.
_mirrors: dict[int, Any] = {}
_sources: dict[int, weakref.ref[Any]] = {}


def stored(variable: keras.Variable) -> Any:
    """Return the mirror of a variable. It is made at the first call."""
    mirror = _mirrors.get(id(variable))
    if mirror is None:
        with tf.init_scope():
            mirror = tf.Variable(
                np.asarray(_whole(held_array(variable))),
                trainable=variable.trainable,
                name=variable.name,
            )
        _mirrors[id(variable)] = mirror
        _sources[id(mirror)] = weakref.ref(variable)
        weakref.finalize(variable, _forget, id(variable), id(mirror))
    return mirror


def _source(mirror: Any) -> keras.Variable | None:
    """Return the variable that a mirror stands for, or None if it does not exist any more.

    For a `tf.Variable` that is not a mirror, return None.
    """
    source = _sources.get(id(mirror))
    return None if source is None else source()


def _forget(variable: int, mirror: int) -> None:
    _mirrors.pop(variable, None)
    _sources.pop(mirror, None)


def traceable(fn: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """Return a TensorFlow function that computes the same as `fn`. It may be `fn` itself."""
    if _jax.is_compiled(fn):
        raise ExportTypeError(
            f"Received {fn!r}, which `jax.jit` returned. It keeps the values that variables had "
            "when it was compiled. Pass the function that you gave to `jax.jit`. A server compiles "
            "it anyway."
        )
    is_of_tensorflow = isinstance(fn, tf.types.experimental.GenericFunction)
    return fn if is_of_tensorflow else lowered(fn, signature, stored)


def program(fn: Callable[..., Any], trace: Any, args: Sequence[Any]) -> Callable[[], Any]:
    """Return a compiled function, which is much faster than the Python code of `fn`."""
    return compiled(fn, tf.nest.map_structure(np.asarray, args))


def exact_products() -> AbstractContextManager[None]:
    """Let products of float32 have the precision of float32.

    By default, GPUs round the factors to TF32 and TPUs round them to bfloat16:
    https://docs.jax.dev/en/latest/_autosummary/jax.default_matmul_precision.html
    """
    precision: AbstractContextManager[None] = jax.default_matmul_precision("highest")
    return precision


def refresh(variables: Sequence[Any]) -> None:
    """Copy the values of the live variables into their mirrors."""
    for mirror in variables:
        if (source := _source(mirror)) is not None:
            mirror.assign(_whole(held_array(source)))


def reader(variables: Sequence[Any], tables: Sequence[Any]) -> JaxReader:
    """Return a reader of mutable tables, of the variables of mirrors, and of `tf.Variable`s."""
    return JaxReader(variables, tables)


def synchronize(model: keras.Model) -> None:
    """Give the variables of a model their current values while `fit` runs."""
    _jax.synchronize(model)


def steps_taken(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> int:
    """Return the number of steps that the optimizer of a model has taken."""
    if optimizer is getattr(model, "optimizer", None):
        steps = _jax.trained_steps(model)
        if steps is not None:
            return int(steps)
    for variable in optimizer.variables:
        if not variable.shape:
            held_array(variable)  # Its error says what to do if there is no value.
    return int(optimizer.iterations)


def check_distribution(model: keras.Model) -> None:
    """Raise an error if no single process holds all variables of a model."""
    for variable in model.variables:
        array = held_array(variable)
        if isinstance(array, jax.Array) and not _is_readable(array):
            raise ExportError(
                f"Variable '{variable.path}' is spread over several processes, so that none of "
                "them can export it. Train with `keras.distribution.DataParallel`, or with "
                "`ModelParallel` on the devices of one process."
            )


def is_publisher(model: keras.Model) -> bool:
    """Return whether this process trains alone, or is the first of several processes."""
    return bool(jax.process_index() == 0)


class JaxReader:
    """Reads Keras variables, `tf.Variable`s and mutable tables at one point in time.

    Args:
        variables: A sequence of mirrors, and of `tf.Variable`s that are not mirrors. For a
            mirror, the reader reads its Keras variable.
        tables: A sequence of mutable lookup tables.
    """

    def __init__(self, variables: Sequence[Any], tables: Sequence[Any]) -> None:
        sources = [_source(variable) for variable in variables]
        self._is_mirror = [source is not None for source in sources]
        # The variables are kept here, because a trace still uses a variable after the variable's
        # owner has replaced it.
        self._sources = [source for source in sources if source is not None]
        others = [
            variable
            for variable, is_mirror in zip(variables, self._is_mirror, strict=True)
            if not is_mirror
        ]
        self._others = tensorflow.StateReader(others, tables)

    def trace(self) -> None:
        """Make later reads faster."""
        self._others.trace()

    def read(self) -> Reading:
        """Read the values. This must be called on the training thread."""
        arrays = [held_array(source) for source in self._sources]
        kept, others = _keep(arrays), self._others.read()

        def tensors() -> list[tf.Tensor]:
            ours, theirs = map(tf.convert_to_tensor, kept()), iter(others.tensors())
            return [*(next(ours if is_ours else theirs) for is_ours in self._is_mirror), *theirs]

        return Reading(tensors, size=others.size + sum(array.nbytes for array in arrays))


@jax.jit
def _copied(arrays: list[jax.Array]) -> list[jax.Array]:
    return [jax.numpy.copy(array) for array in arrays]


def _keep(arrays: Sequence[Any]) -> Callable[[], list[Any]]:
    """Keep the values of arrays, even if later steps write to their buffers.

    Returns:
        A function that returns the values in host memory.
    """
    if all(_is_on_host(array) for array in arrays):
        views = [_whole(array) for array in arrays]
        return lambda: views
    copies = _copied(list(arrays))

    def on_host() -> list[Any]:
        for copy in copies:
            # All copies start at once. This call waits for host memory, so it is made here, and
            # not on the training thread.
            copy.copy_to_host_async()
        return [_whole(copy) for copy in copies]

    return on_host


def _is_on_host(array: Any) -> bool:
    return all(device.platform == "cpu" for device in array.devices())


def _is_readable(array: jax.Array) -> bool:
    return bool(array.is_fully_replicated or array.is_fully_addressable)


def _whole(array: Any) -> Any:
    """Return an array in host memory. Its parts may be spread over devices."""
    if not isinstance(array, jax.Array) or array.is_fully_replicated:
        return np.asarray(array)
    whole = np.empty(array.shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            whole[shard.index] = np.asarray(shard.data)
    return whole
