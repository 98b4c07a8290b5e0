"""Decoding latents; and what stands in where a law knows no mean."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.models import bernoulli_vae, linear_gaussian


class Letters(nn.Module):
    """Codes 0 to 3 in three columns."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 12)

    def forward(self, z):
        return dist.Categorical(logits=self.net(z).unflatten(-1, (3, 4))).to_event(1)


class Encoder(nn.Module):
    def __init__(self, law=lambda m: dist.Normal(m, 1.0).to_event(1)):
        super().__init__()
        self.net, self.law = nn.Linear(3, 2), law

    def forward(self, x):
        return self.law(self.net(x.float()))


def vae(likelihood, posterior=None):
    prior = pv.priors.StandardNormal(2)
    return pv.VAE(prior=prior, likelihood=likelihood, posterior=posterior or Encoder())


class FromLaw(nn.Module):
    def __init__(self, law):
        super().__init__()
        self.net, self.law = nn.Linear(2, 3), law

    def forward(self, z):
        return self.law(self.net(z))


def test_decode_is_the_likelihoods_mean_and_takes_draws_in_front():
    program = bernoulli_vae.build(6, latent_dim=2, hidden_dim=4, init_std=None)
    z = torch.randn(3, 4, 5, 2)
    expected = program.likelihood(z).mean.detach()  # (3, 4, 5, 6)
    torch.testing.assert_close(pv.decode(program, z), expected)
    torch.testing.assert_close(pv.decode(program, z[0, 0]), expected[0, 0])
    torch.testing.assert_close(pv.decode(program, {"z": z[0].numpy()}), expected[0])


def test_decode_after_encode_is_reconstruct():
    program = linear_gaussian.build(5, latent_dim=2).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    decoded = pv.decode(program, pv.encode(program, x), like=x[:1])
    torch.testing.assert_close(decoded, pv.reconstruct(program, x))
    draws = pv.encode(program, x, num_draws=7, seed=3)
    torch.testing.assert_close(
        pv.decode(program, draws, like=x), pv.reconstruct(program, x, num_draws=7, seed=3)
    )


class Two(pv.Program):
    """x depends on z, on its parent u, on a weight that all data share, and on a covariate."""

    def model(self, x):
        w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x["x"])):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Normal(u, 1.0).expand([len(x["x"])]))
            pyro.sample("x", dist.Normal(100 * w + 10 * z + u + 1000 * x["c"], 1.0), obs=x["x"])

    def guide(self, x):
        pyro.sample("w", dist.Normal(torch.tensor(3.0), 1.0))
        with pyro.plate("data", len(x["x"])):
            pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x["x"])]))


ROWS = {"x": torch.zeros(2), "c": torch.tensor([0.0, 1.0])}


def test_several_latents_are_a_dict_and_shared_ones_are_the_guides_mean_unless_given():
    u, z = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    decoded = pv.decode(Two(), {"u": u, "z": z}, like=ROWS)
    assert decoded.tolist() == [300 + 30 + 1, 300 + 40 + 2 + 1000]
    decoded = pv.decode(Two(), {"u": u, "z": z, "w": torch.tensor(5.0)}, like=ROWS)
    assert decoded.tolist() == [531.0, 1542.0]
    draws = {"u": u.expand(3, 2), "z": z.expand(3, 2), "w": torch.arange(3.0)}
    assert pv.decode(Two(), draws, like=ROWS).tolist() == [
        [100 * w + 31, 100 * w + 1042] for w in range(3)
    ]


@pytest.mark.parametrize(
    "z, like, words",
    [
        (torch.zeros(2), ROWS, "the latents u, z, expected a dict by site"),
        ({"u": torch.zeros(2)}, ROWS, 'latents w, u, z, and "z" is missing'),
        ({"u": torch.zeros(2), "y": 0}, ROWS, '"y" is none of them'),
        ({"u": torch.zeros(2), "z": torch.zeros(3)}, ROWS, "expected the same N"),
        ({"u": torch.zeros(2, 1, 3), "z": torch.zeros(4, 3)}, ROWS, "and the same draws"),
        ({"u": torch.zeros(3), "z": torch.zeros(3)}, ROWS, "like has 2 rows, expected 1, or 3"),
        ({"u": torch.zeros(2), "z": torch.zeros(2)}, None, "pass rows of data, pv.decode"),
    ],
)
def test_latents_that_the_model_has_not_are_refused(z, like, words):
    with pytest.raises(ValueError, match=words):
        pv.decode(Two(), z, like=like)


def test_a_row_too_short_is_refused():
    program = bernoulli_vae.build(6, latent_dim=2, hidden_dim=4)
    for z in (torch.zeros(2), torch.zeros(5, 3), torch.zeros(()), torch.zeros(0, 5, 2)):
        with pytest.raises(ValueError, match=r"expected \(..., (N|5|2), 2\)"):
            pv.decode(program, z)


# --- laws without a mean --------------------------------------------------------------------------


def test_of_categories_one_has_their_probabilities():
    program = vae(Letters())
    x = torch.randint(4, (5, 3))
    expected = program.likelihood(program.posterior(x).mean).base_dist.probs.detach()
    torch.testing.assert_close(pv.reconstruct(program, x), expected)
    assert pv.reconstruct(program, x, num_draws=2).shape == (2, 5, 3, 4)
    assert pv.decode(program, torch.zeros(7, 5, 2)).shape == (7, 5, 3, 4)
    assert pv.sample(program, 5, mean=True).shape == (5, 3, 4)


def test_a_flow_is_averaged_over_draws_and_says_so():
    """exp(N(m, 0.1^2)) has the mean exp(m + 0.005) and the deviation 0.1003 of that."""
    law = lambda m: dist.TransformedDistribution(  # noqa: E731
        dist.Normal(m, 0.1), [dist.transforms.ExpTransform()]
    ).to_event(1)
    program = vae(FromLaw(law))
    z = torch.randn(50, 2)
    with pytest.warns(PyroVaeWarning, match='likelihood of "x", TransformedDistribution, knows no'):
        got = pv.decode(program, z, num_draws=400)
    exact = (program.likelihood.net(z) + 0.005).exp().detach()
    errors = (got - exact) / (exact * 0.1003 / 400**0.5)
    assert float(errors.abs().max()) < 4.5 and float(errors.std()) > 0.8
    with pytest.warns(PyroVaeWarning, match="average over draws of x"):
        assert pv.reconstruct(program, torch.zeros(4, 3)).shape == (4, 3)


def test_a_mixture_of_normals_has_a_mean_of_its_own():
    def law(m):
        parts = dist.Normal(torch.stack([m - 1, m + 3], -1), 1.0)
        weights = dist.Categorical(torch.tensor([0.25, 0.75]).expand(*m.shape, 2))
        return dist.MixtureSameFamily(weights, parts).to_event(1)

    program, z = vae(FromLaw(law)), torch.randn(4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = pv.decode(program, z)
    torch.testing.assert_close(got, (program.likelihood.net(z) + 2).detach())


def test_a_mean_that_does_not_exist_is_refused_and_not_averaged():
    program = vae(FromLaw(lambda m: dist.Cauchy(m, 1.0).to_event(1)))
    with pytest.raises(ValueError, match="Cauchy, has no mean: ask for draws"):
        pv.decode(program, torch.zeros(3, 2))


def test_a_guide_without_a_mean_is_averaged_over_its_draws_and_says_so():
    """z in {0, 1}^2, one-hot by a Categorical code: E[x | x'] = sum_k q_k W_k, by hand."""

    class Codes(pv.Program):
        def __init__(self):
            super().__init__()
            self.means = nn.Parameter(torch.tensor([[0.0, 4.0], [10.0, -4.0]]))

        def model(self, x):
            with pyro.plate("data", len(x)):
                k = pyro.sample("k", dist.Categorical(torch.ones(2)))
                pyro.sample("x", dist.Normal(self.means[k], 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.8]).expand(len(x), 2)))

    with pytest.warns(PyroVaeWarning, match='guide of "k", Categorical, knows no mean.*draws of z'):
        got = pv.reconstruct(Codes(), torch.zeros(200, 2))
    # 200 rows of 100 draws: the mean 8 of 10 * Bernoulli(0.8) within 4.5 standard errors of each.
    assert float((got[:, 0] - 8).abs().max()) < 4.5 * 10 * (0.16 / 100) ** 0.5
    assert abs(float(got[:, 0].mean()) - 8) < 4.5 * 10 * (0.16 / 20_000) ** 0.5
    assert got[:, 0].unique().numel() > 5


def test_observed_sites_need_no_name_and_of_two_there_is_one_of_each():
    class Named(pv.Program):
        def __init__(self, sites=("y",)):
            super().__init__()
            self.dec, self.sites = nn.Linear(1, 3), sites

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                for site in self.sites:
                    pyro.sample(site, dist.Normal(self.dec(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, :1], 1.0).to_event(1))

    program, x = Named(), torch.randn(4, 3)
    expected = program.dec(x[:, :1]).detach()
    torch.testing.assert_close(pv.reconstruct(program, x), expected)
    torch.testing.assert_close(pv.decode(program, x[:, :1], like=x), expected)
    both = pv.reconstruct(two := Named(("a", "b")), x)
    assert list(both) == ["a", "b"]
    torch.testing.assert_close(both["b"], two.dec(x[:, :1]).detach())
