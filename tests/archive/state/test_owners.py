"""Collections hold the variables that there are at the export, however late they come."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import FEATURES, assert_equal_state, classifier, data

from keras_export_callbacks import Exporter, ExportEveryN, restore, standard_endpoints

OWNERS: dict[str, Any] = {}
NAMED = SimpleNamespace(late=None)


class Plain:
    """An object of the user's own, with endpoints of its own."""

    def __init__(self, late: Any) -> None:
        self.late = late

    def register(self, archive: Any, model: Any) -> None:
        standard_endpoints(archive, model)
        archive.add_variable_collection("late", self.late.variables)

    __call__ = register


def adding(archive: Any, model: Any, late_of: Callable[[], Any]) -> None:
    standard_endpoints(archive, model)
    archive.add_variable_collection("late", late_of().variables)


def in_a_closure(model: Any, late: Any) -> Any:
    return lambda archive, model: adding(archive, model, lambda: late)


def in_a_default(model: Any, late: Any) -> Any:
    def endpoints(archive: Any, model: Any, late: Any = late) -> None:
        adding(archive, model, lambda: late)

    return endpoints


def in_an_object_closed_over(model: Any, late: Any) -> Any:
    nested = Plain(Plain(late))
    return lambda archive, model: adding(archive, model, lambda: nested.late.late)


def in_a_global(model: Any, late: Any) -> Any:
    NAMED.late = late
    return lambda archive, model: adding(archive, model, lambda: NAMED.late)


def in_a_global_container(model: Any, late: Any) -> Any:
    OWNERS["all"] = [late]
    return lambda archive, model: adding(archive, model, lambda: OWNERS["all"][0])


def in_a_module(model: Any, late: Any) -> Any:
    this = sys.modules[__name__]
    this.LATE = late  # type: ignore[attr-defined]
    return lambda archive, model: adding(archive, model, lambda: this.LATE)  # type: ignore[attr-defined]


def in_a_partial(model: Any, late: Any) -> Any:
    return functools.partial(adding, late_of=lambda: late)


def in_the_object_of_a_method(model: Any, late: Any) -> Any:
    return Plain(late).register


def in_an_object_that_is_called(model: Any, late: Any) -> Any:
    return Plain(late)


def in_an_attribute_of_the_model(model: Any, late: Any) -> Any:
    model.late = late
    return lambda archive, model: adding(archive, model, lambda: model.late)


def in_a_container_of_the_model(model: Any, late: Any) -> Any:
    model.others = {"late": [late]}
    return lambda archive, model: adding(archive, model, lambda: model.others["late"][0])


def in_a_part_of_the_model(model: Any, late: Any) -> Any:
    part = classifier(compiled=False)
    part.late = late
    model.add(keras.Sequential([keras.layers.Dense(FEATURES), part]))
    return lambda archive, model: adding(archive, model, lambda: model.layers[-1].layers[-1].late)


PLACES = [
    in_a_closure, in_a_default, in_an_object_closed_over, in_a_global, in_a_global_container,
    in_a_module, in_a_partial, in_the_object_of_a_method, in_an_object_that_is_called,
    in_an_attribute_of_the_model, in_a_container_of_the_model, in_a_part_of_the_model,
]  # fmt: skip


def exported(record: Any, name: str = "late") -> list[Any]:
    return [variable.numpy() for variable in getattr(tf.saved_model.load(str(record.path)), name)]


def values(owner: Any) -> list[Any]:
    return [variable.numpy() for variable in owner.variables]


@pytest.mark.parametrize("place", PLACES)
def test_an_optimizer_built_later_is_exported_wherever_it_is(place: Any) -> None:
    model, late = classifier(), keras.optimizers.Adam()
    with Exporter("base", model, endpoints=place(model, late), log_dir=None) as exporter:
        first = exporter.export().result()
        late.build(model.trainable_variables)
        late.variables[-1].assign(np.full(late.variables[-1].shape, 3.0))
        second = exporter.export().result()
        third = exporter.export().result()
    assert first.collections["late"] == 2
    assert second.collections["late"] == third.collections["late"] == len(late.variables) > 2
    assert third.graph_reused
    assert_equal_state(exported(second), values(late))


class Counted:
    """Endpoints that count how often they are registered, and how often they are traced."""

    def __init__(self, variables: Callable[[], Any]) -> None:
        self.variables = variables
        self.registered = self.traced = 0

    def __call__(self, archive: Any, model: Any) -> None:
        self.registered += 1
        archive.track(model)
        archive.add_endpoint("serve", functools.partial(self.serve, model), model.inputs)
        archive.add_variable_collection("late", self.variables())

    def serve(self, model: Any, x: Any) -> Any:
        self.traced += 1
        return model(x, training=False)


def test_endpoints_are_registered_again_only_when_there_is_more() -> None:
    model, late = classifier(), keras.optimizers.Adam()
    endpoints = Counted(lambda: late.variables)
    with Exporter("base", model, endpoints=endpoints, log_dir=None) as exporter:
        for epoch in range(3):
            model.fit(*data(), verbose=0)
            exporter.export(epoch=epoch).result()
        assert (endpoints.registered, endpoints.traced) == (1, 1)
        late.build(model.trainable_variables)
        for epoch in range(3):
            model.fit(*data(), verbose=0)
            exporter.export(epoch=epoch).result()
        assert (endpoints.registered, endpoints.traced) == (2, 1)
    assert len(exported(exporter.exports[-1])) == len(late.variables)


def grow_a_list(variables: list[Any]) -> None:
    variables.append(keras.Variable([1.0, 2.0]))


def shrink_a_list(variables: list[Any]) -> None:
    del variables[0]


def replace_in_a_list(variables: list[Any]) -> None:
    variables[0] = tf.Variable(9.0)


@pytest.mark.parametrize("is_copied", [False, True])
@pytest.mark.parametrize("change", [grow_a_list, shrink_a_list, replace_in_a_list])
def test_a_list_is_exported_as_it_is_then(change: Any, is_copied: bool) -> None:
    variables = [tf.Variable(3.0), keras.Variable(4.0)]
    endpoints = Counted(lambda: list(variables) if is_copied else variables)
    with Exporter("base", classifier(), endpoints=endpoints, log_dir=None) as exporter:
        exporter.export().result()
        change(variables)
        record = exporter.export().result()
    assert_equal_state(exported(record), [variable.numpy() for variable in variables])


def test_an_optimizer_put_in_the_place_of_another_is_exported() -> None:
    model = classifier()
    model.late = keras.optimizers.Adam()
    endpoints = Counted(lambda: model.late.variables)
    with Exporter("base", model, endpoints=endpoints, log_dir=None) as exporter:
        exporter.export().result()
        model.late = keras.optimizers.SGD(0.25, momentum=0.9)
        second = exporter.export().result()
        model.late.build(model.trainable_variables)
        third = exporter.export().result()
    assert_equal_state(exported(second), [0, np.float32(0.25)])
    assert_equal_state(exported(third), values(model.late))


def test_layers_and_metrics_built_later_are_exported() -> None:
    head, metric = keras.layers.Dense(2), keras.metrics.F1Score()
    for owner, build in [
        (head, lambda: head.build((None, 3))),
        (metric, lambda: metric([[1.0, 0.0]], [[0.9, 0.2]])),
    ]:
        endpoints = Counted(lambda owner=owner: owner.variables)
        with Exporter("base", classifier(), endpoints=endpoints, log_dir=None) as exporter:
            before = exporter.export().result()
            build()
            after = exporter.export().result()
        assert before.collections["late"] < after.collections["late"]
        assert_equal_state(exported(after), values(owner))


def test_layers_that_are_trained_later_are_exported() -> None:
    model = classifier()
    model.layers[0].trainable = False
    endpoints = Counted(lambda: model.trainable_variables)
    with Exporter("base", model, endpoints=endpoints, log_dir=None) as exporter:
        exporter.export().result()
        model.layers[0].trainable = True
        record = exporter.export().result()
    assert_equal_state(exported(record), [each.numpy() for each in model.trainable_variables])


def test_a_variable_made_by_the_endpoints_is_the_one_that_they_use() -> None:
    model, late = classifier(), keras.optimizers.Adam()

    def endpoints(archive: Any, model: Any) -> None:
        calls = tf.Variable(0.0)
        archive.add_endpoint("serve", lambda x: model(x) + calls.assign_add(1.0), model.inputs)
        archive.add_variable_collection("calls", [calls])
        archive.add_variable_collection("late", late.variables)

    with Exporter("base", model, endpoints=endpoints, log_dir=None) as exporter:
        exporter.export().result()
        late.build(model.trainable_variables)
        record = exporter.export().result()
    revived = tf.saved_model.load(str(record.path))
    revived.serve(data()[0])
    assert revived.calls[0].numpy() == 1.0
    assert len(revived.late) == len(late.variables)


class Gan(keras.Model):  # type: ignore[misc]
    """A generator and a discriminator, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(FEATURES)])
        self.discriminator = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(1)])

    def compile(self, g_opt: Any, d_opt: Any) -> None:
        super().compile(optimizer=g_opt)
        self.d_opt = d_opt

    def call(self, x: Any) -> Any:
        return self.generator(x)

    def train_step(self, x: Any) -> Any:
        for part, optimizer, sign in [
            (self.discriminator, self.d_opt, 1.0),
            (self.generator, self.optimizer, -1.0),
        ]:
            with tf.GradientTape() as tape:
                fake, real = self.discriminator(self.generator(x)), self.discriminator(x)
                loss = sign * tf.reduce_mean(tf.square(real - 1.0) + tf.square(fake))
            variables = part.trainable_variables
            optimizer.apply(tape.gradient(loss, [each.value for each in variables]), variables)
        return {"loss": loss}


def gan() -> Any:
    keras.utils.set_random_seed(7)
    model = Gan()
    model.compile(keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.02))
    model.build((None, FEATURES))
    return model


def gan_endpoints(archive: Any, model: Any) -> None:
    standard_endpoints(archive, model)
    archive.add_variable_collection("d_opt", model.d_opt.variables)


@pytest.fixture
def trained() -> tuple[Any, Any]:
    x, _ = data()
    model = gan()
    callback = ExportEveryN("base", endpoints=gan_endpoints, sample_inputs=x[:2], log_dir=None)
    model.fit(x, epochs=2, batch_size=16, verbose=0, callbacks=[callback])
    return model, callback.last_export


def test_both_optimizers_of_a_gan_are_exported_and_restored(trained: tuple[Any, Any]) -> None:
    model, record = trained
    assert record.collections == {"optimizer_variables": 6, "d_opt": 6}
    assert_equal_state(exported(record, "optimizer_variables"), values(model.optimizer))
    assert_equal_state(exported(record, "d_opt"), values(model.d_opt))
    again = gan()  # Its optimizer is built for the part that it trains.
    again.d_opt.build(again.discriminator.trainable_variables)
    restore(again, record.path)
    assert_equal_state(values(again.d_opt), values(model.d_opt))
    assert_equal_state(values(again), values(model))
    assert_equal_state(values(again.optimizer), values(model.optimizer))
