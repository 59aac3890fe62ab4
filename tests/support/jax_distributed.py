"""Models on several devices, and one of two processes that train one together.

Usage: python -m support.jax_distributed RANK PORT [killed]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_export_callbacks import ExportError, ExportEveryN, ExportOnImprove, restore

from .models import Logs, assert_equal_state, state

OPTIONS: dict[str, Any] = {"batch_size": 8, "shuffle": False, "verbose": 0}


def data_parallel(devices: list[str]) -> Any:
    """Give each device a copy of the variables."""
    return keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)


def model_parallel(devices: list[str]) -> Any:
    """Spread the first layer over pairs of devices."""
    shape = (len(devices) // 2, 2)
    layout = keras.distribution.LayoutMap(
        keras.distribution.DeviceMesh(shape, ("batch", "model"), devices)
    )
    layout[".*wide.*kernel"] = (None, "model")
    layout[".*wide.*bias"] = ("model",)
    return keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False
    )


def build() -> Any:
    keras.utils.set_random_seed(7)
    layers = [keras.layers.Dense(8, name="wide"), keras.layers.Dropout(0.2), keras.layers.Dense(4)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.compile("adam", "mse")
    return model


def batches() -> tuple[Any, Any]:
    """Four batches of features and labels."""
    rng = np.random.default_rng(0)
    return rng.random((32, 8)).astype("f"), rng.random((32, 4)).astype("f")


def train_on(model: Any, version: Any) -> None:
    """Restore a version into another model, and train both: they stay the same."""
    other = build()
    restore(other, version)
    for ours, theirs in zip(other.variables, model.variables, strict=True):
        assert ours.value.sharding == theirs.value.sharding
    assert_equal_state(state(other), state(model))
    for either in (model, other):
        either.fit(*batches(), **OPTIONS)
    assert_equal_state(state(other), state(model))


def expected(model: Any, x: Any) -> Any:
    """Compute what the model does. Several processes cannot `predict`."""
    for layer in (model.layers[0], model.layers[-1]):
        x = x @ np.array(layer.kernel.value) + np.array(layer.bias.value)
    return x


def told(callback: Any) -> list[tuple[int, int]]:
    return [(record.version, record.step) for record in callback.exports]


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def main(rank: int, port: str, killed: bool) -> None:
    import jax

    jax.distributed.initialize(
        f"127.0.0.1:{port}", 2, rank, heartbeat_timeout_seconds=10, shutdown_timeout_seconds=10
    )
    devices = keras.distribution.list_devices()
    x, y = batches()
    if killed:
        keras.distribution.set_distribution(data_parallel(devices))
        fit_until_killed(build())

    keras.distribution.set_distribution(model_parallel(devices))
    try:
        build().fit(x, y, callbacks=[ExportEveryN("spread", log_dir=None)], **OPTIONS)
    except ExportError as error:
        say(str(error))

    keras.distribution.set_distribution(data_parallel(devices))
    model = build()
    # Each process measures something else. What the first one measures decides.
    scores = Logs("score", [[3.0, 2.0, 4.0], [1.0, 2.0, 0.5]][rank])
    best = ExportOnImprove("best", "score", mode="min", log_dir=None, sample_inputs=x[:8])
    every = ExportEveryN("steps", n=3, unit="batch", log_dir=None)
    model.fit(x, y, epochs=3, callbacks=[scores, best, every], **OPTIONS)
    if rank == 0:
        served = tf.saved_model.load("steps/4")
        np.testing.assert_allclose(served.serve(x), expected(model, x), atol=1e-5)
    train_on(model, "steps/4")  # It builds a model, which waits for the first process.
    say([told(best), told(every)])

    fit_until_killed(model)


def fit_until_killed(model: Any) -> None:
    """Train without an end, and tell the number of each version."""
    callback = ExportEveryN(
        "endless", unit="batch", keep=2, log_dir=None, on_export=lambda record: say(record.version)
    )
    model.fit(*batches(), epochs=10**6, callbacks=[callback], **OPTIONS)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], "killed" in sys.argv)
