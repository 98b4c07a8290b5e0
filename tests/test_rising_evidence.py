"""Importance sampling where the guide is not the posterior: how much too low, and who says so."""

import re
import warnings

import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.evidence import from_log_weights, predicted_bias
from pyro_vae.evidence.weights import pareto_khat
from pyro_vae.models import linear_gaussian

from .quickly import some_quickly

D, N, K = 20, 40, 5000


def mean_field(J):
    """The best mean-field guide where columns of W have a part in common, and data of the model."""
    torch.manual_seed(0)
    weight = 0.5 * (0.3**0.5 * torch.randn(D, 1) + 0.7**0.5 * torch.randn(D, J))
    program = linear_gaussian.build(D, latent_dim=J, weight=weight).double()
    program.guide_is_best()
    z, noise = torch.randn(N, J).double(), torch.randn(N, D).double()
    return program, z @ program.weight.T.detach() + noise


@pytest.mark.parametrize("J", some_quickly([2, 5, 10, 20, 50], 5, 20))  # one of either end
def test_the_best_mean_field_guide_serves_few_dimensions(J):
    """The mean is right within three standard errors up to J = 10, and too low above, and said."""
    program, x = mean_field(J)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = pv.log_evidence(program, x, num_particles=K)
    error = (found.value - program.log_evidence(x).detach()).mean()
    of_draws = found.standard_error.square().sum().sqrt() / N
    if J <= 10:
        assert abs(float(error)) < 3 * float(of_draws)
    else:
        assert float(error) < -3 * float(of_draws)
        texts = " ".join(str(each.message) for each in said)
        assert re.search(rf"khat exceeds 0.7 for \d+ of {N}", texts)
        assert "log p(x) still rises with the number of draws" in texts
        assert 'use method="annealed" or "sandwich"' in texts


@pytest.mark.parametrize("particles", [10, 40])
def test_the_predicted_bias_is_the_measured_one(particles):
    """Var(w / Ew) / 2K, of weights with light tails: q = N(0, 1), p = N(0.5, 1) in two dimensions.

    What K weights show of their variance is less than all of it, by a fifth at K = 10.
    """
    torch.manual_seed(0)
    z = torch.randn(particles, 20_000, 2, dtype=torch.float64)
    log_w = (dist.Normal(0.5, 1.0).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)).sum(-1)
    exact = float(torch.tensor(2 * 0.25).exp()) - 1  # Var(w)
    found = from_log_weights(log_w)

    measured = -float(found.value.mean())
    predicted = float(predicted_bias(found.standard_error).mean())
    assert measured == pytest.approx(exact / (2 * particles), rel=0.1)
    assert predicted == pytest.approx(measured, rel=0.2)
    # The mutant: the sum of weights in place of their mean has no such bias.
    assert abs(float(log_w.logsumexp(0).mean()) - measured) > 1


def test_an_estimate_that_has_settled_is_not_called_rising():
    program, x = mean_field(2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "log p.x. still rises")
        warnings.filterwarnings("ignore", "khat exceeds")
        pv.log_evidence(program, x, num_particles=1000)


@pytest.mark.slow
@pytest.mark.parametrize("s", [0.5, 0.7, 0.9])
def test_khat_is_one_minus_s_squared_in_two_dimensions(s):
    """q = N(0, s^2 I), p = N(0, I): P(w > t) is a power of t exactly where d = 2.

    The prior of the fit pulls k towards 1/2 as ten observations among the 3 sqrt(K) do.
    """
    torch.manual_seed(0)
    z = s * torch.randn(100_000, 20, 2, dtype=torch.float64)
    log_w = (dist.Normal(0, 1.0).log_prob(z) - dist.Normal(0, s).log_prob(z)).sum(-1)
    assert float(pareto_khat(log_w).mean()) == pytest.approx(1 - s**2, abs=0.05)
