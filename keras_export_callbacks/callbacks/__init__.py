"""Keras's hooks → a trigger → the pipeline."""

from .every_n import ExportEveryN
from .on_improve import ExportOnImprove

__all__ = ["ExportEveryN", "ExportOnImprove"]
