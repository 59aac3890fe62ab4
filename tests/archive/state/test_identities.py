"""The very same objects in the same order are equal, and nothing else is."""

from __future__ import annotations

import pytest

from keras_export_callbacks.archive.state.identities import Identities, renew, renewal


class Thing:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


def test_only_the_same_objects_in_the_same_order_are_equal() -> None:
    a, b = Thing(), Thing()
    assert a == b
    assert Identities([a, b]) == Identities([a, b])
    assert Identities([a, b]) != Identities([b, a])
    assert Identities([a]) != Identities([a, a])
    assert Identities([a]) != Identities([b])
    assert Identities([]) != []


def test_they_hold_what_they_compare() -> None:
    """Or a new object could take the place, and the identity, of one that is gone."""
    kept = Identities([Thing()])
    assert all(kept != Identities([Thing()]) for _ in range(100))


def test_they_cannot_be_looked_up_by_a_hash() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Identities([]))


def test_an_object_stays_the_same_until_it_is_renewed() -> None:
    item = Thing()
    before = Identities([renewal(item)])
    assert before == Identities([renewal(item)])
    renew(item)
    once = Identities([renewal(item)])
    assert before != once
    renew(item)
    assert once != Identities([renewal(item)])
