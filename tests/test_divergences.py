"""KL terms in closed form: torch's, Pyro's and ours, each against quadrature."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to, kl_divergence

import pyro_vae as pv
from pyro_vae.densities.particles import densities

from .families import FAMILIES

# Every family at the parameters of the table, and as the second law at others.
FIRST = {name: family.at for name, family in FAMILIES.items()}
SECOND = {name: {k: 1.2 * v for k, v in at.items()} for name, at in FIRST.items()}
# What a prior and a posterior of this library may be; nobody else takes these for closed.
EXPECTED = {
    ("Normal", "Laplace"), ("Normal", "Gumbel"), ("Laplace", "Normal"), ("Laplace", "Laplace"),
    ("StudentT", "Normal"), ("Logistic", "Normal"), ("Logistic", "Laplace"), ("Gamma", "Gamma"),
    ("Erlang", "Gamma"), ("Erlang", "Exponential"), ("Erlang", "LogNormal"), ("Gamma", "LogNormal"),
    ("LogNormal", "Gamma"), ("LogNormal", "Exponential"), ("LogNormal", "LogNormal"),
    ("Weibull", "Gamma"), ("Weibull", "Weibull"), ("Rayleigh", "Rayleigh"), ("Beta", "Beta"),
    ("Beta", "Uniform"), ("Triangular", "Uniform"), ("Gumbel", "Gumbel"), ("Uniform", "Beta"),
}  # fmt: skip


def law(name, at):
    made = FAMILIES[name](**{k: torch.tensor(v) for k, v in at[name].items()}, validate_args=False)
    if hasattr(made, "base_dist"):
        made.base_dist._validate_args = False
    return made


@pytest.fixture(autouse=True)
def _in_double_precision(double):
    """For quadrature to five digits; beyond a support the densities are asked without checks."""
    with pyro.validation_enabled(False):
        yield


def integrand(q, p, z):
    """log q - log p at z, infinite where p has no density."""
    inside = p.support.check(z)
    at = torch.where(inside if z.dim() == 1 else inside.unsqueeze(-1), z, torch.full_like(z, 0.45))
    return q.log_prob(z) - torch.where(inside, p.log_prob(at), -math.inf)


def quadrature(q, p, points=8001, reach=4.2):
    """The integral of q (log q - log p) over the support of q, at points of growing distance."""
    t = torch.linspace(-reach, reach, points)
    size = q.event_shape.numel()
    line = 3 * t.sinh()
    weight = (3 * t.cosh() * (t[1] - t[0])).log()
    u = torch.cartesian_prod(*[line] * size)
    weight = sum(torch.meshgrid(*[weight] * size, indexing="ij")).reshape(-1)
    onto = biject_to(q.support)
    z = onto(u)
    mass = (q.log_prob(z) + onto.log_abs_det_jacobian(u, z) + weight).exp()
    assert mass.sum() == pytest.approx(1, abs=1e-6)
    terms = torch.where(mass > 0, mass * integrand(q, p, z), 0.0)
    return terms.nan_to_num(0.0, math.inf).sum().item()


def closed(q, p):
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def test_every_registered_pair_of_families_is_the_integral():
    found = set()
    for a, b in itertools.product(FAMILIES, repeat=2):
        q, p = law(a, FIRST), law(b, SECOND)
        kl = closed(q, p)
        if kl is None:
            continue
        found.add((a, b))
        assert kl.shape == ()
        expected = quadrature(q, p, reach=17.0 if a == "Cauchy" else 4.2)
        assert kl.item() == pytest.approx(expected, rel=1e-5, abs=1e-5), (a, b)
    assert found >= EXPECTED, EXPECTED - found
    assert len(found) > 90


TRIL = torch.tensor([[1.2, 0.0], [0.5, 0.8]], dtype=torch.float64)
LOC, SPREAD = (torch.tensor(v, dtype=torch.float64) for v in ([0.4, -1.0], [0.6, 0.3]))
VECTORS = {
    "full covariance": lambda: dist.MultivariateNormal(LOC, scale_tril=TRIL),
    "low rank": lambda: dist.LowRankMultivariateNormal(LOC, TRIL[:, :1], SPREAD),
    "elliptical": lambda: dist.MultivariateStudentT(9.0, LOC, TRIL),
}


@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace, dist.Gumbel])
@pytest.mark.parametrize("name", VECTORS)
def test_a_law_of_vectors_from_independent_numbers_is_the_integral(name, family):
    q = VECTORS[name]()
    p = family(torch.tensor([0.1, -0.5]), torch.tensor([1.5, 0.9])).to_event(1)
    if name == "elliptical" and family is not dist.Normal:
        assert closed(q, p) is None
        return
    kl = kl_divergence(q, p)
    assert kl.shape == () and kl.item() == pytest.approx(quadrature(q, p, 801), rel=1e-4)
    batch = kl_divergence(q.expand((3,)), p.expand((3,)))
    torch.testing.assert_close(batch, kl.expand(3))
    assert closed(q, dist.Logistic(LOC, SPREAD).to_event(1)) is None


class Positive(pv.Program):
    """A Weibull posterior of a Gamma prior."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, x.new_ones(2)).to_event(1))
            pyro.sample(
                "x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand(x.shape).to_event(1), obs=x
            )

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Weibull(self.net(x).exp(), 2.0).to_event(1))


def test_what_is_registered_is_used_in_bounds():
    x, program = torch.randn(7, 3), Positive()
    kl = densities(program, x).kl["z"]
    q = dist.Weibull(program.net(x).exp(), 2.0)
    torch.testing.assert_close(kl, kl_divergence(q, dist.Gamma(2.0, 1.0)).sum(-1))
    assert pv.check(program, x).closed_kl == ("z",)
