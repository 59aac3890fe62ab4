"""What people read about an export: in a terminal, in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping

from .archive.store.record import EndpointInfo, ExportRecord, TensorInfo

_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """A number of bytes with three digits.

    >>> size(1234567)
    '1.23 MB'
    """
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """A time with three digits.

    >>> duration(0.00488), duration(12.34)
    ('4.88 ms', '12.3 s')
    """
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{1000 * seconds:.3g} ms"


def why(record: ExportRecord) -> str:
    """What made an export happen, such as ``improved, val_loss=0.25``."""
    if record.value is None:
        return record.reason
    return f"{record.reason}, {record.monitor}={record.value:.6g}"


def line(record: ExportRecord) -> str:
    """An export in one line."""
    return (
        f"Exported version {record.version} ({why(record)}) to {record.path}; "
        f"training waited {duration(record.stall_seconds)}."
    )


def contents(record: ExportRecord, mark: str = "") -> dict[str, str]:
    """What was measured, what the version holds, and how it was compared with the model.

    `mark` is put around each name.
    """
    return {
        **{f"metric {mark}{name}{mark}": f"{value:.6g}" for name, value in record.metrics.items()},
        **{
            f"endpoint {mark}{name}{mark}": signature(info, mark)
            for name, info in record.endpoints.items()
        },
        **{
            f"collection {mark}{name}{mark}": f"{n} variables"
            for name, n in record.collections.items()
        },
        **_comparison(record, mark),
    }


def _comparison(record: ExportRecord, mark: str) -> dict[str, str]:
    """How the version was compared with the model, and what of it was not."""
    if record.parity is None:
        return {}
    allowed = record.parity.allowed
    return {
        **{
            f"compared {mark}{name}{mark}": f"differs by {found:.3g}"
            + (f", {allowed[name]:.3g} is rounding" if name in allowed else "")
            for name, found in record.parity.differences.items()
        },
        **{
            f"not compared {mark}{name}{mark}": reason
            for name, reason in record.parity.skipped.items()
        },
    }


def signature(info: EndpointInfo, mark: str = "") -> str:
    """What an endpoint takes and returns; `mark` is put around each name."""

    def described(tensors: Mapping[str, TensorInfo]) -> str:
        return ", ".join(f"{mark}{name}{mark}: {_tensor(tensors[name])}" for name in tensors)

    return f"{described(info.inputs)} → {described(info.outputs)}"


def _tensor(info: TensorInfo) -> str:
    if info.shape is None:
        return f"{info.dtype} of any shape"
    return f"{info.dtype} ({', '.join('any' if n is None else str(n) for n in info.shape)})"
