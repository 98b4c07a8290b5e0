"""Elementary functions as they go to the compiler."""

import torch

from pyro_vae.graphs.compiling import machine_code
from pyro_vae.graphs.elementary import APART
from pyro_vae.graphs.lifting import lift
from pyro_vae.graphs.tracing import traced

aten = torch.ops.aten
SIZES = 10.0 ** torch.linspace(-38, 2, 20_000, dtype=torch.float64)
POINTS = torch.cat([SIZES, -SIZES, torch.linspace(-1, 1, 20_001, dtype=torch.float64)]).float()


def tanh(t):
    return [t.tanh()]


def test_tanh_is_as_exact_as_that_of_the_vector_library():
    code = machine_code(traced(tanh, POINTS), POINTS)
    (got,), exact = code(POINTS), POINTS.double().tanh()
    error = (got.double() - exact).abs() / exact.abs().clamp_min(1e-300)
    assert error.max() < 2e-7  # of a value: two to three units in the last place
    written_out = traced(tanh, POINTS, apart=APART)
    assert not any(node.target is aten.tanh.default for node in written_out.graph.nodes)
    torch.testing.assert_close(written_out(POINTS)[0], got, rtol=3e-7, atol=0.0)


def test_tanh_at_the_ends_and_in_between():
    t = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, 0.25, -0.25, 88.0, -104.0]
    )
    graph = traced(tanh, t, apart=APART)
    (got,) = graph(t)
    torch.testing.assert_close(got, t.tanh(), rtol=2e-7, atol=0.0, equal_nan=True)
    assert torch.equal(got.signbit()[:4], t.signbit()[:4])


def test_tanh_in_double_precision_is_torchs():
    t = POINTS.double()
    graph = traced(tanh, t, apart=APART)
    assert [n.target for n in graph.graph.find_nodes(op="call_function", target=aten.tanh.default)]
    assert torch.equal(graph(t)[0], t.tanh())


def test_a_gradient_through_it_is_right():
    def gradient(t):
        leaf = t.detach().requires_grad_()
        return [*torch.autograd.grad(leaf.tanh().sum(), leaf)]

    t = POINTS[POINTS.abs() < 5]
    code = machine_code(lift(gradient, t).graph, t)
    torch.testing.assert_close(code(t)[0], 1 - t.tanh() ** 2, rtol=1e-5, atol=3e-7)
