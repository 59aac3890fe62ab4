"""The Keras callbacks. A hook of Keras asks a trigger, and the pipeline exports."""

from .every_n import ExportEveryN
from .on_improve import ExportOnImprove

__all__ = ["ExportEveryN", "ExportOnImprove"]
