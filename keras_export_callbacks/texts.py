"""Texts about an export, for people who read them in a terminal or in TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from .archive.store.record import EndpointInfo, ExportRecord, TensorInfo

_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """Return a number of bytes as text with three digits.

    >>> size(1234567)
    '1.23 MB'
    """
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Return a time in seconds as text with three digits.

    >>> duration(0.00488), duration(12.34)
    ('4.88 ms', '12.3 s')
    """
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{1000 * seconds:.3g} ms"


def reason(record: ExportRecord) -> str:
    """Return the reason for an export, such as ``improved, val_loss=0.25``."""
    if record.value is None:
        return record.reason
    return f"{record.reason}, {record.monitor}={record.value:.6g}"


def epoch(record: ExportRecord) -> str:
    """Return the epoch of an export as Keras's progress bar counts it, from 1. It may be empty."""
    return "" if record.epoch is None else str(record.epoch + 1)


def about(epoch: int | None, text: str) -> str:
    """Return a text about an epoch, which Keras's progress bar counts from 1.

    >>> about(2, "not exported"), about(None, "not exported")
    ('Epoch 3: not exported', 'not exported')
    """
    return text if epoch is None else f"Epoch {epoch + 1}: {text}"


def line(record: ExportRecord) -> str:
    """Return one line about an export."""
    exported = about(record.epoch, "Exported" if record.epoch is None else "exported")
    return (
        f"{exported} version {record.version} ({reason(record)}) to {record.path}; "
        f"training waited {duration(record.stall_seconds)}."
    )


def compared(record: ExportRecord) -> str | None:
    """Return one line about the comparison with the model, or None if there was none."""
    if record.parity is None:
        return None
    skipped = record.parity.skipped
    names = ", ".join(name for name in sorted(record.endpoints) if name not in skipped)
    reasons = "".join(f" Not compared: {name}, which {skipped[name]}." for name in sorted(skipped))
    return f"Compared with the model: {names}.{reasons}"


def changes(before: Mapping[str, EndpointInfo], after: Mapping[str, EndpointInfo]) -> list[str]:
    """Return the changes of endpoints that may break a client, as one text for each change."""
    found: dict[str, list[str]] = {}
    for name, was in sorted(before.items()):
        if name not in after:
            found.setdefault("is gone", []).append(f"endpoint '{name}'")
            continue
        now = after[name]
        for kind, old, new in (
            ("input", was.inputs, now.inputs),
            ("output", was.outputs, now.outputs),
        ):
            for tensor in {**old, **new}:
                texts = [_tensor(each[tensor]) if tensor in each else "none" for each in (old, new)]
                if texts[0] != texts[1]:
                    change = f"{kind} '{tensor}' was {texts[0]} and is {texts[1]}"
                    found.setdefault(change, []).append(f"'{name}'")
    return [f"{', '.join(names)}: {change}" for change, names in found.items()]


def say(line: str) -> None:
    """Print a line where Keras may be drawing a progress bar. The bar continues below it."""
    is_drawn_over = sys.stdout.isatty() or "ipykernel" in sys.modules
    # In a file, the line of the bar has no end yet. Keras's own callbacks print "\n" first, too.
    print(f"\r\x1b[K{line}" if is_drawn_over else f"\n{line}", flush=True)


def contents(record: ExportRecord, mark: str = "") -> dict[str, str]:
    """Return texts about the metrics and contents of a version, and its comparison, by name.

    Args:
        record: The record of the version.
        mark: String. It is put before and after each name.
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
        **{f"metadata {mark}{name}{mark}": f"{value}" for name, value in record.metadata.items()},
        **{
            f"extra file {mark}{name}{mark}": size(info.size)
            for name, info in record.extra_files.items()
        },
    }


def _comparison(record: ExportRecord, mark: str) -> dict[str, str]:
    """Return texts about the comparison of a version with the model, by name."""
    if record.parity is None:
        return {}
    allowed = record.parity.allowed
    return {
        **{
            f"compared {mark}{name}{mark}": f"differs by {found:.3g}"
            + (f", up to {allowed[name]:.3g} is rounding" if name in allowed else "")
            for name, found in record.parity.differences.items()
        },
        **{
            f"not compared {mark}{name}{mark}": reason
            for name, reason in record.parity.skipped.items()
        },
        **{
            f"compared {mark}{name}{mark}": f"differs by {found:.3g}"
            for name, found in record.parity.files.items()
        },
    }


def signature(info: EndpointInfo, mark: str = "") -> str:
    """Return a text about the inputs and outputs of an endpoint, with `mark` around each name."""

    def described(tensors: Mapping[str, TensorInfo]) -> str:
        return ", ".join(f"{mark}{name}{mark}: {_tensor(tensors[name])}" for name in tensors)

    return f"{described(info.inputs)} → {described(info.outputs)}"


def _tensor(info: TensorInfo) -> str:
    if info.shape is None:
        return f"{info.dtype} of any shape"
    return f"{info.dtype} ({', '.join('any' if n is None else str(n) for n in info.shape)})"
