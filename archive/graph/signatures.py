"""Converts specs to `tf.TensorSpec`s, finds the signature of a model, and names inputs."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from ..errors import ExportTypeError, ExportValueError
from ..state.models import check_call, check_model, has_declared_inputs
from ..store.record import EndpointInfo, TensorInfo
from .host_state import find_host_state
from .samples import call_dtypes

# Keras gives these names to tensors that the user did not name, and counts them up. They
# differ if the same model is built twice in one process, so they cannot name an input.
_AUTOMATIC_NAME = re.compile(r"(keras_tensor|input_layer)(_\d+)?")


# The names that TensorFlow allows for a node (`Graph` in tensorflow/python/framework/ops.py).
_NODE_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")


def tensor_specs(input_signature: Any) -> Any:
    """Return `input_signature` with every leaf as a `tf.TensorSpec`, in the same structure.

    Args:
        input_signature: A list or tuple with one item per positional argument. Each
            item is a `tf.TensorSpec`, `keras.InputSpec`, `KerasTensor` or tensor, or
            these nested in lists, tuples and dicts. The first axis of a KerasTensor
            or tensor is the batch, and becomes free. In a dict, a leaf without a name is
            named by its key.

    Raises:
        ExportTypeError: If `input_signature` is not a list or tuple, or if it holds
            anything other than these specs.
        ExportValueError: If a `keras.InputSpec` has no shape or no dtype, if a key of a
            dict is not a string, or if two inputs have the same name.
    """
    if not isinstance(input_signature, list | tuple):
        raise ExportTypeError(
            f"Received input_signature={input_signature!r}. Expected a list or tuple with one "
            "item per positional argument, such as `input_signature=[spec]`."
        )
    specs = _convert(input_signature, None)
    _check_distinct([spec.name for spec in tf.nest.flatten(specs) if spec.name])
    return specs


def model_signature(model: keras.Model) -> list[Any]:
    """Return the signature of `model(inputs)`, or of `model(first, second, …)`.

    Inputs without a name are called ``inputs``, or ``inputs_0``, ``inputs_1``, … A
    subclassed model does not record the dtypes that it is called with. The signature
    then has the dtypes that `fit` feeds, or else those of `known_sample`. If neither is
    known, it has the model's `input_dtype`.

    Args:
        model: A built model.

    Raises:
        ExportError: If the model is not built, if its input shapes are unknown, or if
            two inputs would have the same name.
    """
    signature = _model_signature(model)
    _check_distinct([spec.name for spec in tf.nest.flatten(signature)])
    return signature


def guesses_dtypes(model: keras.Model) -> bool:
    """Return whether the dtypes in a model's signature are a guess, because they are unknown."""
    return not has_declared_inputs(model) and call_dtypes(model, _called_specs(model)) is None


def _model_signature(model: keras.Model) -> list[Any]:
    check_model(model)
    check_call(model)
    if not model.built:
        raise ExportValueError(
            f"Model '{model.name}' has not been built, so its inputs are unknown. "
            "Call it on a batch, call `model.build(input_shape)`, or start it with `keras.Input`."
        )
    if isinstance(model, keras.Sequential):
        return [_convert(list(_sequential_inputs(model)), "inputs")[0]]
    if has_declared_inputs(model):
        _check_names(model.input)
        return [_convert(model.input, "inputs")]
    return _called_signature(model)


def check_input_names(name: str, inputs: Sequence[str]) -> None:
    """Raise an error if the inputs of endpoint `name` cannot have the names `inputs`.

    TensorFlow finds a wrong name only when it saves, long after training has begun.

    Raises:
        ExportValueError: If TensorFlow does not allow a name, or if two names are the
            same to TensorFlow.
    """
    taken: dict[str, str] = {}
    for given in inputs:
        simple = re.sub(r"\W", "_", given, flags=re.ASCII)
        is_taken = given == "self" or keyword.iskeyword(given)
        if not _NODE_NAME.fullmatch(given) or is_taken:
            better = f"{given}_" if is_taken else simple.strip("_") or "x"
            raise ExportValueError(
                f"Endpoint '{name}' has an input named {given!r}, which no SavedModel can hold. "
                "Expected letters, digits, dots, dashes and underscores, but not a Python "
                f"keyword. Give the `keras.Input` or the spec another name, such as {better!r}."
            )
        other = taken.setdefault(simple.casefold(), given)
        if other is not given:
            raise ExportValueError(
                f"Endpoint '{name}' has inputs named {other!r} and {given!r}. To TensorFlow, these "
                "are the same name. Give them different names."
            )


def endpoint_info(signature: Any) -> EndpointInfo:
    """Return the names, shapes and dtypes of the inputs and outputs of a `SignatureDef`."""
    return EndpointInfo(
        inputs={name: _info(signature.inputs[name]) for name in sorted(signature.inputs)},
        outputs={name: _info(signature.outputs[name]) for name in sorted(signature.outputs)},
    )


def _convert(spec: Any, name: str | None) -> Any:
    if isinstance(spec, Mapping):
        if others := [key for key in spec if not isinstance(key, str)]:
            raise ExportValueError(
                f"Received a dict of inputs with the keys {others}. Expected strings as keys, "
                "because they name the inputs of the signature."
            )
        prefix = f"{name}_" if name and name != "inputs" else ""
        return {key: _convert(item, f"{prefix}{key}") for key, item in spec.items()}
    if isinstance(spec, list | tuple):
        names = [
            f"{name}_{index}" if name and len(spec) > 1 else name for index in range(len(spec))
        ]
        items = [_convert(item, item_name) for item, item_name in zip(spec, names, strict=True)]
        if isinstance(spec, tuple):
            return type(spec)(*items) if hasattr(spec, "_fields") else tuple(items)
        return items
    return _leaf(spec, name)


def _leaf(spec: Any, name: str | None) -> tf.TensorSpec:
    if isinstance(spec, tf.TensorSpec):
        return tf.TensorSpec(spec.shape, spec.dtype, spec.name or name)
    if isinstance(spec, keras.InputSpec):
        if spec.shape is None or spec.dtype is None:
            raise ExportValueError(
                f"Received {spec!r} in an input signature. Expected both a `shape` and a "
                "`dtype`, as in keras.InputSpec(shape=(None, 3), dtype='float32')."
            )
        return tf.TensorSpec(spec.shape, spec.dtype, spec.name or name)
    if isinstance(spec, keras.KerasTensor):
        _check_dense(spec)
        own_name = None if _AUTOMATIC_NAME.fullmatch(spec.name) else spec.name
        return tf.TensorSpec(_free_batch(spec.shape), spec.dtype, own_name or name)
    if isinstance(spec, tf.Tensor | tf.Variable | keras.Variable):
        return tf.TensorSpec(_free_batch(spec.shape), spec.dtype, name)
    raise ExportTypeError(
        f"Received {spec!r} of type {type(spec)} in an input signature. Expected a "
        "`tf.TensorSpec`, `keras.InputSpec`, `keras.KerasTensor` or a tensor."
    )


def _check_dense(spec: keras.KerasTensor) -> None:
    kinds = [kind for kind in ("sparse", "ragged") if getattr(spec, kind, False)]
    if kinds:
        raise ExportValueError(
            f"Input '{spec.name}' is {kinds[0]}, and signatures cannot hold such an input. "
            "Register endpoints of your own through the `endpoints` argument. Let them take the "
            "components of the input, such as values and row splits, and build the input from "
            "these."
        )


def _check_names(declared: Any) -> None:
    """Raise an error if the name of an input is the key of another input."""
    if not isinstance(declared, Mapping):
        return
    for key, tensor in declared.items():
        name = getattr(tensor, "name", key)
        if name != key and name in declared:
            raise ExportValueError(
                f"The model takes an input named {name!r} under the key {key!r}, and another input "
                f"under the key {name!r}. Requests would mix them up. Give each `keras.Input` the "
                "name of its key."
            )


def _free_batch(shape: Sequence[int | None]) -> list[int | None]:
    return [None, *shape[1:]] if len(shape) else []


def _sequential_inputs(model: keras.Sequential) -> Any:
    try:
        return model.inputs
    except AttributeError as error:
        raise ExportValueError(
            f"Model '{model.name}' is a `keras.Sequential` that was called with a list or dict, so "
            "its inputs are unknown. Build it as a functional model, "
            "`keras.Model(inputs, outputs)`, or register endpoints with an `input_signature` of "
            "your own through the `endpoints` argument."
        ) from error


def _called_specs(model: keras.Model) -> list[Any]:
    """Return the specs of the call that built a model, all with the model's `input_dtype`."""
    config = model.get_build_config() or {}
    shapes = config.get("shapes_dict") or {"inputs": config.get("input_shape")}
    if any(shape is None for shape in shapes.values()):
        raise ExportValueError(
            f"Model '{model.name}' does not record the shapes of its inputs. Call it on a batch "
            "before you export it, or register endpoints with an `input_signature` of your own "
            "through the `endpoints` argument."
        )
    single = len(shapes) == 1
    return [
        _convert(
            _from_shapes(shape, model.input_dtype),
            "inputs" if single else name.removesuffix("_shape"),
        )
        for name, shape in shapes.items()
    ]


def _called_signature(model: keras.Model) -> list[Any]:
    specs = _called_specs(model)
    if (dtypes := call_dtypes(model, specs)) is None:
        _check_dtype(model)
        return specs
    typed = [
        tf.TensorSpec(spec.shape, dtype, spec.name)
        for spec, dtype in zip(tf.nest.flatten(specs), dtypes, strict=True)
    ]
    packed: list[Any] = tf.nest.pack_sequence_as(specs, typed)
    return packed


def _check_dtype(model: keras.Model) -> None:
    """Raise an error if a model with unknown dtypes has a layer for text.

    Such a model may take text, and `input_dtype` would be wrong.
    """
    text = (keras.layers.TextVectorization, keras.layers.StringLookup, keras.layers.Hashing)
    if any(isinstance(layer, text) for layer in find_host_state([model]).layers):
        raise ExportValueError(
            f"Model '{model.name}' has a layer for text, but does not record whether it is called "
            "with text or numbers. Register endpoints with an `input_signature` of your own "
            "through the `endpoints` argument, such as [tf.TensorSpec((None,), tf.string)]."
        )


def _from_shapes(shape: Any, dtype: str) -> Any:
    """Return unnamed specs for the recorded shapes of a call, nested as its argument was."""
    if isinstance(shape, Mapping):
        return {key: _from_shapes(item, dtype) for key, item in shape.items()}
    if all(axis is None or isinstance(axis, int) for axis in shape):
        return tf.TensorSpec(_free_batch(shape), dtype)
    return type(shape)([_from_shapes(item, dtype) for item in shape])


def _check_distinct(names: Sequence[str]) -> None:
    """Raise an error if two inputs would have the same name."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ExportValueError(
            f"Two inputs of an endpoint would both be called {twice[0]!r}. Give them different "
            "names: change the keys of the dict, the names of the `keras.Input`s, or the `name`s "
            "of the specs."
        )


def _info(tensor: Any) -> TensorInfo:
    components = tensor.composite_tensor.components
    if components:  # The tensor is ragged. Its values come first.
        return TensorInfo(shape=None, dtype=tf.dtypes.as_dtype(components[0].dtype).name)
    axes = [axis.size if axis.size >= 0 else None for axis in tensor.tensor_shape.dim]
    shape = None if tensor.tensor_shape.unknown_rank else tuple(axes)
    return TensorInfo(shape=shape, dtype=tf.dtypes.as_dtype(tensor.dtype).name)
