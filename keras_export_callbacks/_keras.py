"""What has no public way in Keras: a metric's direction, and what Keras 2 asks of callbacks.

Every built-in metric carries `_direction`, from which Keras's own callbacks
infer ``mode="auto"``. Tried with Keras 3.8 to 3.15; `tests/test_private_calls.py`
fails when it moves.

Keras 2, the package `tf_keras`, asks every callback `_implements_train_batch_hooks`
before anything public. Tried with tf_keras 2.21, which is not developed any more.
"""

from __future__ import annotations

from typing import Any

import keras

from .archive.errors import ExportTypeError, ExportValueError
from .archive.models import KERAS_3, check_model
from .archive.objective import Mode

_MODES: dict[str, Mode] = {"up": "max", "down": "min"}


def infer_mode(monitor: str, model: keras.Model) -> Mode:
    """The direction of a metric in the logs of `model.fit`, never guessed.

    Args:
        monitor: a name in the logs, such as ``"val_accuracy"``.
        model: the compiled model that makes these logs.

    Raises:
        ExportValueError: the model has no such metric, or it has no direction.
    """
    name = monitor.removeprefix("val_")
    losses = {"loss", *(f"{output}_loss" for output in getattr(model, "output_names", None) or ())}
    if name in losses:
        return "min"
    # With several outputs, logs put the output's name before the metric's.
    matching = [m for m in _metrics(model) if name == m.name or name.endswith(f"_{m.name}")]
    directions = {_MODES.get(getattr(metric, "_direction", None) or "") for metric in matching}
    if len(directions) == 1 and (mode := directions.pop()) is not None:
        return mode
    raise ExportValueError(
        f"Received monitor={monitor!r} with mode='auto', but Keras does not say whether that "
        "metric should rise or fall. Write mode='max' if higher is better, or mode='min'."
    )


def _metrics(model: keras.Model) -> list[Any]:
    """The model's metrics, with those given to `compile` taken out of their container."""
    found: list[Any] = []
    for metric in model.metrics:
        found += getattr(metric, "metrics", None) or [metric]
    return found


class Keras3Callback(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types.
    """A callback that tells those who use it with Keras 2 what is wrong."""

    def set_model(self, model: keras.Model) -> None:
        check_model(model, "model=")
        super().set_model(model)

    def _implements_train_batch_hooks(self) -> bool:
        raise ExportTypeError(f"{type(self).__name__} was given to Keras 2. {KERAS_3}")
