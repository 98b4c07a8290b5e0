"""A function's operations, written down as they run.

torch's ``make_fx`` does the same for many more kinds of arguments, and imports torch's compiler for
them: of the seconds before the first step of a run, one.  A function of plain tensors needs less, a
list of what is called with what.  Everything else is left to ``make_fx``.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.passes.shape_prop import TensorMetadata
from torch.utils import _pytree as pytree

from pyro_vae.torch_internals import (
    TorchDispatchMode,
    WeakTensorKeyDictionary,
    autograd_would_have_decomposed,
    disable_autocast_cache,
    traced_by_torch,
)

logger = logging.getLogger("pyro_vae")
aten = torch.ops.aten
PLAIN = (Tensor, nn.Parameter)
# By this a constant of Python's comes in.  What follows may write into it, and shall not into ours.
AS_COPY = {aten.lift_fresh.default: aten.lift_fresh_copy.default}


class Unusual(Exception):
    """What a list of operations on plain tensors does not say."""


def traced(
    function: Callable[..., Any],
    *args: Tensor,
    apart: Mapping[Any, Callable[..., Any]] | None = None,
) -> fx.GraphModule:
    """The operations that a function of flat tensors comes to, as a graph.

    Args:
        function: flat tensors in, a list of tensors out.
        args: example tensors.
        apart: for an operation, a function of simpler ones to record in its place, where that does
            not return ``NotImplemented``.
    """
    recorder = _Recorder(apart or {})
    try:
        for number, arg in enumerate(args):
            recorder.note(arg, recorder.graph.placeholder(f"arg{number}_1"))
        with disable_autocast_cache(), recorder:
            results = function(*args)
        recorder.graph.output([recorder.node_of(result) for result in results])
        recorder.graph.eliminate_dead_code()
        return fx.GraphModule(recorder.held, recorder.graph, "traced")
    except Exception as error:  # whatever it was, torch's tracer goes further or says it better
        logger.info(
            "recorded by torch's own tracer, after this: %s: %s", type(error).__name__, error
        )
        return traced_by_torch(function, *args, apart=apart)


class _Recorder(TorchDispatchMode):
    """Writes down each operation on plain tensors that runs below autograd and ``vmap``."""

    def __init__(self, apart: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.held: dict[str, Tensor] = {}  # what was there before, by name
        self._apart = apart
        self._nodes: Any = WeakTensorKeyDictionary()

    def note(self, result: Any, node: fx.Node) -> None:
        """A tensor, or each of several, is what this node makes; what is written is so anew."""
        if isinstance(result, Tensor):
            if type(result) not in PLAIN:
                raise Unusual(f"a {type(result).__name__}")
            form = result.shape, result.dtype, result.requires_grad, result.stride()
            node.meta["tensor_meta"] = TensorMetadata(*form, None, False, {})
            self._nodes[result] = node
        elif isinstance(result, tuple | list):
            for place, part in enumerate(result):
                if part is not None:
                    self.note(part, self.graph.call_function(operator.getitem, (node, place)))
        elif result is not None:
            raise Unusual(f"a {type(result).__name__}")

    def node_of(self, tensor: Tensor) -> fx.Node:
        node = self._nodes.get(tensor)
        if node is None:
            name = f"_tensor_constant{len(self.held)}"
            self.held[name] = tensor
            self.note(tensor, node := self.graph.get_attr(name))
        return node

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload) or torch.Tag.data_dependent_output in func.tags:
            raise Unusual(str(func))
        simpler = self._apart.get(func)
        if simpler is not None:
            with self:
                parts = simpler(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        if autograd_would_have_decomposed(func, pytree.tree_leaves((args, kwargs))):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        func = AS_COPY.get(func, func)
        given = pytree.tree_map_only(Tensor, self.node_of, (args, kwargs))
        node = self.graph.call_function(func, *given)
        result = func(*args, **kwargs)
        self.note(result, node)
        return result
