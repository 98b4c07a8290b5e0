"""Laws of grey values: densities that integrate to one at every parameter, and their draws."""

import pyro.distributions as dist
import pytest
import scipy.stats as ss
import torch
from torch.distributions import biject_to

from pyro_vae.distributions import ContinuousBernoulli, OpenBeta

LOGITS = (-300.0, -40.0, -2.0, -0.031, -0.029, -1e-4, 0.0, 1e-4, 0.029, 0.031, 2.0, 40.0, 300.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", LOGITS)
def test_the_continuous_bernoulli_is_a_density(logit, dtype):
    law = ContinuousBernoulli(torch.tensor(logit, dtype=dtype))
    digits = 1e-5 if dtype == torch.float32 else 1e-8
    edges = torch.cat([torch.logspace(-7, -0.302, 40_000), torch.tensor([0.5])]).to(dtype)
    x = torch.cat([torch.zeros(1, dtype=dtype), edges, (1 - edges).flip(0)[1:]]).sort().values
    p = law.log_prob(x).exp().double()
    assert torch.trapezoid(p, x.double()).item() == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(law.cdf(law.icdf(x)), x, rtol=0, atol=200 * digits)
    mean = torch.trapezoid(p * x, x.double())
    assert law.mean.item() == pytest.approx(mean.item(), abs=1e-4)
    variance = torch.trapezoid(p * (x - mean) ** 2, x.double()).item()
    assert law.variance.item() == pytest.approx(variance, abs=1e-4)


def test_it_is_torchs_where_that_has_its_digits(double):
    for logit in (-9.0, -0.5, 0.2, 9.0):
        ours = ContinuousBernoulli(torch.tensor(logit))
        torchs = dist.ContinuousBernoulli(logits=torch.tensor(logit))
        x = torch.linspace(0, 1, 11)
        torch.testing.assert_close(ours.log_prob(x), torchs.log_prob(x))
        torch.testing.assert_close(ours.icdf(x), torchs.icdf(x))
        torch.testing.assert_close(ours.mean, torchs.mean)
        torch.testing.assert_close(ours.variance, torchs.variance)


def test_torchs_is_none_at_large_logits():
    x = torch.linspace(0, 1, 100_001)
    p = dist.ContinuousBernoulli(logits=torch.tensor(40.0)).log_prob(x).exp()
    assert torch.trapezoid(p, x) < 0.5


def test_its_gradients_are_finite_and_right_everywhere(double):
    logits = torch.tensor(LOGITS, requires_grad=True)
    law = ContinuousBernoulli(logits)
    (score,) = torch.autograd.grad(law.log_prob(torch.tensor(0.3)).sum(), logits)
    torch.testing.assert_close(score, 0.3 - law.mean.detach(), rtol=1e-5, atol=1e-5)
    (path,) = torch.autograd.grad(law.rsample((5,)).sum(), logits)
    assert path.isfinite().all()
    torch.manual_seed(0)
    draws = ContinuousBernoulli(torch.tensor(3.0)).sample((40_000,))
    law = ContinuousBernoulli(torch.tensor(3.0))
    assert ss.kstest(draws.numpy(), lambda x: law.cdf(torch.tensor(x)).numpy()).pvalue > 1e-3


def test_a_beta_does_not_take_its_ends():
    law = OpenBeta(torch.tensor(0.5), torch.tensor(2.0))
    assert law.support.check(torch.tensor([0.0, 0.5, 1.0])).tolist() == [False, True, False]
    assert repr(law.support) == "a number between 0 and 1, neither of them"
    wide = law.expand((3,))
    assert type(wide) is OpenBeta and repr(wide.to_event(1).support.base_constraint)
    onto = biject_to(law.support)
    assert 0 < onto(torch.tensor(0.3)) < 1
