"""Small models that are built and trained as in Keras's own examples."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_export_callbacks import standard_endpoints

layers, ops = keras.layers, keras.ops

_RANDOM = np.random.default_rng(11)


@dataclass(frozen=True)
class Example:
    """A compiled model, with the data that it is trained on.

    Attributes:
        model: The compiled model.
        x: 8 rows of inputs.
        y: 8 rows of labels, or None if the model's `train_step` needs none.
        endpoints: Function ``(archive, model)`` that registers what to export.
        sample: Inputs of the endpoints. None if they take `x`.
    """

    model: Any
    x: Any
    y: Any = None
    endpoints: Callable[..., None] = standard_endpoints
    sample: Any = None

    @property
    def sample_inputs(self) -> Any:
        return tf.nest.map_structure(
            lambda item: item[:2], self.x if self.sample is None else self.sample
        )


def numbers(*shape: int) -> Any:
    return _RANDOM.normal(size=(8, *shape)).astype("float32")


def ids(limit: int, *shape: int) -> Any:
    return _RANDOM.integers(0, limit, (8, *shape))


def compiled(model: Any, loss: Any = "mse", **options: Any) -> Any:
    model.compile("adam", loss, **options)
    return model


def two_towers() -> Example:
    """A model that embeds queries and candidates, and multiplies them."""

    class TwoTowers(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = layers.Embedding(10, 4), layers.Embedding(20, 4)
            self.dense = layers.Dense(4)

        def call(self, inputs: Any) -> Any:
            user = self.dense(self.users(inputs["user"]["id"]))
            return ops.sum(user * self.items(inputs["item"]["id"]), axis=-1, keepdims=True)

    x = {"user": {"id": ids(10)}, "item": {"id": ids(20)}}
    return Example(compiled(TwoTowers()), x, numbers(1))


def variational() -> Example:
    class Sampling(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.seed_generator = keras.random.SeedGenerator(3)

        def call(self, inputs: Any) -> Any:
            mean, log_variance = inputs
            noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
            return mean + ops.exp(0.5 * log_variance) * noise

    class Variational(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            inputs = keras.Input((6,))
            hidden = layers.Dense(4, activation="relu")(inputs)
            mean, spread = layers.Dense(2)(hidden), layers.Dense(2)(hidden)
            self.encoder = keras.Model(inputs, [mean, spread, Sampling()([mean, spread])])
            self.decoder = keras.Sequential([keras.Input((2,)), layers.Dense(6)])
            self.loss_tracker = keras.metrics.Mean(name="loss")

        @property
        def metrics(self) -> list[Any]:
            return [self.loss_tracker]

        def train_step(self, data: Any) -> Any:
            with tf.GradientTape() as tape:
                mean, log_variance, z = self.encoder(data)
                rebuilt = ops.mean(ops.square(self.decoder(z) - data))
                divergence = ops.mean(ops.square(mean) + ops.exp(log_variance) - log_variance)
                loss = rebuilt + 0.1 * divergence
            gradients = tape.gradient(loss, self.trainable_weights)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
            self.loss_tracker.update_state(loss)
            return {"loss": self.loss_tracker.result()}

    def endpoints(archive: Any, model: Any) -> None:
        archive.track(model)
        archive.add_variable_collection("optimizer_variables", model.optimizer.variables)
        archive.add_endpoint("decode", lambda z: model.decoder(z), model.decoder.inputs)
        archive.add_endpoint("mean", lambda x: model.encoder(x)[0], model.encoder.inputs)

    model = Variational()
    model.compile(keras.optimizers.Adam())
    return Example(model, numbers(6), endpoints=endpoints, sample=numbers(2))


def adversarial() -> Example:
    class Adversarial(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.generator = keras.Sequential([keras.Input((2,)), layers.Dense(3)])
            self.discriminator = keras.Sequential([keras.Input((3,)), layers.Dense(1)])

        def compile(self, first: Any, second: Any) -> None:
            super().compile()
            self.first, self.second = first, second

        def train_step(self, data: Any) -> Any:
            with tf.GradientTape(persistent=True) as tape:
                fake = self.generator(tf.random.normal((4, 2)))
                loss = tf.reduce_mean(self.discriminator(fake))
                other = tf.reduce_mean(self.discriminator(data)) - loss
            parts = [(self.generator, self.first, loss), (self.discriminator, self.second, other)]
            for part, optimizer, value in parts:
                gradients = tape.gradient(value, part.trainable_variables)
                optimizer.apply_gradients(zip(gradients, part.trainable_variables, strict=True))
            return {"loss": loss}

    def endpoints(archive: Any, model: Any) -> None:
        standard_endpoints(archive, model.generator)
        archive.add_variable_collection("generator_optimizer", model.first.variables)
        archive.add_variable_collection("discriminator_optimizer", model.second.variables)

    model = Adversarial()
    model.compile(keras.optimizers.Adam(), keras.optimizers.Adam())
    return Example(model, numbers(3), endpoints=endpoints, sample=numbers(2))


def transformer_with_masks() -> Example:
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    mask = keras.Input((6,), dtype="bool", name="mask")
    embedded = layers.Embedding(20, 8, mask_zero=True)(tokens)
    attention = layers.MultiHeadAttention(2, 4, dropout=0.1)
    attended = attention(embedded, embedded, attention_mask=ops.expand_dims(mask, 1))
    mixed = layers.LayerNormalization()(layers.add([embedded, attended]))
    pooled = layers.GlobalAveragePooling1D()(mixed)
    model = keras.Model({"tokens": tokens, "mask": mask}, layers.Dense(3)(pooled))
    x = {"tokens": ids(20, 6).astype("int32"), "mask": _RANDOM.random((8, 6)) < 0.8}
    return Example(compiled(model), x, numbers(3))


def several_tasks() -> Example:
    image, text = keras.Input((8, 8, 1), name="image"), keras.Input((4,), name="text")
    seen = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(image))
    joined = layers.Dropout(0.2)(layers.concatenate([seen, text]))
    outputs = {
        "label": layers.Dense(3, activation="softmax", name="label")(joined),
        "score": layers.Dense(1, name="score")(joined),
    }
    model = keras.Model([image, text], outputs)
    losses = {"label": "sparse_categorical_crossentropy", "score": "mse"}
    y = {"label": ids(3), "score": numbers(1)}
    return Example(compiled(model, losses), {"image": numbers(8, 8, 1), "text": numbers(4)}, y)


def features() -> Example:
    """A model that takes raw columns. The preprocessing is part of what is served."""
    x = {"age": numbers(1), "city": tf.constant([["a"], ["b"]] * 4)}
    space = keras.utils.FeatureSpace(
        features={
            "age": keras.utils.FeatureSpace.float_normalized(),
            "city": keras.utils.FeatureSpace.string_categorical(num_oov_indices=1),
        },
        output_mode="concat",
    )
    space.adapt(tf.data.Dataset.from_tensor_slices(x))
    inputs = dict(space.get_inputs())
    model = keras.Model(inputs, layers.Dense(1)(space.get_encoded_features()))
    return Example(compiled(model), x, numbers(1))


def low_rank() -> Example:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(2)])
    for layer in model.layers:
        layer.enable_lora(2)
    return Example(compiled(model), numbers(6), numbers(2))


def quantised() -> Example:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(2)])
    for layer in model.layers:
        layer.enable_lora(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras tells that an InputLayer is as it was.
        model.quantize("int8")
    return Example(compiled(model), numbers(6), numbers(2))


def speech() -> Example:
    """A model that takes frames and returns characters, of another length."""
    frames = keras.Input((None, 5), name="frames")
    hidden = layers.Bidirectional(layers.LSTM(4, return_sequences=True, dropout=0.1))(frames)
    model = keras.Model(frames, layers.Dense(4, activation="softmax")(hidden))

    def ctc(labels: Any, outputs: Any) -> Any:
        lengths = [ops.full((ops.shape(item)[0],), item.shape[1]) for item in (labels, outputs)]
        return keras.losses.CTC()(labels, ops.log(outputs + 1e-6)) + 0 * ops.sum(lengths[0])

    return Example(compiled(model, ctc), numbers(8, 5), 1 + ids(3, 3))


def half_precision_tagger() -> Example:
    """A model that returns the classes of half-precision logits."""

    class Tagger(keras.Model):
        def __init__(self) -> None:
            super().__init__(dtype="mixed_bfloat16")
            self.hidden = layers.Dense(16, activation="relu", dtype="mixed_bfloat16")
            self.outputs_ = layers.Dense(5, dtype="mixed_bfloat16")

        def call(self, inputs: Any) -> Any:
            return self.outputs_(self.hidden(inputs))

    def endpoints(archive: Any, model: Any) -> None:
        standard_endpoints(archive, model)
        spec = tf.TensorSpec((None, 4), "float32", name="inputs")
        archive.add_endpoint("tag", lambda inputs: ops.argmax(model(inputs), -1), [spec])

    return Example(compiled(Tagger()), numbers(4), numbers(5), endpoints=endpoints)


EXAMPLES: dict[str, Callable[[], Example]] = {
    "two towers": two_towers,
    "VAE with a train_step": variational,
    "GAN with a train_step": adversarial,
    "Transformer with masks": transformer_with_masks,
    "several tasks": several_tasks,
    "FeatureSpace": features,
    "LoRA": low_rank,
    "int8 with LoRA": quantised,
    "speech with CTC": speech,
    "bfloat16 classes": half_precision_tagger,
}
