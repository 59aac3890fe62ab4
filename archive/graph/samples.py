"""A sample batch, in the form that `fit` gives a model, and in that of a client's request.

The two forms can differ. `fit` does not cast integers, even if the signature has another
dtype. A client sends the dtypes of the signature. The comparison of a model with its
artifact is meaningful only if each of them gets its own form of the sample.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..errors import ExportValueError
from ._keras import fed_inputs

# A batch that the model is called with. It is set while endpoints are registered and traced.
_sample: ContextVar[Any] = ContextVar("sample", default=None)

_Scalar = bool | int | float | str | bytes | np.generic


@contextlib.contextmanager
def known_sample(sample_inputs: Any) -> Iterator[None]:
    """Let `call_dtypes` use a batch that the model is called with. None stands for no batch."""
    token = _sample.set(sample_inputs)
    try:
        yield
    finally:
        _sample.reset(token)


def call_dtypes(model: keras.Model, specs: Sequence[Any]) -> list[Any] | None:
    """Return the dtypes that a model is called with, or None if they are unknown.

    There is one dtype per leaf of `specs`. The dtypes are those of the batches of `fit`,
    or else of `known_sample`. The model casts floats itself, so the dtype in `specs` is
    used for floats.

    Args:
        model: A model that records the shapes that it is called with, but not the
            dtypes.
        specs: One structure of `tf.TensorSpec`s per argument of the call.

    Raises:
        ExportValueError: If the sample has other dtypes than the batches of `fit`.
    """
    fed, sample = _items(specs, fed_inputs(model)), _items(specs, _sample.get())
    if not sample and isinstance(_sample.get(), Mapping):  # It may be by endpoint.
        found = (_items(specs, each) for each in _sample.get().values())
        sample = next(filter(None, found), [])
    if fed and sample:
        _check_alike(model, fed, sample)
    if not fed and not all(_tells_dtype(item) for _, item in sample):
        return None
    return [_dtype(spec, item) for spec, item in fed or sample] or None


def _items(specs: Sequence[Any], source: Any) -> list[tuple[tf.TensorSpec, Any]]:
    """Return each leaf of `specs` with its part of a batch.

    The list is empty if the batch does not match `specs`.
    """
    if source is None:
        return []
    try:
        pairs = _aligned(specs, source)
        _check_shapes([spec for spec, _ in pairs], [_as_array(item) for _, item in pairs])
    except (TypeError, ValueError):
        return []
    return pairs


def _dtype(spec: tf.TensorSpec, item: Any) -> Any:
    """Return the dtype of an array.

    For floats it is the dtype of the spec, because the model casts them.
    """
    dtype = tf.as_dtype(_as_array(item).dtype)
    return spec.dtype if dtype.is_floating else dtype


def _tells_dtype(item: Any) -> bool:
    """Return whether `item` has a certain dtype. Python's numbers fit several dtypes."""
    is_array = not isinstance(item, list | tuple | _Scalar)
    return is_array or np.asarray(item).dtype.kind not in "bifu"


def _check_alike(
    model: keras.Model,
    fed: Sequence[tuple[tf.TensorSpec, Any]],
    sample: Sequence[tuple[tf.TensorSpec, Any]],
) -> None:
    """Raise an error if a sample has other dtypes than `fit` feeds.

    Lists of numbers have no certain dtype, so they cause no error.
    """
    for (spec, ours), (_, theirs) in zip(fed, sample, strict=True):
        wanted, given = _dtype(spec, ours), _dtype(spec, theirs)
        if wanted != given and _tells_dtype(theirs):
            raise ExportValueError(
                f"Received sample_inputs of {given.name}. `fit` calls model '{model.name}' with "
                f"{wanted.name}. Pass a batch, as `fit` gets it."
            )


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call of an endpoint.

    Attributes:
        live: The positional arguments, as `fit` would pass them.
        sent: The same arguments, with the dtypes and ranks of the signature.
        inputs: The arrays in `sent`, by the names of the signature's inputs.
    """

    live: Sequence[Any]
    sent: Sequence[Any]
    inputs: Mapping[str, Any]

    @property
    def are_equal(self) -> bool:
        """Whether the model gets exactly what a client sends."""
        pairs = zip(tf.nest.flatten(self.live), tf.nest.flatten(self.sent), strict=True)
        return all(live is sent for live, sent in pairs)


def arguments(specs: Sequence[Any], names: Sequence[str], sample_inputs: Any) -> Arguments:
    """Make the arguments of an endpoint from a sample.

    Args:
        specs: One structure per positional argument. A tensor replaces each
            `tf.TensorSpec`. Other values, such as a default, are kept.
        names: The names of the signature's inputs, in the order of `specs`.
        sample_inputs: One batch, nested as the endpoint takes it. If the endpoint takes
            several arguments, this is a list or tuple with one item per argument.

    Raises:
        TypeError: If the sample has a dtype that does not match the specs.
        ValueError: If the sample has a structure or shape that does not match the
            specs.
    """
    wanted = _leaves(specs)
    live = [_as_fitted(item, spec) for spec, item in _aligned(specs, sample_inputs)]
    sent = [
        _as_sent(tensor, spec, name) for tensor, spec, name in zip(live, wanted, names, strict=True)
    ]
    _check_shapes(wanted, sent, names, live)
    return Arguments(
        live=_packed(specs, live),
        sent=_packed(specs, sent),
        inputs={name: tensor.numpy() for name, tensor in zip(names, sent, strict=True)},
    )


def _leaves(specs: Any) -> list[tf.TensorSpec]:
    return [spec for spec in tf.nest.flatten(specs) if isinstance(spec, tf.TensorSpec)]


def _packed(specs: Sequence[Any], tensors: Sequence[Any]) -> Sequence[Any]:
    """Return `specs` with each `tf.TensorSpec` replaced by its tensor."""
    left = iter(tensors)
    flat = [
        next(left) if isinstance(item, tf.TensorSpec) else item for item in tf.nest.flatten(specs)
    ]
    packed: Sequence[Any] = tf.nest.pack_sequence_as(list(specs), flat)
    return packed


def _aligned(specs: Sequence[Any], sample_inputs: Any) -> list[tuple[tf.TensorSpec, Any]]:
    """Return each leaf of `specs` with its part of a sample.

    Raises:
        ValueError: If the sample has another structure.
    """
    taking = [spec for spec in specs if _leaves(spec)]
    several = len(taking) > 1 and isinstance(sample_inputs, list | tuple)
    samples = list(sample_inputs) if several else [sample_inputs]
    try:
        if len(samples) != len(taking):
            raise ValueError
        return [
            pair
            for spec, sample in zip(taking, samples, strict=True)
            for pair in _pairs(spec, sample)
        ]
    except ValueError:
        # Only describe the arrays: their contents would fill pages.
        received = tf.nest.map_structure(_brief, sample_inputs)
        raise ValueError(f"received {received!s:.200}") from None


def _pairs(spec: Any, sample: Any) -> Iterator[tuple[tf.TensorSpec, Any]]:
    """Yield each leaf of `spec` with its part of a sample, in the order of `tf.nest`.

    Raises:
        ValueError: If the sample has another structure.
    """
    if isinstance(spec, Mapping):
        if not isinstance(sample, Mapping) or not spec.keys() <= sample.keys():
            raise ValueError
        for key in sorted(spec):
            yield from _pairs(spec[key], sample[key])
    elif isinstance(spec, list | tuple):
        if isinstance(sample, Mapping):  # Keras also finds inputs by name.
            sample = [sample[_name_in(item, sample)] for item in spec]
        if not isinstance(sample, list | tuple) or len(sample) != len(spec):
            raise ValueError
        for item, part in zip(spec, sample, strict=True):
            yield from _pairs(item, part)
    elif isinstance(spec, tf.TensorSpec):
        if isinstance(sample, Mapping) or not _is_array(sample):
            raise ValueError
        yield spec, sample


def _name_in(spec: Any, sample: Mapping[str, Any]) -> str:
    name = spec.name if isinstance(spec, tf.TensorSpec) else None
    if name not in sample:
        raise ValueError
    return str(name)


def _is_array(item: Any) -> bool:
    """Return whether `item` is a single array.

    A list of numbers is a single array, but a list of arrays is not.
    """
    if isinstance(item, list | tuple):
        return all(isinstance(part, list | tuple | _Scalar) and _is_array(part) for part in item)
    return True


def _as_fitted(item: Any, spec: tf.TensorSpec) -> tf.Tensor:
    """Return an array as `fit` gives it to the model. Only floats are cast."""
    if not _tells_dtype(item) and spec.dtype != tf.string:
        return tf.convert_to_tensor(np.asarray(item).tolist(), spec.dtype)
    tensor = tf.convert_to_tensor(_as_array(item))
    is_other = tensor.dtype != spec.dtype and tensor.dtype != keras.config.floatx()
    return (
        tf.cast(tensor, keras.config.floatx()) if tensor.dtype.is_floating and is_other else tensor
    )


def _as_array(item: Any) -> Any:
    """Return `item` as an object with a shape and a dtype."""
    if isinstance(item, keras.Variable):
        return item.value
    if tf.is_tensor(item) or isinstance(item, tf.TensorSpec | tf.Variable):
        return item
    array = np.asarray(item)
    if array.dtype == object and all(isinstance(part, str | bytes) for part in array.flat):
        return tf.convert_to_tensor(array.tolist(), tf.string)
    return array


def _as_sent(tensor: tf.Tensor, spec: tf.TensorSpec, name: str) -> tf.Tensor:
    """Return a tensor with the dtype and rank of the signature, as Keras would convert it."""
    if tensor.dtype != spec.dtype:
        if tf.string in (tensor.dtype, spec.dtype):
            raise TypeError(f"'{name}' has dtype {spec.dtype.name}, received {tensor.dtype.name}")
        cast = tf.cast(tensor, spec.dtype)
        if _loses(tensor, cast):
            warnings.warn(
                f"The sample_inputs for '{name}' are {tensor.dtype.name}, and the endpoint takes "
                f"{spec.dtype.name}. The cast changes some values, and the comparison uses the "
                "changed values. Pass values that the endpoint can take.",
                stacklevel=2,
            )
        tensor = cast
    rank, wanted = tensor.shape.rank, spec.shape.rank
    if wanted is not None and rank == wanted - 1 and spec.shape[-1] == 1:
        return tensor[..., tf.newaxis]
    if wanted is not None and rank == wanted + 1 and tensor.shape[-1] == 1:
        return tf.squeeze(tensor, -1)
    return tensor


def _loses(tensor: tf.Tensor, cast: tf.Tensor) -> bool:
    """Return whether a cast changed values. The rounding of floats does not count."""
    if tensor.dtype.is_floating and cast.dtype.is_floating:
        return False
    back = tf.cast(cast, tensor.dtype)
    return not bool(tf.reduce_all(tf.equal(back, tensor)))


def _check_shapes(
    specs: Sequence[tf.TensorSpec],
    tensors: Sequence[Any],
    names: Sequence[str] | None = None,
    received: Sequence[Any] | None = None,
) -> None:
    for place, (spec, tensor) in enumerate(zip(specs, tensors, strict=True)):
        if not spec.shape.is_compatible_with(tensor.shape):
            name = names[place] if names else spec.name
            shape = (received or tensors)[place].shape
            raise ValueError(f"'{name}' has shape {spec.shape}, received {shape}")


def _brief(item: Any) -> str:
    """Return the dtype and shape of an array, or the type of anything else."""
    if hasattr(item, "shape") and hasattr(item, "dtype"):
        return f"{tf.dtypes.as_dtype(item.dtype).name}{tuple(item.shape)}"
    return type(item).__name__
