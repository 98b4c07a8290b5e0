"""Operations written down as they run: those that torch's own tracer writes down."""

import copy

import pytest
import torch
from torch import nn

from pyro_vae.graphs import tracing
from pyro_vae.graphs.elementary import APART
from pyro_vae.graphs.lifted import Refusal
from pyro_vae.graphs.lifting import lift
from pyro_vae.graphs.tracing import traced
from pyro_vae.torch_internals import traced_by_torch

X, W = torch.linspace(-1, 1, 12).reshape(4, 3), torch.linspace(0, 1, 15).reshape(3, 5)
B = torch.linspace(0, 1, 5)
NET = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.GELU(), nn.Linear(4, 2)).eval()


def gradient(x, w):
    leaf = w.detach().requires_grad_()
    (made,) = torch.autograd.grad(torch.nn.functional.softplus(x @ leaf).sum(), leaf)
    return [made]


def second_gradient(x, w):
    leaf = w.detach().requires_grad_()
    (made,) = torch.autograd.grad((x @ leaf).tanh().sum(), leaf, create_graph=True)
    return [*torch.autograd.grad(made.square().sum(), leaf)]


def written(x, w):
    y = torch.zeros(4, 3)
    y[1:3].add_(x[1:3]).mul_(2)
    y.t()[0] = 5.0
    return [y, y.sum()]


def constants(x, w):
    held = torch.tensor([1.0, 2.0, 3.0])
    held[0] += 1
    return [x * held + torch.arange(3) + B[:3], torch.full((2,), torch.inf)]


def several(x, w):
    (low, high), indices = x.split([1, 2], -1), x.sort(0).indices
    return [low + high.mean(-1, keepdim=True), indices, *torch.linalg.qr(w)]


def without_gradient(x, w):
    with torch.no_grad():
        norm = w.norm()
    return [x / norm, torch.func.functional_call(NET, {}, (x,)).detach()]


def mapped(x, w):
    return [*torch.vmap(lambda row: (row @ w, torch.where(row > 0, row, 0.0)))(x)]


def gradient_of_each(x, w):
    return [torch.vmap(torch.func.grad(lambda row: (row @ w).sin().sum()))(x)]


def as_it_came(x, w):
    return [x, x.view(3, 4), w.t().contiguous()]


def apart(x, w):
    return [torch.addmm(B, x, w), torch.nn.functional.linear(x, w.t(), B)]


FUNCTIONS = (
    gradient, second_gradient, written, constants, several, without_gradient, mapped,
    gradient_of_each, as_it_came, apart,
)  # fmt: skip


def operations(graph):
    graph.graph.eliminate_dead_code()
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("table", [None, APART])
def test_the_graph_is_that_of_torchs_tracer(function, table, monkeypatch):
    theirs = traced_by_torch(function, X, W, apart=table)
    monkeypatch.setattr(tracing, "traced_by_torch", None)  # nothing here needs its help
    ours = traced(function, X, W, apart=table)
    assert operations(ours) == operations(theirs)
    other = X.flip(0) * 3, W.sqrt()
    for got, expected in zip(ours(*other), function(*other), strict=True):
        torch.testing.assert_close(got, expected)
    forms = {n.meta["tensor_meta"].shape for n in ours.graph.nodes if "tensor_meta" in n.meta}
    assert forms >= {X.shape, W.shape}


def test_it_is_written_down_once_more_without_writing():
    graph = traced(torch.func.functionalize(traced(written, X, W)), X, W)
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert calls and not any(node.target._schema.is_mutable for node in calls)
    for got, expected in zip(graph(X + 1, W), written(X + 1, W), strict=True):
        torch.testing.assert_close(got, expected)


def test_what_is_held_is_what_was_there():
    held = B[:3].clone()
    graph = traced(lambda x, w: [x + held, x * held], X, W)
    (tensor,) = [getattr(graph, n.target) for n in graph.graph.find_nodes(op="get_attr")]
    assert tensor is held
    held.add_(1)
    torch.testing.assert_close(graph(X, W)[0], X + held)
    assert copy.deepcopy(graph).graph.find_nodes(op="get_attr")


def test_what_is_more_than_plain_operations_is_left_to_torch(monkeypatch):
    asked = []

    def by_torch(*args, **options):
        asked.append(args)
        return traced_by_torch(*args, **options)

    monkeypatch.setattr(tracing, "traced_by_torch", by_torch)
    graph = traced(lambda x, w: [x * float(torch.tensor(2.0))], X, W)
    assert len(asked) == 1
    torch.testing.assert_close(graph(X + 1, W)[0], (X + 1) * 2)
    with pytest.raises(RuntimeError, match="trying to get value out of a tracing tensor"):
        traced(lambda x, w: [x * float(x.sum())], X, W)
    with pytest.raises(ZeroDivisionError):
        traced(lambda x, w: [x / (1 // 0)], X, W)
    assert len(asked) == 3
    assert not torch._C._len_torch_dispatch_stack()


def into_its_own(x, w):
    """As ``vmap`` makes of a Bernoulli's density: into tensors that nobody else reads."""
    ones = torch.empty_like(x).fill_(1).sub_(x).mul_(x + 1)
    return [ones.exp_().add_(x.sin().neg_(), alpha=2).clamp_min_(0.5).log_()]


def powers(x, w):
    return [(x * 2).square_().add_(1).sqrt_().pow_(-0.5), (x * 2).zero_().exp_()]


def read_before_it_is_written(x, w):
    y = x * 2
    z = y.exp()
    y.mul_(3)
    return [y + z]


def read_by_name_afterwards(x, w):
    y = x * 2
    z = y.view(-1)
    y.mul_(3)
    return [z + 1]


def through_a_view(x, w):
    y = x * 2
    y.t().mul_(3)
    y[0].add_(1.0)
    return [y]


def read_by_another_name(x, w):
    y = x * 2
    z = y.mul_(3)
    y.add_(1)
    return [y - z]


def a_comparison(x, w):
    return [(x * 2).lt_(0.5), (x > 0).to(torch.int64).add_(1)]


def into_another_precision(x, w):
    return [(x * 2).add_(w.double().sum())]


@pytest.mark.parametrize(
    ("function", "plain"),
    [
        (into_its_own, True), (powers, True), (read_before_it_is_written, True),
        (read_by_another_name, True),
        (read_by_name_afterwards, False), (through_a_view, False), (a_comparison, False),
        (into_another_precision, False),
    ],
)  # fmt: skip
def test_what_is_written_into_ones_own_is_made_anew(function, plain, monkeypatch):
    """Without a second recording, where that is all that a function writes."""
    asked = []

    def functionalize(graph, make=torch.func.functionalize):
        asked.append(graph)
        return make(graph)

    monkeypatch.setattr(torch.func, "functionalize", functionalize)
    lifted = lift(function, X, W)
    assert not isinstance(lifted, Refusal) and len(asked) == (not plain)
    calls = [node for node in lifted.graph.graph.nodes if node.op == "call_function"]
    assert calls and not any(node.target._schema.is_mutable for node in calls)
    for got, expected in zip(lifted(X + 1, W, noise=[]), function(X + 1, W), strict=True):
        torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0)
