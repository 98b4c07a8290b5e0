"""Only ``fit`` changes a program: every other verb leaves it, and everything around it, alone."""

import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

import pyro_vae as pv
from pyro_vae import posteriors
from pyro_vae.chains import sample_posterior
from pyro_vae.models import bayesian_vae, bernoulli_vae

ROWS = 70  # more than two batches of 30, so that evaluations capture their graph


def rows_of_plate(x):
    return pyro.plate("data", len(x))


class Pair(pv.Program):
    """An encoder and a decoder; what they are made of is a subclass's."""

    def __init__(self, encoder=None, decoder=None):
        super().__init__()
        self.encoder = nn.Linear(6, 4) if encoder is None else encoder
        self.decoder = nn.Linear(2, 6) if decoder is None else decoder

    def prior(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model(self, x):
        with rows_of_plate(x):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with rows_of_plate(x):
            m, s = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(m, nn.functional.softplus(s) + 0.1).to_event(1))


class Tied(Pair):
    """One Parameter in two modules, and one module under two names."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)))
        self.again = self.encoder
        self.encoder[0].bias = self.decoder.bias


class Vamp(nn.Module):
    """A prior that calls the encoder (Tomczak & Welling, 2018)."""

    def __init__(self, encoder):
        super().__init__()
        self.u, self.encoder = nn.Parameter(torch.randn(3, 6)), encoder

    def forward(self):
        mixture = dist.Categorical(logits=torch.zeros(3))
        return dist.MixtureSameFamily(mixture, self.encoder(self.u.sigmoid()))


class Coins(Pair):
    """A discrete latent, which HMC refuses."""

    def prior(self):
        return dist.Bernoulli(torch.full((2,), 0.5)).to_event(1)

    def guide(self, x):
        with rows_of_plate(x):
            logits, _ = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


class Layer(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = PyroModule[nn.Linear](6, 2)
        self.scale = PyroParam(torch.ones(2), constraint=dist.constraints.positive)

    def forward(self, x):
        return torch.cat([self.net(x), self.scale.expand(len(x), 2)], -1)


def vamp():
    encoder = posteriors.Gaussian(6, 2, 8, init_std=None)
    return bernoulli_vae.build(
        6, latent_dim=2, hidden_dim=8, init_std=None, prior=Vamp(encoder), posterior=encoder
    )


def functions():
    encoder, decoder = nn.Linear(6, 2), nn.Linear(2, 6)

    def model(x):
        with rows_of_plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with rows_of_plate(x):
            pyro.sample("z", dist.Normal(encoder(x), scale).to_event(1))

    return pv.Program(model, guide, encoder=encoder, decoder=decoder)


def frozen():
    program = Pair()
    program.decoder.requires_grad_(False)
    return program


def normalized():
    """Batch normalization in training, whose statistics move at every call."""
    return Pair(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))


def part_in_evaluation():
    program = Pair(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.3)))
    program.encoder[1].eval()
    return program


PROGRAMS = {
    "plain": Pair,
    "one Parameter in two modules": Tied,
    "a prior that calls the encoder": vamp,
    "functions": functions,
    "frozen": frozen,
    "dropout": lambda: Pair(nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.3))),
    "batch normalization": normalized,
    "partly in evaluation": part_in_evaluation,
    "discrete": Coins,
    "PyroModule": lambda: Pair(Layer()),
    "global latents": lambda: bayesian_vae.build(6, num_data=ROWS, latent_dim=2, hidden_dim=3),
    "spectral norm": lambda: Pair(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4))),
}

QUICK = {"num_particles": 30, "num_draws": 40, "warmup": 20, "leapfrog_steps": 2}
VERBS = {
    "check": lambda p, x: pv.check(p, x),
    "elbo": lambda p, x: pv.elbo(p, x, batch_size=20),
    "log_evidence": lambda p, x: pv.log_evidence(p, x, num_particles=40, batch_size=20),
    "chains": lambda p, x: pv.log_evidence(p, x[:5], proposal="hmc", **QUICK),
    "reciprocal": lambda p, x: pv.log_evidence(p, x[:5], method="reciprocal", **QUICK),
    "sample_posterior": lambda p, x: sample_posterior(p, x[:5], num_draws=3, warmup=20),
    "gradient_report": lambda p, x: pv.gradient_report(
        p, x[:5], [pv.objectives.AEVB("A")], num_draws=50, progress=False
    ),
    "to_inference_data": lambda p, x: pv.to_inference_data(p, x[:5], num_draws=3),
    "encode": lambda p, x: pv.encode(p, x, num_draws=2),
    "encode the mean": lambda p, x: pv.encode(p, x),
    "encode what is shared": lambda p, x: pv.encode(p, x, shared=True),
    "sample": lambda p, x: pv.sample(p, 4, like=x),
    "reconstruct": lambda p, x: pv.reconstruct(p, x, num_draws=2),
}


def everything(program):
    """All that a verb could move, as values; tensors by content, and as objects."""
    tensors = {**dict(program.named_parameters(remove_duplicate=False)),
               **dict(program.named_buffers(remove_duplicate=False))}  # fmt: skip
    numpy_state = np.random.get_state()
    return {
        "values": {name: t.detach().clone() for name, t in tensors.items()},
        "objects": {name: id(t) for name, t in tensors.items()},
        "requires_grad": {name: t.requires_grad for name, t in tensors.items()},
        "grad": {n: None if t.grad is None else t.grad.clone() for n, t in tensors.items()},
        "modes": {name: module.training for name, module in program.named_modules()},
        "torch": torch.get_rng_state(),
        "numpy": (numpy_state[1].tolist(), numpy_state[2]),
        "python": random.getstate(),
        "store": sorted(pyro.get_param_store()),
        "validation": (pyro.settings.get("validate_distributions_pyro"),
                       pyro.settings.get("validate_distributions_torch"),
                       pyro.settings.get("validate_infer")),
        "torch's modes": (torch.is_grad_enabled(), torch.get_default_dtype(),
                          torch.is_anomaly_enabled(), torch.get_num_threads()),
    }  # fmt: skip


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[n], b[n]) for n in a)
    return a == b


def made(form):
    torch.manual_seed(0)
    program = PROGRAMS[form]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        objective = pv.objectives.WakeSleep() if form == "discrete" else None
        pv.fit(program, bits(), objective, steps=2, progress=False)  # what it creates is there
    for parameter in program.parameters():
        parameter.grad = torch.full_like(parameter, 0.25) if parameter.requires_grad else None
    return program


def bits():
    return (torch.rand(ROWS, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()


QUICKLY = {"functions", "batch normalization", "discrete"}
FORMS = [pytest.param(f, marks=() if f in QUICKLY else pytest.mark.slow) for f in PROGRAMS]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_nothing_but_fit_moves_anything(form):
    program, x = made(form), bits()
    before, rows = everything(program), x.clone()
    ran = []
    for verb, call in VERBS.items():
        try:
            call(program, x)
            ran.append(verb)
        except ValueError as error:
            assert len(str(error)) > 30, (verb, error)  # a refusal in words
        after = everything(program)
        moved = [what for what in before if not same(before[what], after[what])]
        assert not moved, f"{verb} moved {moved}"
        assert torch.equal(x, rows), f"{verb} changed the data"
    assert {"elbo", "sample"} <= set(ran)


@pytest.mark.filterwarnings("ignore")
def test_the_snapshot_sees_what_moves():
    program = made("batch normalization")
    before = everything(program)
    program.encoder(bits())
    torch.rand(1)
    after = everything(program)
    assert [w for w in before if not same(before[w], after[w])] == ["values", "torch"]


@pytest.mark.filterwarnings("ignore")
def test_two_programs_used_in_turn_do_not_see_each_other():
    form, x = "functions", bits()
    alone = [pv.elbo(made(form), x, batch_size=20), pv.elbo(made("dropout"), x, batch_size=20)]
    first, second = made(form), made("dropout")
    for _ in range(2):
        for program, expected in ((first, alone[0]), (second, alone[1])):
            assert torch.equal(pv.elbo(program, x, batch_size=20), expected)
