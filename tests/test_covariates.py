"""pv.sample(like=covariates): draws of p(x | y)."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv

from .conditional import DATA, ByHand, ByName, Optional


@pytest.mark.parametrize("build", [ByHand, Optional])
@pytest.mark.parametrize("mean", [False, True])
def test_covariates_alone_give_what_rows_give(build, mean):
    """p(x | y) asks for no x: the same draws at the same seed."""
    program, y = build(), {"y": DATA["y"]}
    assert torch.equal(
        pv.sample(program, 7, like=y, mean=mean), pv.sample(program, 7, like=DATA, mean=mean)
    )


def test_draws_given_covariates_have_the_conditional_s_moments():
    """p(x | y) of a linear model is Gaussian: mean W_y y + b, covariance W_z W_z' + 1."""
    program = Optional()
    y = torch.tensor([[0.2, 0.9, 0.4]])
    x = pv.sample(program, 40_000, like={"y": y}).double()
    w, b = (p.detach().double() for p in (program.laws.dec.weight, program.laws.dec.bias))
    mean, covariance = w[:, 2:] @ y[0].double() + b, w[:, :2] @ w[:, :2].T + torch.eye(6)
    error = (x.mean(0) - mean).abs() / (covariance.diag() / len(x)).sqrt()
    assert error.max() < 4.5
    torch.testing.assert_close(x.T.cov().float(), covariance.float(), rtol=0, atol=0.06)


def test_labels_among_covariates_stay_whole_numbers():
    class Labelled(ByHand):
        def model(self, label, x=None):
            assert label.dtype == torch.uint8
            self.laws.observe(x, nn.functional.one_hot(label.long(), 3).float())

        def guide(self, label, x):
            self.laws.recognise(x, nn.functional.one_hot(label.long(), 3).float())

    label = torch.tensor([0, 1, 2], dtype=torch.uint8)
    assert pv.sample(Labelled(), 6, like={"label": label, "x": torch.zeros(3, 6)}).shape == (6, 6)


def test_a_model_that_needs_x_says_so():
    with pytest.raises(ValueError, match=r'expected that it does without "x".*x=None or x.get'):
        pv.sample(ByName(), 3, like={"y": DATA["y"]})


def test_the_site_that_observes_is_found_by_the_guide():
    """Its name is not that of the parameter, and the guide has all but it."""

    class Completion(ByHand):
        def model(self, xs, ys=None):
            with pyro.plate("data", len(xs)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                law = dist.Normal(self.laws.dec(torch.cat([z, xs], -1)), 1.0).to_event(1)
                pyro.sample("y", law, obs=ys)

        def guide(self, xs, ys=None):
            with pyro.plate("data", len(xs)):
                pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    assert pv.sample(Completion(), 5, like={"xs": DATA["y"]}).shape == (5, 6)


@pytest.mark.parametrize("build", [ByHand, Optional])
def test_latents_are_decoded_given_covariates_alone(build):
    """The decoder at (z, y), by hand; of x nothing is needed."""
    program, y, z = build(), DATA["y"][:4], torch.randn(3, 4, 2)
    expected = program.laws.dec(torch.cat([z, y.expand(3, 4, 3)], -1))
    for like in ({"y": y}, {name: value[:4] for name, value in DATA.items()}):
        torch.testing.assert_close(pv.decode(program, z, like=like), expected)
    one = pv.decode(program, z[0], like={"y": y[:1]})
    torch.testing.assert_close(one, program.laws.dec(torch.cat([z[0], y[:1].expand(4, 3)], -1)))
    with pytest.raises(ValueError, match='expected that it does without "x"'):
        pv.decode(ByName(), z, like={"y": y})
