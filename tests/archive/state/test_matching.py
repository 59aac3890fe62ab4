"""A model built in another way, with the same structure, is restored; what differs is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from support.cases import mostly_zoo
from support.models import assert_equal_state, state

from keras_export_callbacks import Exporter, ExportError, restore

X = np.linspace(0, 5, 8).reshape(4, 2).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def compiled(model: Any, optimizer: Any = "adam") -> Any:
    model.compile(optimizer, "mse")
    return model


def version_of(model: Any) -> Path:
    model.fit(X, Y, shuffle=False, verbose=0)
    with Exporter("base", model, log_dir=None, background=False) as exporter:
        return Path(exporter.export().result().path)


def sequential(*layers: Any, **options: Any) -> Any:
    return keras.Sequential([keras.Input((2,)), *layers], **options)


def adapted() -> Any:
    layer = keras.layers.Normalization(name="statistics")
    layer.adapt(3 * X)
    return compiled(sequential(layer, keras.layers.Dense(1), name="outer"))


def not_adapted() -> Any:
    layer = keras.layers.Normalization(name="statistics")
    return compiled(sequential(layer, keras.layers.Dense(1), name="outer"))


def called_before() -> Any:
    layer = keras.layers.Dense(1, name="head")
    layer(X)
    return compiled(sequential(layer, name="outer"))


def not_called_before() -> Any:
    return compiled(sequential(keras.layers.Dense(1, name="head"), name="outer"))


def inner(name: str) -> Callable[[], Any]:
    def build() -> Any:
        dense = keras.layers.Dense(3, name="dense")
        return compiled(
            sequential(sequential(dense, name=name), keras.layers.Dense(1, name="head"))
        )

    return build


def named(name: str) -> Callable[[], Any]:
    return lambda: compiled(sequential(keras.layers.Dense(1, name=name), name="outer"))


@pytest.mark.parametrize(
    ("build", "build_again", "told"),
    [
        (adapted, not_adapted, "'statistics' is 'outer/statistics' in the model"),
        (not_adapted, adapted, "'outer/statistics' is 'statistics' in the model"),
        (called_before, not_called_before, "'head' is 'outer/head' in the model"),
        (not_called_before, called_before, "'outer/head' is 'head' in the model"),
        (inner("encoder"), inner("body"), r"'encoder/dense' is 'body/dense' in the model"),
        (named("one"), named("two"), "'outer/one' is 'outer/two' in the model"),
    ],
    ids=["not adapted", "adapted", "not called", "called", "inner model", "layer"],
)
def test_a_model_with_other_names_is_restored_and_they_are_told(
    build: Callable[[], Any], build_again: Callable[[], Any], told: str
) -> None:
    model, live = build(), build_again()
    version = version_of(model)
    with pytest.warns(UserWarning, match=told):
        restore(live, version)
    assert_equal_state(state(live), state(model))
    for either in (model, live):
        either.fit(X, Y, shuffle=False, verbose=0)
    assert_equal_state(state(live), state(model))
    np.testing.assert_array_equal(live(X), model(X))


def test_names_that_only_count_differently_are_not_told() -> None:
    model, live = (compiled(sequential(keras.layers.Dense(1))) for _ in range(2))
    restore(live, version_of(model))
    assert_equal_state(state(live), state(model))


def test_layers_in_another_order_do_not_match() -> None:
    def build(*names: str) -> Any:
        return compiled(sequential(*(keras.layers.Dense(2, name=name) for name in names)))

    version, live = version_of(build("a", "b")), build("b", "a")
    before = state(live)
    with pytest.raises(ExportError, match="nothing was assigned") as raised:
        restore(live, version)
    differences = re.findall(r"model variable \d: the version has \S*([ab])/", str(raised.value))
    assert differences == ["a", "a", "b", "b"]
    assert_equal_state(state(live), before)


def test_another_kind_of_variable_does_not_match() -> None:
    class Other(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(shape=(2, 1), name="kernel")
            self.offset = self.add_weight(shape=(1,), name="offset")

        def call(self, x: Any) -> Any:
            return x @ self.kernel + self.offset

    version = version_of(compiled(sequential(keras.layers.Dense(1))))
    with pytest.raises(ExportError, match=r"the version has \S*/bias .* the model has \S*/offset"):
        restore(compiled(sequential(Other())), version)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            "adam",
            "adamw",
            r"the version has adam\w*/iteration .* the model has adam_?w\w*/iteration",
        ),
        ("adam", "adamax", r"velocity .* the model has \S*norm"),
        (keras.optimizers.SGD(momentum=0.9), "lion", "optimizer variable 0"),
        (keras.optimizers.SGD(momentum=0.9), "sgd", "optimizer variable 2: .* nothing"),
    ],
)
def test_another_optimizer_does_not_match(before: Any, after: Any, told: str) -> None:
    version = version_of(compiled(sequential(keras.layers.Dense(1)), before))
    with pytest.raises(ExportError, match=told):
        restore(compiled(sequential(keras.layers.Dense(1)), after), version)


@pytest.mark.parametrize("name", mostly_zoo(["nadam", "adafactor"], "nadam"))
@pytest.mark.parametrize("is_scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("is_built", [False, True], ids=["new", "trained"])
def test_an_optimizer_that_makes_variables_late_goes_on(
    name: str, is_scaled: bool, is_built: bool
) -> None:
    def build() -> Any:
        optimizer = keras.optimizers.get(name)
        if is_scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        return compiled(sequential(keras.layers.Dense(1)), optimizer)

    model, live = build(), build()
    version = version_of(model)
    if is_built:
        live.fit(X, Y, shuffle=False, verbose=0)
    restore(live, version)
    for either in (model, live):
        either.fit(X, Y, shuffle=False, verbose=0)
    assert_equal_state(state(live), state(model))


class Towers(keras.Model):
    """Two layers alike, made in one order or the other."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, keras.layers.Embedding(10, 2))
        self.dense = keras.layers.Dense(1)

    def call(self, inputs: Any) -> Any:
        return self.dense(self.user(inputs[:, 0]) - 2 * self.item(inputs[:, 1]))


def test_layers_that_look_alike_go_back_to_their_attributes() -> None:
    """Two lines of a constructor change places between export and restore."""
    ids = np.random.default_rng(0).integers(0, 10, (16, 2))
    y = np.ones((16, 1), "float32")
    first = Towers("user", "item")
    first.compile("adam", "mse")
    first.fit(ids, y, verbose=0)
    with Exporter("base", first, log_dir=None, sample_inputs=ids) as exporter:
        record = exporter.export().result()
    other = Towers("item", "user")
    other.compile("adam", "mse")
    other(ids)
    restore(other, record.path)
    np.testing.assert_array_equal(first(ids), other(ids))
    for model in (first, other):
        model.fit(ids, y, shuffle=False, verbose=0)
    np.testing.assert_array_equal(first(ids), other(ids))


class Twins(keras.Model):
    """Two layers whose variables have one path, because each was built before the model was."""

    def __init__(self) -> None:
        super().__init__()
        self.one = keras.layers.Dense(2, name="twin")
        self.other = keras.layers.Dense(2, name="twin")
        for layer in (self.one, self.other):
            layer(X)

    def call(self, inputs: Any) -> Any:
        return self.other(self.one(inputs))


def test_an_optimizer_of_layers_that_share_a_path_goes_on() -> None:
    model, live = compiled(Twins()), compiled(Twins())
    live(X)
    restore(live, version_of(model))
    for either in (model, live):
        either.fit(X, Y, shuffle=False, verbose=0)
    assert_equal_state(state(live), state(model))
