"""Calls that Keras has no public API for: metric directions, later validations, Keras 2.

Every built-in metric has an attribute `_direction`. Keras's own callbacks use it for
``mode="auto"``. `fit` does not tell its callbacks whether and how often it validates,
so `validates_later` reads the arguments of the running `fit`. Both were tested with
Keras 3.8 to 3.15. `tests/test_private_calls.py` fails if Keras changes them.

Keras 2, the package `tf_keras`, calls `_implements_train_batch_hooks` of every callback
before any public method. This was tested with tf_keras 2.21, which is no longer
developed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import keras

from .archive.errors import ExportTypeError, ExportValueError
from .archive.state.models import KERAS_3, check_model
from .archive.store.objective import Mode

_MODES: dict[str, Mode] = {"up": "max", "down": "min"}


def infer_mode(monitor: str, model: keras.Model) -> Mode:
    """Return the direction in which a metric of `model.fit` gets better.

    A loss should fall. For all other metrics Keras's own record counts. The direction
    is never guessed.

    Args:
        monitor: String. The metric's name in the logs, such as ``"val_accuracy"``.
        model: Keras model. The compiled model that `fit` trains.

    Returns:
        ``"min"`` or ``"max"``.

    Raises:
        ExportValueError: If the model has no such metric, or if Keras records no
            direction for it.
    """
    name = monitor.removeprefix("val_")
    losses = {"loss", *(f"{output}_loss" for output in getattr(model, "output_names", None) or ())}
    if name in losses:
        return "min"
    # With several outputs, the logs put the name of the output before the metric's name.
    matching = [m for m in _metrics(model) if name == m.name or name.endswith(f"_{m.name}")]
    directions = {_MODES.get(getattr(metric, "_direction", None) or "") for metric in matching}
    if len(directions) == 1 and (mode := directions.pop()) is not None:
        return mode
    raise ExportValueError(
        f"Received monitor={monitor!r} with mode='auto', but Keras does not say whether that "
        "metric should rise or fall. Write mode='max' if higher is better, or mode='min' if lower "
        "is better."
    )


def validates_later(model: keras.Model, epoch: int) -> bool:
    """Return whether the running `fit` will validate after an epoch later than `epoch`.

    In a training loop of the user's own it returns False, because such a loop cannot be
    asked.

    Args:
        model: Keras model. The model in training.
        epoch: Int. The index of an epoch, from 0.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "fit":
            names = frame.f_locals
            if names.get("self") is model and "validation_freq" in names:
                return _is_due_later(names, epoch)
        frame = frame.f_back
    return False


def _is_due_later(arguments: Mapping[str, Any], epoch: int) -> bool:
    if arguments.get("validation_data") is None:  # `fit` puts the split-off data here, too.
        return False
    often = arguments["validation_freq"]
    later = range(epoch + 2, arguments["epochs"] + 1)  # `validation_freq` counts from 1.
    return any(each % often == 0 if isinstance(often, int) else each in often for each in later)


def _metrics(model: keras.Model) -> list[Any]:
    """Return the model's metrics. Keras keeps the metrics of `compile` in a container metric."""
    found: list[Any] = []
    for metric in model.metrics:
        found += getattr(metric, "metrics", None) or [metric]
    return found


class Keras3Callback(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types.
    """A callback that raises a clear error when it is used with Keras 2."""

    def set_model(self, model: keras.Model) -> None:
        """Check the model. Keras calls this before training begins."""
        check_model(model, "model=")
        super().set_model(model)

    def _implements_train_batch_hooks(self) -> bool:
        raise ExportTypeError(f"{type(self).__name__} was given to Keras 2. {KERAS_3}")
