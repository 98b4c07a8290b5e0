"""The page of a program with several latents."""

import pyro
import pyro.distributions as dist
import torch

import pyro_vae as pv
from pyro_vae.reporting.runs import _latents


class Two(pv.Program):
    def model(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.stack([a, b], -1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(x[:, 0] / 2, 0.7))
            pyro.sample("b", dist.Normal(x[:, 1] / 2, 0.7))


def test_several_latents_have_their_kl_on_the_page():
    section = _latents(Two(), torch.eye(2).repeat(5, 1))
    assert "a, b" in section.text[0] and "latent_scatter(run, data, site=...)" in section.text[0]
    assert len(section.pictures) == 1
