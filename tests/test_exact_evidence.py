"""log p(x) by formula, by a sum over discrete latents and by a grid, against brute force."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.models import linear_gaussian

from .quickly import some_quickly

MEANS = torch.tensor([[-1.0, 0.0], [0.5, 1.0], [2.0, -1.0]])
SHARES = torch.tensor([0.5, 0.3, 0.2])


# --- exact ----------------------------------------------------------------------------------------


def test_a_formula_of_the_programs_own_is_taken():
    program = linear_gaussian.build(4, latent_dim=7)
    x = torch.randn(11, 4)
    found = pv.log_evidence(program, x, method="exact", batch_size=3)
    torch.testing.assert_close(found.value, program.log_evidence(x).detach().double())
    assert (found.standard_error == 0).all()
    assert (found.lower == found.value).all() and (found.upper == found.value).all()
    assert "ESS" not in repr(found) and "khat" not in repr(found)


def test_a_formula_of_another_shape_is_refused():
    program = linear_gaussian.build(4, latent_dim=2)
    program.log_evidence = lambda x: torch.zeros(1)
    with pytest.raises(ValueError, match=r"log_evidence\(x\) returned \(1,\) for 5 rows, expected"):
        pv.log_evidence(program, torch.randn(5, 4), method="exact")


def mixture(x):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(SHARES))
        pyro.sample("x", dist.Normal(MEANS[c], 0.7).to_event(1), obs=x)


def of_mixture(x):
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Categorical(logits=torch.zeros(len(x), 3)))


def mixture_log_p(x):
    parts = dist.Normal(MEANS[:, None], 0.7).to_event(1).log_prob(x)
    return (parts + SHARES.log()[:, None]).logsumexp(0)


def test_few_values_are_summed_over():
    x = torch.randn(9, 2)
    program = pv.Program(mixture, of_mixture)
    for options in ({}, {"batch_size": 4}, {"max_elements": 4}):
        found = pv.log_evidence(program, x, method="exact", **options)
        torch.testing.assert_close(found.value, mixture_log_p(x).double(), rtol=1e-5, atol=1e-5)


def bits(x):
    """Three coins, of which the second hangs on the first, and one of two values beside them."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(torch.tensor([0.3, 0.6])).to_event(1))
        b = pyro.sample("b", dist.OneHotCategorical(torch.tensor([0.2, 0.8])))
        c = pyro.sample("c", dist.Bernoulli(0.2 + 0.6 * a[..., 0]))
        mean = torch.stack([a.sum(-1) - c, b[..., 0] + 2 * c], -1)
        pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)


def of_bits(x):
    half = torch.full((len(x),), 0.5)
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Bernoulli(half.unsqueeze(-1).expand(-1, 2)).to_event(1))
        pyro.sample("b", dist.OneHotCategorical(torch.ones(len(x), 2)))
        pyro.sample("c", dist.Bernoulli(half))


def test_latents_of_several_sites_and_events_are_summed_over_together():
    x = torch.randn(7, 2)
    total = []
    for a0 in (0.0, 1.0):
        for a1 in (0.0, 1.0):
            for b0 in (0.0, 1.0):
                for c in (0.0, 1.0):
                    p = (0.3 if a0 else 0.7) * (0.6 if a1 else 0.4) * (0.2 if b0 else 0.8)
                    q = 0.2 + 0.6 * a0
                    p *= q if c else 1 - q
                    mean = torch.tensor([a0 + a1 - c, b0 + 2 * c])
                    total.append(math.log(p) + dist.Normal(mean, 0.5).to_event(1).log_prob(x))
    exact = torch.stack(total).logsumexp(0).double()
    found = pv.log_evidence(pv.Program(bits, of_bits), x, method="exact")
    torch.testing.assert_close(found.value, exact, rtol=1e-5, atol=1e-5)


def marked(x):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(SHARES), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(MEANS[c], 0.7).to_event(1), obs=x)


def test_what_the_model_sums_out_by_itself_needs_no_values():
    x = torch.randn(5, 2)
    found = pv.log_evidence(pv.Program(marked, lambda x: None), x, method="exact")
    torch.testing.assert_close(found.value, mixture_log_p(x).double(), rtol=1e-5, atol=1e-5)


def many_coins(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(torch.full((13,), 0.5)).to_event(1))
        pyro.sample("x", dist.Normal(a.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)


def of_many_coins(x):
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Bernoulli(torch.full((len(x), 13), 0.5)).to_event(1))


def test_too_many_values_and_continuous_latents_are_refused_with_what_to_use():
    coins = pv.Program(many_coins, of_many_coins)
    with pytest.raises(ValueError, match=r"8,192 values, expected a formula or at most 4,096"):
        pv.log_evidence(coins, torch.zeros(3, 1), method="exact")
    with pytest.raises(ValueError, match=r'discrete .* use method="importance"'):
        pv.log_evidence(coins, torch.zeros(3, 1), method="annealed")
    with pytest.raises(ValueError, match=r'of which there is no list.*use method="quadrature"'):
        pv.log_evidence(pv.Program(line, of_line), torch.zeros(3, 1), method="exact")


# --- quadrature -----------------------------------------------------------------------------------


def line(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z.square().unsqueeze(-1), 0.05).to_event(1), obs=x)


def of_line(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


@pytest.mark.parametrize(
    ("J", "noise"),  # quickly the narrow ones, which are harder
    some_quickly([(1, 0.5), (1, 0.001), (2, 0.5), (2, 0.01)], (1, 0.001), (2, 0.01)),
)
def test_a_grid_agrees_with_the_closed_form_however_narrow_the_posterior(J, noise, double):
    program = linear_gaussian.build(4, latent_dim=J, noise_scale=noise)
    x = torch.randn(6, J) @ program.weight.T.detach() + noise * torch.randn(6, 4)
    found = pv.log_evidence(program, x, method="quadrature", batch_size=4)
    error = (found.value - program.log_evidence(x).detach()).abs()
    assert error.max() < (1e-7 if J == 1 else 1e-4)
    assert (error <= found.standard_error + 1e-7).all()


def test_a_grid_finds_modes_that_are_far_apart(double):
    """x = z^2 + noise: two needles at +-sqrt(x), each of 1/80 of the prior's width."""
    x = torch.tensor([[0.0], [0.5], [4.0], [9.0]])
    found = pv.log_evidence(pv.Program(line, of_line), x, method="quadrature")
    z = torch.linspace(-6, 6, 400_001).unsqueeze(-1)
    log_f = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z.square(), 0.05).log_prob(x[:, 0])
    exact = log_f.logsumexp(0) + math.log(12 / 400_000)
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-6)


def bounded(x):
    with pyro.plate("data", len(x)):
        p = pyro.sample("p", dist.Beta(torch.full((len(x),), 2.0), 3.0))
        pyro.sample("x", dist.Bernoulli(p.unsqueeze(-1)).to_event(1), obs=x)


def of_bounded(x):
    with pyro.plate("data", len(x)):
        pyro.sample("p", dist.Beta(torch.ones(len(x)), 1.0))


def heavy(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Cauchy(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Bernoulli(logits=z.unsqueeze(-1)).to_event(1), obs=x)


def of_heavy(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Cauchy(torch.zeros(len(x)), 1.0))


def test_a_grid_reaches_the_edges_of_supports_and_infinity(double):
    """A Beta-Bernoulli is 2 / 5; of a Cauchy prior half of the mass is beyond one."""
    x = torch.tensor([[1.0], [0.0]])
    found = pv.log_evidence(pv.Program(bounded, of_bounded), x, method="quadrature")
    exact = torch.tensor([0.4, 0.6]).log()
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-7)
    found = pv.log_evidence(pv.Program(heavy, of_heavy), x, method="quadrature")
    torch.testing.assert_close(found.value, torch.tensor([0.5, 0.5]).log(), rtol=0, atol=1e-6)


def test_a_grid_is_for_two_dimensions_at_most():
    program = linear_gaussian.build(4, latent_dim=3)
    with pytest.raises(ValueError, match="3 unconstrained dimensions, expected at most 2"):
        pv.log_evidence(program, torch.zeros(2, 4), method="quadrature")


def test_a_grid_that_does_not_settle_is_told(monkeypatch):
    from pyro_vae.evidence import grids

    monkeypatch.setattr(grids, "ROUNDS", 0)
    program = linear_gaussian.build(4, latent_dim=1, noise_scale=0.01)
    x = torch.randn(5, 1) @ program.weight.T.detach()
    with pytest.warns(pv.PyroVaeWarning, match=r"the grid has not settled for \d of 5 data"):
        pv.log_evidence(program, x, method="quadrature")
