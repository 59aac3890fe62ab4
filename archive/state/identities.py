"""Telling whether objects are the same ones as before."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary


class Identities:
    """Objects that equal others if they are the very same ones, in the same order.

    It holds them, so that no identity can be used again while it is compared.
    """

    def __init__(self, objects: list[Any]) -> None:
        self._objects = objects

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identities) and list(map(id, self._objects)) == list(
            map(id, other._objects)
        )

    __hash__ = None  # type: ignore[assignment]


# What else makes an object another one than before, for as long as it lives.
_RENEWALS: WeakKeyDictionary[Any, object] = WeakKeyDictionary()


def renew(item: Any) -> None:
    """From now on `item` computes something else, though it is the same object."""
    _RENEWALS[item] = object()


def renewal(item: Any) -> object:
    """The same object until `item` is renewed."""
    return _RENEWALS.get(item)
