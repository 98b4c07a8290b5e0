"""Programs of every inner structure, the models of the folder, and the objectives they take."""

import functools
import importlib
import inspect
import pkgutil

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae import models
from pyro_vae.densities.dreams import dream
from pyro_vae.objectives import (
    AEVB,
)
from pyro_vae.program import materialize
from pyro_vae.program.base import Program
from pyro_vae.recording.listing import classes_in

ROWS, COLUMNS, KEY = 7, 6, (5, 3, 1)


def normal(mean, scale=1.0):
    return dist.Normal(mean, scale).to_event(1)


# --- programs with inner structure ----------------------------------------------------------------


class Parts(Program):
    """A base for the programs below: a few linear maps in float64."""

    def __init__(self, **sizes):
        super().__init__()
        for name, (inputs, outputs) in sizes.items():
            self.add_module(name, nn.Linear(inputs, outputs))
        self.double()

    def zeros(self, *shape):
        return torch.zeros(shape, dtype=torch.float64)


class Hierarchy(Parts):
    """The prior of the first latent depends on the second, and a site is deterministic."""

    def __init__(self):
        super().__init__(down=(2, 3), decoder=(3, 6), up=(6, 3), top=(3, 2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", normal(self.zeros(2)))
            z1 = pyro.sample("z1", normal(self.down(z2), 0.7))
            mean = pyro.deterministic("mean", self.decoder(z1).tanh(), event_dim=1)
            pyro.sample("x", normal(mean), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", normal(self.top(self.up(x).tanh()), 0.6))
            pyro.sample("z1", normal(self.up(x) + self.down(z2), 0.5))


class Regression(Parts):
    """A dict with a covariate, whose slope is a parameter that ``pyro.param`` makes."""

    def __init__(self):
        super().__init__(decoder=(2, 6), encoder=(6, 2))

    def model(self, x):
        slope = pyro.param("slope", torch.full((6,), 0.3, dtype=torch.float64))
        with pyro.plate("data", len(x["x"])):
            z = pyro.sample("z", normal(self.zeros(2)))
            law = normal(self.decoder(z) + slope * x["age"][:, None], 0.8)
            pyro.sample("x", law, obs=x["x"])

    def guide(self, x):
        with pyro.plate("data", len(x["x"])):
            pyro.sample("z", normal(self.encoder(x["x"] - x["age"][:, None]), 0.5))


class GlobalScale(Parts):
    """A latent outside the plate, and a plate of which ``x`` is a part."""

    size = 20

    def __init__(self):
        super().__init__(decoder=(2, 6), encoder=(6, 2))
        self.mean = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def model(self, x):
        scale = pyro.sample("scale", dist.Normal(self.zeros(), 1.0))
        with pyro.plate("data", self.size, subsample_size=len(x)):
            z = pyro.sample("z", normal(self.zeros(2)))
            pyro.sample("x", normal(self.decoder(z) * scale), obs=x)

    def guide(self, x):
        pyro.sample("scale", dist.Normal(self.mean, 0.3))
        with pyro.plate("data", self.size, subsample_size=len(x)):
            pyro.sample("z", normal(self.encoder(x), 0.5))


class Subsampled(GlobalScale):
    """The same plate without a global latent; three particles of the rows are more than N."""

    size = 8

    def model(self, x):
        with pyro.plate("data", self.size, subsample_size=len(x)):
            z = pyro.sample("z", normal(self.zeros(2) + self.mean))
            pyro.sample("x", normal(self.decoder(z)), obs=x)

    def guide(self, x):
        with pyro.plate("data", self.size, subsample_size=len(x)):
            pyro.sample("z", normal(self.encoder(x), 0.5))


class Views(Parts):
    """A plate to the left of the data's: three latents of each row, seen by their sum."""

    def __init__(self):
        super().__init__(decoder=(2, 6), encoder=(6, 2))
        self.shift = nn.Parameter(torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("views", 3, dim=-2):
                z = pyro.sample("z", normal(self.zeros(2)))  # (3, B, 2)
            pyro.sample("x", normal(self.decoder(z).tanh().sum(-3)), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("views", 3, dim=-2):
            pyro.sample("z", normal(self.encoder(x) + self.shift[:, None], 0.5))


class Dropped(Parts):
    """Dropout in both networks: noise that belongs to no site."""

    def __init__(self):
        super().__init__(decoder=(2, 6), encoder=(6, 2))
        self.dropout = nn.Dropout(0.4)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(self.zeros(2)))
            pyro.sample("x", normal(self.dropout(self.decoder(z))), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(self.dropout(x)), 0.5))


class Convolved(Parts):
    """Images (B, 1, 4, 4), observed flat; convolutions know one batch dimension and no more."""

    def __init__(self):
        super().__init__(head=(8, 2), up=(2, 8))
        self.encoder = nn.Conv2d(1, 2, 2, stride=2).double()
        self.decoder = nn.ConvTranspose2d(2, 1, 2, stride=2).double()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(self.zeros(2)))
            logits = self.decoder(self.up(z).reshape(-1, 2, 2, 2))
            law = dist.Bernoulli(logits=logits.flatten(1)).to_event(1)
            pyro.sample("x", law, obs=x.flatten(1))

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.head(self.encoder(x).flatten(1)), 0.5))


STRUCTURED = (Hierarchy, Regression, GlobalScale, Subsampled, Views, Dropped, Convolved)


def sizes_of(build):
    """What a build must be told: how many data share the weights, and that means have no bounds."""
    known = {"num_data": 3 * ROWS, "sigmoid_mean": False}
    return {n: value for n, value in known.items() if n in inspect.signature(build).parameters}


FOLDER = {
    info.name: functools.partial(module.build, COLUMNS, **sizes_of(module.build))
    for info in pkgutil.iter_modules(models.__path__)
    if info.name
    != "vae"  # which is what the others are made by, and the parts are in test_parts.py
    if hasattr(module := importlib.import_module(f"pyro_vae.models.{info.name}"), "build")
}
PROGRAMS = FOLDER | {program.__name__: program for program in STRUCTURED}
EVERY = tuple(classes_in("objectives").values())
OBJECTIVES = {str(o): o for o in (AEVB("A"), AEVB("A", 3), *(cls() for cls in EVERY))}
# What a class says of itself decides which pairs are refused: a global latent has no row of its own
# to dream, nor weights of a datum, nor a chain.
SHARED = {"GlobalScale": "scale", "bayesian_vae": 'outside pyro.plate("data"'}
REFUSED = {(p, o): why for p, why in SHARED.items() for o in OBJECTIVES
           if not OBJECTIVES[o].takes_global}  # fmt: skip
REFUSED |= {  # the density of a draw is computed a second time
    ("Dropped", str(o)): "the guide draws noise outside pyro.sample"
    for o in OBJECTIVES.values()
    if o.scores_twice and not o.refresh_every
}
# A chain refuses when it starts, not when it is captured.
CHAINS = {(p, str(o)) for o in OBJECTIVES.values() if o.refresh_every for p in PROGRAMS}
NO_CHAINS = {(p, o) for p, o in CHAINS if p in ("GlobalScale", "bayesian_vae", "Dropped")}
REFUSED = {pair: why for pair, why in REFUSED.items() if pair not in NO_CHAINS}
PAIRS = [(p, o) for p in PROGRAMS for o in OBJECTIVES if (p, o) not in {*REFUSED, *NO_CHAINS}]


def is_quick(program, objective):
    """Every objective on one program, every program under one, those with structure under two."""
    if program == "linear_gaussian" or objective == str(AEVB()):
        return True
    return program not in FOLDER and objective == str(AEVB("A", 3))


def program_and_rows(name):
    """A program with random parameters in float64, and rows that it dreamt itself."""
    program = PROGRAMS[name]().double()
    shape = (ROWS, 1, 4, 4) if name == "Convolved" else (ROWS, COLUMNS)
    x = torch.zeros(shape, dtype=torch.float64)
    if name == "Regression":
        x = {"x": x, "age": torch.linspace(-1, 1, ROWS, dtype=torch.float64)}
    materialize(program, x)
    with torch.no_grad():
        for parameter in program.parameters():
            inputs = parameter[0].numel() if parameter.dim() else 1
            parameter.normal_(0.0, 0.4 / inputs**0.5)
    return program, dream(program, x)[0]


class Placed(Program):
    """A latent whose guide is given, at a learnt place."""

    def __init__(self, law):
        super().__init__()
        self.law, self.place = law, torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.law(self.place.expand(len(x), 1)).to_event(1))
