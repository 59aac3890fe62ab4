"""Tells whether objects are the same as before."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary


class Identities:
    """A list of objects that equals another list of the same objects in the same order.

    The objects are kept alive, so that Python does not reuse their `id` for others.
    """

    def __init__(self, objects: list[Any]) -> None:
        self._objects = objects

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identities) and list(map(id, self._objects)) == list(
            map(id, other._objects)
        )

    __hash__ = None  # type: ignore[assignment]


# A marker for each object that was renewed. Each renewal makes a new marker.
_RENEWALS: WeakKeyDictionary[Any, object] = WeakKeyDictionary()


def renew(item: Any) -> None:
    """Note that `item` computes something else from now on, although it is the same object."""
    _RENEWALS[item] = object()


def renewal(item: Any) -> object:
    """Return an object that stays the same until `item` is renewed."""
    return _RENEWALS.get(item)
