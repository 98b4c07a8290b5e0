r"""Large matrix products on a CPU by oneDNN.

torch multiplies matrices of single precision by MKL.  Its other library for networks, oneDNN, is
1.3 to 1.5 times as fast at the shapes of a network's layers on the AMD cores measured
(``benchmarks/NOTES.md``), and slower at small ones, where its set-up costs more than the product.
So a graph that is to be compiled takes it where the left factor lies row by row and the product is
large: by shape alone, so that a run is repeatable.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

aten = torch.ops.aten

LARGE = 1 << 23  # multiplications of a product that is worth the set-up

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
    a, b = (factor.meta.get("tensor_meta") for factor in node.args[-2:])  # type: ignore[union-attr]
    if a is None or b is None or a.dtype != torch.float32 or a.stride != (a.shape[1], 1):
        return 0
    size = a.shape[0] * a.shape[1] * b.shape[1]
    return size if size >= LARGE and torch.backends.mkldnn.is_available() else 0


def quicken(graph: fx.GraphModule) -> None:
    """Let the large products of a traced graph on a CPU be oneDNN's, in place."""
    for node in graph.graph.nodes:
        if node.target is aten.mm.default and multiplications(node):
            node.target = torch.ops.pyro_vae.product.default
    graph.recompile()
