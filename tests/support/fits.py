"""Short fits with callbacks, and what tests need around them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import keras

from .models import classifier, data


def fit(callbacks: list[Any], epochs: int = 1, model: Any = None, **options: Any) -> Any:
    model = model or classifier()
    x, y = data()
    model.fit(x, y, epochs=epochs, batch_size=8, verbose=0, callbacks=callbacks, **options)
    return model


def cause(error: BaseException) -> BaseException | None:
    """What `error` was raised from. Keras's traceback filter drops `__cause__` in `fit`."""
    return error.__cause__ or error.__context__


def breaking_base_dir() -> Any:
    """A callback that puts a file in the place of ``base`` in the first epoch."""

    def replace(epoch: int, logs: Any) -> None:
        if not Path("base").is_file():
            Path("base").exists() and Path("base").rename("away")
            Path("base").touch()

    return keras.callbacks.LambdaCallback(on_epoch_begin=replace)


def no_threads_left() -> bool:
    return not [t for t in threading.enumerate() if t.name.startswith("keras-export")]


def counted(function: Any, calls: list[int]) -> Any:
    """Return a function that notes each call. On JAX, Keras gives a `train_step` its state, too."""

    def noted(*args: Any) -> Any:
        calls.append(1)
        return function(*args)

    return noted
