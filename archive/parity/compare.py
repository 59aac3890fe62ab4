"""The comparison of an artifact's outputs with the model's outputs.

`check` runs the artifact in another process, with TensorFlow's C library, as a model
server does. `probe` computes the expected outputs. `check` may run on any thread.
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
    """The outputs that the model's own endpoint computed for some inputs.

    Attributes:
        signature: The name of the signature.
        inputs: The inputs, by their names in the signature.
        outputs: The outputs, by their names in the signature.
        resolution: The resolution of the coarsest floats in the computation. It is the
            distance from 1 to the next larger number.
    """

    signature: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    resolution: float


@dataclass(frozen=True)
class Compared:
    """The differences between an artifact's outputs and the model's outputs.

    The keys of both mappings are ``signature/output``.

    Attributes:
        differences: The largest absolute difference of each output. For integers, bools
            and strings it is the share of values that differ.
        allowed: The difference that rounding explains for the value that differs most, or
            the share of values that may differ.
    """

    differences: Mapping[str, float]
    allowed: Mapping[str, float]


def check(directory: Path, expected: Sequence[Expected]) -> Compared:
    """Compare the outputs of an artifact with the expected outputs.

    If the package for warm-up requests is installed, the inputs are written into the
    artifact as warm-up requests. They are read back from there for the comparison, so
    the requests themselves are tested too.

    Args:
        directory: The directory of the artifact.
        expected: The expected outputs of each signature.

    Raises:
        ParityError: If an output is missing, has another shape, is not finite, or differs
            by more than rounding explains.
        LoaderError: If the artifact cannot be loaded or run.
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
    """Return the difference of each output from the expected one, by name.

    Raises:
        ParityError: If an output is missing, has another shape, is not finite, or differs
            by more than rounding explains.
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
