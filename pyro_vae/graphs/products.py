r"""Large matrix products: on a CPU by oneDNN, and where it is asked for, in bfloat16.

torch multiplies matrices of single precision by MKL.  Its other library for networks, oneDNN, is
1.3 to 1.5 times as fast at the shapes of a network's layers on the AMD cores measured
(``benchmarks/NOTES.md``), and slower at small ones, where its set-up costs more than the product.
So a graph that is to be compiled takes it where the left factor lies row by row and the product is
large: by shape alone, so that a run is repeatable.

bfloat16 has the range of single precision and three digits.  A product of two matrices that are
rounded to it is summed in single precision and rounded once more; processors that have
instructions for it take half the time.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.graphs.lifted import Lifted

aten = torch.ops.aten

LARGE = 1 << 23  # multiplications of a product that is worth the set-up
MANY_ROWS = 2048  # of a left factor, for which it pays to lay a right one out row by row

# An operation of ours, because the compiler's own entry for oneDNN takes constant weights only.
_library = torch.library.Library("pyro_vae", "DEF")
_library.define("product(Tensor a, Tensor b) -> Tensor")


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


def _form(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


_library.impl("product", _product, "CPU")
torch.library.register_fake("pyro_vae::product", _form, lib=_library)


def multiplications(node: fx.Node) -> int:
    """How many a product of a traced graph takes, where oneDNN is to take it; 0 elsewhere."""
    if node.target not in (aten.mm.default, aten.addmm.default):
        return 0
    a, b = node.args[-2:]
    if (size := _size(a, b)) < LARGE or not torch.backends.mkldnn.is_available():
        return 0
    left = a.meta["tensor_meta"]  # type: ignore[union-attr]
    return size if left.stride == (left.shape[1], 1) else 0


def quicken(graph: fx.GraphModule) -> None:
    """Let the large products of a traced graph on a CPU be oneDNN's, in place."""
    for node in graph.graph.nodes:
        if node.target is aten.mm.default and multiplications(node):
            node.target = torch.ops.pyro_vae.product.default
            a, b = node.args
            if a.meta["tensor_meta"].shape[0] >= MANY_ROWS:
                with graph.graph.inserting_before(node):
                    b = graph.graph.call_function(
                        aten.clone.default, (b,), {"memory_format": torch.contiguous_format}
                    )
                node.args = (a, b)
    graph.recompile()


def in_bfloat16(lifted: Lifted) -> Lifted:
    """The same function with its large products of single precision in bfloat16.

    All else, what is small, sums over particles and rows, and the results, stays as it was.
    """
    nodes = copy.deepcopy(lifted.graph.graph)
    halves: dict[Any, fx.Node] = {}  # each matrix is rounded once
    rough = False
    for node in list(nodes.nodes):
        if node.target not in (aten.mm.default, aten.addmm.default) or node.kwargs:
            continue  # keywords are factors of addmm's terms
        *bias, a, b = node.args
        if _size(a, b) < LARGE:
            continue
        with nodes.inserting_before(node):
            for factor in (a, b):
                if factor not in halves:
                    halves[factor] = _cast(nodes, factor, torch.bfloat16)
            half = nodes.call_function(aten.mm.default, (halves[a], halves[b]))
            product = _cast(nodes, half, torch.float32)
            if bias:
                product = nodes.call_function(aten.add.Tensor, (product, bias[0]))
        node.replace_all_uses_with(product)
        nodes.erase_node(node)
        rough = True
    made = copy.copy(lifted)
    made.run = made.graph = fx.GraphModule(lifted.graph, nodes)
    made.rough = rough
    return made


def _cast(nodes: fx.Graph, value: Any, dtype: torch.dtype) -> fx.Node:
    return nodes.call_function(aten._to_copy.default, (value,), {"dtype": dtype})


def _size(a: Any, b: Any) -> int:
    """Multiplications of a product in single precision; 0 in another."""
    first, second = (factor.meta.get("tensor_meta") for factor in (a, b))
    if first is None or second is None or {first.dtype, second.dtype} != {torch.float32}:
        return 0
    return first.shape[0] * first.shape[1] * second.shape[1]
