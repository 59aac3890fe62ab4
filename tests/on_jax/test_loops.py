"""`Exporter` on JAX: in a stateless loop written by hand, and after `fit`."""

from __future__ import annotations

import gc
import threading
from typing import Any

import jax
import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import assert_equal_state, classifier, data, state

from keras_export_callbacks import Exporter, ExportError, publisher, restore


def exported_state(path: Any) -> list[Any]:
    revived = tf.saved_model.load(str(path))
    return [v.numpy() for v in [*revived.variables, *revived.optimizer_variables]]


class Loop:
    """A training step as Keras's guide for JAX writes it, with donated arrays."""

    def __init__(self, model: Any) -> None:
        model.optimizer.build(model.trainable_variables)
        self.model = model
        self.step = jax.jit(self._step, donate_argnums=0)
        self.state = [[variable.value for variable in variables] for variables in self._variables()]

    def _variables(self) -> list[Any]:
        model = self.model
        return [model.trainable_variables, model.non_trainable_variables, model.optimizer.variables]

    def _loss(self, trainable: Any, others: Any, x: Any, y: Any) -> Any:
        logits, others = self.model.stateless_call(trainable, others, x, training=True)
        return self.model.compute_loss(x, y, logits), others

    def _step(self, state: Any, x: Any, y: Any) -> Any:
        trainable, others, of_optimizer = state
        compute = jax.value_and_grad(self._loss, has_aux=True)
        (loss, others), gradients = compute(trainable, others, x, y)
        trainable, of_optimizer = self.model.optimizer.stateless_apply(
            of_optimizer, gradients, trainable
        )
        return loss, [trainable, others, of_optimizer]

    def train(self, steps: int) -> float:
        loss, (x, y) = 0.0, data(8)
        for _ in range(steps):
            loss, self.state = self.step(self.state, x, y)
        return float(loss)

    def put_back(self) -> None:
        for variables, values in zip(self._variables(), self.state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)


def test_a_stateless_loop_exports_what_it_puts_back(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, write = threading.Event(), publisher.write

    def held_up(*args: Any) -> Any:
        go_on.wait()
        return write(*args)

    monkeypatch.setattr(publisher, "write", held_up)
    loop = Loop(classifier())
    expected, futures = [], []
    with Exporter("base", loop.model, log_dir=None, sample_inputs=data(2)[0]) as exporter:
        for epoch in range(3):
            loss = loop.train(steps=4)
            loop.put_back()
            futures.append(exporter.export(epoch=epoch, metrics={"loss": loss}))
            expected.append(state(loop.model))
        loop.train(steps=4)
        assert not any(future.done() for future in futures)
        go_on.set()
    assert [record.step for record in exporter.exports] == [4, 8, 12]
    for future, then in zip(futures, expected, strict=True):
        assert_equal_state(exported_state(future.result().path), then)


def test_arrays_that_a_step_took_are_told() -> None:
    loop = Loop(classifier())
    with Exporter("base", loop.model, log_dir=None) as exporter:
        exporter.export()
        exporter.wait()
        # A step takes no array that anything else has. On JAX 0.12 the frames of errors that
        # tracing has caught keep the first snapshot, until they are collected.
        gc.collect()
        # The model's variables still have the arrays that the first step took.
        loop.train(steps=1)
        with pytest.raises(ExportError, match=r"a training step has taken its array. Assign"):
            exporter.export()
        loop.put_back()
        exporter.export(step=np.int64(1)).result()
    assert_equal_state(exported_state(exporter.exports[-1].path), state(loop.model))


def test_an_exporter_inside_and_after_fit() -> None:
    model = classifier()
    with Exporter("base", model, log_dir=None) as exporter:
        # A function of the user's own may not ask for the `model` of a callback, which
        # would give the variables their values.
        export = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: exporter.export(metrics=logs)
        )
        model.fit(*data(), batch_size=8, verbose=0, callbacks=[export])
        exporter.export(step=model.optimizer.iterations, reason="trained").result()
    assert [record.step for record in exporter.exports] == [1, 2, 3, 4, 4]
    assert exporter.exports[-1].reason == "trained"
    last, after = (exported_state(record.path) for record in exporter.exports[-2:])
    assert_equal_state(last, after)
    assert_equal_state(after, state(model))
    first = exported_state(exporter.exports[0].path)
    assert not np.array_equal(first[0], after[0])


def test_a_loop_with_an_optimizer_of_its_own() -> None:
    model, own = classifier(), keras.optimizers.Adam(0.01)
    compiled, model.optimizer = model.optimizer, own  # `Loop` takes it from there.
    loop = Loop(model)
    loop.train(steps=3)
    loop.put_back()
    model.optimizer = compiled
    with Exporter("base", model, optimizer=own, log_dir=None) as exporter:
        record = exporter.export().result()
    assert record.step == 3
    then = [np.asarray(variable.value) for variable in [*model.variables, *own.variables]]
    assert_equal_state(exported_state(record.path), then)
    other, fresh = classifier(), keras.optimizers.Adam(0.01)
    restore(other, record.path, optimizer=fresh)
    put_back = [np.asarray(variable.value) for variable in [*other.variables, *fresh.variables]]
    assert_equal_state(put_back, then)
