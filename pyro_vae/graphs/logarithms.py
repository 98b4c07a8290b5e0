r"""One logarithm for many: sums of log(1 + exp(-|t|)), of which a Bernoulli has one a pixel.

The density of a Bernoulli is x t - max(t, 0) - log(1 + exp(-|t|)), which torch writes in two ways,
once with log(exp(-m) + exp(n - m)), n = -t and m = max(n, 0): of these exponentials one is 1 and
the other exp(-|t|), to the last bit.  And the sum over pixels of log(1 + e), 0 <= e <= 1, is the
logarithm of a product: 64 such factors lie within [1, 2^64], which single precision holds.  Each
factor is rounded once, as a term of the sum would be, so the sum is as exact, of numbers near 1; of
one in which all are tiny, 1e-12, nothing is left.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import TensorMetadata

aten = torch.ops.aten
MOST = 64  # factors, each at most 2
LANES = 16  # numbers that a vector instruction takes
# What makes of a tensor the same numbers in the same order.
SAME = (aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.clone.default)
PRECISIONS = (torch.float32, torch.float64)
Term = tuple[float, Any]  # a coefficient, and the exponential in a logarithm


def _cross_entropy(t: Tensor, x: Tensor, *others: Any) -> Tensor:
    """Of a Bernoulli, as torch's compiler writes it."""
    if others != (None, None, 0):  # weights or a sum: let it do so
        return NotImplemented
    return (1 - x) * t + (t.neg().clamp_min(0) + t.abs().neg().exp().log1p())


APART = {aten.binary_cross_entropy_with_logits.default: _cross_entropy}


def join_logarithms(graph: fx.GraphModule) -> int:
    """Rewrite a traced graph in place; returns how many sums have changed."""
    nodes = list(graph.graph.nodes)
    logarithms = {node for node in nodes if _is_of_one_exponential(node)}
    if not logarithms:
        return 0
    sums = [n for n in nodes if n.target is aten.sum.dim_IntList and _is_last(n)]
    changed = sum(_joined(node, logarithms) for node in sums)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return changed


def _is_of_one_exponential(node: Any) -> bool:
    """Whether a node is log(1 + exp(-|t|)); where it is that with two, it is written with one."""
    if not _is(aten.log.default, node) and not _is(aten.log1p.default, node):
        return False
    if _form(node).dtype not in PRECISIONS:
        return False
    (inner,) = node.args
    if node.target is aten.log1p.default:
        return (
            _is(aten.exp.default, inner)
            and _is(aten.neg.default, inner.args[0])
            and _is(aten.abs.default, inner.args[0].args[0])
        )
    if not _is(aten.add.Tensor, inner) or inner.kwargs or not _is(aten.exp.default, *inner.args):
        return False
    for first, second in (inner.args, inner.args[::-1]):
        low, high = first.args[0], second.args[0]
        if not (_is(aten.neg.default, low) and _is(aten.sub.Tensor, high) and not high.kwargs):
            continue
        n, m = high.args
        if low.args[0] is m and _is(aten.clamp_min.default, m) and m.args == (n, 0):
            with node.graph.inserting_before(node):
                new = node.graph.call_function
                size = new(aten.neg.default, (new(aten.abs.default, (n,)),))
                node.target, node.args = aten.log1p.default, (new(aten.exp.default, (size,)),)
            return True
    return False


def _joined(node: Any, logarithms: set[Any]) -> bool:
    """Sum what is left apart from the logarithms; whether there were any."""
    rest, terms = _apart(node.args[0], logarithms)
    form = _form(node)
    count = math.prod(_form(node.args[0]).shape) // max(1, math.prod(form.shape))
    together = _divisor(count)
    if not (terms and together and count):
        return False
    with node.graph.inserting_before(node):
        new = node.graph.call_function
        total: Any = None if rest is None else new(node.target, (rest, *node.args[1:]))
        for coefficient, exponential in terms:
            factors = new(aten.add.Tensor, (exponential, 1.0))
            shape = [*form.shape, together, count // together]
            table = new(aten.reshape.default, (factors, shape))  # in whichever order they lie
            logs = new(aten.log.default, (new(aten.prod.dim_int, (table, -2)),))
            each = new(aten.mul.Tensor, (new(aten.sum.dim_IntList, (logs, [-1])), coefficient))
            total = each if total is None else new(aten.add.Tensor, (total, each))
    node.replace_all_uses_with(total)
    total.meta["tensor_meta"] = form
    return True


def _apart(node: Any, logarithms: set[Any]) -> tuple[Any, list[Term]]:
    """A term as what has no such logarithm, and the logarithms with their signs.

    Through sums of terms of one shape, as far as nothing else needs what is on the way.
    """
    whole: tuple[Any, list[Term]] = (node, [])
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return whole
    if node in logarithms:
        return None, [(1.0, node.args[0])]
    target: Any = node.target
    if target in SAME and math.prod(_form(node).shape) == math.prod(_form(node.args[0]).shape):
        rest, terms = _apart(node.args[0], logarithms)
        if rest is not None and terms:
            with node.graph.inserting_before(node):
                shape = list(_form(node).shape)
                rest = _like(node, node.graph.call_function(aten.reshape.default, (rest, shape)))
        return (rest, terms) if terms else whole
    if target is aten.neg.default:
        rest, terms = _apart(node.args[0], logarithms)
        if rest is not None and terms:
            with node.graph.inserting_before(node):
                rest = _like(node, node.graph.call_function(target, (rest,)))
        return (rest, [(-c, f) for c, f in terms]) if terms else whole
    if target not in (aten.add.Tensor, aten.sub.Tensor) or node.kwargs:
        return whole
    if any(not isinstance(part, fx.Node) or _differs(part, node) for part in node.args):
        return whole
    (left, some), (right, others) = (_apart(part, logarithms) for part in node.args)
    sign = 1.0 if target is aten.add.Tensor else -1.0
    terms = some + [(sign * c, f) for c, f in others]
    if not terms:
        return whole
    if left is None or right is None:
        rest = left if right is None else right
        if left is None and right is not None and sign < 0:
            with node.graph.inserting_before(node):
                rest = _like(node, node.graph.call_function(aten.neg.default, (right,)))
        return rest, terms
    with node.graph.inserting_before(node):
        rest = node.graph.call_function(target, (left, right))
    return _like(node, rest), terms


def _like(node: Any, other: Any) -> Any:
    other.meta["tensor_meta"] = node.meta["tensor_meta"]
    return other


def _differs(part: Any, node: Any) -> bool:
    """Whether a term is broadcast, or of another precision, in a sum."""
    return (_form(part).shape, _form(part).dtype) != (_form(node).shape, _form(node).dtype)


def _is_last(node: Any) -> bool:
    """Whether a sum is over the last dimensions and keeps none of them, in the same precision."""
    summed, dims, *keep = node.args
    if any(keep) or node.kwargs or not isinstance(summed, fx.Node):
        return False
    number = len(_form(summed).shape)
    if not dims or not number:  # over all there is
        return False
    return sorted(d % number for d in dims) == [*range(number - len(dims), number)]


def _divisor(count: int) -> int:
    """So many factors to a product that what is left fills whole vectors; 0 where none do."""
    return max((c for c in range(2, MOST + 1) if count % (c * LANES) == 0), default=0)


def _is(target: Any, *nodes: Any) -> bool:
    return all(isinstance(node, fx.Node) and node.target is target for node in nodes)


def _form(node: Any) -> TensorMetadata:
    return node.meta["tensor_meta"]
