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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, fx
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from pyro_vae.noise import Key, Noise, NoiseMode, keyed, seeded

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


# --- capture ------------------------------------------------------------------------------------


class Refusal(NamedTuple):
    """Why a program could not be captured; ``str()`` of it is one line for the user."""

    reason: str

    def __str__(self) -> str:
        return self.reason


_TENSOR = object()  # stands for a tensor among results, of which None may be one


class Lifted:
    """A function as one graph of pure operations, its random draws arguments.

    ``lifted(*args, noise=lifted.draw(key))`` equals ``function(*args)`` run under
    ``NoiseMode(keyed(*key))``.  Arguments and results are the function's own nests of tensors.
    """

    def __init__(
        self, graph: fx.GraphModule, noise, positions, kept, shapes, in_spec, out_spec, constants
    ):
        self.graph = graph
        self.run: Callable[..., Sequence[Tensor]] = graph  # or machine code that does the same
        self._shapes = shapes
        self.noise: tuple[Noise, ...] = noise
        self.positions: tuple[int, ...] = positions  # of each noise among all draws asked for
        self.kept: tuple[str, ...] = kept
        self._in_spec = in_spec
        self._out_spec = out_spec
        self._constants: list[Any] = constants  # results that are no tensors, else _TENSOR

    def draw(self, key: Key) -> list[Tensor]:
        """The noise that belongs to ``key``."""
        source = keyed(*key)
        return [source(i, noise) for i, noise in zip(self.positions, self.noise, strict=True)]

    def flat(self, *tensors: Tensor) -> list[Tensor]:
        """Run the graph on flat lists: arguments, then noise."""
        return list(self.run(*tensors))

    def unflatten(self, tensors: Sequence[Tensor]) -> Any:
        """Bring flat results into the form that the function returns."""
        rest = iter(tensors)
        leaves = [next(rest) if c is _TENSOR else c for c in self._constants]
        return pytree.tree_unflatten(leaves, self._out_spec)

    def __call__(self, *args: Any, noise: Sequence[Tensor]) -> Any:
        leaves, spec = pytree.tree_flatten(args)
        if spec != self._in_spec or [leaf.shape for leaf in leaves] != self._shapes:
            raise ValueError(
                f"a captured function was called with arguments of the form {spec} and shapes "
                f"{[tuple(leaf.shape) for leaf in leaves]}, expected {self._in_spec} and "
                f"{[tuple(shape) for shape in self._shapes]}: capture it again for the new form"
            )
        return self.unflatten(self.flat(*leaves, *noise))


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
    with _disable_current_modes(), pyro.validation_enabled(False):
        try:
            with _capture_scope({}):
                lifted = _record(function, args, differentiable)
            if isinstance(lifted, Refusal):
                return lifted
            with _capture_scope(None):
                for number, probe in enumerate(probes or [args]):
                    refusal = _differs(function, lifted, probe, differentiable, twice=number == 0)
                    if refusal is not None:
                        return refusal
        except Exception as error:  # whatever user code or the tracer raises is the reason
            return Refusal(_reason(error))
    return lifted


def others(args: Any) -> list[Any]:
    """Two nests like ``args`` with other values, plausible where those are.

    Real numbers move by two per cent and rows change places, once with their entries turned
    round, once so that the first row stands for half of them: whatever Python may have made of
    the values, their sum, their largest, their order, is another.
    """

    def first(tensor: Tensor) -> Tensor:
        turned = tensor.flip(-1) if tensor.dim() > 1 else tensor
        return turned.roll(1, 0) if tensor.dim() else tensor

    def second(tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) < 2:
            return tensor
        index = torch.arange(len(tensor), device=tensor.device)
        return tensor[torch.where(index < (len(tensor) + 1) // 2, 0, index - 1)]

    return [pytree.tree_map(first, args), pytree.tree_map(second, args)]


def nudged(tensors: Any) -> Any:
    """The same nest with every real number moved by up to two per cent, each its own way."""

    def nudge(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        ramp = torch.linspace(-1, 1, max(2, tensor.numel()))[: tensor.numel()]
        return tensor.detach() * (1 + 0.02 * ramp.view(tensor.shape).to(tensor))

    return pytree.tree_map(nudge, tensors)


def _reason(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    if "data-dependent" in text or "tracing tensor" in text or "item" in text.lower():
        return f"Python code depends on the values of tensors ({text[:160]})"
    return f"{type(error).__name__}: {text[:200]}"


def _record(function, args, differentiable: bool) -> Lifted | Refusal:
    leaves, in_spec = pytree.tree_flatten(args)
    with NoiseMode(keyed(0), capturing=True) as first, seeded(0):
        example = function(*args)
    if differentiable and first.without_grad and torch.is_grad_enabled():
        return Refusal("gradients are switched off in a part of the program")
    out_leaves, out_spec = pytree.tree_flatten(example)
    constants = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in out_leaves]
    noise = [keyed(0)(i, asked) for i, asked in enumerate(first.asked)]

    def flat(*tensors: Tensor) -> list[Tensor]:
        given = tensors[len(leaves) :]
        changed = RuntimeError("the draws change from run to run")

        def source(index: int, asked: Noise) -> Tensor:
            if index >= len(first.asked) or asked != first.asked[index]:
                raise changed
            return given[index]

        with NoiseMode(source, capturing=True) as second:
            result = function(*pytree.tree_unflatten(list(tensors[: len(leaves)]), in_spec))
        if len(second.asked) < len(first.asked):
            raise changed
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]

    flat_args = (*leaves, *noise)
    with seeded(0):
        graph = make_fx(flat)(*flat_args)
        graph = make_fx(torch.func.functionalize(graph))(*flat_args)
    live = _clean(graph, len(leaves), keep_detach=differentiable)
    if not first.kept:  # two equal draws are two draws; two equal products are one
        graph.graph = fx_graph_cse(graph.graph)
        graph.recompile()
    return Lifted(
        graph,
        tuple(first.asked[i] for i in live),
        tuple(live),
        tuple(dict.fromkeys(first.kept)),
        [leaf.shape for leaf in leaves],
        in_spec,
        out_spec,
        constants,
    )


def _clean(graph: fx.GraphModule, num_args: int, keep_detach: bool) -> list[int]:
    """Drop what costs time and means nothing; return which noise inputs are still used."""
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
    graph.recompile()
    return live


def _is_masked_fill(node: fx.Node) -> bool:
    """Whether it is ``t[mask] = value``, the mask of t's shape and one value: a choice by entry."""
    into, indices, value, *accumulate = node.args
    if len(indices) != 1 or any(accumulate) or node.kwargs:  # type: ignore[arg-type]
        return False
    t, mask, v = (n.meta["tensor_meta"] for n in (into, indices[0], value))  # type: ignore[index, union-attr]
    return mask.dtype == torch.bool and mask.shape == t.shape and v.shape in ((), (1,))


def _differs(
    function, lifted: Lifted, args, differentiable: bool, *, twice: bool
) -> Refusal | None:
    """Compare graph and function on ``args`` at the same noise; a difference is a refusal."""
    key = (1,)

    def outcome(run: Callable[..., Any]) -> list[Tensor]:
        leaves, spec = pytree.tree_flatten(args)
        inputs = [
            leaf.detach().requires_grad_(differentiable and leaf.is_floating_point())
            for leaf in leaves
        ]
        with torch.set_grad_enabled(differentiable or torch.is_grad_enabled()):
            results = pytree.tree_leaves(run(*pytree.tree_unflatten(inputs, spec)))
        results = [r for r in results if isinstance(r, Tensor)]
        if differentiable:
            # A weighting by cosines keeps contributions from cancelling.
            total = [
                (r * torch.arange(r.numel(), device=r.device).cos().view(r.shape)).sum()
                for r in results
                if r.requires_grad
            ]
            wanted = [leaf for leaf in inputs if leaf.requires_grad]
            if total:
                grads = torch.autograd.grad(sum(total), wanted, allow_unused=True)
                results += [
                    torch.zeros_like(leaf) if g is None else g
                    for g, leaf in zip(grads, wanted, strict=True)
                ]
        return [r.detach() for r in results]

    def once() -> list[Tensor]:
        with NoiseMode(keyed(*key), capturing=True), seeded(*key):
            return outcome(function)

    expected = once()
    if twice and any(not _same(a, b) for a, b in zip(expected, once(), strict=True)):
        return Refusal("the program gives other values from run to run at the same noise")
    with seeded(*key):  # for the draws that stay in the graph
        got = outcome(lambda *a: lifted(*a, noise=lifted.draw(key)))
    if len(expected) != len(got):
        return Refusal("gradients are lost in the captured graph")
    for want, have in zip(expected, got, strict=True):
        if want.shape != have.shape or not close(want, have):
            return Refusal(
                "the captured graph gives other values than the program: a Python value or a "
                "branch that depends on data, or an operation without a graph, was frozen into it"
            )
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal but for what a parallel sum may do."""
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    size = float(a.detach().abs().nan_to_num(0.0, 0.0, 0.0).amax()) if a.numel() else 0.0
    slack = 8 * torch.finfo(a.dtype).eps
    return bool(torch.allclose(a, b, rtol=slack, atol=slack * size, equal_nan=True))


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding: what two ways to compute the same may differ in."""
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    tolerance = 1e-3 if a.dtype == torch.float32 else 1e-8 if a.dtype == torch.float64 else 3e-2
    size = a.abs().nan_to_num(0.0, 0.0, 0.0).amax().item() if a.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * size, equal_nan=True))
