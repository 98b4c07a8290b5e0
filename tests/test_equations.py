"""The paper's equations by number, and facts about estimators: numpy on one side, we on the other.

Equations (14), (21), (22) and (24) are in test_bayesian_vae.py and test_bayesian_conjugate.py,
appendix D in test_markov_evidence.py.
"""

import numpy as np
import pyro
import pytest
import torch
from scipy import stats

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae, gaussian_vae
from pyro_vae.objectives import AEVB
from pyro_vae.objectives.base import EMPTY
from pyro_vae.program.base import Program

from .oracles import LogisticRows, fed, gradients

D, H, J, B, K = 6, 5, 2, 4, 3
F64 = torch.float64


def built(model, **options):
    torch.manual_seed(3)
    program = model.build(D, latent_dim=J, hidden_dim=H, init_std=None, **options).double()
    return program, np.random.default_rng(0)


def layers(network, u):
    """One hidden layer of tanh units: W2 tanh(W1 u + b1) + b2."""
    W1, b1, W2, b2 = (p.detach().numpy() for p in network.parameters())
    return np.tanh(u @ W1.T + b1) @ W2.T + b2


def guide_by_hand(program, x):
    """Mean and standard deviation of q(z | x)."""
    mean, log_variance = np.split(layers(program.posterior.network, x), 2, axis=-1)
    return mean, np.sqrt(np.exp(log_variance) + program.posterior.floor**2)


def losses(program, objective, x, eps):
    with fed(torch.from_numpy(eps)):
        return objective.terms(program, torch.from_numpy(x), EMPTY)[0].detach().numpy()


def bernoulli_by_hand(program, x, z):
    """Equation (11): sum_d x log y + (1 - x) log(1 - y), y = sigmoid(f(z))."""
    y = 1 / (1 + np.exp(-layers(program.likelihood.network, z)))
    return (x * np.log(y) + (1 - x) * np.log(1 - y)).sum(-1)


def gaussian_by_hand(program, x, z):
    """Equation (12): N(x; mu, s^2) with mu = sigmoid(W4 h + b4), log s^2 = W5 h + b5."""
    mean, log_variance = np.split(layers(program.likelihood.network, z), 2, axis=-1)
    spread = np.sqrt(np.exp(log_variance) + program.likelihood.floor**2)
    return stats.norm.logpdf(x, 1 / (1 + np.exp(-mean)), spread).sum(-1)


MODELS = {
    "equation_11": (bernoulli_vae, bernoulli_by_hand, lambda u: (u < 0.4).astype(float)),
    "equation_12": (gaussian_vae, gaussian_by_hand, lambda u: u),
}


@pytest.mark.parametrize("likelihood", MODELS)
def test_equation_6_estimator_a(likelihood):
    """(1/K) sum_k log p(x, z_k) - log q(z_k | x), with z = mu + sigma e as in equation (9)."""
    model, log_likelihood, as_data = MODELS[likelihood]
    program, rng = built(model)
    x, eps = as_data(rng.random((B, D))), rng.normal(size=(K, B, J))
    mean, spread = guide_by_hand(program, x)
    z = mean + spread * eps
    log_q = stats.norm.logpdf(z, mean, spread).sum(-1)
    bound = log_likelihood(program, x, z) + stats.norm.logpdf(z).sum(-1) - log_q

    np.testing.assert_allclose(-losses(program, AEVB("A", K), x, eps), bound.mean(0), rtol=1e-10)


@pytest.mark.parametrize("likelihood", MODELS)
def test_equations_7_and_10_estimator_b(likelihood):
    """1/2 sum_j (1 + log s_j^2 - m_j^2 - s_j^2) + (1/K) sum_k log p(x | z_k)."""
    model, log_likelihood, as_data = MODELS[likelihood]
    program, rng = built(model)
    x, eps = as_data(rng.random((B, D))), rng.normal(size=(K, B, J))
    mean, spread = guide_by_hand(program, x)
    fit = log_likelihood(program, x, mean + spread * eps).mean(0)
    bound = 0.5 * (1 + np.log(spread**2) - mean**2 - spread**2).sum(-1) + fit

    np.testing.assert_allclose(-losses(program, AEVB("B", K), x, eps), bound, rtol=1e-10)


class Subsampled(Program):
    """A plate of N rows of which x is a part: Pyro's loss is N / M times the sum over x."""

    def __init__(self, program, size):
        super().__init__()
        self.program, self.size = program, size

    def plate(self, x):
        return pyro.plate("data", self.size, subsample_size=len(x))

    def model(self, x):
        with self.plate(x):
            z = pyro.sample("z", self.program.prior())
            pyro.sample("x", self.program.likelihood(z), obs=x)

    def guide(self, x):
        with self.plate(x):
            pyro.sample("z", self.program.posterior(x))


def batch_losses(rows, batches):
    """The loss of each batch, as anyone's own SVI would take it; ``rows`` have their own noise."""
    program, rng = built(bernoulli_vae)
    x = torch.from_numpy((rng.random((rows, D)) < 0.4).astype(float))
    eps = torch.from_numpy(rng.normal(size=(rows, J)))
    whole = Subsampled(program, rows)
    found = []
    for index in batches(rng):
        with fed(eps[index]), torch.no_grad():
            loss = AEVB().differentiable_loss(whole.model, whole.guide, x[index])
        found.append(float(loss))
    with fed(eps), torch.no_grad():
        full = float(AEVB().differentiable_loss(program.model, program.guide, x))
    return np.array(found), full


def test_equation_8_batches_of_an_epoch_average_to_the_sum_over_all_data():
    """Fact 16, exact: N / M times the sum over each of N / M disjoint minibatches."""
    found, full = batch_losses(12, lambda rng: rng.permutation(12).reshape(4, 3))
    assert found.std() > 0.1
    np.testing.assert_allclose(found.mean(), full, rtol=1e-12)


def test_equation_8_random_minibatches_are_unbiased_for_the_sum_over_all_data():
    """Fact 16, in law: 300 minibatches of 3 of 12, without replacement."""
    draw = [lambda rng: rng.permutation(12)[:3]] * 300
    found, full = batch_losses(12, lambda rng: [one(rng) for one in draw])
    z = (found.mean() - full) / (found.std() / 300**0.5)
    assert abs(z) < 4.5


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_fact_13_the_pathwise_gradient_is_the_finite_difference_at_common_noise(estimator):
    program = LogisticRows(5)
    x = (torch.rand(5, 2, dtype=F64) < 0.5).double()
    eps = torch.randn(K, 5, 1, dtype=F64)
    objective, h = AEVB(estimator, K), 1e-6
    found = gradients(program, objective, x, eps)

    for name, parameter in program.named_parameters():
        for place in range(min(3, parameter.numel())):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[place] += sign * h
                    with fed(eps):
                        ends.append(float(objective.terms(program, x, EMPTY)[0].sum()))
                    parameter.view(-1)[place] -= sign * h
            slope = (ends[0] - ends[1]) / (2 * h)
            assert found[name].view(-1)[place] == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_fact_13_estimators_a_and_b_have_one_mean_and_fact_17_their_variance_falls_as_one_over_l():
    program, rng = built(bernoulli_vae)
    x = torch.from_numpy((rng.random((B, D)) < 0.4).astype(float))
    kinds = [AEVB("B"), AEVB("A"), *(AEVB(e, n) for n in (4, 16) for e in "BA")]
    table = pv.gradient_report(program, x, kinds, num_draws=1000, progress=False).table()
    guide = table.loc["guide"]

    assert (guide["bias p"].iloc[1:] > 1e-4).all()
    for estimator in "BA":
        one, four, sixteen = (guide.loc[repr(AEVB(estimator, n))] for n in (1, 4, 16))
        for more, times in ((four, 4), (sixteen, 16)):
            error = np.hypot(one["variance ±"], times * more["variance ±"])
            assert abs(times * more["variance"] - one["variance"]) < 4.5 * error
            assert error < 0.3 * one["variance"]
