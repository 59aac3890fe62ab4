"""Refuses a search that would export all its trials to one directory."""

from __future__ import annotations

import sys
from types import FrameType

from ..archive.errors import ExportError


def check_no_search() -> None:
    """Raise an error in a search of KerasTuner, where all trials would share one directory.

    A tuner copies its callbacks, and does not tell them the trial. The call stack of a
    copied callback shows whether a tuner called `fit`.

    Raises:
        ExportError: If a tuner is on the call stack.
    """
    tuner = sys.modules.get("keras_tuner")
    frame: FrameType | None = sys._getframe()
    while tuner is not None and frame is not None:
        if isinstance(frame.f_locals.get("self"), tuner.Tuner):
            # After any other error KerasTuner would go on with the next trial.
            kind = type("ExportError", (ExportError, tuner.errors.FatalError), {})
            raise kind(
                "An export callback is used in a search of KerasTuner, where every trial would "
                "export to the same directory. Wrap the hypermodel: "
                "`keras_export_callbacks.tuner.ExportTrials(build_model)`. In a tuner of your own, "
                "call `self.hypermodel.fit(hp, model, …)` instead of `model.fit`."
            )
        frame = frame.f_back
