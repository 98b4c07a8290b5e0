"""Programs that `check` looks at, and what it said of them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_vae.checking.report import check
from pyro_vae.program.base import Program


class Linear(Program):
    """Three numbers from two latents: correct, and each test below spoils one thing in it."""

    def __init__(self, encoder=None, decoder=None):
        super().__init__()
        self.encoder = encoder or nn.Linear(3, 2)
        self.decoder = decoder or nn.Linear(2, 3)

    def prior(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)
            self.more_in_model(x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))
            self.more_in_guide(x)

    def more_in_model(self, x):
        """Further sites of a datum."""

    def more_in_guide(self, x):
        """Further sites of a datum."""


class Plated(Linear):
    """Plates of any size in model and guide, and a scale on the latent."""

    def __init__(self, model_size=None, guide_size=None, scale=1.0):
        super().__init__()
        self.model_size, self.guide_size, self.scale = model_size, guide_size, scale

    def model(self, x):
        with pyro.plate("data", self.model_size or len(x), subsample_size=len(x)):
            with poutine.scale(scale=self.scale):
                z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", self.guide_size or len(x), subsample_size=len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


def mistakes(program, x):
    """The lines of what `check` raises, without the heading."""
    with pytest.raises(ValueError) as caught:
        check(program, x)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def mistake(program, x):
    """The one mistake that `check` finds."""
    lines = mistakes(program, x)
    assert len(lines) == 1, "\n".join(lines)
    return lines[0]
