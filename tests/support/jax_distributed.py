"""Trains a model whose variables are spread over devices, or one of two processes that do.

Usage: python -m support.jax_distributed KIND [RANK PORT]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax

KIND = sys.argv[1]
if len(sys.argv) > 2:
    RANK, PORT = int(sys.argv[2]), sys.argv[3]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{PORT}", 2, RANK)

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from keras_export_callbacks import ExportEveryN, ExportOnImprove, restore  # noqa: E402


def distribution() -> Any:
    devices = keras.distribution.list_devices()
    if KIND == "data":
        return keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    columns = 2
    mesh = keras.distribution.DeviceMesh(
        (len(devices) // columns, columns), ("batch", "model"), devices
    )
    layout = keras.distribution.LayoutMap(mesh)
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


def told(callback: Any) -> list[list[int]]:
    return [[record.version, record.step] for record in callback.exports]


def main() -> None:
    keras.distribution.set_distribution(distribution())
    rng = np.random.default_rng(0)
    x, y = rng.random((32, 8)).astype("f"), rng.random((32, 4)).astype("f")
    model = build()
    improve = ExportOnImprove("improved", "loss", log_dir=None, sample_inputs=x[:8])
    every = ExportEveryN("steps", n=3, unit="batch", log_dir=None)
    options: dict[str, Any] = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(x, y, epochs=3, callbacks=[improve, every], **options)
    sharding = str(model.layers[0].kernel.value.sharding.spec)
    result = {"sharding": sharding, "improved": told(improve), "steps": told(every)}
    if improve.exports:
        other = build()
        restore(other, improve.exports[-1].path)
        revived = tf.saved_model.load(str(improve.exports[-1].path))
        result["served"] = bool(np.allclose(revived.serve(x), model.predict(x, verbose=0)))
        if len(sys.argv) == 2:  # Alone, a process can train on.
            for either in (model, other):
                either.fit(x, y, **options)
        pairs = zip(model.get_weights(), other.get_weights(), strict=True)
        result["restored"] = all(np.array_equal(a, b) for a, b in pairs)
        result["kept"] = str(other.layers[0].kernel.value.sharding.spec) == sharding
    print(json.dumps(result), flush=True)


main()
