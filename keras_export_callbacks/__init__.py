"""Exports servable SavedModels while Keras trains.

The callbacks `ExportOnImprove` and `ExportEveryN` publish versions from
`model.fit`, for a model server to pick up. `Exporter` does the same from training
loops of your own. `ExportArchive` writes a single artifact. `ExportDirectory`
lists and manages the published versions, and `restore` loads one into a model.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .archive.errors import ExportError as ExportError
    from .archive.export_archive import ExportArchive as ExportArchive
    from .archive.restore import restore as restore
    from .archive.store.directory import ExportDirectory as ExportDirectory
    from .archive.store.record import ExportRecord as ExportRecord
    from .archive.store.retention import KeepBest as KeepBest
    from .archive.store.retention import KeepLatest as KeepLatest
    from .callbacks import ExportEveryN as ExportEveryN
    from .callbacks import ExportOnImprove as ExportOnImprove
    from .endpoints import standard_endpoints as standard_endpoints
    from .exporter import Exporter as Exporter

# Names are imported when they are first used. Code that only looks at a base directory then
# does not wait seconds for the import of TensorFlow.
_HOMES = {
    "ExportArchive": ".archive.export_archive",
    "ExportDirectory": ".archive.store.directory",
    "ExportError": ".archive.errors",
    "ExportEveryN": ".callbacks",
    "ExportOnImprove": ".callbacks",
    "ExportRecord": ".archive.store.record",
    "Exporter": ".exporter",
    "KeepBest": ".archive.store.retention",
    "KeepLatest": ".archive.store.retention",
    "restore": ".archive.restore",
    "standard_endpoints": ".endpoints",
}

__all__ = [
    "ExportArchive",
    "ExportDirectory",
    "ExportError",
    "ExportEveryN",
    "ExportOnImprove",
    "ExportRecord",
    "Exporter",
    "KeepBest",
    "KeepLatest",
    "restore",
    "standard_endpoints",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        # Read on request, because reading the metadata is slower than listing a directory.
        return import_module("importlib.metadata").version("keras-export-callbacks")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
