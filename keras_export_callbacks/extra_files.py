"""The extra files of a version, which users add below ``assets.extra``."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol, TypeAlias, runtime_checkable

from .archive.errors import ExportError, ExportTypeError, ExportValueError
from .archive.parity.compare import Expected
from .archive.store.files import Identity, KnownFile, identity_of, relative_files
from .archive.store.paths import is_url
from .archive.store.record import EXTRA, OWN_EXTRA
from .formats import litert

FileFunction: TypeAlias = Callable[[Path], bytes]
Source: TypeAlias = str | os.PathLike[str] | bytes | FileFunction

# No common file system takes longer names, and no bucket longer paths, in bytes.
_LONGEST = 255
_LONGEST_PATH = 1024 - 256


@runtime_checkable
class ComparedFile(Protocol):
    """A function for `extra_files` that can compare its file with the model.

    Attributes:
        endpoint: The name of the endpoint that the file is made of.
        needs_sample: Whether the file must be compared before it is published.
    """

    @property
    def endpoint(self) -> str: ...

    @property
    def needs_sample(self) -> bool: ...

    def __call__(self, saved_model_dir: Path) -> bytes:
        """Return the contents of the file."""

    def compare(self, content: bytes, expected: Sequence[Expected]) -> float | None:
        """Compare a file with the outputs of the model.

        Returns:
            The largest absolute difference, or None if nothing could be compared.

        Raises:
            ExportError: If the file computes something else than the model.
        """


@dataclass(frozen=True)
class Added:
    """The extra files of one version.

    Attributes:
        files: The files, by their paths relative to the version's directory.
        differences: The largest difference from the model for each file that was compared,
            by the name of the file.
    """

    files: Mapping[str, KnownFile]
    differences: Mapping[str, float]

    def at(self, root: Path, published: Path) -> Mapping[str, KnownFile]:
        """Return the files after their version was renamed from `root` to `published`."""
        return {name: file.moved(root, published) for name, file in self.files.items()}


@dataclass(frozen=True)
class ExtraFiles:
    """The sources of the files to add to each version, by name. `of` checks them."""

    sources: Mapping[str, bytes | Path | FileFunction]

    @classmethod
    def of(cls, extra_files: Mapping[str, Source] | None) -> ExtraFiles:
        """Return the extra files for an argument `extra_files`.

        Args:
            extra_files: Dict. A path, bytes, or a function ``(saved_model_dir) -> bytes``
                for each name below ``assets.extra``. None stands for no files.

        Raises:
            ExportTypeError: If `extra_files` is not such a dict.
            ExportValueError: If a name cannot be used, or if there is no file at a path.
        """
        if extra_files is None:
            return cls({})
        if not isinstance(extra_files, Mapping):
            raise ExportTypeError(
                f"Received extra_files={extra_files!r} of type {type(extra_files)}. Expected a "
                "dict of names to paths, bytes or functions, such as {'labels.txt': b'cat\\ndog'}."
            )
        _check_names(extra_files)
        return cls({name: _checked(name, source) for name, source in extra_files.items()})

    def add(
        self,
        staged: Path,
        expected: Sequence[Expected],
        earlier: Mapping[str, KnownFile],
    ) -> Added:
        """Write the files into a staged version, and compare some of them with the model.

        Args:
            staged: The directory of the version, with a complete SavedModel.
            expected: The outputs of the model for the sample inputs.
            earlier: The extra files of the last version. If the contents of one are the
                same, it is linked.

        Raises:
            ExportError: If a function fails, or if a file cannot be read.
        """
        files: dict[str, KnownFile] = {}
        differences: dict[str, float] = {}
        before = _identities(staged)
        for name, source in self.sources.items():
            at = f"{EXTRA}/{name}"
            try:
                content = _content(source, staged)
                if isinstance(source, ComparedFile):
                    assert isinstance(content, bytes)
                    difference = source.compare(content, expected)
                    differences |= {} if difference is None else {name: difference}
                if callable(source):
                    _check_untouched(staged, before)
                files[at] = _put(content, staged / at, earlier.get(at))
            except (Exception, SystemExit) as error:  # Command-line tools end with `SystemExit`.
                told = str(error) if isinstance(error, ExportError) else _named(error)
                raise ExportError(
                    f"The extra file {name!r} cannot be made, so nothing was published: {told}"
                    f"{'' if told.endswith('.') else '.'}"
                ) from error
            before[at] = files[at].identity
        return Added(files, differences)

    def check_samples(self, sample_inputs: Any) -> None:
        """Raise `ExportValueError` if a file must be compared, and there is no sample for it."""
        for name, source in self.sources.items():
            if isinstance(source, ComparedFile) and source.needs_sample and sample_inputs is None:
                raise ExportValueError(
                    f"Received extra_files={{{name!r}: {source!r:.200}}}, which is compared with "
                    "the model, without a sample for it. Pass `sample_inputs`, or leave out "
                    "`max_difference`."
                )

    def check_endpoints(self, names: Collection[str]) -> None:
        """Raise `ExportValueError` if a file is made of an endpoint that is not exported.

        Args:
            names: The names of the endpoints.
        """
        for name, source in self.sources.items():
            if isinstance(source, ComparedFile) and source.endpoint not in names:
                raise ExportValueError(
                    f"Received extra_files={{{name!r}: {source!r:.200}}}, but there is no endpoint "
                    f"{source.endpoint!r}. Expected one of {sorted(names)}."
                )


def _checked(name: str, source: Source) -> bytes | Path | FileFunction:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        if isinstance(text, str) and not is_url(text) and "\0" not in text:
            path = Path(os.path.abspath(text))
            if path.is_file():
                return path
        raise ExportValueError(
            f"Received extra_files={{{name!r}: {source!r:.80}}}. Expected the path of a file, and "
            "there is none. To write a text, pass bytes, such as 'cat\\ndog'.encode(). To read a "
            "file that does not exist yet, pass a function, such as "
            "lambda saved_model_dir: Path('labels.txt').read_bytes()."
        )
    given: Any = source
    if given is litert:
        raise ExportTypeError(
            f"Received extra_files={{{name!r}: litert}}. Expected what this function returns: "
            f"{{{name!r}: litert()}}."
        )
    if callable(source):
        return source
    raise ExportTypeError(
        f"Received extra_files={{{name!r}: {source!r:.80}}} of type {type(source)}. Expected a "
        "path, bytes, or a function (saved_model_dir) that returns bytes."
    )


def _check_names(names: Mapping[Any, object]) -> None:
    taken = {_folded(name): f"{name!r} of this library" for name in OWN_EXTRA}
    for name in names:
        reason = _obstacle(name) or next(_clashes(name, taken), None)
        if reason:
            kind = ExportValueError if isinstance(name, str) else ExportTypeError
            raise kind(
                f"Received extra_files={{{name!r}: …}}, but {reason}. Expected a relative name "
                "below 'assets.extra', such as 'labels.txt' or 'edge/model.tflite'."
            )
        taken[_folded(name)] = repr(name)


def _obstacle(name: Any) -> str | None:
    """Return the reason why a name cannot be used, regardless of other names, or None."""
    if not isinstance(name, str):
        return f"the name is of type {type(name)}"
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).drive:
        return "the name is absolute"
    if "\\" in name:
        return "the name has a backslash"
    parts = name.split("/")
    if ".." in parts or "." in parts:
        return "the name has a part '.' or '..'"
    if "" in parts:
        return "a part of the name is empty"
    if not name.isprintable():
        return "the name has characters that cannot be printed"
    if any(len(part.encode()) > _LONGEST for part in parts):
        return f"a part of the name is longer than {_LONGEST} bytes"
    if len(name.encode()) > _LONGEST_PATH:
        return f"the name is longer than {_LONGEST_PATH} bytes"
    return None


def _clashes(name: str, taken: Mapping[str, str]) -> Iterator[str]:
    """Yield the reasons why a name cannot be used together with the names that are taken."""
    folded = _folded(name)
    for other, described in taken.items():
        if other == folded:
            yield f"it differs from {described} only in case, or not at all"
        elif other.startswith(f"{folded}/"):
            yield f"it is a directory of {described}"
        elif folded.startswith(f"{other}/"):
            yield f"{described} would be its directory"


def _folded(name: str) -> str:
    """Return a name as it is compared by file systems that ignore case and composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _content(source: bytes | Path | FileFunction, staged: Path) -> bytes | Path:
    if isinstance(source, bytes | Path):
        return source
    content: object = source(staged)
    if isinstance(content, bytearray | memoryview):
        return bytes(content)
    if not isinstance(content, bytes):
        raise ExportTypeError(f"the function returned {type(content)}, expected bytes")
    return content


def _identities(root: Path) -> dict[str, Identity]:
    return {name: identity_of(os.lstat(root / name)) for name in relative_files(root)}


def _check_untouched(root: Path, before: Mapping[str, Identity]) -> None:
    """Raise an error if a file was added to a directory, removed from it, or changed."""
    after = _identities(root)
    what = "Return the contents as bytes, and write to a temporary directory"
    if stray := sorted(after.keys() - before.keys()):
        raise ExportValueError(f"the function left {stray} in the version. {what}")
    if touched := sorted(name for name in before if after.get(name) != before[name]):
        raise ExportValueError(
            f"the function changed or removed {touched}. {what}. Earlier versions may share these "
            "files. Check them with `keras-exports verify`"
        )


def _put(content: bytes | Path, target: Path, earlier: KnownFile | None) -> KnownFile:
    """Write a file. If the last version has the same contents, link its file instead."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, target)
    else:
        target.write_bytes(content)
    written = KnownFile.at(target)
    if earlier is None or earlier.info != written.info or not earlier.is_intact():
        return written
    target.unlink()
    return earlier.share(target) or _put(content, target, None)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
