"""Decode untrusted JSON into Python values of declared types, or raise a precise error.

msgspec decodes the JSON strictly. It accepts RFC 8259 only, without NaN and infinities.
Every key without a default must be there, and a bool does not count as a number. Unknown
keys are ignored, whatever their values are, because a later version of this library may
write more keys.

msgspec cannot do two things. It does not name the key of a wrong value in a mapping. It
also does not read lone surrogates, which stand for the bytes of a path that is not UTF-8.
If msgspec fails, `parse_json` and `fit` read the JSON again and do both.
"""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

Int64: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Size: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0)]

# The errors that a msgspec decoder raises. Before msgspec 0.21, a `DecodeError` was not a
# `ValueError`.
UNDECODED = (msgspec.DecodeError, ValueError)

# Python refuses to convert texts of some thousand digits to an int. This limit is lower, and no
# float has so many digits.
_MOST_DIGITS = 400


@dataclass(frozen=True)
class _TooLarge:
    """A number that is too large for every type here.

    It is an error only under a known key, because unknown keys are ignored.
    """

    text: str

    def __repr__(self) -> str:
        return f"{self.text:.30}"


def decode(content: bytes, hint: Any, where: str) -> Any:
    """Decode a JSON text into a value of the type `hint`.

    Args:
        content: The text, in UTF-8.
        hint: A scalar type, a dataclass, a `Literal`, or a `tuple[T, ...]`,
            `Mapping[str, T]` or union of such types.
        where: The name of the value, for error messages.

    Returns:
        The value.

    Raises:
        ValueError: If the text is not JSON, or if the value has another type.
        RecursionError: If the value is nested too deeply.
    """
    # Given bytes, msgspec would not check that the values of unknown keys are UTF-8.
    text = content.decode("utf-8")
    try:
        return _decoder(hint).decode(text)
    except UNDECODED:
        return fit(parse_json(text), hint, where)


@functools.cache
def _decoder(hint: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder for a type. It is made once per type."""
    return msgspec.json.Decoder(hint)


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, for `fit`.

    Raises:
        ValueError: If the text is not JSON. NaN, for example, is not.
        RecursionError: If the value is nested too deeply.
    """
    return json.loads(text, parse_constant=_no_constant, parse_float=_float, parse_int=_int)


def fit(value: Any, hint: Any, *place: str) -> Any:
    """Convert a value from `parse_json` to the type `hint`, as `decode` does.

    Args:
        value: The value.
        hint: The type, as for `decode`.
        *place: The keys that lead to the value, for error messages.

    Returns:
        The converted value.

    Raises:
        ValueError: If the value has another type.
    """
    try:
        return msgspec.convert(_with_fitted_parts(value, hint, place), hint)
    except (msgspec.ValidationError, UnicodeError) as error:
        reason = _reason(str(error), hint)
        raise ValueError(f"'{'.'.join(place)}' is {value!r:.80}, {reason}") from None


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, by name."""
    return typing.get_type_hints(kind, include_extras=True)


def _with_fitted_parts(value: Any, hint: Any, place: tuple[str, ...]) -> Any:
    """Return `value` without unknown keys, and with its parts converted to their types."""
    for kind in _members(hint):
        origin, args, has_fields = (
            typing.get_origin(kind),
            typing.get_args(kind),
            is_dataclass(kind),
        )
        if isinstance(value, dict) and has_fields:
            known = {name: part for name, part in hints_of(kind).items() if name in value}
            return {name: fit(value[name], part, *place, name) for name, part in known.items()}
        if isinstance(value, dict) and origin is Mapping:
            return {key: fit(item, args[1], *place, key) for key, item in value.items()}
        if isinstance(value, list) and origin is tuple:
            return [fit(item, args[0], *place, str(index)) for index, item in enumerate(value)]
    return value


def _reason(message: str, hint: Any) -> str:
    """Return msgspec's message about a value. For a `Literal`, add the expected values."""
    kinds = [kind for kind in _members(hint) if typing.get_origin(kind) is Literal]
    choices = " or ".join(repr(value) for kind in kinds for value in typing.get_args(kind))
    if "surrogates not allowed" in message:
        message = "Expected another type, got str"
    message = message.replace("`", "").replace(_TooLarge.__name__, "a number that is too large")
    reason = message[0].lower() + message[1:]
    return f"{reason}, expected {choices}" if choices else reason


def _members(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _float(text: str) -> float | _TooLarge:
    value = float(text)
    return value if math.isfinite(value) else _TooLarge(text)


def _int(text: str) -> int | _TooLarge:
    return int(text) if len(text) <= _MOST_DIGITS else _TooLarge(text)
