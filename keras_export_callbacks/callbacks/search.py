"""Keeping the callbacks out of a search that would mix its trials."""

from __future__ import annotations

import sys
from types import FrameType

from ..archive.errors import ExportError


def check_no_search() -> None:
    """Raise in a search of KerasTuner: its trials would all export to one directory.

    A tuner copies its callbacks and calls `fit`, and tells neither which trial it is
    for. So look, for a copy, whether one called this.
    """
    tuner = sys.modules.get("keras_tuner")
    frame: FrameType | None = sys._getframe()
    while tuner is not None and frame is not None:
        if isinstance(frame.f_locals.get("self"), tuner.Tuner):
            # Of another error KerasTuner would only take note, and go on to the next trial.
            kind = type("ExportError", (ExportError, tuner.errors.FatalError), {})
            raise kind(
                "An export callback is used in a search of KerasTuner, where every trial would "
                "export to the same directory. Wrap the hypermodel: "
                "`keras_export_callbacks.tuner.ExportTrials(build_model)`; a tuner of your own "
                "must fit by `self.hypermodel.fit(hp, model, …)`, and not by `model.fit`."
            )
        frame = frame.f_back
