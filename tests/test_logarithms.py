"""One logarithm for many: the same sums, in fewer operations."""

import pytest
import torch
import torch.nn.functional as F

import pyro_vae as pv
from pyro_vae.graphs import compiling, libraries
from pyro_vae.graphs.compiling import machine_code
from pyro_vae.graphs.lifted import Refusal
from pyro_vae.graphs.lifting import lift
from pyro_vae.graphs.logarithms import APART, join_logarithms
from pyro_vae.graphs.tracing import traced
from pyro_vae.models import bernoulli_vae

GENERATOR = torch.Generator().manual_seed(0)


def data(*shape, dtype=torch.float64, scale=5.0):
    logits = scale * torch.randn(3, *shape, generator=GENERATOR, dtype=dtype)
    return logits, (torch.rand(shape, generator=GENERATOR) < 0.3).to(dtype)


def written_out(function, *given):
    """A captured function as it goes to the compiler."""
    return traced(lift(function, *given).graph, *given, apart=APART)


def plain(t, x):
    return [-F.binary_cross_entropy_with_logits(t, x.expand_as(t), reduction="none").sum(-1)]


def mapped(t, x):
    """As torch writes it below ``vmap``: with two exponentials."""
    each = torch.vmap(lambda l: F.binary_cross_entropy_with_logits(l, x, reduction="none"))
    return [-each(t).sum(-1)]


def pictures(t, x):
    side = [*x.shape[:-1], 16, -1]
    each = F.binary_cross_entropy_with_logits(
        t.view(3, *side), x.view(side).expand(3, *side), reduction="none"
    )
    return [each.sum((-1, -2)).neg()]


def permuted(t, x):
    """Lying otherwise than it reads, as what a convolution returns may."""
    t, x = t.view(3, 7, 28, 28).transpose(2, 3), x.view(7, 28, 28).transpose(1, 2)
    each = F.binary_cross_entropy_with_logits(t, x.expand_as(t), reduction="none")
    return [each.sum((-1, -2))]


def channels_last(t, x):
    t, x = (each.unflatten(-1, (4, 14, 14)).movedim(-3, -1) for each in (t, x))
    each = F.binary_cross_entropy_with_logits(t, x.expand_as(t), reduction="none")
    return [-each.flatten(-3).sum(-1)]


def with_its_gradient(t, x):
    leaf = t.detach().requires_grad_()
    (value,) = plain(leaf, x)
    return [value, *torch.autograd.grad(value.sum(), leaf)]


def beside_others(t, x):
    """Other terms stay, with their signs; a logarithm that is read elsewhere too is left alone."""
    e, x = t.abs().neg().exp(), x.expand_as(t)
    twice = t.sin().abs().neg().exp().log1p()
    return [(x - (e.log1p() - t * x)).sum(-1), (twice - x).sum(-1), twice]


def several(t, x):
    """Two in one sum, one with the other sign, and nothing else."""
    return [(t.abs().neg().exp().log1p() - (t - x).abs().neg().exp().log1p()).sum(-1)]


@pytest.mark.parametrize(
    "function",
    [plain, mapped, pictures, permuted, channels_last, with_its_gradient, beside_others, several],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_sums_are_the_same(function, dtype):
    graph = written_out(function, *data(7, 784, dtype=dtype))
    assert join_logarithms(graph) == 1
    for scale in (0.1, 5.0, 500.0):
        t, x = data(7, 784, dtype=dtype, scale=scale)
        exact = function(t.double(), x.double())
        for got, expected in zip(graph(t, x), exact, strict=True):
            torch.testing.assert_close(
                got.double(),
                expected,
                rtol=30 * torch.finfo(dtype).eps,
                atol=1e4 * torch.finfo(dtype).eps,
            )


def test_extremes_are_as_they_were():
    t, x = data(2, 64)
    graph = written_out(plain, t, x)
    assert join_logarithms(graph) == 1
    t[0, 0, 3], t[1, 1, 5], t[2, 0] = torch.inf, torch.nan, -1e300
    t[0, 1] = 0.0  # each factor is 2
    x[0, 3] = 1.0
    for got, expected in zip(graph(t, x), plain(t, x), strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True)
    t = torch.zeros(3, 2, 64 * 64, dtype=torch.float32)  # 2^64, in single precision
    x = torch.zeros(2, 64 * 64)
    graph = written_out(plain, t, x)
    assert join_logarithms(graph) == 1
    torch.testing.assert_close(graph(t, x)[0], plain(t, x)[0])


def weighted(t, x):
    weight = torch.arange(784, dtype=t.dtype)
    return [
        F.binary_cross_entropy_with_logits(t, x.expand_as(t), weight=weight, reduction="none").sum(
            -1
        )
    ]


def summed_by_torch(t, x):
    return [F.binary_cross_entropy_with_logits(t, x.expand_as(t))]


def masked(t, x):
    return [(F.binary_cross_entropy_with_logits(t, x.expand_as(t), reduction="none") * x).sum(-1)]


def over_rows(t, x):
    return [F.binary_cross_entropy_with_logits(t, x.expand_as(t), reduction="none").sum(1)]


def in_another_precision(t, x):
    return [
        F.binary_cross_entropy_with_logits(t, x.expand_as(t), reduction="none").sum(
            -1, dtype=torch.float32
        )
    ]


def broadcast(t, x):
    return [(t.abs().neg().exp().log1p()[:, :1] + x).sum(-1)]


def of_scalars(t, x):
    scalar = t[0, 0, 0]
    each = F.binary_cross_entropy_with_logits(scalar, x[0, 0], reduction="none")
    return [each.sum(-1), (scalar**2).sum(0), torch.sum(t, dim=None), each.sum(())]


def then_in_another_precision(t, x):
    each = F.binary_cross_entropy_with_logits(t.float(), x.expand_as(t).float(), reduction="none")
    return [(each - t).sum(-1)]


def large_exponents(t, x):
    """log(1 + exp(t)) is no such logarithm: a factor may be anything."""
    return [t.exp().log1p().sum(-1), (t.exp() + 1).log().sum(-1), (t.exp() + x.exp()).log().sum(-1)]


OTHERS = (
    weighted,
    summed_by_torch,
    masked,
    over_rows,
    in_another_precision,
    broadcast,
    large_exponents,
    of_scalars,
    then_in_another_precision,
)


@pytest.mark.parametrize("function", OTHERS)
def test_other_sums_are_left_alone(function):
    given = data(7, 784)
    graph = written_out(function, *given)
    assert join_logarithms(graph) == 0
    for got, expected in zip(graph(*given), function(*given), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("number", [63, 65, 17])
def test_numbers_that_fill_no_vectors_are_left_alone(number):
    given = data(7, number)
    graph = written_out(plain, *given)
    assert join_logarithms(graph) == 0
    torch.testing.assert_close(graph(*given)[0], plain(*given)[0])


def test_machine_code_says_the_same():
    """The comparison after a compilation would find the first; that it runs at all, this does."""
    given = data(7, 784)
    for function in (mapped, with_its_gradient):
        code = machine_code(lift(function, *given).graph, *given)
        assert not isinstance(code, Refusal)
        for got, expected in zip(code(*given), function(*given), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-10)


@pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")  # of an untrained guide
def test_a_bernoullis_log_evidence_and_training_are_those_of_its_handlers(monkeypatch):
    """End to end, in double precision, where the rewriting must have taken place."""
    joined = []

    def counted(graph, join=join_logarithms):
        joined.append(join(graph))
        return joined[-1]

    monkeypatch.setattr(compiling, "join_logarithms", counted)
    monkeypatch.setattr(libraries, "loaded", lambda key, graph: None)
    x = data(60, 64)[1]

    def vae():
        torch.manual_seed(0)
        return bernoulli_vae.build(64, latent_dim=2, hidden_dim=8, init_std=None).double()

    options = {"num_particles": 200, "batch_size": 20, "max_elements": 30_000, "seed": 3}
    plain = pv.log_evidence(vae(), x, **options)
    monkeypatch.setattr(compiling, "_gain", lambda graph, runs: float(runs))
    found = pv.log_evidence(vae(), x, **options)
    assert joined == [1]
    torch.testing.assert_close(found.value, plain.value, rtol=0.0, atol=1e-10)
    trained = []
    for engine in ("pyro", "compiled"):
        program = vae()
        pv.fit(program, x, steps=5, batch_size=20, lr=0.1, engine=engine, progress=False)
        trained.append(torch.cat([p.detach().flatten() for p in program.parameters()]))
    assert len(joined) > 1 and all(joined[1:])
    torch.testing.assert_close(*trained, rtol=0.0, atol=1e-10)
