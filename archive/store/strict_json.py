"""JSON from outside → Python values of declared types, or an error that names the place.

Strict: RFC 8259 without NaN and infinities, numbers that fit 64 bits, no key
missing in a dataclass that has no default. A later version of this library may
have written more: keys that a dataclass does not know are passed over, whatever
their values are. Checkers are made once for each type, because a directory may
hold thousands of manifests.
"""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

_Checker: typing.TypeAlias = Callable[[Any], Any]


class _MisfitError(Exception):
    """A value that is not of the type it should be; `path` leads to it."""

    def __init__(self, value: Any, hint: Any) -> None:
        super().__init__()
        self.value = value
        self.expected = hint.__name__ if isinstance(hint, type) else str(hint)
        self.path: list[str] = []


@dataclass(frozen=True)
class _OversizedNumber:
    """A number in the text that fits no type here; it does no harm under an unknown key."""

    text: str
    kind: str

    def __repr__(self) -> str:
        return f"{self.text:.30} (does not fit {self.kind})"


def parse_json(content: bytes) -> Any:
    """The value in a JSON text, to be given to `as_type`.

    Raises:
        ValueError: it is not JSON, such as NaN.
    """
    return json.loads(
        content.decode("utf-8"),
        parse_constant=_no_constant,
        parse_float=_finite_float,
        parse_int=_int64,
    )


def as_type(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`: lists as tuples, objects as mappings or dataclasses.

    Args:
        value: from `parse_json`.
        hint: a scalar type, a dataclass, or a `tuple[T, ...]`, `Mapping[str, T]`,
            `Literal` or union of such.
        where: the name of the value, for the error.

    Raises:
        ValueError: it is of another type.
    """
    try:
        return _checker(hint)(value)
    except _MisfitError as error:
        name = ".".join([where, *error.path])
        raise ValueError(f"'{name}' is {error.value!r:.80}, expected {error.expected}") from None


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    return typing.get_type_hints(kind)


@functools.cache
def _checker(hint: Any) -> _Checker:
    """A function from a JSON value to one of the type `hint`; it raises a `_MisfitError`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(hint, [_checker(kind) for kind in args])
    if origin is typing.Literal:
        return _scalar(hint, lambda value: value in args)
    if origin is tuple:
        return _sequence(hint, _checker(args[0]))
    if origin is not None:
        return _mapping(hint, _checker(args[1]))
    if isinstance(hint, type) and is_dataclass(hint):
        return _record(hint, {key: _checker(kind) for key, kind in hints_of(hint).items()})
    if hint is float:
        return _number
    return _scalar(hint, lambda value: type(value) is hint)  # Not isinstance: a bool is no number.


def _scalar(hint: Any, is_one: Callable[[Any], bool]) -> _Checker:
    def check(value: Any) -> Any:
        if is_one(value):
            return value
        raise _MisfitError(value, hint)

    return check


def _number(value: Any) -> float:
    if type(value) is float or type(value) is int:
        return float(value)
    raise _MisfitError(value, float)


def _union(hint: Any, kinds: list[_Checker]) -> _Checker:
    def check(value: Any) -> Any:
        for kind in kinds:
            try:
                return kind(value)
            except _MisfitError:
                continue
        raise _MisfitError(value, hint)

    return check


def _sequence(hint: Any, item: _Checker) -> _Checker:
    def check(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(map(item, value))
        raise _MisfitError(value, hint)

    return check


def _mapping(hint: Any, item: _Checker) -> _Checker:
    def check(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: _at(key, item, found) for key, found in value.items()}
        raise _MisfitError(value, hint)

    return check


def _record(hint: Any, items: dict[str, _Checker]) -> _Checker:
    needed = {
        each.name
        for each in fields(hint)
        if each.default is MISSING and each.default_factory is MISSING
    }

    def check(value: Any) -> Any:
        if isinstance(value, dict) and value.keys() >= needed:
            found = {key: item for key, item in items.items() if key in value}
            return hint(**{key: _at(key, item, value[key]) for key, item in found.items()})
        raise _MisfitError(value, hint)

    return check


def _at(key: str, item: _Checker, value: Any) -> Any:
    try:
        return item(value)
    except _MisfitError as error:
        error.path.insert(0, key)
        raise


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite_float(text: str) -> float | _OversizedNumber:
    value = float(text)
    return value if math.isfinite(value) else _OversizedNumber(text, "a float")


def _int64(text: str) -> int | _OversizedNumber:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        return _OversizedNumber(text, "an int64")
    return int(text)
