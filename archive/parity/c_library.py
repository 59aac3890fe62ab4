"""Loads and runs a SavedModel with TensorFlow's C library, without Python TensorFlow.

The C library is part of the TensorFlow wheel. Its stable API (``tensorflow/c/c_api.h``)
calls the loader that TensorFlow Serving also uses (`LoadSavedModel`). `run_apart` loads
and runs the SavedModel in another process, as a model server does.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import mmap
import os
import pickle
import select
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import LoaderError

# Numbers of `tensorflow.DataType` (tensorflow/core/framework/types.proto).
_DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8",
    8: "complex64", 9: "int64", 10: "bool", 14: "bfloat16", 17: "uint16", 18: "complex128",
    19: "float16", 22: "uint32", 23: "uint64", 24: "float8_e5m2", 25: "float8_e4m3fn",
    29: "int4", 30: "uint4",
}  # fmt: skip
_STRING = 7

# The time limit in seconds. Without it, training would wait forever for an artifact that hangs.
LIMIT = 3600


class _Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    ]


class _String(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 24)]


class Session:
    """A SavedModel loaded for serving.

    Args:
        path: The directory of the SavedModel.
        op_libraries: The paths of shared libraries with custom operations.

    Raises:
        LoaderError: If the SavedModel or one of the libraries cannot be loaded.
    """

    def __init__(self, path: str, op_libraries: Sequence[str] = ()) -> None:
        self._tf = _library()
        self._graph = self._tf.TF_NewGraph()
        options, self._status = self._tf.TF_NewSessionOptions(), self._tf.TF_NewStatus()
        for library in op_libraries:
            self._tf.TF_LoadLibrary(library.encode(), self._status)
            self._check()
        meta_graph = self._tf.TF_NewBuffer()
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = self._tf.TF_LoadSessionFromSavedModel(
            options, None, path.encode(), tags, 1, self._graph, meta_graph, self._status
        )
        self._check()
        content = meta_graph.contents
        message = _meta_graph_def().FromString(ctypes.string_at(content.data, content.length))
        self._signatures = dict(message.signature_def)

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Call a signature, and return its outputs.

        Args:
            signature: The name of the signature.
            inputs: The inputs by name, as arrays.

        Returns:
            The outputs by name, as arrays.

        Raises:
            LoaderError: If the inputs do not match the signature, or if the call fails.
        """
        wanted, produced = self._signatures[signature].inputs, self._signatures[signature].outputs
        if set(inputs) != set(wanted):
            raise LoaderError(
                f"Received the inputs {sorted(inputs)} for signature {signature!r}. Expected the "
                f"inputs {sorted(wanted)}."
            )
        feeds = [self._output(wanted[name].name) for name in inputs]
        tensors = [self._tensor(value, wanted[name].dtype) for name, value in inputs.items()]
        fetches = [self._output(info.name) for info in produced.values()]
        results = (ctypes.c_void_p * len(fetches))()
        self._tf.TF_SessionRun(
            self._session,
            None,
            (_Output * len(feeds))(*feeds),
            (ctypes.c_void_p * len(tensors))(*tensors),
            len(feeds),
            (_Output * len(fetches))(*fetches),
            results,
            len(fetches),
            None,
            0,
            None,
            self._status,
        )
        self._check()
        return {name: self._array(tensor) for name, tensor in zip(produced, results, strict=True)}

    def _output(self, name: str) -> _Output:
        operation, _, index = name.partition(":")
        found = self._tf.TF_GraphOperationByName(self._graph, operation.encode())
        if found is None:  # A composite tensor, such as a ragged one, has no name.
            raise LoaderError(
                f"The signature names the tensor {name!r}, but the graph has no such tensor."
            )
        return _Output(found, int(index or 0))

    def _tensor(self, value: Any, dtype: int) -> int:
        array = np.asarray(value)
        dims = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
        if dtype == _STRING:
            texts = [item.encode() if isinstance(item, str) else item for item in array.flat]
            tensor = self._tf.TF_AllocateTensor(
                dtype, dims, array.ndim, len(texts) * ctypes.sizeof(_String)
            )
            slots = ctypes.cast(self._tf.TF_TensorData(tensor), ctypes.POINTER(_String))
            for index, text in enumerate(texts):
                self._tf.TF_StringInit(ctypes.byref(slots[index]))
                self._tf.TF_StringCopy(ctypes.byref(slots[index]), text, len(text))
            return int(tensor)
        array = np.asarray(array, _dtype(dtype), order="C")
        tensor = self._tf.TF_AllocateTensor(dtype, dims, array.ndim, array.nbytes)
        ctypes.memmove(self._tf.TF_TensorData(tensor), array.ctypes.data, array.nbytes)
        return int(tensor)

    def _array(self, tensor: int) -> Any:
        shape = [self._tf.TF_Dim(tensor, axis) for axis in range(self._tf.TF_NumDims(tensor))]
        dtype = self._tf.TF_TensorType(tensor)
        data = self._tf.TF_TensorData(tensor)
        if dtype == _STRING:
            slots = ctypes.cast(data, ctypes.POINTER(_String))
            texts = [
                ctypes.string_at(
                    self._tf.TF_StringGetDataPointer(ctypes.byref(slots[index])),
                    self._tf.TF_StringGetSize(ctypes.byref(slots[index])),
                )
                for index in range(int(np.prod(shape)))
            ]
            # NumPy's bytes dtype would drop zero bytes at the end of a string.
            array = np.empty(len(texts), object)
            array[:] = texts
            return array.reshape(shape)
        size = self._tf.TF_TensorByteSize(tensor)
        return np.frombuffer(ctypes.string_at(data, size), _dtype(dtype)).reshape(shape)

    def _check(self) -> None:
        if self._tf.TF_GetCode(self._status) != 0:
            raise LoaderError(self._tf.TF_Message(self._status).decode())


def op_libraries() -> list[str]:
    """Return the paths of the libraries with custom operations that this process has loaded.

    These are the shared libraries that are linked against TensorFlow and define
    operations. An example is the library of tensorflow-text. On systems other than Linux
    the list is always empty, because ``/proc/self/maps`` does not exist there.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    loaded = sorted({line.split(maxsplit=5)[-1] for line in lines if ".so" in line})
    return [path for path in loaded if _defines_operations(path)]


@functools.cache
def _defines_operations(path: str) -> bool:
    if Path(path).is_relative_to(_folder()):
        return False
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as all_:
            return all(all_.find(name) >= 0 for name in (b"libtensorflow_", b"OpDefBuilder"))
    except (OSError, ValueError):
        return False  # The file was deleted, or the path does not name a file.


def _dtype(number: int) -> Any:
    if (name := _DTYPES.get(number)) is None:
        raise LoaderError(
            f"A tensor of TensorFlow's DataType {number} cannot be converted to or from an array."
        )
    return np.dtype(getattr(ml_dtypes, name, name))


def _folder() -> Path:
    spec = importlib.util.find_spec("tensorflow")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def _library() -> Any:
    folder = _folder()
    suffix = "2.dylib" if sys.platform == "darwin" else "so.2"
    ctypes.CDLL(str(folder / f"libtensorflow_framework.{suffix}"), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(folder / f"libtensorflow_cc.{suffix}"), ctypes.RTLD_GLOBAL)
    pointers = (
        "TF_NewGraph TF_NewSessionOptions TF_NewStatus TF_LoadSessionFromSavedModel "
        "TF_GraphOperationByName TF_AllocateTensor TF_TensorData TF_StringGetDataPointer "
        "TF_LoadLibrary"
    )
    for name in pointers.split():
        getattr(library, name).restype = ctypes.c_void_p
    library.TF_NewBuffer.restype = ctypes.POINTER(_Buffer)
    library.TF_Message.restype = ctypes.c_char_p
    for name in ("TF_Dim", "TF_StringGetSize", "TF_TensorByteSize"):
        getattr(library, name).restype = ctypes.c_int64
    size, pointer, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    library.TF_LoadSessionFromSavedModel.argtypes = [
        pointer, pointer, ctypes.c_char_p, pointer, number, pointer, pointer, pointer,
    ]  # fmt: skip
    library.TF_LoadLibrary.argtypes = [ctypes.c_char_p, pointer]
    library.TF_GraphOperationByName.argtypes = [pointer, ctypes.c_char_p]
    library.TF_AllocateTensor.argtypes = [number, pointer, number, size]
    library.TF_StringCopy.argtypes = [pointer, ctypes.c_char_p, size]
    library.TF_Dim.argtypes = [pointer, number]
    library.TF_SessionRun.argtypes = [
        pointer, pointer, pointer, pointer, number, pointer, pointer, number,
        pointer, number, pointer, pointer,
    ]  # fmt: skip
    with_one_pointer = (
        "TF_TensorData TF_TensorType TF_NumDims TF_TensorByteSize TF_GetCode TF_Message "
        "TF_StringInit TF_StringGetDataPointer TF_StringGetSize"
    )
    for name in with_one_pointer.split():
        getattr(library, name).argtypes = [pointer]
    return library


@functools.cache
def _meta_graph_def() -> Any:
    """Return the class of TensorFlow's message `MetaGraphDef`, without importing TensorFlow.

    The module of the message needs only protobuf. Python would still import the package
    ``tensorflow`` first, which is large. An empty package with the same folder takes its
    place during the import.
    """
    empty = types.ModuleType("tensorflow")
    empty.__path__ = [str(_folder())]
    package = sys.modules.setdefault("tensorflow", empty)
    try:
        return importlib.import_module("tensorflow.core.protobuf.meta_graph_pb2").MetaGraphDef
    finally:
        if package is empty:
            del sys.modules["tensorflow"]


def run_apart(path: str, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Load a SavedModel in a new process, and call its signatures there.

    Args:
        path: The directory of the SavedModel.
        calls: The name of a signature and its inputs, for each call. The inputs are
            arrays by name.

    Returns:
        The outputs of each call, as arrays by name.

    Raises:
        LoaderError: If the SavedModel cannot be loaded, if a call fails, or if the
            process takes longer than `LIMIT`.
    """
    outputs: list[dict[str, Any]] | str
    reading, writing = os.pipe()
    with (
        open(reading, "rb") as answer,
        open(writing, "wb") as there,
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(writing), *sys.path],
            # This pipe stays open. If this process is killed, the pipe closes, and the new
            # process ends.
            stdin=subprocess.PIPE,
            # An endpoint may print, so its outputs come through another pipe.
            stdout=said,
            stderr=said,
            pass_fds=[writing],
            # Training needs the GPUs, so the artifact runs without them.
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"},
        ) as process,
    ):
        there.close()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(pickle.dumps((path, op_libraries(), calls)))
            process.stdin.flush()
        ready = select.poll()
        ready.register(answer, select.POLLIN)
        if not ready.poll(1000 * LIMIT):
            process.kill()
            raise LoaderError(f"Loading and running '{path}' took longer than {LIMIT} seconds.")
        try:
            outputs = pickle.load(answer)
        except (EOFError, pickle.UnpicklingError):
            process.wait()
            said.seek(0)
            outputs = said.read().decode(errors="replace").strip()[-2000:]
    if isinstance(outputs, str):
        raise LoaderError(
            f"TensorFlow's C library cannot load or run '{path}': {outputs} "
            f"(exit code {process.returncode})"
        )
    return outputs


_SCRIPT = f"""
import sys
sys.path[:] = sys.argv[2:]
from {__name__} import serve_calls
serve_calls(int(sys.argv[1]))
"""


def serve_calls(answer: int) -> None:
    """Read the calls of `run_apart` from standard input, and write their outputs to `answer`.

    Args:
        answer: The file descriptor of a pipe to the process that called `run_apart`.
    """
    path, libraries, calls = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        session = Session(path, libraries)
        results: Any = [session.run(name, inputs) for name, inputs in calls]
    except Exception as error:
        results = str(error)
    assert "tensorflow" not in sys.modules
    with open(answer, "wb") as file:
        pickle.dump(results, file)


def _end_with_parent() -> None:
    os.read(0, 1)  # The parent sends nothing more, so this returns when the pipe closes.
    os._exit(1)
