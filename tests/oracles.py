"""Right answers written by hand, which share no code with what they judge.

The linear-Gaussian part is numpy: residuals, gains and factors, no automatic differentiation.  The
logistic part integrates over its single latent by Gauss-Hermite quadrature.  In both, noise is fed
to the objective, row by row, so that nothing here is random.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import softplus

from pyro_vae.noise import NoiseMode
from pyro_vae.program.base import Program

# --- running an objective at given noise ----------------------------------------------------------


def fed(*noise):
    """A ``NoiseMode`` that hands out these tensors in order, each in the shape asked for."""
    return NoiseMode(lambda index, asked: noise[index].reshape(asked.shape))


def gradients(program, objective, x, *noise, weight=None, state=None):
    """Name -> gradient of the summed (or weighted) loss per datum, at this noise."""
    parameters = dict(program.named_parameters())
    state = objective.init(program, x) if state is None else state
    with fed(*noise) as mode:
        loss, _ = objective.terms(program, x, state)
        total = loss.sum() if weight is None else (weight * loss).sum()
    assert len(mode.asked) == len(noise), f"{len(noise)} draws expected, asked for {mode.asked}"
    found = torch.autograd.grad(total, parameters.values(), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


def assert_equal(got, expected, tolerance=1e-8):
    """Two dictionaries of gradients, name by name."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name],
            torch.as_tensor(value),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def hermite(nodes=80):
    """Points t and weights v with sum v f(t) = E f(t), t ~ N(0, 1); exact for polynomials."""
    t, v = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.tensor(t), torch.tensor(v / v.sum())


# --- the linear-Gaussian model --------------------------------------------------------------------


def numbers(program):
    """The model's matrices in numpy, read from the raw parameters."""

    def factor(spread):
        scale = np.exp(spread.log_variance.detach().numpy()) + spread.floor**2
        lower = np.diag(np.sqrt(scale) * np.ones(spread.dim))
        if spread.form == "full":
            lower = lower + np.tril(spread.lower.detach().numpy(), -1)
        return lower

    names = {"W": "weight", "b": "bias", "A": "guide_weight", "c": "guide_bias"}
    matrices = {key: getattr(program, name).detach().numpy() for key, name in names.items()}
    return SimpleNamespace(
        **matrices, C=factor(program.noise), L=factor(program.guide_noise), alpha=program.alpha
    )


def _raw(name, spread, gradient):
    """From d/dL to the parameters: s^2 = exp(r) + floor^2, so ds/dr = exp(r) / (2 s)."""
    variance = np.exp(spread.log_variance.detach().numpy())
    along = np.diag(gradient) * variance / (2 * np.sqrt(variance + spread.floor**2))
    raw = {f"{name}.log_variance": along.sum() if spread.form == "isotropic" else along}
    if spread.form == "full":
        raw[f"{name}.lower"] = np.tril(gradient, -1)
    return raw


def _factor_score(L, v, share=1.0):
    """d/dL of sum_b log N(v_b; 0, L L^T), v (B, dim): L^-T u u^T - diag(1 / L), u = L^-1 v."""
    u = np.linalg.solve(L, v.T)  # (dim, B)
    total = np.broadcast_to(share, len(v)).sum()
    return np.linalg.solve(L.T, share * u) @ u.T - total * np.diag(1 / np.diag(L))


def wake_by_hand(program, x, eps):
    """Gradient of -(1/K) sum_k log p(x, z_k) for the model, z = A x + c + L eps, eps (K, B, J)."""
    m, x, eps = numbers(program), x.numpy(), eps.numpy()
    total = {}
    for e in eps:
        z = x @ m.A.T + m.c + e @ m.L.T
        r = x - z @ m.W.T - m.b  # (B, D)
        scaled = np.linalg.solve(m.C @ m.C.T, r.T)  # Sigma^-1 r, (D, B)
        terms = {"weight": scaled @ z, "bias": scaled.sum(1)}
        terms |= _raw("noise", program.noise, _factor_score(m.C, r))
        for name, value in terms.items():
            total[name] = total.get(name, 0.0) - value / len(eps)
    return total


def sleep_by_hand(program, eps, eta):
    """Gradient of -log q(z | x) for the guide, on z = eps / sqrt(alpha), x = W z + b + C eta."""
    m = numbers(program)
    z = eps.numpy() / np.sqrt(m.alpha)
    x = z @ m.W.T + m.b + eta.numpy() @ m.C.T
    miss = z - x @ m.A.T - m.c  # (B, J)
    scaled = np.linalg.solve(m.L @ m.L.T, miss.T)  # (J, B)
    terms = {"guide_weight": scaled @ x, "guide_bias": scaled.sum(1)}
    terms |= _raw("guide_noise", program.guide_noise, _factor_score(m.L, miss))
    return {name: -value for name, value in terms.items()}


def bound_by_hand(program, x, eps, estimator):
    """Gradient of the negative estimator A or B, everywhere, at eps (K, B, J)."""
    m = numbers(program)
    total = wake_by_hand(program, x, eps)  # B's KL term does not reach the model's parameters
    rows, draws = x.numpy(), eps.numpy()
    for e in draws:
        mean = rows @ m.A.T + m.c
        z = mean + e @ m.L.T
        pull = np.linalg.solve(m.C @ m.C.T, (rows - z @ m.W.T - m.b).T).T @ m.W  # W' Sigma^-1 r
        by_entropy = len(rows) * np.diag(1 / np.diag(m.L))
        if estimator == "A":  # d/dz log p(x, z); log q moves with the entropy alone
            to_mean = pull - m.alpha * z
            to_factor = to_mean.T @ e + by_entropy
        else:  # -KL = 1/2 (J + log|S| + J log alpha - alpha (tr S + mean' mean))
            to_mean = pull - m.alpha * mean
            to_factor = pull.T @ e + by_entropy - m.alpha * len(rows) * m.L
        terms = {"guide_weight": to_mean.T @ rows, "guide_bias": to_mean.sum(0)}
        terms |= _raw("guide_noise", program.guide_noise, np.tril(to_factor))
        for name, value in terms.items():
            total[name] = total.get(name, 0.0) - value / len(draws)
    return total


def log_weights_by_hand(program, x, eps):
    """log p(x, z_k) - log q(z_k | x), (K, B), at eps (K, B, J)."""
    m, x, eps = numbers(program), x.numpy(), eps.numpy()
    table = []
    for e in eps:
        z = x @ m.A.T + m.c + e @ m.L.T
        miss = np.linalg.solve(m.C, (x - z @ m.W.T - m.b).T)  # (D, B)
        prior = 0.5 * z.shape[1] * np.log(m.alpha) - 0.5 * m.alpha * (z**2).sum(1)
        fit = -0.5 * (miss**2).sum(0) - np.log(np.diag(m.C)).sum()
        log_q = -0.5 * (e**2).sum(1) - np.log(np.diag(m.L)).sum()
        table.append(prior + fit - log_q - 0.5 * x.shape[1] * np.log(2 * np.pi))
    return np.stack(table)


def weighted_by_hand(program, x, eps, *, model, path, score):
    """Gradient of -sum_kb of: ``model`` times d log p(x, z_kb) for the model, and for the guide
    ``path`` times the part of d log w_kb along the draw and ``score`` times d log q at it.

    All shares are (K, B).  With g = d log w / dz the path is g for the mean and g e^T for L.
    """
    m, x, eps = numbers(program), x.numpy(), eps.numpy()
    total = {}
    for e, u, v, s in zip(eps, model, path, score, strict=True):
        z = x @ m.A.T + m.c + e @ m.L.T
        r = x - z @ m.W.T - m.b  # (B, D)
        scaled = np.linalg.solve(m.C @ m.C.T, r.T)  # Sigma^-1 r, (D, B)
        to_q = np.linalg.solve(m.L.T, e.T).T  # S^-1 (z - mean), (B, J)
        g = scaled.T @ m.W - m.alpha * z + to_q
        to_mean = v[:, None] * g + s[:, None] * to_q
        to_factor = (v[:, None] * g).T @ e + _factor_score(m.L, e @ m.L.T, s)
        terms = {"weight": (u * scaled) @ z, "bias": scaled @ u}
        terms |= _raw("noise", program.noise, _factor_score(m.C, r, u))
        terms |= {"guide_weight": to_mean.T @ x, "guide_bias": to_mean.sum(0)}
        terms |= _raw("guide_noise", program.guide_noise, np.tril(to_factor))
        for name, value in terms.items():
            total[name] = total.get(name, 0.0) - value
    return total


def kl_by_hand(program, x, share):
    """KL(q || p) of each datum (B,), and the gradient of its sum weighted by ``share`` (B,)."""
    m, x = numbers(program), x.numpy()
    mean, S = x @ m.A.T + m.c, m.L @ m.L.T
    dim = len(S)
    constant = m.alpha * np.trace(S) - dim - dim * np.log(m.alpha) - np.linalg.slogdet(S)[1]
    to_mean = m.alpha * share[:, None] * mean
    to_factor = share.sum() * (m.alpha * m.L - np.diag(1 / np.diag(m.L)))
    gradient = {"guide_weight": to_mean.T @ x, "guide_bias": to_mean.sum(0)}
    gradient |= _raw("guide_noise", program.guide_noise, np.tril(to_factor))
    return 0.5 * (m.alpha * (mean**2).sum(1) + constant), gradient


# --- the logistic model with one latent -----------------------------------------------------------


def per_row(parameter, x):
    """A parameter of each row, where x holds the rows K times over, one time a particle."""
    if len(parameter) == 1:
        return parameter
    return parameter.repeat(len(x) // len(parameter), *[1] * (parameter.dim() - 1))


class LogisticRows(Program):
    """z ~ N(0, 1), x_d ~ Bernoulli(w_d z + b_d), q = N(a . x + c, s^2), parameters for each row.

    One backward pass over B identical rows gives B independent draws of the gradient.
    """

    def __init__(self, rows=1):
        super().__init__()
        self.rows = rows
        start = {
            "weight": [1.3, -0.8],
            "bias": [0.2, -0.4],
            "gain": [0.9, -0.5],
            "offset": [0.3],
            "log_scale": [-0.4],
        }
        for name, value in start.items():
            self.register_parameter(
                name, nn.Parameter(torch.tensor(value, dtype=torch.float64).repeat(rows, 1))
            )

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.offset[:1]), 1.0).to_event(1))
            logits = z * per_row(self.weight, x) + per_row(self.bias, x)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            mean = (per_row(self.gain, x) * x).sum(-1, keepdim=True) + per_row(self.offset, x)
            pyro.sample("z", dist.Normal(mean, per_row(self.log_scale, x).exp()).to_event(1))


class SubsampledRows(LogisticRows):
    """The same in a plate of ``size`` of which x is a part."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def model(self, x):
        with pyro.plate("data", self.size, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.offset), 1.0).to_event(1))
            logits = z * self.weight + self.bias
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", self.size, subsample_size=len(x)):
            mean = (self.gain * x).sum(-1, keepdim=True) + self.offset
            pyro.sample("z", dist.Normal(mean, self.log_scale.exp()).to_event(1))


CORNERS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)), dtype=torch.float64)  # (4, 2)


def _log_lik(program, x, z):
    """log p(x | z) at z (M,) for one x (D,), by hand: x l - log(1 + e^l)."""
    logits = z[:, None] * program.weight + program.bias
    return (x * logits - softplus(logits)).sum(-1)


def logistic_bound(program, x, nodes=160):
    """The ELBO of one row x (D,): quadrature for log p(x | z), the KL by formula."""
    t, v = hermite(nodes)
    mean = (program.gain[0] * x).sum() + program.offset[0, 0]
    log_scale = program.log_scale[0, 0]
    fit = v @ _log_lik(program, x, mean + log_scale.exp() * t)
    return fit + 0.5 * (1 + 2 * log_scale - mean**2 - (2 * log_scale).exp())


def logistic_sleep(program, nodes=160):
    """E log q(z | x) over z from the prior and x from p(x | z), all four x enumerated.

    As the guide's loss alone: the model's parameters are held.
    """
    t, v = hermite(nodes)
    total = 0.0
    for x in CORNERS:
        weight = v * _log_lik(program, x, t).exp().detach()
        mean = (program.gain[0] * x).sum() + program.offset[0, 0]
        log_scale = program.log_scale[0, 0]
        log_q = -0.5 * ((t - mean) / log_scale.exp()) ** 2 - log_scale - 0.5 * np.log(2 * np.pi)
        total = total + weight @ log_q
    return total


def logistic_wake(program, x, nodes=160):
    """E_q log p(x, z) of one row x (D,), as the model's loss alone: the guide is held."""
    t, v = hermite(nodes)
    mean = (program.gain[0] * x).sum() + program.offset[0, 0]
    z = (mean + program.log_scale[0, 0].exp() * t).detach()
    return v @ _log_lik(program, x, z)


def logistic_evidence(program, x, nodes=160):
    """log p(x) of one row x (D,), by quadrature under the prior."""
    t, v = hermite(nodes)
    return (_log_lik(program, x, t) + v.log()).logsumexp(0)


def nodes_of(particles, nodes):
    """Noise (K, M) and weights (M,) of the product rule for K draws, M = nodes^K."""
    t, v = hermite(nodes)
    grid = torch.cartesian_prod(*[torch.arange(nodes)] * particles).reshape(-1, particles).T
    return t[grid], v[grid].prod(0)


def _log_ratio_parts(program, x, z):
    """log p(x, z) and log q(z | x) at z (M,), without the constant that they share."""
    mean = (program.gain[0] * x).sum() + program.offset[0, 0]
    log_scale = program.log_scale[0, 0]
    log_q = -0.5 * ((z - mean) / log_scale.exp()) ** 2 - log_scale
    return _log_lik(program, x, z) - 0.5 * z**2, log_q


def _at_nodes(program, x, t, *, held):
    """The two tables (K, M) at z = mean + scale t."""
    mean = (program.gain[0] * x).sum() + program.offset[0, 0]
    z = mean + program.log_scale[0, 0].exp() * t
    z = z.detach() if held else z
    parts = [_log_ratio_parts(program, x, row) for row in z]
    return [torch.stack(table) for table in zip(*parts, strict=True)]


def logistic_k_bound(program, x, particles, nodes=60):
    """L_K of one row x (D,): E log of the mean of K weights, by a product rule."""
    t, v = nodes_of(particles, nodes)
    log_p, log_q = _at_nodes(program, x, t, held=False)
    return v @ ((log_p - log_q).logsumexp(0) - np.log(particles))


def logistic_reweighted(program, x, particles, nodes=60):
    """E sum_k w_k log p(x, z_k) and E sum_k w_k log q(z_k | x) with the weights and draws held."""
    t, v = nodes_of(particles, nodes)
    log_p, log_q = _at_nodes(program, x, t, held=True)
    weights = (log_p - log_q).detach().softmax(0)
    return v @ (weights * log_p).sum(0), v @ (weights * log_q).sum(0)


def logistic_posterior(program, x, nodes=160):
    """E log p(x, z) and E log q(z | x) over the exact posterior, which is held."""
    t, v = hermite(nodes)
    log_p, log_q = _log_ratio_parts(program, x, t)
    weights = (_log_lik(program, x, t) + v.log()).softmax(0).detach()
    return weights @ log_p, weights @ log_q


def parameter_gradients(value, program):
    """Name -> gradient of a number, zero where it does not depend on the parameter."""
    parameters = dict(program.named_parameters())
    found = torch.autograd.grad(value, parameters.values(), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


def z_scores(program, objective, x, expected):
    """All |z| of the mean gradient over the rows of ``program`` against ``expected``."""
    rows = program.rows
    many = x.expand(rows, -1)
    loss, _ = objective.terms(program, many, objective.init(program, many))
    found = parameter_gradients(loss.sum(), program)
    scores = []
    for name, draws in found.items():  # (rows, ...)
        error = draws.std(0) / rows**0.5
        miss = (draws.mean(0) - expected[name][0]).abs()
        # A gradient that must be zero has no spread either.
        scores.append(
            torch.where(error > 0, miss / error.clamp_min(1e-300), miss * 1e300).flatten()
        )
    return torch.cat(scores)


# --- two latents of two values each ---------------------------------------------------------------

STATES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)), dtype=torch.float64)  # (4, 2)


class Flips(Program):
    """z in {0, 1}^2 with free prior logits, x ~ N(W z, 1), q = Bernoulli(logits A x + c)."""

    def __init__(self, rows=1):
        super().__init__()
        self.rows = rows
        start = {
            "prior": [0.4, -0.7],
            "weight": [[1.1, -0.6], [0.3, 0.9]],
            "gain": [[0.5, -0.2], [0.1, 0.4]],
            "offset": [-0.3, 0.2],
        }
        for name, value in start.items():
            tensor = torch.tensor(value, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(tensor.repeat(rows, *[1] * tensor.dim())))

    def model(self, x):
        with pyro.plate("data", len(x)):
            logits = per_row(self.prior, x).expand(len(x), 2)
            z = pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))
            mean = (per_row(self.weight, x) * z[:, None]).sum(-1)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            logits = (per_row(self.gain, x) * x[:, None]).sum(-1) + per_row(self.offset, x)
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


def flips_tables(program, x):
    """log p(x, z) and log q(z | x) at the four states, for one row x (2,)."""

    def bernoulli(logits):
        return (STATES * logits - softplus(logits)).sum(-1)

    miss = x - STATES @ program.weight[0].T
    log_lik = -0.5 * miss.square().sum(-1) - np.log(2 * np.pi)
    return bernoulli(program.prior[0]) + log_lik, bernoulli(program.gain[0] @ x + program.offset[0])


def all_flips(program, x, particles):
    """Every K-tuple of states: which (K, M), the uniform noise that gives it, its probability."""
    _, log_q = flips_tables(program, x)
    grid = torch.cartesian_prod(*[torch.arange(4)] * particles).reshape(-1, particles).T
    return grid, 1 - STATES[grid], log_q.detach()[grid].sum(0).exp()
