"""The model of two layers: its densities written out, its evidence by quadrature."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae import engine, priors
from pyro_vae.densities.particles import densities
from pyro_vae.engine.functions import gradient_function
from pyro_vae.models import hierarchical_vae
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.objectives import AEVB

from .oracles import assert_equal

D, B = 3, 5
KEY = (5, 3, 1)


@pytest.fixture
def program(double):
    return hierarchical_vae.build(D, latent_dim=1, upper_dim=1, hidden_dim=4, init_std=0.8)


@pytest.fixture
def bits(double):
    return torch.bernoulli(torch.full((B, D), 0.5))


def normal(network, inputs, z):
    mean, log_variance = network(inputs).chunk(2, -1)
    return dist.Normal(mean, (log_variance.exp() + 1e-8).sqrt()).log_prob(z).sum(-1)


def test_the_densities_are_those_of_the_two_layers(program, bits):
    d = densities(program, bits)
    z2, z1 = d.latents["z2"][0], d.latents["z1"][0]
    log_prior = dist.Normal(0.0, 1.0).log_prob(z2).sum(-1)
    log_middle = normal(program.middle.network, z2, z1)
    log_q = normal(program.upper.network, bits, z2)
    log_q = log_q + normal(program.lower.network, torch.cat([bits, z2], -1), z1)
    assert torch.allclose(d.log_prior[0], log_prior + log_middle)
    assert torch.allclose(d.log_q[0], log_q)
    assert torch.allclose(d.log_likelihood[0], program.likelihood(z1).log_prob(bits))
    assert set(d.kl) == {"z2", "z1"} and None not in d.kl.values()


def log_evidence(program, x, nodes=60):
    """log p(x) by Gauss-Hermite quadrature over both layers."""
    t, v = np.polynomial.hermite_e.hermegauss(nodes)
    t, log_v = torch.tensor(t).unsqueeze(-1), torch.tensor(np.log(v / v.sum()))
    mean, log_variance = program.middle.network(t).chunk(2, -1)  # (M, 1)
    z1 = mean + (log_variance.exp() + 1e-8).sqrt() * t.T  # (M, M): a rule for each z2
    log_x = torch.stack([program.likelihood(z1.unsqueeze(-1)).log_prob(row) for row in x])
    return (log_x + log_v.unsqueeze(-1) + log_v).flatten(1).logsumexp(1)


def test_the_estimated_evidence_is_that_of_quadrature(program, bits):
    with torch.no_grad():
        for network in (program.upper.network, program.lower.network):  # a guide with wide tails
            for parameter in network.parameters():
                parameter.mul_(0.1)
            network[2].bias[1] = 1.5
        exact = log_evidence(program, bits)
        found = pv.log_evidence(program, bits, num_particles=20_000)
    assert ((found.value - exact).abs() < 5 * found.standard_error + 1e-3).all()
    elbo = densities(program, bits, 500).log_w.mean(0)
    assert elbo.mean() < exact.mean()


def test_the_graph_is_the_program(program, bits):
    graph = engine.capture(program, AEVB("A", 2), bits)
    assert isinstance(graph, engine.Graph), graph
    params = {name: p.detach() for name, p in program.named_parameters()}
    args = params, bits, torch.ones(B), {}, {}
    got, _ = graph.grads(*args, noise=graph.grads.draw(KEY))
    with NoiseMode(keyed(*KEY)):
        expected, _ = gradient_function(program, AEVB("A", 2))(*args)
    assert_equal(got, expected)
    assert all(g.abs().sum() > 0 for g in got.values())


def test_it_is_checked_trained_saved_and_sampled(tmp_path):
    program = hierarchical_vae.build(
        D, latent_dim=2, upper_dim=2, hidden_dim=4, prior=priors.VampPrior(3)
    )
    assert program.prior.posterior is program.upper
    x = torch.bernoulli(torch.full((20, D), 0.5))
    assert pv.check(program, x)
    pv.fit(program, x, AEVB("A"), steps=2, progress=False, out=tmp_path)
    loaded = pv.load(tmp_path).program
    assert_equal(dict(loaded.named_parameters()), dict(program.named_parameters()))
    assert loaded.prior.posterior is loaded.upper
    assert pv.sample(loaded, 4, like=x).shape == (4, D)
    assert {name: z.shape for name, z in pv.encode(loaded, x).items()} == {
        "z2": (20, 2), "z1": (20, 2)
    }  # fmt: skip
    assert pv.reconstruct(loaded, x).shape == (20, D)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="upper_dim is 0, expected a whole number from 1"):
        hierarchical_vae.build(D, upper_dim=0)
