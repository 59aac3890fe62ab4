"""Describe the machine of a benchmark: its hardware, disk, library versions and the date."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_LIBRARIES = ("keras-export-callbacks", "keras", "tensorflow", "numpy", "orbax-checkpoint", "jax")


def describe(directory: Path) -> dict[str, str]:
    """Return a description of the machine, for a run that writes to `directory`."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": f"{len(os.sched_getaffinity(0))} × {_cpu()}",
        "load": f"{os.getloadavg()[0]:.1f} before",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "disk": _disk(directory),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _disk(directory: Path) -> str:
    """Return the file system, the device and its kind, of the mount with the directory."""
    device = os.stat(directory).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == number:
            file_system, source = kind.split()[:2]
            return f"{file_system} on {source}, {_kind(number)}"
    return "unknown"


def _kind(number: str) -> str:
    block = Path("/sys/dev/block", number).resolve()
    if any(part.startswith("virtio") for part in block.parts):
        return "a virtual disk"
    for path in (block, block.parent):  # Only a disk has a queue, and a partition has none.
        rotational = path / "queue" / "rotational"
        if rotational.exists():
            return "a rotating disk" if rotational.read_text().strip() == "1" else "a flash disk"
    return "no disk"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
