"""Conditional programs that differ in how they take their data, and in nothing else."""

import functools

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.nn import PyroModule
from torch import nn

import pyro_vae as pv


def rows(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(count, 6, generator=generator), torch.rand(count, 3, generator=generator))
    return {"x": x, "y": y}


class Laws(nn.Module):
    """A conditional VAE's networks and laws, without an opinion on how data are passed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enc, self.dec = nn.Linear(9, 4), nn.Linear(5, 6)

    def observe(self, x, y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            law = dist.Normal(self.dec(torch.cat([z, y], -1)), 1.0).to_event(1)
            pyro.sample("x", law, obs=x)

    def recognise(self, x, y):
        with pyro.plate("data", len(y)):
            mean, scale = self.enc(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


class ByHand(pv.Program):
    """The dict whole."""

    def __init__(self):
        super().__init__()
        self.laws = Laws()

    def model(self, x):
        self.laws.observe(x.get("x"), x["y"])

    def guide(self, x):
        self.laws.recognise(x["x"], x["y"])


class ByName(ByHand):
    def model(self, x, y):
        self.laws.observe(x, y)

    def guide(self, x, y):
        self.laws.recognise(x, y)


class Optional(ByHand):
    def model(self, x=None, y=None, scale=1.0):
        self.laws.observe(x, y)

    def guide(self, *, y, x):
        self.laws.recognise(x, y)


class Handled(ByHand):
    """Handlers as decorators of methods."""

    @poutine.scale(scale=1.0)
    def model(self, x, y):
        self.laws.observe(x, y)

    @config_enumerate
    def guide(self, x, y):
        self.laws.recognise(x, y)


class Static(ByHand):
    """Functions of the class that need no self but what they close over."""

    def model(self, x, /, y):
        self.laws.observe(x, y)

    def guide(self, **entries):
        self.laws.recognise(**entries)


def stranger(base):
    class Stranger(base):
        def __init__(self):
            super().__init__()
            self.laws = Laws()

        def model(self, x, y):
            self.laws.observe(x, y)

        def guide(self, x, y):
            self.laws.recognise(x, y)

    return pv.Program(Stranger())


def forwarding(function):
    def forward(*args, **kwargs):
        return function(*args, **kwargs)

    return forward


def around(wrap):
    def build():
        laws = Laws()

        def model(x, y):
            laws.observe(x, y)

        def guide(x, y):
            laws.recognise(x, y)

        return pv.Program(wrap(model), wrap(guide), laws=laws)

    return build


class Forward(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, y):
        return self.function(x, y)


def modules():
    laws = Laws()
    return pv.Program(Forward(laws.observe), Forward(laws.recognise), laws=laws)


def partials():
    laws = Laws()

    def model(net, x, y, scale):
        net.observe(x, y)

    return pv.Program(
        functools.partial(model, laws, scale=2.0), functools.partial(laws.recognise), laws=laws
    )


BUILDS = {
    "subclass": ByName,
    "defaults and keywords": Optional,
    "decorated methods": Handled,
    "positional and any": Static,
    "module": lambda: stranger(nn.Module),
    "PyroModule": lambda: stranger(PyroModule),
    "functions": around(lambda f: f),
    "handlers": around(lambda f: poutine.scale(poutine.block(f, hide=["w"]), scale=1.0)),
    "forwarding": around(lambda f: forwarding(poutine.scale(forwarding(f), scale=1.0))),
    "wraps": around(lambda f: functools.wraps(f)(forwarding(f))),
    "modules that are functions": modules,
    "partials": partials,
}


def parameters(program):
    return [p.detach().clone() for p in program.parameters()]


DATA = rows()
