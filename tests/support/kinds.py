"""A model of each kind that people serve, with a batch of inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

layers, ops = keras.layers, keras.ops

_RANDOM = np.random.default_rng(5)


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        build: Function that returns a model and a batch of 7 inputs.
        rounding: Float. How much the outputs of an artifact may differ. Operations are
            fused in a compiled graph, and round otherwise than in a call of the model.
        unread: Dict of programs other than TensorFlow that do not compute the same, to
            the reason.
    """

    build: Callable[[], tuple[Any, Any]]
    rounding: float = 0.0
    unread: Mapping[str, str] = field(default_factory=dict)


def numbers(*shape: int) -> Any:
    return _RANDOM.normal(size=(7, *shape)).astype("float32")


def trained(model: Any, inputs: Any, optimizer: Any = "adam") -> tuple[Any, Any]:
    """Train a model a little, so that no weight has its initial value."""
    model.compile(optimizer, "mse")
    if keras.backend.backend() == "jax":  # To compile a training step takes seconds there.
        return moved(model, inputs)
    outputs = tf.nest.map_structure(lambda item: np.ones(item.shape, "float32"), model(inputs))
    model.fit(inputs, outputs, epochs=2, verbose=0)
    return model, inputs


def moved(model: Any, inputs: Any) -> tuple[Any, Any]:
    """Give every weight of a model another value, without training."""
    if not model.built:
        model(inputs)
    for weight in model.weights:
        if weight.dtype != "uint32":  # A seed is also one.
            weight.assign(weight.value + _RANDOM.uniform(0.01, 0.1, weight.shape))
    return model, inputs


def dense() -> tuple[Any, Any]:
    stack = [layers.Dense(8, activation="relu"), layers.Dropout(0.5), layers.Dense(3)]
    return trained(keras.Sequential([keras.Input((4,)), *stack]), numbers(4))


def convolutional() -> tuple[Any, Any]:
    stack = [
        layers.Conv2D(4, 3, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3, activation="softmax"),
    ]
    return trained(keras.Sequential([keras.Input((8, 8, 3)), *stack]), numbers(8, 8, 3))


def recurrent(layer: Any) -> Callable[[], tuple[Any, Any]]:
    def build() -> tuple[Any, Any]:
        """Build a model whose time axis is free."""
        model = keras.Sequential([keras.Input((None, 4)), layer(5), layers.Dense(2)])
        return trained(model, numbers(6, 4))

    return build


def transformer() -> tuple[Any, Any]:
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    embedded = layers.Embedding(20, 8, mask_zero=True)(tokens)
    attended = layers.MultiHeadAttention(2, 4)(embedded, embedded)
    mixed = layers.LayerNormalization()(layers.add([embedded, attended]))
    model = keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(mixed)))
    return trained(model, _RANDOM.integers(0, 20, (7, 6)).astype("int32"))


def several() -> tuple[Any, Any]:
    """Build a model whose inputs and outputs are not in alphabetical order."""
    inputs = {name: keras.Input((3,), name=name) for name in ("z", "a", "m")}
    difference = ops.subtract(inputs["z"], 2 * inputs["a"])
    outputs = {"y": layers.Dense(2)(difference), "b": layers.Dense(1)(inputs["m"])}
    return trained(keras.Model(inputs, outputs), {name: numbers(3) for name in inputs})


class Optional(keras.Model):
    """A model with a second input that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs: Any, scale: Any = None) -> Any:
        outputs = self.dense(inputs)
        return outputs if scale is None else outputs * scale


def subclassed() -> tuple[Any, Any]:
    model = Optional()
    return trained(model, numbers(4))


def text() -> tuple[Any, Any]:
    vectorize = layers.TextVectorization(output_mode="int", output_sequence_length=4)
    vectorize.adapt(["a quick brown fox", "jumps over the lazy dog"])
    words = keras.Input((1,), dtype="string", name="words")
    embedded = layers.Embedding(vectorize.vocabulary_size(), 4)(vectorize(words))
    model = keras.Model(words, layers.Dense(2)(layers.Flatten()(embedded)))
    phrases = ["a dog", "the fox", "", "over", "quick quick", "ünknown", "a"]
    return trained(model, tf.constant([[phrase] for phrase in phrases]))


def looked_up() -> tuple[Any, Any]:
    lookup = layers.StringLookup(vocabulary=["red", "green", "blue"])
    colour = keras.Input((2,), dtype="string", name="colour")
    embedded = layers.Embedding(lookup.vocabulary_size(), 4)(lookup(colour))
    model = keras.Model(colour, layers.Dense(2)(layers.Flatten()(embedded)))
    return trained(model, tf.constant([["red", "blue"], ["pink", "green"]] * 3 + [["", "red"]]))


def nested() -> tuple[Any, Any]:
    """Build a model that calls an inner model twice, and shares a layer with it."""
    shared = layers.Dense(4, activation="tanh")
    inner = keras.Sequential([keras.Input((4,)), shared, layers.Dense(4)])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(1)(shared(inner(inner(inputs)))))
    return trained(model, numbers(4))


def mixed(policy: str) -> Callable[[], tuple[Any, Any]]:
    def build() -> tuple[Any, Any]:
        inputs = keras.Input((4,), dtype="float32")
        hidden = layers.Dense(8, activation="relu", dtype=policy)(inputs)
        model = keras.Model(inputs, layers.Dense(2, dtype=policy)(hidden))
        optimizer = keras.optimizers.Adam()
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        return trained(model, numbers(4), optimizer)

    return build


def quantized() -> tuple[Any, Any]:
    model, inputs = dense()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras tells that an InputLayer is as it was.
        model.quantize("int8")
    return model, inputs


_LISTS = {"LiteRT": "has no lists of tensors"}
_TABLES = {"OpenVINO": "has no lookup tables"}
_FLOATS = {"LiteRT": "multiplies no half-precision matrices"}

KINDS = {
    "dense": Kind(dense),
    "CNN with BatchNormalization": Kind(convolutional, 1e-6),
    "LSTM": Kind(recurrent(layers.LSTM), unread=_LISTS),
    "GRU": Kind(recurrent(layers.GRU), unread=_LISTS),
    "Transformer block": Kind(transformer, 1e-6),
    "several inputs and outputs": Kind(several),
    "subclassed": Kind(subclassed),
    "TextVectorization": Kind(text, unread=_TABLES | {"LiteRT": "has no StringLower"}),
    "StringLookup": Kind(looked_up, unread=_TABLES),
    "nested and shared": Kind(nested, 1e-6),
    "mixed_float16": Kind(mixed("mixed_float16"), 1e-3, _FLOATS),
    "mixed_bfloat16": Kind(mixed("mixed_bfloat16"), 1e-2, _FLOATS),
    "int8": Kind(
        quantized,
        unread={"OpenVINO": "computes something else", "LiteRT": "multiplies no such matrices"},
    ),
}
