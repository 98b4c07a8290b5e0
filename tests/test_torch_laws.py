"""Distributions of torch in place of Pyro's: from parts, and in models of one's own."""

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td
from torch import nn

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae
from pyro_vae.program.laws import as_pyro

A, B = torch.tensor([0.3, 0.7, 0.5]), torch.tensor([1.5, 2.5, 0.5])
SPD = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
LAWS = {
    "Normal": td.Normal(A, B),
    "Independent": td.Independent(td.Laplace(A, B), 1),
    "Bernoulli": td.Bernoulli(logits=A),
    "Categorical": td.Categorical(probs=A),
    "OneHotCategorical": td.OneHotCategorical(logits=A),
    "Uniform": td.Uniform(A, A + 1),
    "Poisson": td.Poisson(B),
    "LogNormal": td.LogNormal(A, B),
    "Gamma": td.Gamma(A, B),
    "Beta": td.Beta(A, B),
    "StudentT": td.StudentT(B + 3, A, B),
    "HalfNormal": td.HalfNormal(B),
    "Gumbel": td.Gumbel(A, B),
    "Multinomial": td.Multinomial(4, probs=A),
    "RelaxedBernoulli": td.RelaxedBernoulli(torch.tensor(0.5), probs=A),
    "MultivariateNormal": td.MultivariateNormal(A[:2], SPD),
    "LowRank": td.LowRankMultivariateNormal(A[:2], SPD, B[:2]),
    "flow": td.TransformedDistribution(
        td.Independent(td.Normal(A, B), 1), [td.AffineTransform(1.0, 2.0)]
    ),
    "mixture": td.MixtureSameFamily(td.Categorical(A), td.Normal(A, B)),
    "mixture of vectors": td.MixtureSameFamily(
        td.Categorical(A[:2]), td.Independent(td.Normal(SPD, 1.0), 1)
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_it_is_the_same_law_under_pyros_class(name):
    law = LAWS[name]
    ours = as_pyro(law, "z")
    assert isinstance(ours, dist.TorchDistribution | dist.torch_distribution.TorchDistributionMixin)
    assert isinstance(ours, type(law)) and as_pyro(ours, "z") is ours
    torch.manual_seed(0)
    value = law.sample((4,))
    torch.manual_seed(0)
    assert torch.equal(ours.sample((4,)), value)
    torch.testing.assert_close(ours.log_prob(value), law.log_prob(value))
    assert ours.has_rsample == law.has_rsample and repr(ours.support) == repr(law.support)
    wide = ours.expand((5, *law.batch_shape)).mask(torch.tensor(True))
    assert wide.log_prob(wide.sample()).shape == (5, *law.batch_shape)
    assert wide.to_event(1).event_dim == len(law.event_shape) + 1


class Prior(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("zero", torch.zeros(2))

    def forward(self):
        return td.Independent(td.Normal(self.zero, 1.0), 1)


def test_parts_that_return_torchs_distributions_train_to_the_same_numbers():
    def vae(prior):
        torch.manual_seed(0)
        return bernoulli_vae.build(6, latent_dim=2, hidden_dim=4, prior=prior)

    x = (torch.rand(30, 6) < 0.4).float()
    runs = [
        pv.fit(vae(p), x, steps=5, engine=engine, progress=False)
        for p in (Prior(), pv.priors.StandardNormal(2))
        for engine in ("pyro", "eager")
    ]
    bounds = [pv.elbo(run.program, x) for run in runs]
    torch.testing.assert_close(bounds[0], bounds[2], rtol=0, atol=0)
    torch.testing.assert_close(bounds[1], bounds[3], rtol=0, atol=0)
    assert all(
        run.manifest["engine"] == e for run, e in zip(runs, ["pyro", "eager"] * 2, strict=True)
    )
    assert pv.check(runs[0].program, x) and pv.sample(runs[0].program, 3).shape == (3, 6)


class Own(pv.Program):
    """All three are torch's, under a plate that expands one of them."""

    def __init__(self, law=td.Normal):
        super().__init__()
        self.net, self.law = nn.Linear(1, 3), law

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", td.Independent(td.Normal(torch.zeros(1), 1.0), 1))
            law = td.Independent(self.law(self.net(z), torch.ones(())), 1)
            pyro.sample("x", law, obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", td.Independent(td.Normal(x[:, :1], 1.0), 1))


def test_a_model_may_sample_from_them_itself():
    program, x = Own(), torch.randn(7, 3)
    assert pv.check(program, x)
    torch.manual_seed(0)
    d = pv.densities.densities(program, x)
    z = d.latents["z"]
    expected = td.Normal(program.net(z), 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(d.log_likelihood, expected)
    assert set(d.kl) == {"z"} and d.kl["z"] is not None  # the closed form is found


def test_a_law_of_neither_is_refused_with_the_way_to_wrap_it():
    class Tilted(td.Normal):
        pass

    x = torch.randn(7, 3)
    with pytest.raises(TypeError, match=r'site "x".*Tilted, which is none of Pyro.*class Mine'):
        pv.fit(Own(Tilted), x, steps=1, progress=False)

    class Mine(Tilted, dist.torch_distribution.TorchDistributionMixin):
        pass

    assert as_pyro(Mine(0.0, 1.0), "x").shape() == ()
    with pytest.raises(TypeError, match="none of Pyro"):
        as_pyro(td.Independent(Tilted(A, B), 1), "x")
