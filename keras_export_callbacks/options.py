"""The arguments that `Exporter` and the callbacks have in common, checked.

`Exporter` and the callbacks write out each argument with its default. They do not
take ``**options: Unpack[...]``. Type checkers understand that, but `help()`,
notebooks and most editors would show neither names nor defaults.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import keras

from .archive.errors import ExportTypeError, ExportValueError
from .archive.export_archive import ExportArchive
from .archive.store.record import ExportRecord, Scalar
from .archive.store.retention import RetentionPolicy, as_policy
from .extra_files import ExtraFiles
from .summaries import check_log_dir

OnError = Literal["raise", "warn"]
Endpoints = Callable[[ExportArchive, keras.Model], None]
OnlyIf = Callable[[Mapping[str, float]], bool]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The arguments that `Exporter` and the callbacks have in common.

    The docstring of `Exporter` describes them. `has_metric` says whether `keep` can take its
    metric from a callback.
    """

    endpoints: Endpoints
    keep: int | RetentionPolicy | None
    only_if: OnlyIf | None
    extra_files: ExtraFiles
    metadata: Mapping[str, Scalar]
    log_dir: str | os.PathLike[str] | None
    background: bool
    on_error: OnError
    sample_inputs: Any
    on_export: Callable[[ExportRecord], None] | None
    verbose: int
    has_metric: bool = False

    def __post_init__(self) -> None:
        policy = as_policy(self.keep)
        if policy is not None and policy.needs_metric and not self.has_metric:
            policy.keeps([])  # It says what is missing.
        if self.log_dir is not None:
            object.__setattr__(self, "log_dir", check_log_dir(self.log_dir))
        if self.on_error not in ("raise", "warn"):
            raise ExportValueError(
                f"Received on_error={self.on_error!r}. Expected 'raise' or 'warn'."
            )
        if not callable(self.endpoints):
            raise ExportTypeError(
                f"Received endpoints={self.endpoints!r}. Expected a function (archive, model) that "
                "registers endpoints, such as `standard_endpoints`."
            )
        if self.only_if is not None and not callable(self.only_if):
            raise ExportTypeError(
                f"Received only_if={self.only_if!r}. Expected a function that takes the metrics "
                "and returns a bool, such as lambda metrics: metrics['val_accuracy'] > 0.9."
            )
        self.extra_files.check_samples(self.sample_inputs)
        if self.on_export is not None and not callable(self.on_export):
            raise ExportTypeError(
                f"Received on_export={self.on_export!r}. Expected a function that takes an "
                "`ExportRecord`."
            )
