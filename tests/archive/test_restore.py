"""`restore`: training goes on as if it had never stopped, or nothing is assigned."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from support.models import assert_equal_state, classifier, data, state
from support.processes import run_python
from support.versions import sign

from keras_export_callbacks import ExportArchive, Exporter, ExportError, ExportEveryN, restore

# Builds the model, optionally restores a version, trains epochs, and saves all state.
TRAIN = """
import sys
import keras, numpy as np
from support.models import classifier, data, state
from keras_export_callbacks import ExportEveryN, restore
optimizer, version, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
model = classifier(keras.optimizers.get(
    {"class_name": "SGD", "config": {"momentum": 0.9}} if optimizer == "sgd" else "adam"))
if version:
    restore(model, version)
callback = ExportEveryN(f"from_{first}", log_dir=None)
model.fit(*data(), initial_epoch=first, epochs=last, batch_size=8, shuffle=False, verbose=0,
          callbacks=[callback])
np.savez(f"{first}_{last}.npz", *state(model))
"""


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_goes_on_bit_for_bit_in_a_fresh_process(optimizer: str) -> None:
    run_python(TRAIN, optimizer, "", "0", "4")
    run_python(TRAIN, optimizer, str(Path("from_0", "2")), "2", "4")
    with np.load("0_4.npz") as uninterrupted, np.load("2_4.npz") as restored:
        assert_equal_state(list(uninterrupted.values()), list(restored.values()))


@pytest.fixture
def version() -> Path:
    model = classifier()
    callback = ExportEveryN("base", log_dir=None)
    model.fit(*data(), verbose=0, callbacks=[callback])
    np.savez("state.npz", *state(model))
    return callback.exports[0].path


def exported_state() -> list[Any]:
    with np.load("state.npz") as arrays:
        return list(arrays.values())


def test_everything_is_put_back_whatever_layers_are_counted_as(version: Path) -> None:
    model = classifier()
    restore(model, version)
    assert_equal_state(state(model), exported_state())


def test_an_uncompiled_model_gets_its_own_variables(version: Path) -> None:
    model = classifier(compiled=False)
    restore(model, version)
    assert_equal_state(state(model), exported_state()[: len(model.variables)])


def test_a_model_that_does_not_match_lists_each_difference(version: Path) -> None:
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(9), keras.layers.BatchNormalization(name="other")]
    )
    model.compile("sgd")
    before = state(model)
    with pytest.raises(ExportError, match="nothing was assigned") as raised:
        restore(model, version)
    message = str(raised.value)
    difference = r"model variable 0: the version has \S+/kernel float32\[4, 8\], the model has \S+"
    assert re.search(difference + r"/kernel float32\[4, 9\]", message)
    assert "other/gamma float32[9]" in message
    assert "the model has nothing" in message
    assert "optimizer variable 2: the version has" in message
    assert_equal_state(state(model), before)


def test_a_version_without_the_optimizer_does_not_fit_a_compiled_model() -> None:
    def inference_only(archive: ExportArchive, model: Any) -> None:
        archive.track(model)
        archive.add_endpoint("serve", model.call, model.inputs)

    model = classifier()
    model.optimizer.build(model.trainable_variables)
    with Exporter("base", model, endpoints=inference_only, log_dir=None) as exporter:
        version = exporter.export().result()
    with pytest.raises(
        ExportError,
        match=r"(?s)optimizer variable 0: the version has nothing.*add_variable_collection",
    ):
        restore(model, version.path)
    restore(classifier(compiled=False), version.path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("base/9", "no version at .*/base/9'. Its parent directory holds 1"),
        ("base", "'.*base' is a base directory.*such as '.*base/1'"),
    ],
)
def test_a_version_that_does_not_exist(version: Path, path: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        restore(classifier(), path)


def test_a_copy_may_be_called_anything(version: Path) -> None:
    shutil.copytree(version, "the_best")
    model = classifier()
    restore(model, "the_best")
    assert_equal_state(state(model), exported_state())


def test_a_model_that_is_not_built(version: Path) -> None:
    with pytest.raises(ExportError, match="has not been built"):
        restore(keras.Sequential([keras.layers.Dense(1)]), version)


def test_a_damaged_version_is_refused(version: Path) -> None:
    data_file = next(version.glob("variables/variables.data*"))
    content = bytearray(data_file.read_bytes())
    content[-1] ^= 1
    data_file.write_bytes(content)
    model = classifier()
    before = state(model)
    with pytest.raises(ExportError, match=f"'variables/{data_file.name}' has other contents"):
        restore(model, version)
    assert_equal_state(state(model), before)


def test_a_damaged_index_is_refused(version: Path) -> None:
    (version / "assets.extra/variables.json").write_text(json.dumps({"variables": [1]}))
    with pytest.raises(ExportError, match=r"variables\.json"):
        restore(classifier(), version)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("path", 5, r"'index.variables' is|variables\.json"),
        ("key", "no/such/key", "cannot be restored"),
        (
            "key",
            "variables/1/.ATTRIBUTES/VARIABLE_VALUE",
            "its index says that .* but its checkpoint holds",
        ),
    ],
)
def test_an_index_that_lies_is_refused_and_nothing_is_assigned(
    version: Path, key: str, value: Any, told: str
) -> None:
    index = version / "assets.extra/variables.json"
    content = json.loads(index.read_text())
    content["variables"][0][key] = value
    index.unlink()  # It is linked from elsewhere.
    index.write_text(json.dumps(content))
    sign(version, "assets.extra/variables.json")
    model = classifier()
    before = model.get_weights()
    with pytest.raises(ExportError, match=told):
        restore(model, version)
    assert_equal_state(model.get_weights(), before)
