"""A model around each layer of Keras that holds state, and around custom layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_export_callbacks import Exporter, restore

from .resumable import CASES as RESUMABLE
from .resumable import SelfAttention

LAYERS = keras.layers

# What has no state, or none that lasts. Of a layer in no list, nobody has looked yet.
STATELESS = {
    "Activation", "ActivityRegularization", "AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D",
    "AdaptiveAveragePooling3D", "AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D",
    "AdaptiveMaxPooling3D", "Add", "AutoContrast", "Average", "AveragePooling1D",
    "AveragePooling2D", "AveragePooling3D", "CenterCrop", "Concatenate",
    "ContrastLimitedAdaptiveHistogramEqualization", "Cropping1D", "Cropping2D", "Cropping3D",
    "Dot", "ELU", "Equalization", "Flatten", "GlobalAveragePooling1D", "GlobalAveragePooling2D",
    "GlobalAveragePooling3D", "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D",
    "HashedCrossing", "Hashing", "Identity", "InputLayer", "Lambda", "LeakyReLU", "Masking",
    "MaxNumBoundingBoxes", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "Maximum",
    "MelSpectrogram", "Minimum", "Multiply", "Permute", "ReLU", "RepeatVector", "Rescaling",
    "Reshape", "Resizing", "STFTSpectrogram", "Softmax", "Subtract", "UnitNormalization",
    "UpSampling1D", "UpSampling2D", "UpSampling3D", "ZeroPadding1D", "ZeroPadding2D",
    "ZeroPadding3D",
}  # fmt: skip

# They hold what they are given, or are for another backend, or see `resumable`.
OTHERS = {
    "Layer",
    "Wrapper",
    "FlaxLayer",
    "JaxLayer",
    "TorchModuleWrapper",
    "AugMix",
    "RandAugment",
}


def _model(layers: Sequence[Any], shape: Any, batch: int | None = None, dtype: Any = None) -> Any:
    return keras.Sequential([keras.Input(shape, batch_size=batch, dtype=dtype), *layers])


def _of(make: Callable[[], Any], *shape: int, batch: int | None = None) -> Callable[[int], Any]:
    """Return a builder of models with one layer. The models differ only in their weights."""
    return lambda seed: _model([make()], shape, batch)


def _adapted(make: Callable[[], Any], *data: Any, dtype: str) -> Callable[[int], Any]:
    """Return a builder of models with one layer, adapted to data that depends on the seed."""

    def build(seed: int) -> Any:
        layer = make()
        layer.adapt(np.array(data[seed]))
        return _model([layer], (1,), dtype=dtype)

    return build


def _bound_to(make: Callable[[Any], Any], *data: Any, dtype: str) -> Callable[[int], Any]:
    """Return a builder of models with one layer, made from data that depends on the seed."""
    return lambda seed: _model([make(data[seed])], (1,), dtype=dtype)


WORDS = (["a", "b", "c", "a"], ["c", "d", "e", "e"])
NUMBERS = ([3, 4, 5, 3], [5, 6, 7, 7])
VALUES = ([[1.0], [2.0], [3.0], [7.0]], [[100.0], [300.0], [900.0], [950.0]])


def _nested(seed: int) -> Any:
    inner = keras.Sequential([keras.Input((1,)), LAYERS.Normalization()])
    inner.layers[0].adapt(np.array(VALUES[seed]))
    return _model([keras.Sequential([keras.Input((1,)), inner])], (1,))


def _feature_space(seed: int) -> Any:
    kinds = keras.utils.FeatureSpace
    space = kinds(
        {
            "size": kinds.float_normalized(),
            "age": kinds.float_discretized(num_bins=3),
            "word": kinds.string_categorical(),
            "code": kinds.integer_categorical(),
        },
        output_mode="concat",
    )
    values = np.ravel(VALUES[seed]).astype("float32")
    data = {"size": values, "age": values, "word": WORDS[seed], "code": NUMBERS[seed]}
    space.adapt(tf.data.Dataset.from_tensor_slices(data))
    return keras.Model(dict(space.get_inputs()), space.get_encoded_features())


class Derived(keras.Layer):
    """A layer that computes half of its variable when it is built, and by `update`."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(), initializer="ones", trainable=False)
        self.update()

    def update(self) -> None:
        self.half = 0.5 * self.scale.numpy()

    def call(self, x: Any) -> Any:
        return self.half * x


class Finalized(Derived):
    """A layer that calls `update` in `finalize_state`, as Keras's own layers do."""

    def finalize_state(self) -> None:
        self.update()


class Loaded(Derived):
    """A layer that calls `update` when its variables are loaded."""

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        self.update()


class SavedAndLoaded(Loaded):
    """A layer that saves its variable under a name of its own."""

    def save_own_variables(self, store: Any) -> None:
        store["scale"] = self.scale.numpy()

    def load_own_variables(self, store: Any) -> None:
        self.scale.assign(store["scale"])
        self.update()


class Keeping(keras.Layer):
    """A layer that keeps `tf.Variable`s in several places, a random generator, and tables."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.offset = tf.Variable(float(seed))
        self.named = {"offsets": [tf.Variable(2.0 * seed)]}
        self.module = tf.Module()
        self.module.offset = tf.Variable([3.0 * seed])
        self.unread = tf.Variable(seed)
        self.generator = tf.random.Generator.from_seed(seed)
        make = tf.lookup.experimental.MutableHashTable
        self.table = make(tf.int64, tf.float32, -1.0)
        dense = tf.lookup.experimental.DenseHashTable
        self.dense = dense(tf.int64, tf.float32, -1.0, empty_key=-1, deleted_key=-2)
        for table in (self.table, self.dense):
            table.insert(tf.range(seed, 3, dtype=tf.int64), tf.range(seed, 3, dtype=tf.float32))

    def call(self, x: Any) -> Any:
        keys = tf.cast(x, tf.int64)
        # Neither table tells the shape of what it finds, and the dense one takes a flat batch.
        found = self.table.lookup(keys)
        dense = self.dense.lookup(tf.reshape(keys, [-1]))
        offsets = self.offset + self.named["offsets"][0] + self.module.offset
        noise = self.generator.normal(())
        return (
            x + offsets + noise + tf.ensure_shape(found, x.shape) + tf.reshape(dense, tf.shape(x))
        )


class SavesMore(keras.Layer):
    """A layer that saves a value that is not a variable."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.factor = float(seed)

    def save_own_variables(self, store: Any) -> None:
        store["factor"] = np.array(self.factor)

    def load_own_variables(self, store: Any) -> None:
        self.factor = float(store["factor"])

    def call(self, x: Any) -> Any:
        return self.factor * x


class SavesFiles(keras.Layer):
    """A layer that saves a file."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.factor = float(seed)

    def save_assets(self, path: str) -> None:
        raise AssertionError("nobody asks for it")

    def call(self, x: Any) -> Any:
        return self.factor * x


def _lookups() -> dict[str, Callable[[int], Any]]:
    tf_idf = {"output_mode": "tf_idf", "max_tokens": 9, "pad_to_max_tokens": True}
    text, strings, integers = LAYERS.TextVectorization, LAYERS.StringLookup, LAYERS.IntegerLookup
    return {
        "Discretization": _adapted(
            partial(LAYERS.Discretization, num_bins=3), *VALUES, dtype="float32"
        ),
        "Discretization, given": _bound_to(
            LAYERS.Discretization, [1.0, 2.0], [5.0, float("inf")], dtype="float32"
        ),
        "IntegerLookup": _adapted(integers, *NUMBERS, dtype="int64"),
        "IntegerLookup, counted": _adapted(
            partial(integers, output_mode="count"), *NUMBERS, dtype="int64"
        ),
        "Normalization": _adapted(LAYERS.Normalization, *VALUES, dtype="float32"),
        "Normalization, nested": _nested,
        "StringLookup": _adapted(strings, *WORDS, dtype="string"),
        "StringLookup, given": _bound_to(
            lambda words: strings(vocabulary=list(dict.fromkeys(words)), num_oov_indices=2),
            *WORDS, dtype="string",
        ),
        "StringLookup, inverted": _bound_to(
            lambda words: strings(vocabulary=list(dict.fromkeys(words)), invert=True),
            *WORDS, dtype="int64",
        ),
        "StringLookup, tf_idf": _adapted(partial(strings, **tf_idf), *WORDS, dtype="string"),
        "TextVectorization": _adapted(text, *WORDS, dtype="string"),
        "TextVectorization, tf_idf": _adapted(
            partial(text, output_mode="tf_idf"), *WORDS, dtype="string"
        ),
        "FeatureSpace": _feature_space,
    }  # fmt: skip


def _kernels() -> dict[str, Callable[[int], Any]]:
    cases = {}
    for rank, shape in ((1, (4, 3)), (2, (4, 4, 3)), (3, (3, 3, 3, 2))):
        for name in (f"Conv{rank}D", f"Conv{rank}DTranspose"):
            cases[name] = _of(partial(getattr(LAYERS, name), 2, 2), *shape)
        if rank < 3:
            depthwise = getattr(LAYERS, f"DepthwiseConv{rank}D")
            cases[f"DepthwiseConv{rank}D"] = _of(partial(depthwise, 2), *shape)
            separable = getattr(LAYERS, f"SeparableConv{rank}D")
            cases[f"SeparableConv{rank}D"] = _of(partial(separable, 2, 2), *shape)
    for name in ("LSTMCell", "GRUCell", "SimpleRNNCell"):
        cell = getattr(LAYERS, name)
        cases[name] = _of(lambda cell=cell: LAYERS.RNN(cell(2)), 3, 2)
    return cases


def _attends(name: str, **arguments: Any) -> Callable[[int], Any]:
    return _of(lambda: SelfAttention(getattr(LAYERS, name)(**arguments)), 4, 3)


def _all() -> dict[str, Callable[[int], Any]]:
    return {
        **_kernels(),
        **_lookups(),
        "AdditiveAttention": _attends("AdditiveAttention"),
        "Attention": _attends("Attention", use_scale=True, score_mode="concat"),
        "BatchNormalization": _of(LAYERS.BatchNormalization, 3),
        "Bidirectional": _of(lambda: LAYERS.Bidirectional(LAYERS.GRU(2)), 3, 2),
        "CategoryEncoding": lambda seed: _model(
            [LAYERS.CategoryEncoding(num_tokens=5 + seed)], (1,), dtype="int64"
        ),
        "Dense": _of(partial(LAYERS.Dense, 2), 3),
        "EinsumDense": _of(partial(LAYERS.EinsumDense, "ab,bc->ac", (2,)), 3),
        "Embedding": lambda seed: _model([LAYERS.Embedding(9, 2)], (3,), dtype="int64"),
        "GroupNormalization": _of(partial(LAYERS.GroupNormalization, 1), 3),
        "GroupQueryAttention": _attends(
            "GroupQueryAttention", head_dim=2, num_query_heads=2, num_key_value_heads=1
        ),
        "LayerNormalization": _of(LAYERS.LayerNormalization, 3),
        "MultiHeadAttention": _attends("MultiHeadAttention", num_heads=1, key_dim=2),
        "PReLU": _of(LAYERS.PReLU, 3),
        "Pipeline": _of(lambda: LAYERS.Pipeline([LAYERS.Rescaling(2.0)]), 3),
        "RMSNormalization": _of(lambda: LAYERS.RMSNormalization(), 3),
        "ReversibleEmbedding": lambda seed: _model(
            [LAYERS.ReversibleEmbedding(9, 2)], (3,), dtype="int64"
        ),
        "SpectralNormalization": _of(lambda: LAYERS.SpectralNormalization(LAYERS.Dense(2)), 3),
        "StackedRNNCells": _of(
            lambda: LAYERS.RNN(LAYERS.StackedRNNCells([LAYERS.GRUCell(2), LAYERS.GRUCell(2)])), 3, 2
        ),
        "TFSMLayer": lambda seed: _model([LAYERS.TFSMLayer("inner", "serve")], (3,)),
        "TimeDistributed": _of(lambda: LAYERS.TimeDistributed(LAYERS.Dense(2)), 3, 2),
        "own: finalized": _of(Finalized, 3),
        "own: loaded": _of(Loaded, 3),
        "own: saved and loaded": _of(SavedAndLoaded, 3),
        "own: keeping": lambda seed: _model([Keeping(seed)], (3,)),
        "own: saves more": lambda seed: _model([SavesMore(seed)], (3,)),
        "own: saves files": lambda seed: _model([SavesFiles(seed)], (3,)),
    }


# Layers that a version cannot restore; a warning names them.
NAMED = {"own: saves more", "own: saves files"}

CASES = {
    name: build for name, build in _all().items()
    if name.startswith("own") or name == "FeatureSpace"
    or hasattr(LAYERS, name.partition(",")[0])
}  # fmt: skip

# Those of `resumable` are layers too.
COVERED = {name.partition(",")[0] for name in (*CASES, *RESUMABLE)}


def _inputs(model: Any) -> Any:
    if len(model.inputs) > 1:
        return {
            "age": tf.constant([[2.0], [300.0]]), "code": tf.constant([[3], [7]]),
            "size": tf.constant([[1.0], [900.0]]), "word": tf.constant([["a"], ["e"]]),
        }  # fmt: skip
    shape, dtype = model.inputs[0].shape, model.inputs[0].dtype
    shape = (shape[0] or 2, *shape[1:])
    if dtype == "string":
        return tf.constant([["a"], ["e"], ["b c"]])
    if dtype == "int64":
        return tf.reshape(tf.range(np.prod(shape), dtype=tf.int64), shape) % 7
    return tf.constant(np.linspace(0, 5, int(np.prod(shape))).reshape(shape).astype("float32"))


def _change(model: Any) -> None:
    """Give every variable another value than its initial one, except those that `adapt` set."""
    random = np.random.default_rng(3)
    for variable in model.variables:
        if tf.as_dtype(variable.dtype).is_floating and variable.name not in ("mean", "variance"):
            variable.assign(random.uniform(0.1, 1.0, variable.shape))


def _outputs(model: Any) -> Any:
    outputs = np.asarray(model(_inputs(model)))
    return outputs.astype("S") if outputs.dtype == object else outputs


def begin(name: str) -> None:
    """Export a model, and save its outputs."""
    keras.utils.set_random_seed(1)
    if name == "TFSMLayer":
        _model([LAYERS.Dense(2)], (3,)).export("inner", verbose=False)
    model = CASES[name](0)
    _change(model)
    for layer in model.layers:
        if hasattr(layer, "update"):
            layer.update()
    with Exporter(f"exports/{name}", model, log_dir=None, background=False) as exporter:
        exporter.export()
    np.save(f"{name}.npy", _outputs(model))


def resume(name: str) -> tuple[bool, list[str]]:
    """Restore another model. Return whether its outputs are the same, and the warnings."""
    keras.utils.set_random_seed(2)
    model = CASES[name](1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        restore(model, f"exports/{name}/1")
    is_same = np.array_equal(np.load(f"{name}.npy"), _outputs(model))
    return is_same, [str(item.message) for item in caught]
