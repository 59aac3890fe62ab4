"""TensorFlow Serving's discovery in Python: which versions would a model server find now?

The rules are those of ``FileSystemStoragePathSource``
(``tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc``). It lists
the children of the base directory. Every child whose name is an int64 is a version from
that moment on, whether it is a directory or a file, and whatever it contains.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# The union of what its releases take: `strings::safe_strto64` no plus sign, and
# `absl::SimpleAtoi` one. Both strip white space, and take negative numbers.
_NUMBER = re.compile(r"\s*([+-]?[0-9]+)\s*", re.ASCII)
_INT64 = range(-(2**63), 2**63)


def version_number(name: str) -> int | None:
    """Return the version that a server reads from a child's name, or None if it ignores it."""
    match = _NUMBER.fullmatch(name)
    if match is None or (number := int(match[1])) not in _INT64:
        return None
    return number


def discovered(base_dir: Path) -> list[Path]:
    """Return what a server would load if it listed `base_dir` now, the newest version last."""
    try:
        names = os.listdir(base_dir)
    except FileNotFoundError:
        return []
    numbers = {name: number for name in names if (number := version_number(name)) is not None}
    return [base_dir / name for name in sorted(numbers, key=lambda name: (numbers[name], name))]
