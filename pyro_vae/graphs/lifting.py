r"""Functions captured as pure graphs, with their noise as arguments.

:func:`lift` runs a function, records the operations on tensors that it comes to, and makes its
random draws arguments.  What comes out is free of handlers, Python state and generators, and can
be run again, compiled, and ``vmap``-ed over noise for particles and replicas.  (Left inside a
captured graph, a functionalized draw is broadcast, so that all replicas silently share it.)

A graph is only as good as the promise that Python would do the same again, so it is compared with
the function at other values before anyone sees it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from pyro_vae.graphs.constants import ConstantsMode, OneHotMode
from pyro_vae.graphs.lifted import TENSOR, Lifted, Refusal
from pyro_vae.graphs.merging import merge_equal
from pyro_vae.graphs.probing import differs
from pyro_vae.graphs.tracing import traced
from pyro_vae.noise import LOOK, Noise, NoiseMode, keyed, seeded
from pyro_vae.torch_internals import no_modes, sources_forgotten

aten = torch.ops.aten

# One entry for each graph that is being made in this process, the innermost last; None while the
# function that it is compared with runs, which must not see graphs of its own parts.
_capturing: list[dict[Any, Any] | None] = []


def particles_by_vmap() -> bool:
    """Whether a graph is being made, in which particles shall be a ``vmap`` over noise."""
    return bool(_capturing) and _capturing[-1] is not None


def capture_cache() -> dict[Any, Any]:
    """What the innermost capture keeps between its runs of the same function."""
    cache = _capturing[-1]
    if cache is None:
        raise RuntimeError("no graph is being made")
    return cache


@contextlib.contextmanager
def _capture_scope(cache: dict[Any, Any] | None) -> Iterator[None]:
    _capturing.append(cache)
    try:
        yield
    finally:
        _capturing.pop()


def lift(
    function: Callable[..., Any], *args: Any, probes: Sequence[tuple] = (), differentiable=False
) -> Lifted | Refusal:
    """Capture ``function(*args)`` as a graph of pure operations with its noise as inputs.

    The function runs twice: once to learn which noise it asks for, once to be recorded.  Then the
    graph is compared with the function on ``probes``, other arguments of the same form: a Python
    value that was frozen into the graph, or a branch on data, shows as a difference.

    Args:
        function: any function of nests of tensors (dicts, tuples, lists).
        args: example arguments; the graph holds for their shapes and dtypes.
        probes: other arguments to compare on, such as :func:`others`; without any, ``args``.
        differentiable: the graph will be differentiated, so gradients are compared too, and
            blocks without gradient are refused: they leave no mark in a graph.

    Returns:
        :class:`Lifted`, or a :class:`Refusal` with the reason.
    """
    with no_modes(), pyro.validation_enabled(False), sources_forgotten():
        try:
            with _capture_scope({}):
                lifted = _record(function, args, differentiable)
            if isinstance(lifted, Refusal):
                return lifted
            with _capture_scope(None):
                for number, probe in enumerate(probes or [args]):
                    refusal = differs(function, lifted, probe, differentiable, twice=number == 0)
                    if refusal is not None:
                        return refusal
        except Exception as error:  # whatever user code or the tracer raises is the reason
            return Refusal(_reason(error))
    return lifted


def holds(function: Callable[..., Any], lifted: Lifted, args: tuple) -> bool:
    """Whether a graph that was made of a function still says what that says, at ``args``."""
    with no_modes(), pyro.validation_enabled(False), _capture_scope(None):
        return differs(function, lifted, args, False, twice=False) is None


def _reason(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    if "data-dependent" in text or "tracing tensor" in text or "item" in text.lower():
        return f"Python code depends on the values of tensors ({text[:160]})"
    return f"{type(error).__name__}: {text[:200]}"


def _record(function, args, differentiable: bool) -> Lifted | Refusal:
    leaves, in_spec = pytree.tree_flatten(args)
    with NoiseMode(keyed(*LOOK)) as first, seeded(*LOOK):
        example = function(*args)
    if differentiable and first.without_grad and torch.is_grad_enabled():
        return Refusal("gradients are switched off in a part of the program")
    out_leaves, out_spec = pytree.tree_flatten(example)
    constants = [TENSOR if isinstance(leaf, Tensor) else leaf for leaf in out_leaves]
    noise = [keyed(*LOOK)(i, asked) for i, asked in enumerate(first.asked)]

    def flat(*tensors: Tensor) -> list[Tensor]:
        given = tensors[len(leaves) :]
        changed = RuntimeError("the draws change from run to run")

        def source(index: int, asked: Noise) -> Tensor:
            if index >= len(first.asked) or asked != first.asked[index]:
                raise changed
            return given[index]

        with (
            OneHotMode(),
            NoiseMode(source) as second,
            ConstantsMode(tensors),
        ):
            result = function(*pytree.tree_unflatten(list(tensors[: len(leaves)]), in_spec))
        if len(second.asked) < len(first.asked):
            raise changed
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]

    flat_args = (*leaves, *noise)
    with seeded(*LOOK):
        graph = traced(flat, *flat_args)
        if _writes(graph):
            graph = traced(torch.func.functionalize(graph), *flat_args)
    live = _clean(graph, len(leaves), keep_detach=differentiable)
    if not first.kept:  # two equal draws are two draws; two equal products are one
        merge_equal(graph.graph)
    graph.recompile()
    return Lifted(
        graph,
        tuple(first.asked[i] for i in live),
        tuple(live),
        tuple(dict.fromkeys(first.kept)),
        [(leaf.shape, leaf.dtype) for leaf in leaves],
        in_spec,
        out_spec,
        constants,
    )


FRESH = (aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default)
# Of these the result has shape and precision of the tensor that is written, written or made.
WRITING = (
    "abs_", "add_", "clamp_", "clamp_max_", "clamp_min_", "cos_", "div_", "exp_", "expm1_", "fill_",
    "log1p_", "log_", "mul_", "neg_", "pow_", "reciprocal_", "relu_", "rsqrt_", "sigmoid_", "sin_",
    "sqrt_", "square_", "sub_", "tanh_", "zero_",
)  # fmt: skip


def _writes(graph: fx.GraphModule) -> bool:
    """Whether any operation changes a tensor that is there, once plain ones do not.

    ``empty(...).normal_()`` came out as a copy of the noise into a fresh tensor that nothing else
    has seen; it becomes the noise.  What is written into a tensor that nobody reads afterwards
    becomes another.  Where nothing is changed the graph is functional as it is, which saves
    recording it once more, and torch's compiler, which ``functionalize`` imports.
    """
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    for node in list(order):
        if node.target is aten.copy_.default and len(node.args) == 2:
            into, source = node.args
            forms = [(n.meta["tensor_meta"].shape, n.meta["tensor_meta"].dtype) for n in node.args]
            if into.target in FRESH and set(into.users) == {node} and forms[0] == forms[1]:
                node.replace_all_uses_with(source)
                graph.graph.erase_node(node)
        else:
            node.target = _not_writing(node, order)
    schemas = (getattr(node.target, "_schema", None) for node in graph.graph.nodes)
    return any(schema is not None and schema.is_mutable for schema in schemas)


def _not_writing(node: fx.Node, order: dict[fx.Node, int]) -> Any:
    """The operation that makes what a node writes over its first argument, if nobody reads that
    afterwards; else the node's own."""
    target: Any = node.target
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return target
    pure = _not_in_place(target) if target._opname in WRITING else None
    if pure is None:
        return target
    into: Any = node.args[0]
    others = [user for user in into.users if user is not node]
    if any(order[user] > order[node] for user in others) or any(map(_shares, [into, *others])):
        return target
    forms = [n.meta["tensor_meta"] for n in node.all_input_nodes]
    if any(form.dtype != forms[0].dtype or not form.dtype.is_floating_point for form in forms):
        return target
    return pure


@functools.cache
def _not_in_place(operation: OpOverload) -> OpOverload | None:
    """The operation of the same arguments that makes its result; ``pow_`` has others' names."""
    packet = getattr(aten, operation._opname[:-1], None)

    def arguments(of: OpOverload) -> list[tuple[str, str]]:
        return [(a.name, str(a.type)) for a in of._schema.arguments]

    found = [getattr(packet, name) for name in packet.overloads()] if packet is not None else []
    return next((o for o in found if arguments(o) == arguments(operation)), None)


def _shares(node: Any) -> bool:
    """Whether what a node makes may lie where something else does."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(result.alias_info for result in schema.returns)


def _clean(graph: fx.GraphModule, num_args: int, keep_detach: bool) -> list[int]:
    """Drop what costs time and means nothing; return which noise inputs are still used.

    The graph is to be recompiled.
    """
    for node in list(graph.graph.nodes):
        if node.target is aten.copy.default:  # empty.normal_() became copy(empty, noise)
            into, source = node.args[0].meta["tensor_meta"], node.args[1].meta["tensor_meta"]
            if (into.shape, into.dtype) == (source.shape, source.dtype):
                node.replace_all_uses_with(node.args[1])
        elif node.target is aten.fill.Scalar:  # the same, and vmap knows it
            node.target = aten.full_like.default
        elif node.target is aten.index_put.default and _is_masked_fill(node):  # so does this one
            into, (mask,), value = node.args[:3]
            node.target, node.args = aten.where.self, (mask, value, into)
        elif node.target is aten.detach.default and not keep_detach:
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    live = []
    for position, node in enumerate(inputs[num_args:]):
        if node.users:
            live.append(position)
        else:
            graph.graph.erase_node(node)
    graph.graph.set_codegen(fx.graph.CodeGen())  # flat arguments in, a flat list out
    return live


def _is_masked_fill(node: fx.Node) -> bool:
    """Whether it is ``t[mask] = value``, the mask of t's shape and one value: a choice by entry."""
    into, indices, value, *accumulate = node.args
    if len(indices) != 1 or any(accumulate) or node.kwargs:  # type: ignore[arg-type]
        return False
    t, mask, v = (n.meta["tensor_meta"] for n in (into, indices[0], value))  # type: ignore[index, union-attr]
    return mask.dtype == torch.bool and mask.shape == t.shape and v.shape in ((), (1,))
