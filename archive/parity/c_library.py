"""Load and run a SavedModel with TensorFlow's C library, without Python TensorFlow.

That is the loader that TensorFlow Serving uses (`LoadSavedModel`), behind the
stable C API of ``tensorflow/c/c_api.h``, from the library in the TensorFlow wheel.
`run_apart` does it in a process of its own, as a server would.
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

# In seconds; what takes longer hangs, and would hang training for good.
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
        path: its directory.
        op_libraries: files with operations that TensorFlow itself does not have.
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
        """The outputs of a signature by name, for inputs by name."""
        wanted, produced = self._signatures[signature].inputs, self._signatures[signature].outputs
        if set(inputs) != set(wanted):
            raise LoaderError(f"inputs are {sorted(wanted)}, received {sorted(inputs)}")
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
        if found is None:  # Such as of a ragged tensor, which has no name of its own.
            raise LoaderError(f"The signature names the tensor {name!r}, which the graph lacks.")
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
            array = np.empty(len(texts), object)  # As bytes, NumPy would drop zeros at their ends.
            array[:] = texts
            return array.reshape(shape)
        size = self._tf.TF_TensorByteSize(tensor)
        return np.frombuffer(ctypes.string_at(data, size), _dtype(dtype)).reshape(shape)

    def _check(self) -> None:
        if self._tf.TF_GetCode(self._status) != 0:
            raise LoaderError(self._tf.TF_Message(self._status).decode())


def op_libraries() -> list[str]:
    """The libraries with operations of others that this process has loaded.

    They are found as shared libraries that are linked against TensorFlow's and
    define operations, such as those of tensorflow-text. Only Linux tells what is
    loaded; elsewhere there are none.
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
        return False  # It was deleted, or is no file.


def _dtype(number: int) -> Any:
    if (name := _DTYPES.get(number)) is None:
        raise LoaderError(f"Tensors of TensorFlow's DataType {number} have no array type.")
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
    """TensorFlow's message `MetaGraphDef`. Its module needs protobuf, and nothing of TensorFlow.

    Python would import the package around it first, all of Python's TensorFlow. It
    finds an empty package with the same folder instead.
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
    """Load the SavedModel at `path` in a new process and call signatures of it.

    Args:
        path: its directory.
        calls: the name of a signature, and its inputs by name as arrays.

    Returns:
        The outputs of each call by name, as arrays.

    Raises:
        LoaderError: it cannot be loaded, or a call fails.
    """
    outputs: list[dict[str, Any]] | str
    reading, writing = os.pipe()
    with (
        open(reading, "rb") as answer,
        open(writing, "wb") as there,
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(writing), *sys.path],
            stdin=subprocess.PIPE,  # Stays open: should this process be killed, that one ends.
            # An endpoint may print; what it computed comes another way.
            stdout=said,
            stderr=said,
            pass_fds=[writing],
            # As on a server without one; and what there is, training needs.
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
            raise LoaderError(f"'{path}' was loaded and run for {LIMIT} seconds, without an end.")
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
    """Do what `run_apart` asks for on standard input, and write it to a file descriptor."""
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
    os.read(0, 1)  # Nothing more comes; it returns when the other end is closed.
    os._exit(1)
