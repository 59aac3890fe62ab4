"""`Exporter(optimizer=)` and `restore(optimizer=)`: loops with an optimizer of their own."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import assert_equal_state, classifier, data, state

from keras_export_callbacks import ExportArchive, Exporter, ExportError, restore

X, Y = data()
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def train(model: Any, optimizer: Any, steps: int) -> None:
    """The commonest loop: the model's own optimizer, if there is one, is not used."""
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = LOSS(Y, model(X, training=True))
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        optimizer.apply(gradients, model.trainable_variables)


def values(model: Any, optimizer: Any) -> list[Any]:
    return [np.asarray(v.numpy()) for v in [*model.variables, *optimizer.variables]]


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    # It keeps a variable that is not in `variables`.
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01, 0.9)),
}


@pytest.mark.parametrize(
    ("kind", "compiled"),
    [
        pytest.param(kind, compiled, marks=[] if compiled and not index else [pytest.mark.zoo])
        for index, kind in enumerate(OPTIMIZERS)
        for compiled in (False, True)
    ],
)
def test_its_state_and_steps_are_exported_and_training_goes_on(kind: str, compiled: bool) -> None:
    model, optimizer = classifier(compiled=compiled), OPTIMIZERS[kind]()
    with Exporter("base", model, optimizer=optimizer, log_dir=None) as exporter:
        train(model, optimizer, 3)
        record = exporter.export().result()
        then = values(model, optimizer)
        train(model, optimizer, 2)
    assert record.step == 3
    revived = tf.saved_model.load(str(record.path))
    exported = [*revived.variables, *revived.optimizer_variables]
    assert_equal_state([variable.numpy() for variable in exported], then)

    other, fresh = classifier("sgd", compiled=compiled), OPTIMIZERS[kind]()
    restore(other, record.path, optimizer=fresh)
    assert_equal_state(values(other, fresh), then)
    train(other, fresh, 2)
    assert_equal_state(values(other, fresh), values(model, optimizer))


def test_variables_that_it_makes_late_are_exported() -> None:
    model, optimizer = classifier(), keras.optimizers.Adam()
    with Exporter("base", model, optimizer, log_dir=None) as exporter:
        exporter.export()
        train(model, optimizer, 1)
        exporter.export()
    counts = [record.collections["optimizer_variables"] for record in exporter.exports]
    assert counts == [2, len(optimizer.variables)]
    assert exporter.exports[1].step == 1


def test_own_endpoints_need_not_name_it() -> None:
    def inference_only(archive: ExportArchive, model: Any) -> None:
        archive.track(model)
        archive.add_endpoint("serve", model.call, model.inputs)

    model, optimizer = classifier(compiled=False), keras.optimizers.Adam()
    train(model, optimizer, 2)
    options: dict[str, Any] = {"endpoints": inference_only, "log_dir": None}
    with Exporter("base", model, optimizer=optimizer, **options) as exporter:
        record = exporter.export().result()
    other, fresh = classifier(compiled=False), keras.optimizers.Adam()
    restore(other, record.path, optimizer=fresh)
    assert_equal_state(values(other, fresh), values(model, optimizer))


def test_the_compiled_optimizer_is_left_alone() -> None:
    model, optimizer = classifier("adam"), keras.optimizers.SGD(0.1, momentum=0.9)
    train(model, optimizer, 2)
    with Exporter("base", model, optimizer=optimizer, log_dir=None) as exporter:
        record = exporter.export().result()
    other = classifier("adam")
    other.fit(X, Y, verbose=0)
    before = state(other)[len(other.variables) :]
    restore(other, record.path, optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
    assert_equal_state(state(other)[len(other.variables) :], before)
    # A model that is compiled with such an optimizer takes the state, too.
    compiled = classifier(keras.optimizers.SGD(0.1, momentum=0.9))
    restore(compiled, record.path)
    assert_equal_state(state(compiled), values(model, optimizer))


@pytest.mark.parametrize("optimizer", ["adam", 7, keras.optimizers.Adam])
def test_refuses_what_is_no_optimizer(optimizer: Any) -> None:
    with pytest.raises(ExportError, match="Expected the Keras optimizer that your training loop"):
        Exporter("base", classifier(), optimizer=optimizer, log_dir=None)
    with Exporter("base", classifier(), log_dir=None) as exporter:
        record = exporter.export().result()
    with pytest.raises(ExportError, match="Expected the Keras optimizer that your training loop"):
        restore(classifier(), record.path, optimizer=optimizer)


def test_another_kind_of_optimizer_is_told_and_nothing_is_assigned() -> None:
    model, optimizer = classifier(), keras.optimizers.SGD(0.1)
    train(model, optimizer, 1)
    with Exporter("base", model, optimizer=optimizer, log_dir=None) as exporter:
        record = exporter.export().result()
    other = classifier()
    before = state(other)
    with pytest.raises(ExportError, match="nothing was assigned"):
        restore(other, record.path, optimizer=keras.optimizers.Adam())
    assert_equal_state(state(other), before)
