"""Models and callback lists of Keras 2, the package `tf_keras`, are refused by name.

Few have it, so a stand-in takes its place: classes that say that they are of
`tf_keras`, and ask of callbacks what its own ask, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import classifier

from keras_export_callbacks import (
    ExportArchive,
    Exporter,
    ExportError,
    ExportEveryN,
    ExportOnImprove,
    restore,
    standard_endpoints,
)


class StandIn:
    """What the tests use of `tf_keras`."""

    class Model(tf.Module):
        __module__ = "tf_keras.src.engine.training"

        def fit(self, *args: Any, callbacks: list[Any], **options: Any) -> None:
            StandIn.CallbackList(callbacks, model=self)

    class CallbackList:
        def __init__(self, callbacks: list[Any], model: Any = None) -> None:
            for callback in callbacks:
                if model:
                    callback.set_model(model)
            any(callback._implements_train_batch_hooks() for callback in callbacks)

    @classmethod
    def model(cls) -> Any:
        return cls.Model()


class Real:
    """`tf_keras` itself."""

    @staticmethod
    def model() -> Any:
        import tf_keras  # type: ignore[import-not-found]  # Few have it.

        model = tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    @staticmethod
    def CallbackList(*args: Any, **options: Any) -> Any:  # noqa: N802  # As there.
        import tf_keras

        return tf_keras.callbacks.CallbackList(*args, **options)


@pytest.fixture(params=[StandIn, Real])
def keras_2(request: pytest.FixtureRequest) -> Any:
    if request.param is Real and find_spec("tf_keras") is None:
        pytest.skip("tf_keras is not installed.")
    return request.param


CALLBACKS = [
    lambda: ExportEveryN("base", log_dir=None),
    lambda: ExportEveryN("base", unit="batch", log_dir=None),
    lambda: ExportOnImprove("base", "loss", log_dir=None),
]
USES: dict[str, Callable[[Any], object]] = {
    "Exporter": lambda model: Exporter("base", model),
    "restore": lambda model: restore(model, "base/1"),
    "standard_endpoints": lambda model: standard_endpoints(ExportArchive(), model),
    "set_model": lambda model: CALLBACKS[0]().set_model(model),
    "CallbackList": lambda model: keras.callbacks.CallbackList([CALLBACKS[0]()], model=model),
}
EXPECTED = "of Keras 2. Expected Keras 3: .*`import keras` instead of `tf_keras`"


@pytest.mark.parametrize("use", USES)
def test_a_model_of_keras_2_is_refused(keras_2: Any, use: str) -> None:
    with pytest.raises(TypeError, match=EXPECTED) as raised:
        USES[use](keras_2.model())
    assert isinstance(raised.value, ExportError)


@pytest.mark.parametrize("make", CALLBACKS)
def test_fit_of_keras_2_is_refused(keras_2: Any, make: Callable[[], Any]) -> None:
    with pytest.raises(ExportError, match=EXPECTED):
        keras_2.model().fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0, callbacks=[make()])


@pytest.mark.parametrize("make", CALLBACKS)
@pytest.mark.parametrize("model", [lambda: None, classifier], ids=["no model", "of Keras 3"])
def test_a_callback_list_of_keras_2_is_refused(
    keras_2: Any, make: Callable[[], Any], model: Callable[[], Any]
) -> None:
    with pytest.raises(ExportError, match=r"was given to Keras 2. Expected Keras 3: .*tf_keras"):
        keras_2.CallbackList([make()], model=model())


def test_a_subclass_of_a_model_of_keras_2_is_refused() -> None:
    class Mine(StandIn.Model):
        """Of another module."""

    with pytest.raises(ExportError, match=EXPECTED):
        Exporter("base", Mine())  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [None, "model", 3, keras.layers.Dense(1), classifier])
def test_what_is_no_model_is_refused_by_another_message(model: Any) -> None:
    with pytest.raises(ExportError, match=r"Received model=.* Expected a `keras.Model`\."):
        Exporter("base", model)
