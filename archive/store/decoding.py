"""JSON from outside → Python values of declared types, or an error that names the place.

msgspec decodes it, strictly: RFC 8259 without NaN and infinities, no key missing
that has no default, a bool is no number. It passes over keys that a dataclass
does not know, whatever their values are, because a later version of this
library may have written more.

Two things msgspec does not do, so `fit` does them after `json`, in the rare case:
name the key in a mapping where a value is wrong, and read the lone surrogates
that stand for the bytes of a path that is not UTF-8.
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

# What a decoder of msgspec raises. Before its version 0.21 the first was no ValueError.
UNDECODED = (msgspec.DecodeError, ValueError)

# Python refuses to read an int of more than some thousand digits; no float has so many.
_MOST_DIGITS = 400


@dataclass(frozen=True)
class _TooLarge:
    """A number that fits no type here; it does no harm under an unknown key."""

    text: str

    def __repr__(self) -> str:
        return f"{self.text:.30}"


def decode(content: bytes, hint: Any, where: str) -> Any:
    """The value of the type `hint` in a JSON text.

    Args:
        content: the text, in UTF-8.
        hint: a scalar type, a dataclass, or a `tuple[T, ...]`, `Mapping[str, T]`,
            `Literal` or union of such.
        where: the name of the value, for the error.

    Raises:
        ValueError: it is no JSON, or of another type.
        RecursionError: it is nested too deeply.
    """
    # As a str: msgspec does not look at the bytes of what it passes over.
    text = content.decode("utf-8")
    try:
        return _decoder(hint).decode(text)
    except UNDECODED:
        return fit(parse_json(text), hint, where)


@functools.cache
def _decoder(hint: Any) -> msgspec.json.Decoder[Any]:
    """The decoder for a type, made once."""
    return msgspec.json.Decoder(hint)


def parse_json(text: str) -> Any:
    """The value in a JSON text, for `fit`.

    Raises:
        ValueError: it is not JSON, such as NaN.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_constant=_no_constant, parse_float=_float, parse_int=_int)


def fit(value: Any, hint: Any, *place: str) -> Any:
    """A value from `parse_json` as one of the type `hint`, as `decode` reads it.

    `place` is the keys that lead to it, for the error.

    Raises:
        ValueError: it is of another type.
    """
    try:
        return msgspec.convert(_with_fitted_parts(value, hint, place), hint)
    except msgspec.ValidationError as error:
        reason = _reason(str(error), hint)
        raise ValueError(f"'{'.'.join(place)}' is {value!r:.80}, {reason}") from None


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    return typing.get_type_hints(kind, include_extras=True)


def _with_fitted_parts(value: Any, hint: Any, place: tuple[str, ...]) -> Any:
    """A value whose parts have their types already, and that has no unknown keys."""
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
    """What msgspec says of a value, and what it does not say: which ones a `Literal` has."""
    kinds = [kind for kind in _members(hint) if typing.get_origin(kind) is Literal]
    choices = " or ".join(repr(value) for kind in kinds for value in typing.get_args(kind))
    reason = message[0].lower() + message[1:].replace("`", "")
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
