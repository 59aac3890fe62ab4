"""Keras on JAX: variables are read between two steps, without a copy where that is possible.

JAX's arrays never change, but `fit` gives the buffers of a step's state to the next
step, which may write into them. A NumPy view of an array in host memory keeps its
buffer: XLA copies it then, instead of taking it over. Memory of an accelerator has no
such views, so that one program copies everything there.

A SavedModel holds variables of TensorFlow. Each variable of Keras has a mirror, a
`tf.Variable` that names a place in the checkpoint. Its value is that of the moment
when it was made.
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

# A mirror knows nothing but its own values, which may be old.
reads_live_values = False

# `jax2tf` and its options are not used, and variables are found without being told.
ignored_options = frozenset({"jax2tf_kwargs", "is_static"})

# Every process has what it needs to know, so that only one of them has to read.
reads_together = False

# By the identity of a variable: its mirror; and by that of the mirror: the variable.
_mirrors: dict[int, Any] = {}
_sources: dict[int, weakref.ref[Any]] = {}


def stored(variable: keras.Variable) -> Any:
    """The mirror of a variable, made when it is first asked for."""
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
    """The variable that a mirror stands for, or None if there is none, or none any more."""
    source = _sources.get(id(mirror))
    return None if source is None else source()


def _forget(variable: int, mirror: int) -> None:
    _mirrors.pop(variable, None)
    _sources.pop(mirror, None)


def traceable(fn: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """A function of TensorFlow that computes what `fn` does; `fn` itself if it is one."""
    if _jax.is_compiled(fn):
        raise ExportTypeError(
            f"Received {fn!r}, which `jax.jit` returned. It keeps the values that variables had "
            "when it was compiled. Pass the function that you gave to `jax.jit`. A server compiles "
            "it anyway."
        )
    is_of_tensorflow = isinstance(fn, tf.types.experimental.GenericFunction)
    return fn if is_of_tensorflow else lowered(fn, signature, stored)


def program(fn: Callable[..., Any], trace: Any, args: Sequence[Any]) -> Callable[[], Any]:
    """A function compiled for its arguments, which is much faster than its own code."""
    return compiled(fn, tf.nest.map_structure(np.asarray, args))


def exact_products() -> AbstractContextManager[None]:
    """Let products of float32 have the precision of float32.

    By default, GPUs round the factors to TF32 and TPUs round them to bfloat16:
    https://docs.jax.dev/en/latest/_autosummary/jax.default_matmul_precision.html
    """
    precision: AbstractContextManager[None] = jax.default_matmul_precision("highest")
    return precision


def refresh(variables: Sequence[Any]) -> None:
    """Let mirrors have the values of the variables that they stand for."""
    for mirror in variables:
        if (source := _source(mirror)) is not None:
            mirror.assign(_whole(held_array(source)))


def reader(variables: Sequence[Any], tables: Sequence[Any]) -> JaxReader:
    """A reader of the variables behind mirrors, of others of TensorFlow's, and of tables."""
    return JaxReader(variables, tables)


def synchronize(model: keras.Model) -> None:
    """Give the variables of a model in training their values of this moment."""
    _jax.synchronize(model)


def steps_taken(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> int:
    """How many steps a model's optimizer has taken."""
    if optimizer is getattr(model, "optimizer", None):
        steps = _jax.trained_steps(model)
        if steps is not None:
            return int(steps)
    for variable in optimizer.variables:
        if not variable.shape:
            held_array(variable)  # It raises an error that says what to do.
    return int(optimizer.iterations)


def check_distribution(model: keras.Model) -> None:
    """Raise if no process has all of a model's variables."""
    for variable in model.variables:
        array = held_array(variable)
        if isinstance(array, jax.Array) and not _is_readable(array):
            raise ExportError(
                f"Variable '{variable.path}' is spread over several processes, so that none of "
                "them can export it. Train with `keras.distribution.DataParallel`, or with "
                "`ModelParallel` on the devices of one process."
            )


def is_publisher(model: keras.Model) -> bool:
    """Whether this process is the first of those that train, or the only one."""
    return bool(jax.process_index() == 0)


class JaxReader:
    """Reads what variables of Keras hold, and what TensorFlow's do.

    Args:
        variables: mirrors, and `tf.Variable`s that stand for nothing else.
        tables: mutable lookup tables.
    """

    def __init__(self, variables: Sequence[Any], tables: Sequence[Any]) -> None:
        sources = [_source(variable) for variable in variables]
        self._is_mirror = [source is not None for source in sources]
        # A function that was traced with a variable goes on with it when its owner has another.
        self._sources = [source for source in sources if source is not None]
        others = [
            variable
            for variable, is_mirror in zip(variables, self._is_mirror, strict=True)
            if not is_mirror
        ]
        self._others = tensorflow.StateReader(others, tables)

    def trace(self) -> None:
        """Make the following reads fast."""
        self._others.trace()

    def read(self) -> Reading:
        """Read, on the thread that trains."""
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
    """Keep what arrays hold, whatever becomes of their buffers; gives it in host memory."""
    if all(_is_on_host(array) for array in arrays):
        views = [_whole(array) for array in arrays]
        return lambda: views
    copies = _copied(list(arrays))

    def on_host() -> list[Any]:
        for copy in copies:
            copy.copy_to_host_async()  # All at once. It waits for memory, so training does not.
        return [_whole(copy) for copy in copies]

    return on_host


def _is_on_host(array: Any) -> bool:
    return all(device.platform == "cpu" for device in array.devices())


def _is_readable(array: jax.Array) -> bool:
    return bool(array.is_fully_replicated or array.is_fully_addressable)


def _whole(array: Any) -> Any:
    """An array in host memory, put together if it is spread over devices."""
    if not isinstance(array, jax.Array) or array.is_fully_replicated:
        return np.asarray(array)
    whole = np.empty(array.shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            whole[shard.index] = np.asarray(shard.data)
    return whole
