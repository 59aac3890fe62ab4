"""Every version of a real `fit` loads in TensorFlow's C library and computes the same."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from support.models import classifier, data
from support.processes import run_in_c

from keras_export_callbacks import ExportDirectory, ExportEveryN


@pytest.mark.slow
def test_each_version_computes_what_the_model_computed_at_that_epoch() -> None:
    x, y = data()
    model = classifier()
    outputs: list[Any] = []

    def remember(epoch: int, logs: Any) -> None:
        outputs.append(model(x, training=False).numpy())

    callback = ExportEveryN("base", log_dir=None)
    hooks = [keras.callbacks.LambdaCallback(on_epoch_end=remember), callback]
    model.fit(x, y, epochs=3, verbose=0, callbacks=hooks)
    directory = ExportDirectory("base")
    assert directory.versions() == [1, 2, 3]
    for version, expected in zip(directory.versions(), outputs, strict=True):
        path = directory.record(version).path
        for signature in ("serve", "serving_default"):
            served = run_in_c(path, signature, {"inputs": x})
            np.testing.assert_array_equal(served["output_0"], expected)
        training = run_in_c(path, "call_training", {"inputs": x})
        assert training["output_0"].shape == expected.shape
        assert not np.array_equal(training["output_0"], expected)
