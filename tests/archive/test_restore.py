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
from support.cases import mostly_zoo
from support.models import assert_equal_state, classifier, data, state
from support.processes import run_python
from support.versions import sign

from keras_export_callbacks import (
    ExportArchive,
    ExportDirectory,
    Exporter,
    ExportError,
    ExportEveryN,
    restore,
)
from keras_export_callbacks.archive.errors import ExportTypeError

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
@pytest.mark.parametrize("optimizer", mostly_zoo(["adam", "sgd"], "adam"))
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
    with pytest.warns(UserWarning, match="the state of the optimizer, because the model is not"):
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


def inference_only(archive: ExportArchive, model: Any) -> None:
    archive.track(model)
    archive.add_endpoint("serve", model.call, model.inputs)


def untracked(archive: ExportArchive, model: Any) -> None:
    archive.add_endpoint("serve", lambda x: model(x, training=False), model.inputs)


def export_of(model: Any, endpoints: Any) -> Any:
    with Exporter("base", model, endpoints=endpoints, log_dir=None) as exporter:
        return exporter.export().result()


def test_a_version_without_the_optimizer_gives_back_the_weights() -> None:
    model, other = classifier(), classifier()
    for each in (model, other):
        each.fit(*data(seed=each is model), verbose=0)
    record = export_of(model, inference_only)
    optimizer = state(other)[len(other.variables) :]
    with pytest.warns(UserWarning, match=r"the optimizer, which stays.*add_variable_collection"):
        restore(other, record)
    assert_equal_state(state(other), [*state(model)[: len(model.variables)], *optimizer])
    restore(classifier(compiled=False), record)


def test_a_version_of_an_untracked_model_gives_back_the_weights() -> None:
    model = classifier()
    model.fit(*data(), verbose=0)
    record = export_of(model, untracked)
    other = classifier()
    with pytest.warns(UserWarning, match="names in model|could be restored") as warned:
        restore(other, record)
    assert_equal_state(other.get_weights(), model.get_weights())
    told = " ".join(str(each.message) for each in warned)
    assert "Some names in model" in told  # Keras counted on.
    assert "seed_generator" in told
    assert "the optimizer, which stays" in told


def named(*names: str) -> Any:
    hidden = [keras.layers.Dense(4, name=name) for name in names]
    return keras.Sequential([keras.Input((4,)), *hidden], name="named")


def test_names_decide_where_nothing_else_does() -> None:
    model, other = named("a", "b"), named("b", "a")
    record = export_of(model, untracked)
    restore(other, record)
    assert_equal_state(other.get_weights(), [*model.get_weights()[2:], *model.get_weights()[:2]])
    before = state(strange := named("a", "c"))
    with pytest.raises(ExportError, match=r"(?s)has no named/c/kernel.*without `archive.track"):
        restore(strange, record)
    assert_equal_state(state(strange), before)


def test_the_optimizer_of_an_untracked_model_is_put_back() -> None:
    def with_optimizer(archive: ExportArchive, model: Any) -> None:
        untracked(archive, model)
        archive.add_variable_collection("optimizer_variables", model.optimizer.variables)

    model, other = named("a", "b"), named("a", "b")
    for each in (model, other):
        each.compile("adam", "mse")
    x, _ = data()
    model.fit(x, x, verbose=0)
    restore(other, export_of(model, with_optimizer))
    assert_equal_state(state(other), state(model))


def test_a_base_directory_stands_for_its_newest_version() -> None:
    model = classifier()
    callback = ExportEveryN("base", log_dir=None)
    model.fit(*data(), epochs=2, verbose=0, callbacks=[callback])
    other = classifier()
    record = restore(other, "base")
    assert record == callback.exports[1]
    assert record.path == Path("base/2").absolute()
    assert_equal_state(state(other), state(model))
    assert restore(other, callback.exports[0]) == callback.exports[0]
    assert restore(other, "base/2") == record


ENDPOINTS = {"inference_only": inference_only, "untracked": untracked}


@pytest.mark.parametrize(
    ("endpoints", "line"),
    [
        ("inference_only", r"Add `archive.add_variable_collection\('opt"),
        ("untracked", r"Add `archive.track\(model\)` and `archive.add_variable"),
    ],
)
def test_a_fit_that_cannot_be_resumed_says_so_once(endpoints: str, line: str) -> None:
    callback = ExportEveryN("base", endpoints=ENDPOINTS[endpoints], log_dir=None)
    model = classifier()
    with pytest.warns(UserWarning, match=line) as warned:
        model.fit(*data(), verbose=0, callbacks=[callback])
    assert len(warned) == 1
    model.fit(*data(), verbose=0, callbacks=[callback])  # A warning would be an error.


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("base/9", "no version at .*/base/9'. Its parent directory holds 1"),
        ("empty", r"There are no versions in '.*/empty'\.$"),
        ("parent", r"no versions in '.*/parent'\. There are versions in '.*/parent/trial_0'\.$"),
    ],
)
def test_a_version_that_does_not_exist(version: Path, path: str, message: str) -> None:
    Path("empty").mkdir()
    shutil.copytree(version, "parent/trial_0/1")
    with pytest.raises(ExportError, match=message):
        restore(classifier(), path)


def test_a_version_without_a_manifest_is_told_in_whole_sentences(version: Path) -> None:
    (version / "assets.extra/export.json").unlink()
    with pytest.raises(
        ExportError, match=r"manifest was lost\. Expected a version directory as it"
    ):
        restore(classifier(), version)


def test_something_else_than_a_path_is_told() -> None:
    told = r"Received version_path=.* of type .* or an `ExportRecord`\. The `last_export` of a call"
    for wrong in (None, 7, ExportDirectory("base"), ExportEveryN("base")):
        with pytest.raises(ExportTypeError, match=told):
            restore(classifier(), wrong)  # type: ignore[arg-type]


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
