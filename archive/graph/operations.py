"""Lists the operations in a trace, and their dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def operations(trace: Any, leading_to: Sequence[Any] | None = None) -> list[Any]:
    """Return the operations in a trace and in the functions that it calls, as `NodeDef`s.

    Args:
        trace: A traced function.
        leading_to: Tensors in the trace. If they are given, only the operations that
            they depend on are listed.
    """
    graph = trace.graph.as_graph_def()
    wanted = None if leading_to is None else _names_before(leading_to)
    found = [node for node in graph.node if wanted is None or node.name in wanted]
    functions = {function.signature.name: function.node_def for function in graph.library.function}
    for node in found:  # The list grows in this loop.
        for attribute in node.attr.values():
            for called in (attribute.func, *attribute.list.func):
                found += functions.pop(called.name, ())
    return found


def _names_before(tensors: Sequence[Any]) -> set[str]:
    """Return the names of the operations that `tensors` depend on."""
    names: set[str] = set()
    left = [tensor.op for tensor in tensors]
    while left:
        operation = left.pop()
        if operation.name not in names:
            names.add(operation.name)
            left += [tensor.op for tensor in operation.inputs]
    return names


def dtypes(nodes: Sequence[Any]) -> set[int]:
    """Return the numbers of all dtypes in `nodes`, as in TensorFlow's `DataType`."""
    return {
        number
        for node in nodes
        for value in node.attr.values()
        for number in (value.type, *value.list.type)
        if number
    }
