"""All errors that this library raises. Each is an `ExportError`.

Each also derives from the built-in error that Keras raises for the same mistake.
Code that was written for `keras.export.ExportArchive` therefore still catches them.
"""

from __future__ import annotations

from typing import cast


class ExportError(Exception):
    """Base class of all errors that this library raises.

    Examples:
        >>> from keras_export_callbacks import ExportDirectory, ExportError
        >>> try:
        ...     ExportDirectory("/nowhere").record(1)
        ... except ExportError as error:
        ...     print(error)
        There is no version 1 in '/nowhere'. It holds no versions.
    """


class ExportValueError(ExportError, ValueError):
    """An argument has the right type, but a value that cannot be used."""


class ExportTypeError(ExportError, TypeError):
    """An argument has a type that cannot be used."""


class BackendError(ExportError, NotImplementedError):
    """Keras runs on a backend other than TensorFlow and JAX."""


class StorageError(ExportError, OSError):
    """A directory cannot be read or written. For example, the disk is full or read-only."""


class VersionNotFoundError(ExportError, LookupError):
    """The requested version does not exist."""


class DamagedVersionError(ExportError):
    """A version or its manifest differs from what was published."""


class NewerVersionError(ExportError):
    """A newer release of this library wrote the version, and this release cannot handle it."""


class SupersededError(ExportError):
    """The version was not published, because an equal or better one was published before."""


class MismatchError(ExportError, ValueError):
    """A version's variables do not match those of the model to restore."""


class LoaderError(ExportError, RuntimeError):
    """TensorFlow's C library cannot load or run an artifact."""


class ParityError(ExportError, AssertionError):
    """An artifact and the model that it was made from compute different outputs."""


class UntrackedError(ExportError, AssertionError):
    """An endpoint uses a table or variable that is not part of the archive."""


def error_like(error: Exception) -> type[ExportError]:
    """Return a kind of `ExportError` that is also of the built-in type of `error`."""
    if isinstance(error, ValueError):
        return ExportValueError
    if isinstance(error, TypeError):
        return ExportTypeError
    builtin = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    # `KeyError.__str__` would print the message in quotes, as it prints a key.
    return cast(
        "type[ExportError]",
        type("ExportError", (ExportError, builtin), {"__str__": Exception.__str__}),
    )
