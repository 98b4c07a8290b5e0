"""Priors and posteriors as teaching notebooks write them by hand, right and with their mistakes."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn
from torch.distributions import constraints

import pyro_vae as pv


def log_normal_diag(z, mean, log_var):
    return -0.5 * (math.log(2 * math.pi) + log_var + (z - mean) ** 2 * torch.exp(-log_var))


class ByHand(TorchDistribution):
    """A law of vectors whose methods are those of a module, ``law(*arguments)``."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, owner, *arguments, batch=(), dim=None):
        self.owner, self.arguments, self.dim = owner, arguments, dim or owner.dim
        super().__init__(torch.Size(batch), torch.Size([self.dim]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        arguments = [each.expand(*batch_shape, each.shape[-1]) for each in self.arguments]
        return type(self)(self.owner, *arguments, batch=batch_shape, dim=self.dim)

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return self.owner.draw(torch.Size(sample_shape) + self.batch_shape, *self.arguments)

    def log_prob(self, value):
        return self.owner.score(value, *self.arguments)


class Reparameterized(ByHand):
    has_rsample = True

    def rsample(self, sample_shape=()):
        return self.owner.draw(torch.Size(sample_shape) + self.batch_shape, *self.arguments)


class MixturePrior(nn.Module):
    """A mixture of normals; ``wrong`` is "", "dimensions" or "variance"."""

    def __init__(self, dim, components=10, wrong="", log_var=None, spread=1.0):
        super().__init__()
        self.dim, self.wrong = dim, wrong
        self.means = nn.Parameter(spread * torch.randn(components, dim))
        start = torch.randn(components, dim) if log_var is None else torch.full((), log_var)
        self.log_vars = nn.Parameter(start.expand(components, dim).clone())
        self.w = nn.Parameter(torch.zeros(components))

    def draw(self, shape):
        index = torch.multinomial(self.w.softmax(0), max(1, shape.numel()), replacement=True)
        index = index.reshape(shape)
        log_std = self.log_vars if self.wrong == "variance" else self.log_vars / 2
        return self.means[index] + torch.exp(log_std[index]) * torch.randn(*shape, self.dim)

    def score(self, z):
        log_p = log_normal_diag(z.unsqueeze(-2), self.means, self.log_vars)
        log_w = torch.log_softmax(self.w, 0)
        if self.wrong == "dimensions":
            return torch.logsumexp(log_p + log_w[:, None], -2).sum(-1)
        return torch.logsumexp(log_p.sum(-1) + log_w, -1)

    def forward(self):
        return ByHand(self)


class FlowPrior(nn.Module):
    """Couplings; ``counted`` is how often the log-determinant counts."""

    def __init__(self, dim, hidden=64, flows=3, counted=1, identity=False):
        super().__init__()
        self.dim, self.counted = dim, counted
        self.s = nn.ModuleList(self._net(dim // 2, hidden, nn.Tanh()) for _ in range(flows))
        self.t = nn.ModuleList(self._net(dim // 2, hidden) for _ in range(flows))
        if identity:
            for net in [*self.s, *self.t]:
                nn.init.zeros_(net[2].weight)
                nn.init.zeros_(net[2].bias)

    @staticmethod
    def _net(dim, hidden, *last):
        layers = nn.Linear(dim, hidden), nn.LeakyReLU(), nn.Linear(hidden, dim)
        return nn.Sequential(*layers, *last)

    def draw(self, shape):
        z = torch.randn(*shape, self.dim)
        for s, t in reversed(list(zip(self.s, self.t, strict=True))):
            a, b = z.flip(-1).chunk(2, -1)
            z = torch.cat([a, torch.exp(s(a)) * b + t(a)], -1)
        return z

    def score(self, z):
        log_det = 0.0
        for s, t in zip(self.s, self.t, strict=True):
            a, b = z.chunk(2, -1)
            z = torch.cat([a, (b - t(a)) * torch.exp(-s(a))], -1).flip(-1)
            log_det = log_det - s(a).sum(-1)
        return log_normal_diag(z, torch.zeros(()), torch.zeros(())).sum(-1) + self.counted * log_det

    def forward(self):
        return ByHand(self)


class NormalPosterior(nn.Module):
    """N(mean(x), exp(log_var(x))); with ``is_wrong`` drawn with exp(log_var) for a scale."""

    def __init__(self, data_dim, dim, is_wrong=False):
        super().__init__()
        self.dim, self.is_wrong = dim, is_wrong
        self.net = nn.Linear(data_dim, 2 * dim)

    def draw(self, shape, mean, log_var):
        log_std = log_var if self.is_wrong else log_var / 2
        return mean + torch.exp(log_std) * torch.randn(*shape, self.dim)

    def score(self, z, mean, log_var):
        return log_normal_diag(z, mean, log_var).sum(-1)

    def forward(self, x):
        mean, log_var = self.net(x).chunk(2, -1)
        return Reparameterized(self, mean, log_var, batch=mean.shape[:-1])


class FlowPosterior(nn.Module):
    """An affine flow of a normal, given x; ``counted`` is how often its log-determinant counts."""

    def __init__(self, data_dim, dim, counted=1):
        super().__init__()
        self.dim, self.counted = dim, counted
        self.net = nn.Linear(data_dim, 2 * dim)

    def draw(self, shape, mean, s):
        return mean + torch.exp(s) * torch.randn(*shape, self.dim)

    def score(self, z, mean, s):
        eps = (z - mean) * torch.exp(-s)
        log_p = log_normal_diag(eps, torch.zeros(()), torch.zeros(())).sum(-1)
        return log_p - self.counted * s.sum(-1)

    forward = NormalPosterior.forward


class MixturePosterior(MixturePrior):
    """A mixture around a location that follows from x."""

    def __init__(self, data_dim, dim, **options):
        super().__init__(dim, **options)
        self.net = nn.Linear(data_dim, dim)

    def draw(self, shape, mean):
        return mean + super().draw(shape)

    def score(self, z, mean):
        return super().score(z - mean)

    def forward(self, x):
        mean = self.net(x)
        return ByHand(self, mean, batch=mean.shape[:-1])


class VAE(pv.Program):
    """A linear decoder between a prior and a posterior of the user's own."""

    def __init__(self, dim, prior=None, posterior=None, data_dim=6):
        super().__init__()
        self.dim, self.prior, self.posterior = dim, prior, posterior
        self.decoder = nn.Linear(dim, data_dim)
        if posterior is None:
            self.encoder = nn.Linear(data_dim, 2 * dim)

    def model(self, x):
        standard = dist.Normal(torch.zeros(self.dim), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard if self.prior is None else self.prior())
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            if self.posterior is None:
                mean, log_scale = self.encoder(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))
            else:
                pyro.sample("z", self.posterior(x))
