"""Full variational Bayes on conjugate models, whose log evidence is exact."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

import pyro_vae as pv
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.objectives import AEVB
from pyro_vae.program.base import Program

from .bayesian import F64, MUTANTS, draws_of, kl_to_standard, log_normal
from .oracles import assert_equal, fed, parameter_gradients


class KnownVarianceMean(Program):
    """mu ~ N(0, 1), x_n ~ N(mu, s^2), q(mu) = N(m, t^2): only a global latent."""

    def __init__(self, num_data, scale=0.8):
        super().__init__()
        self.num_data, self.scale = num_data, scale
        self.m = nn.Parameter(torch.tensor(0.3, dtype=F64))
        self.log_t = nn.Parameter(torch.tensor(-0.7, dtype=F64))

    def variance(self):
        """Of x_n given mu."""
        return self.scale**2

    def rows(self, x):
        return pyro.plate("data", self.num_data, subsample_size=len(x))

    def model(self, x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros_like(self.m), 1.0))
        with self.rows(x):
            pyro.sample("x", dist.Normal(mu.expand(len(x)), self.scale), obs=x)

    def guide(self, x):
        pyro.sample("mu", dist.Normal(self.m, self.log_t.exp()))

    def log_evidence(self, x):
        """log N(x; 0, v I + 1 1')."""
        n = len(x)
        covariance = self.variance() * np.eye(n) + np.ones((n, n))
        return stats.multivariate_normal(np.zeros(n), covariance).logpdf(x.numpy())

    def posterior(self, x):
        """Mean and standard deviation of p(mu | x)."""
        precision = 1 + len(x) / self.variance()
        return float(x.sum()) / self.variance() / precision, precision**-0.5

    def bound(self, x):
        """Equation (14): E_q log p(X | mu) - KL(q(mu) || p(mu))."""
        v, t2 = torch.tensor(self.variance(), dtype=F64), (2 * self.log_t).exp()
        misfit = ((x - self.m) ** 2).sum() + len(x) * t2
        fit = -0.5 * len(x) * (2 * math.pi * v).log() - 0.5 * misfit / v
        return fit + 0.5 * (1 + t2.log() - self.m**2 - t2)

    def f_by_hand(self, x, zeta, eps, estimator):
        """Equation (21), or the summand of (24), of each row."""
        mu = self.m + self.log_t.exp() * zeta
        fit = self.num_data * log_normal(x[:, None], mu, torch.tensor(self.scale, dtype=F64))
        return fit + self._shared(mu, estimator)

    def _shared(self, mu, estimator):
        t = self.log_t.exp()
        if estimator == "B":
            return -kl_to_standard(self.m[None], t[None])
        one = torch.ones((), dtype=F64)
        return log_normal(mu[None], 0.0, one) - log_normal(mu[None], self.m, t)


class KnownVarianceLocals(KnownVarianceMean):
    """mu ~ N(0, 1), z_n ~ N(mu, r^2), x_n ~ N(z_n, s^2), q(z | x, mu) = N(a x + b mu + c, v^2).

    Integrating z_n leaves the model above with variance r^2 + s^2; this guide holds the posterior.
    """

    spread = 0.6  # r

    def __init__(self, num_data):
        super().__init__(num_data)
        for name, value in {"a": 0.5, "b": 0.1, "c": 0.2, "log_v": -0.4}.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=F64)))

    def variance(self):
        return self.scale**2 + self.spread**2

    def model(self, x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros_like(self.m), 1.0))
        with self.rows(x):
            z = pyro.sample("z", dist.Normal(mu.expand(len(x)), self.spread))
            pyro.sample("x", dist.Normal(z, self.scale), obs=x)

    def guide(self, x):
        mu = pyro.sample("mu", dist.Normal(self.m, self.log_t.exp()))
        with self.rows(x):
            pyro.sample("z", dist.Normal(self.a * x + self.b * mu + self.c, self.log_v.exp()))

    @torch.no_grad()
    def make_locals_exact(self):
        """q(z | x, mu) = p(z | x, mu)."""
        like, prior = self.scale**-2, self.spread**-2
        self.a.fill_(like / (like + prior))
        self.b.fill_(prior / (like + prior))
        self.c.fill_(0.0)
        self.log_v.fill_(-0.5 * math.log(like + prior))

    def bound(self, x):
        """The ELBO: all of it is Gaussian."""
        s2, r2 = (torch.tensor(scale**2, dtype=F64) for scale in (self.scale, self.spread))
        t2, v2 = (2 * self.log_t).exp(), (2 * self.log_v).exp()
        to_x = ((1 - self.a) * x - self.b * self.m - self.c) ** 2 + self.b**2 * t2 + v2
        to_mu = (self.a * x + (self.b - 1) * self.m + self.c) ** 2 + (self.b - 1) ** 2 * t2 + v2
        logs = (2 * math.pi * s2).log() + r2.log() - v2.log() - 1
        local = -0.5 * (to_x / s2 + to_mu / r2 + logs).sum()
        return local + 0.5 * (1 + t2.log() - self.m**2 - t2)

    def f_by_hand(self, x, zeta, eps, estimator):
        scale, spread = (torch.tensor(s, dtype=F64) for s in (self.scale, self.spread))
        mu, v = self.m + self.log_t.exp() * zeta, self.log_v.exp()
        mean = self.a * x + self.b * mu + self.c
        z = mean + v * eps
        local = log_normal(x[:, None], z[:, None], scale)
        if estimator == "A":
            local = local + log_normal(z[:, None], mu, spread)
            local = local - log_normal(z[:, None], mean[:, None], v)
        else:  # KL(N(mean, v^2) || N(mu, r^2))
            ratio = (v / spread) ** 2
            local = local - 0.5 * (ratio + ((mean - mu) / spread) ** 2 - 1 - ratio.log())
        return self.num_data * local + self._shared(mu, estimator)


CONJUGATE = (KnownVarianceMean, KnownVarianceLocals)
DATA = 60


@pytest.fixture
def measured():
    """Sixty numbers around 1."""
    return 1.0 + 0.9 * torch.randn(DATA, dtype=F64)


def noise_of(program, batch):
    zeta, eps = torch.tensor(0.7, dtype=F64), torch.linspace(-1.0, 1.5, batch, dtype=F64)
    return (zeta, eps) if isinstance(program, KnownVarianceLocals) else (zeta,)


@pytest.mark.parametrize("family", CONJUGATE)
@pytest.mark.parametrize("estimator", ["A", "B"])
def test_conjugate_equation_21_and_24_at_fixed_noise(measured, family, estimator):
    program, x = family(DATA), measured[:7]
    noise = noise_of(program, 7)
    expected = -program.f_by_hand(x, *noise, *[None] * (2 - len(noise)), estimator).mean()

    with fed(*noise):
        got = AEVB(estimator).differentiable_loss(program.model, program.guide, x)

    assert_equal({"loss": got}, {"loss": expected})
    assert_equal(parameter_gradients(got, program), parameter_gradients(expected, program))


@pytest.mark.parametrize("family", CONJUGATE)
def test_conjugate_posterior_leaves_no_variance_and_no_gap(measured, family):
    """(21) summed over the data is log p(X), whatever is drawn, where q is the posterior."""
    program = family(DATA)
    mean, std = program.posterior(measured)
    with torch.no_grad():
        program.m.fill_(mean)
        program.log_t.fill_(math.log(std))
    if family is KnownVarianceLocals:
        program.make_locals_exact()

    losses = []
    for seed in range(3):
        with torch.no_grad(), NoiseMode(keyed(seed)):
            losses.append(AEVB("A").loss(program.model, program.guide, measured))

    exact = program.log_evidence(measured)
    np.testing.assert_allclose(losses, -exact, rtol=1e-10)
    np.testing.assert_allclose(float(program.bound(measured).detach()), exact, rtol=1e-10)


def scores(program, objective, x, count=20_000):
    """|z| of the mean loss and gradients of ``count`` single-datum steps against the bound's."""
    loss, grads = draws_of(program, objective, x, count)
    bound = program.bound(x)
    expected = parameter_gradients(-bound, program) | {"loss": -bound.detach()}
    found = []
    for name, draws in (grads | {"loss": program.num_data * loss}).items():
        error = draws.std(0) / count**0.5
        found.append(float((draws.mean(0) - expected[name]).abs() / error.clamp_min(1e-12)))
    return found


@pytest.mark.parametrize("estimator", ["A", "B"])
@pytest.mark.parametrize("family", CONJUGATE)
def test_equation_22_is_unbiased_for_equation_14(measured, family, estimator):
    """A random datum, a mu and a z for each of 20,000 draws; value and gradient of the bound."""
    program = family(DATA)
    assert max(scores(program, AEVB(estimator), measured)) < 4
    if family is KnownVarianceLocals:  # with the exact q(z | x, mu), (14) itself: z integrated
        program.make_locals_exact()
        like = KnownVarianceMean(DATA, scale=program.variance() ** 0.5)
        assert_equal({"bound": program.bound(measured)}, {"bound": like.bound(measured)})
        assert max(scores(program, AEVB(estimator), measured)) < 4


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("family", CONJUGATE)
def test_a_wrong_scale_is_biased_for_equation_14(measured, family, mutant):
    assert max(scores(family(DATA), mutant("B"), measured)) > 10


def gap_after_training(program, x, objective, steps=600):
    """Nats below log p(X), after minibatches of 20 at a step that decays to zero."""

    def decaying(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: max(1 - i / steps, 0.0) ** 2)

    pv.fit(program, x, objective, steps=steps, batch_size=20, optimizer=torch.optim.Adam, lr=0.05,
           schedule=decaying, engine="eager")  # fmt: skip
    return program.log_evidence(x) - float(program.bound(x).detach())


@pytest.mark.parametrize(
    ("family", "estimator"),
    [pytest.param(KnownVarianceMean, "A", marks=pytest.mark.slow), (KnownVarianceLocals, "B")],
)
def test_the_trained_bound_is_the_exact_log_evidence(measured, family, estimator):
    """Of all 60 data together, to 1e-3 nats."""
    gap = gap_after_training(family(DATA), measured, AEVB(estimator, num_particles=100))

    assert -1e-10 < gap < 1e-3


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_scale_trains_to_a_bound_below_the_evidence(measured, mutant):
    """The posterior of mu comes out too narrow, or too wide, by a factor of sqrt(N / B)."""
    objective = mutant("B", num_particles=10)
    assert gap_after_training(KnownVarianceMean(DATA), measured, objective, steps=400) > 0.02
