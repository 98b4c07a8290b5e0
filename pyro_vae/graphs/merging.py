"""Equal operations on equal tensors are done once.

torch has such a pass (``fx_graph_cse``), which loads the whole compiler before its first use: two
seconds of each process, for graphs that are never compiled.
"""

from __future__ import annotations

from typing import Any

from torch import fx


def merge_equal(graph: fx.Graph) -> None:
    """Let the first of equal operations stand for all of them.

    Args:
        graph: without draws, of which two equal ones differ, and without operations that write.

    What is returned stays apart, and what it shares its memory with: a caller may write into it.
    """
    kept = _returned(graph)
    first: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node in kept:
            continue
        try:
            same = first.setdefault((node.target, _form(node.args), _form(node.kwargs)), node)
        except TypeError:  # an argument that has no hash
            continue
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _returned(graph: fx.Graph) -> set[fx.Node]:
    """What is returned, and what that is a view of."""
    found: set[fx.Node] = set()
    left = list(graph.output_node().all_input_nodes)
    while left:
        found.add(node := left.pop())
        schema = getattr(node.target, "_schema", None)
        if schema is not None and any(result.alias_info for result in schema.returns):
            left += node.all_input_nodes
    return found


def _form(value: Any) -> Any:
    """Equal for equal arguments alone: to Python 1 is 1.0, and 0.0 is -0.0."""
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_form, value))
    if isinstance(value, dict):
        return tuple((name, _form(part)) for name, part in sorted(value.items()))
    if isinstance(value, slice):
        return slice, _form((value.start, value.stop, value.step))
    return type(value), value.hex() if isinstance(value, float) else value
