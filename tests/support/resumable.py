"""Trainings that one process begins and another process resumes, for every kind of state.

Each case is trained for two steps, exported or restored, and trained for two more.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_export_callbacks import ExportArchive, Exporter, ExportEveryN, restore

from .models import IS_OLD_KERAS, state

VALIDATED = ", validated"

OPTIMIZERS = keras.optimizers
LAYERS = keras.layers


def _classes(module: Any, base: type) -> dict[str, type]:
    """Return each subclass of `base` in a module once, by name."""
    found = {
        getattr(module, name): name
        for name in dir(module)
        if inspect.isclass(getattr(module, name)) and issubclass(getattr(module, name), base)
    }
    return {name: kind for kind, name in found.items()}


def _multi(**options: Any) -> Any:
    inner = OPTIMIZERS.OptimizerMap(OPTIMIZERS.Adam(**options))
    inner[".*bias"] = OPTIMIZERS.Nadam(**options)
    return OPTIMIZERS.MultiOptimizer(inner)


def _makers() -> dict[str, Callable[..., Any]]:
    """Return functions that make the optimizers which train without another one, by name."""
    makers: dict[str, Callable[..., Any]] = _classes(OPTIMIZERS, OPTIMIZERS.Optimizer)
    del makers["Optimizer"], makers["LossScaleOptimizer"]
    makers["SGD"] = partial(OPTIMIZERS.SGD, momentum=0.9)
    makers["RMSprop"] = partial(OPTIMIZERS.RMSprop, momentum=0.9, centered=True)
    makers["Adam"] = partial(OPTIMIZERS.Adam, amsgrad=True)
    if "MultiOptimizer" in makers:
        makers["MultiOptimizer"] = _multi
    return makers


def _optimizers() -> dict[str, Callable[[], Any]]:
    cases: dict[str, Callable[[], Any]] = {}
    for name, make in _makers().items():
        cases[f"{name}, plain"] = make
        cases[f"{name}, averaged"] = partial(make, use_ema=True, ema_overwrite_frequency=3)
        cases[f"{name}, accumulated"] = partial(make, gradient_accumulation_steps=3)
        if name != "MultiOptimizer":
            cases[f"{name}, scaled"] = partial(_scaled, make)
    return cases


def _scaled(make: Callable[[], Any]) -> Any:
    return OPTIMIZERS.LossScaleOptimizer(make(), dynamic_growth_steps=3)


def _with_optimizer(make: Callable[[], Any]) -> Any:
    model = keras.Sequential([keras.Input((3,)), LAYERS.Dense(2)])
    model.compile(make(), "mse")
    return model


def _with_layers(shape: tuple[int, ...], make: Callable[[], Any], batch: int | None = None) -> Any:
    inputs = keras.Input(shape, batch_size=batch)
    layer = make()
    # What is cropped in training is of another shape when it is served.
    is_cropped = layer.__class__.__name__ == "RandomCrop"
    flat = LAYERS.GlobalAveragePooling2D() if is_cropped else LAYERS.Flatten()
    outputs = LAYERS.Dense(2)(flat(layer(inputs)))
    model = keras.Model(inputs, outputs)
    model.compile("adam", "mse")
    return model


# The first draws with Python's `random`, when it is traced; in Keras 3.8 the second did, too.
# A `JaxLayer` is for another backend.
_LEFT_OUT = {"AugMix", "JaxLayer", *({"RandAugment"} if IS_OLD_KERAS else ())}

# What a random layer needs besides its seed.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "RandomBrightness": {"factor": 0.5},
    "RandomColorDegeneration": {"factor": 0.5},
    "RandomColorJitter": {"brightness_factor": 0.5, "contrast_factor": 0.5},
    "RandomContrast": {"factor": 0.5},
    "RandomCrop": {"height": 4, "width": 4},
    "RandomHue": {"factor": 0.5},
    "RandomPosterization": {"factor": 4},
    "RandomRotation": {"factor": 0.5},
    "RandomSaturation": {"factor": 0.5},
    "RandomSharpness": {"factor": 0.5},
    "RandomShear": {"x_factor": 0.5, "y_factor": 0.5},
    "RandomTranslation": {"height_factor": 0.5, "width_factor": 0.5},
    "RandomZoom": {"height_factor": 0.5},
    "AlphaDropout": {"rate": 0.5},
    "Dropout": {"rate": 0.5},
    "GaussianDropout": {"rate": 0.5},
    "GaussianNoise": {"stddev": 0.5},
    "SpatialDropout1D": {"rate": 0.5},
    "SpatialDropout2D": {"rate": 0.5},
    "SpatialDropout3D": {"rate": 0.5},
    "Attention": {"dropout": 0.5},
    "AdditiveAttention": {"dropout": 0.5},
    "MultiHeadAttention": {"num_heads": 1, "key_dim": 2, "dropout": 0.5},
    "GroupQueryAttention": {
        "head_dim": 2, "num_query_heads": 2, "num_key_value_heads": 1, "dropout": 0.5,
    },
}  # fmt: skip

_IMAGE = (8, 8, 3)
_SHAPES = {
    "AdditiveAttention": (4, 3),
    "Attention": (4, 3),
    "GroupQueryAttention": (4, 3),
    "MultiHeadAttention": (4, 3),
    "SpatialDropout1D": (4, 3),
    "SpatialDropout3D": (2, 2, 2, 3),
}


class SelfAttention(keras.Layer):
    """A layer that applies an attention layer to its only input."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def build(self, shape: Any) -> None:
        if isinstance(self.attention, LAYERS.MultiHeadAttention | LAYERS.GroupQueryAttention):
            self.attention.build(shape, shape)
        else:
            self.attention.build([shape, shape])

    def call(self, x: Any, training: bool = False) -> Any:
        if isinstance(self.attention, LAYERS.MultiHeadAttention | LAYERS.GroupQueryAttention):
            return self.attention(x, x, training=training)
        return self.attention([x, x], training=training)


def _self_attention(kind: type, **arguments: Any) -> Any:
    return SelfAttention(kind(**arguments))


def _random_layers() -> dict[str, Callable[[], Any]]:
    """Return a model for each layer that takes a seed, except for recurrent layers."""
    cases: dict[str, Callable[[], Any]] = {}
    for name, kind in _classes(LAYERS, LAYERS.Layer).items():
        takes = inspect.signature(kind).parameters
        if "seed" not in takes or name in _LEFT_OUT:
            continue
        if issubclass(kind, LAYERS.RNN) or name.endswith("Cell"):
            continue  # See below.
        arguments = _ARGUMENTS.get(name, {})
        if "value_range" in takes:
            arguments = {"value_range": (0, 1), **arguments}
        make = partial(kind, **arguments)
        if name.endswith("Attention"):
            make = partial(_self_attention, kind, **arguments)
        cases[name] = partial(_with_layers, _SHAPES.get(name, _IMAGE), make)
    return cases


def _stacked(**options: Any) -> Any:
    dropout = {"dropout": 0.5, "recurrent_dropout": 0.5}
    return LAYERS.RNN([LAYERS.LSTMCell(2, **dropout), LAYERS.GRUCell(2, **dropout)], **options)


def _both_ways(make: Callable[[], Any]) -> Any:
    return LAYERS.Bidirectional(make())


def _recurrent_layers() -> dict[str, Callable[[], Any]]:
    dropout = {"dropout": 0.5, "recurrent_dropout": 0.5}
    cases: dict[str, Callable[[], Any]] = {}
    for name, kind in _classes(LAYERS, LAYERS.RNN).items():
        make: Callable[..., Any] = partial(kind, 2, **dropout)
        shape: tuple[int, ...] = (3, 2)
        if name == "RNN":
            make = _stacked
        elif name.startswith("ConvLSTM"):
            make, shape = partial(kind, 2, 2, **dropout), (3, *(int(name[-2]) * [3]), 1)
        stateful = partial(make, stateful=True)
        cases[name] = partial(_with_layers, shape, make)
        cases[f"{name}, stateful"] = partial(_with_layers, shape, stateful, 4)
        # Validation moves their seeds and states.
        for kept in (name, f"{name}, stateful"):
            cases[f"{kept}{VALIDATED}"] = cases[kept]
        # `Bidirectional` takes no list of cells, and the same of every rank takes long.
        if name not in ("RNN", "ConvLSTM2D", "ConvLSTM3D"):
            cases[f"{name}, both ways"] = partial(_with_layers, shape, partial(_both_ways, make))
            both = partial(_both_ways, stateful)
            cases[f"{name}, both ways, stateful"] = partial(_with_layers, shape, both, 4)
    return cases


CASES: dict[str, Callable[[], Any]] = {
    **{name: partial(_with_optimizer, make) for name, make in _optimizers().items()},
    **_random_layers(),
    **_recurrent_layers(),
}


def _train(model: Any, seed: int, callback: Any = None) -> None:
    """Train for two steps in one epoch. With a callback, validate at its end."""
    random = np.random.default_rng(seed)
    x = random.uniform(size=(8, *model.input_shape[1:])).astype("float32")
    y = random.normal(size=(8, 2)).astype("float32")
    options: dict[str, Any] = {"batch_size": 4, "verbose": 0, "shuffle": False}
    if callback is not None:
        options |= {"callbacks": [callback], "validation_data": (x + 1, y)}
    model.fit(x, y, **options)


def only_variables(archive: ExportArchive, model: Any) -> None:
    """Register the variables, and an endpoint that is quick to trace and serves nothing."""
    archive.track(model)
    archive.add_endpoint("serve", lambda x: x, [keras.InputSpec(shape=(None,), dtype="float32")])
    archive.add_variable_collection("optimizer_variables", model.optimizer.variables)


def begin(name: str) -> None:
    """Train a case, export it, train on, and save the final state."""
    keras.utils.set_random_seed(1)
    model = CASES[name]()
    options = {"endpoints": only_variables, "log_dir": None, "background": False}
    if name.endswith(VALIDATED):
        _train(model, 0, ExportEveryN(f"exports/{name}", **options))
    else:
        _train(model, 0)
        with Exporter(f"exports/{name}", model, **options) as exporter:
            exporter.export()
    _train(model, seed=1)
    np.savez(f"{name}.npz", *state(model))


def resume(name: str) -> str:
    """Restore the export of a case and train on. Return which variables differ at the end."""
    keras.utils.set_random_seed(2)
    model = CASES[name]()
    restore(model, f"exports/{name}/1")
    _train(model, seed=1)
    with np.load(f"{name}.npz") as expected:
        pairs = zip(expected.values(), state(model), strict=True)
        others = [place for place, pair in enumerate(pairs) if not np.array_equal(*pair)]
    return f"the variables {others} are others" if others else "the same"
