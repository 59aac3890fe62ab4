"""What has no public way in Keras: a metric's direction, when `fit` validates, and Keras 2's hooks.

Every built-in metric carries `_direction`, from which Keras's own callbacks
infer ``mode="auto"``. `fit` tells its callbacks neither whether it validates nor how
often; its arguments say. Tried with Keras 3.8 to 3.15; `tests/test_private_calls.py`
fails when one of them moves.

Keras 2, the package `tf_keras`, asks every callback `_implements_train_batch_hooks`
before anything public. Tried with tf_keras 2.21, which is not developed any more.
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


def validates_later(model: keras.Model, epoch: int) -> bool:
    """Whether the `fit` that runs now is going to validate after a later epoch than `epoch`.

    A loop of the user's own is not known to.
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
    if arguments.get("validation_data") is None:  # It holds what `validation_split` took, too.
        return False
    often = arguments["validation_freq"]
    later = range(epoch + 2, arguments["epochs"] + 1)  # Counted from 1, as `validation_freq` is.
    return any(each % often == 0 if isinstance(often, int) else each in often for each in later)


def _metrics(model: keras.Model) -> list[Any]:
    """The model's metrics, with those given to `compile` taken out of their container."""
    found: list[Any] = []
    for metric in model.metrics:
        found += getattr(metric, "metrics", None) or [metric]
    return found


class Keras3Callback(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types.
    """A callback that tells those who use it with Keras 2 what is wrong."""

    def set_model(self, model: keras.Model) -> None:
        """Keras calls this before training begins."""
        check_model(model, "model=")
        super().set_model(model)

    def _implements_train_batch_hooks(self) -> bool:
        raise ExportTypeError(f"{type(self).__name__} was given to Keras 2. {KERAS_3}")
