"""Every error is an `ExportError`, and of the builtin type that callers may catch."""

from __future__ import annotations

import inspect

import pytest

from keras_export_callbacks.archive import errors
from keras_export_callbacks.archive.errors import ExportError, error_like

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_ours_and_says_what_it_is_for(kind: type[Exception]) -> None:
    assert issubclass(kind, ExportError)
    assert kind.__doc__


@pytest.mark.parametrize(
    "error", [ValueError("no"), TypeError("no"), KeyError("no"), UnicodeError("no"), OSError("no")]
)
def test_an_error_like_another_is_ours_and_of_its_type(error: Exception) -> None:
    kind = error_like(error)
    builtin = ValueError if isinstance(error, UnicodeError) else type(error)
    assert issubclass(kind, builtin)
    # A KeyError would print its message in quotation marks.
    with pytest.raises(ExportError, match=r"^what was expected$"):
        raise kind("what was expected")
