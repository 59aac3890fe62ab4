"""Does the artifact compute what was expected of it? On any thread.

`check` asks the artifact, by TensorFlow's C library in a process of its own, as a
model server would. What to expect comes from `probe`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ParityError
from .c_library import run_apart
from .rounding import Difference, difference
from .warmup import can_write_requests, read_requests, write_requests


@dataclass(frozen=True)
class Expected:
    """What the endpoint behind a signature computed live.

    Attributes:
        signature: the signature's name.
        inputs: what it was given, by the signature's names.
        outputs: what it returned, by the signature's names.
        resolution: that of the coarsest floats it computes with.
    """

    signature: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    resolution: float


@dataclass(frozen=True)
class Compared:
    """How an artifact's outputs differ from the model's, by ``signature/output``.

    Attributes:
        differences: the largest absolute difference; of integers, bools and strings
            the share that differs.
        allowed: how much rounding may account for there.
    """

    differences: Mapping[str, float]
    allowed: Mapping[str, float]


def check(directory: Path, expected: Sequence[Expected]) -> Compared:
    """Raise unless the artifact in `directory` computes what was expected.

    Where that can be done, the inputs are written into the artifact as warm-up
    requests, and these are sent.

    Raises:
        ParityError: an output differs by more than rounding, or is not finite.
        LoaderError: the artifact cannot be loaded or run.
    """
    calls = [(item.signature, item.inputs) for item in expected]
    if can_write_requests():
        write_requests(directory, calls)
        calls = list(read_requests(directory))
    results = run_apart(str(directory), calls)
    found = {
        f"{item.signature}/{name}": one
        for item, outputs in zip(expected, results, strict=True)
        for name, one in compare(item, outputs).items()
    }
    return Compared(
        differences={name: one.found for name, one in found.items()},
        allowed={name: one.allowed for name, one in found.items()},
    )


def compare(expected: Expected, outputs: Mapping[str, Any]) -> dict[str, Difference]:
    """How far each output is from what was expected.

    Raises:
        ParityError: it is too far.
    """
    found = {}
    for name in sorted(expected.outputs.keys() | outputs.keys()):
        try:
            found[name] = difference(
                expected.outputs.get(name), outputs.get(name), expected.resolution
            )
        except ValueError as error:
            raise ParityError(
                f"Output '{name}' of signature '{expected.signature}' cannot be published: {error}."
            ) from None
    return found
