"""Every error of this library, all of them an `ExportError`.

Each also derives from the builtin that Keras raises for the same mistake, so
that code written for `keras.export.ExportArchive` catches what it always did.
"""

from __future__ import annotations

from typing import cast


class ExportError(Exception):
    """Base of every error raised by this library.

    Example:

    >>> from keras_export_callbacks import ExportDirectory, ExportError
    >>> try:
    ...     ExportDirectory("/nowhere").record(1)
    ... except ExportError as error:
    ...     print(error)
    There is no version 1 in '/nowhere'. It holds no versions.
    """


class ExportValueError(ExportError, ValueError):
    """An argument has the right type and a value that cannot be used."""


class ExportTypeError(ExportError, TypeError):
    """An argument has a type that cannot be used."""


class BackendError(ExportError, NotImplementedError):
    """Keras runs on a backend other than TensorFlow."""


class StorageError(ExportError, OSError):
    """A base directory cannot be read or written: it is full, read-only or no directory."""


class VersionNotFoundError(ExportError, LookupError):
    """The base directory has no such version."""


class DamagedVersionError(ExportError):
    """A version or its manifest is not what was published."""


class NewerVersionError(ExportError):
    """A later version of this library wrote a version, and only that one can do this with it."""


class SupersededError(ExportError):
    """The same or something better was published before, so this was dropped."""


class MismatchError(ExportError, ValueError):
    """A version's variables do not fit the model they should go into."""


class LoaderError(ExportError, RuntimeError):
    """TensorFlow's C library cannot load or run an artifact."""


class ParityError(ExportError, AssertionError):
    """An artifact computes something else than the model it was made from."""


class UntrackedError(ExportError, AssertionError):
    """An endpoint uses a table or variable that is not part of the archive."""


def error_like(error: Exception) -> type[ExportError]:
    """The kind of `ExportError` that is also of the builtin type that `error` is of."""
    if isinstance(error, ValueError):
        return ExportValueError
    if isinstance(error, TypeError):
        return ExportTypeError
    builtin = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    # A KeyError would print the message as it prints a key.
    return cast(
        "type[ExportError]",
        type("ExportError", (ExportError, builtin), {"__str__": Exception.__str__}),
    )
