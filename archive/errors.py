"""All errors that this library raises. Each is an `ExportError`.

Each also derives from the built-in error that Keras raises for the same mistake.
Code that was written for `keras.export.ExportArchive` therefore still catches them.
"""

from __future__ import annotations

from typing import cast


class ExportError(Exception):
    """The base class of all errors that this library raises.

    Examples:
        >>> from keras_export_callbacks import ExportDirectory, ExportError
        >>> try:
        ...     ExportDirectory("/nowhere").record(1)
        ... except ExportError as error:
        ...     print(error)
        There is no version 1 in '/nowhere'. It holds no versions.
    """


class ExportValueError(ExportError, ValueError):
    """Raised if an argument has the right type, but a value that cannot be used."""


class ExportTypeError(ExportError, TypeError):
    """Raised if an argument has a type that cannot be used."""


class BackendError(ExportError, NotImplementedError):
    """Raised if Keras runs on a backend other than TensorFlow and JAX."""


class StorageError(ExportError, OSError):
    """Raised if a directory cannot be read or written, such as on a full or read-only disk."""


class VersionNotFoundError(ExportError, LookupError):
    """Raised if the requested version does not exist."""


class DamagedVersionError(ExportError):
    """Raised if a version or its manifest differs from what was published."""


class NewerVersionError(ExportError):
    """Raised if a newer release wrote the version, and this release cannot handle it."""


class SupersededError(ExportError):
    """Raised if a version is not published, because an equal or better one already is."""


class MismatchError(ExportError, ValueError):
    """Raised if a version's variables do not match those of the model to restore."""


class LoaderError(ExportError, RuntimeError):
    """Raised if TensorFlow's C library cannot load or run an artifact."""


class ParityError(ExportError, AssertionError):
    """Raised if an artifact and the model that it was made from compute different outputs."""


class UntrackedError(ExportError, AssertionError):
    """Raised if an endpoint uses a table or variable that is not part of the archive."""


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
