"""Modules with two names, and programs with two lives: each call trains and runs its own."""

import copy
import functools
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_vae as pv
from pyro_vae.program.calling import call_with, trainable

from .quickly import slowly, some_quickly

ENGINES = ["pyro", "eager"]
SHARED = {"a module in two parts", "a part under two names", "a Parameter in two modules"}


def bits(rows=60):
    return (torch.rand(rows, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def posterior(out):
    mean, scale = out.chunk(2, -1)
    return dist.Normal(mean, nn.functional.softplus(scale) + 0.1).to_event(1)


class Net(nn.Module):
    def __init__(self, inputs, outputs, inner):
        super().__init__()
        self.inner, self.out = inner, nn.Linear(inputs + 3, outputs)

    def forward(self, a):
        return self.out(torch.cat([a, self.inner(a[:, :2])], -1))


class Shared(pv.Program):
    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        inner = nn.Linear(2, 3)
        if how == "a Parameter in two modules":
            other = nn.Linear(2, 3)
            other.weight = inner.weight
        else:
            other = inner
        self.encoder, self.decoder = Net(6, 4, inner), Net(2, 6, other)
        if how == "a part under two names":
            self.decoder.inner = nn.Linear(2, 3)
            self.again = self.encoder

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(self.encoder(x)))


# --- one module, two names ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", [pv.objectives.AEVB("A"), slowly(pv.objectives.DReG(2))], ids=repr
)
@pytest.mark.parametrize("how", sorted(SHARED))
def test_what_two_parts_own_is_trained_whatever_the_engine(how, objective):
    ends = []
    for engine in ENGINES:
        program = Shared(how)
        start = {n: p.detach().clone() for n, p in program.named_parameters()}
        pv.fit(program, bits(), objective, steps=6, engine=engine, progress=False)
        ends.append(trainable(program))
        assert ends[-1].keys() == start.keys()
        assert all((p - start[n]).abs().max() > 1e-3 for n, p in ends[-1].items())
    for name, parameter in ends[0].items():
        torch.testing.assert_close(parameter, ends[1][name], rtol=1e-4, atol=1e-6)


def test_replicas_and_a_resumed_run_hold_what_was_trained(tmp_path):
    how, x = "a module in two parts", bits()
    alone = pv.fit(Shared(how), x, steps=8, lr=0.05, seed=1, progress=False).program
    _, replica = pv.fit(Shared(how), x, steps=8, lr=0.05, seed=[0, 1], progress=False)
    for steps in (4, 8):
        program = Shared(how)
        pv.fit(program, x, steps=steps, lr=0.05, seed=1, out=tmp_path, resume=True, progress=False)
    loaded = pv.load(tmp_path, Shared(how)).program
    for name, parameter in alone.state_dict().items():
        torch.testing.assert_close(replica.program.state_dict()[name], parameter)
        assert torch.equal(program.state_dict()[name], parameter), name
        assert torch.equal(loaded.state_dict()[name], parameter), name


@pytest.mark.parametrize("how", sorted(SHARED))
def test_stand_ins_are_taken_away_again_even_after_an_error(how):
    program, x = Shared(how), bits()
    own = dict(program.named_parameters(remove_duplicate=False))
    zeros = {name: torch.zeros_like(p) for name, p in program.named_parameters()}

    def run(program, fail):
        assert all(not p.any() for _, p in program.named_parameters(remove_duplicate=False))
        if fail:
            raise KeyError("of the user's own code")
        return program.encoder(x)

    assert not call_with(program, zeros, run, False).any()
    with pytest.raises(KeyError):
        call_with(program, zeros, run, True)

    after = dict(program.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in own.items())


# --- copies ---------------------------------------------------------------------------------------


def by_closure():
    encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def decoded(z):
        return dist.Bernoulli(logits=decoder(z)).to_event(1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", decoded(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(encoder(x)))

    return pv.Program(model, guide, encoder=encoder, decoder=decoder)


def model_of(x, decoder):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)


def guide_of(x, encoder):
    with pyro.plate("data", len(x)):
        pyro.sample("z", posterior(encoder(x)))


def by_partial():
    encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)
    model, guide = functools.partial(model_of, decoder=decoder), None
    guide = functools.partial(guide_of, encoder=encoder)
    return pv.Program(model, guide, encoder=encoder, decoder=decoder)


def by_default():
    encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def model(x, decoder=decoder):
        model_of(x, decoder)

    def guide(x, *, parts=(encoder, {"decoder": decoder})):
        guide_of(x, parts[0])

    return pv.Program(model, guide, encoder=encoder, decoder=decoder)


def by_method():
    class Stranger(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

        def model(self, x):
            model_of(x, self.decoder)

        def guide(self, x):
            guide_of(x, self.encoder)

    return pv.Program(Stranger())


def by_object():
    class Nets:
        def __init__(self):
            self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    nets = Nets()

    def model(x):
        model_of(x, nets.decoder)

    def guide(x):
        guide_of(x, nets.encoder)

    return pv.Program(model, guide, encoder=nets.encoder, decoder=nets.decoder)


def by_handler():
    encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def model(x):
        model_of(x, decoder)

    def guide(x):
        guide_of(x, encoder)

    model, guide = poutine.scale(model, 1.0), poutine.mask(guide, torch.tensor(True))
    return pv.Program(poutine.mask(model, torch.tensor(True)), guide, e=encoder, d=decoder)


def by_shared_variables():
    """The model reads what the guide computed."""
    encoder, decoder, features, store = nn.Linear(6, 4), nn.Linear(4, 6), None, {}

    def guide(x):
        nonlocal features
        features = encoder(x)
        store["first"] = features[:, :1]
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(features))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            more = torch.cat([z, features[:, 2:3], store["first"]], -1)
            pyro.sample("x", dist.Bernoulli(logits=decoder(more)).to_event(1), obs=x)

    store["decoder"] = decoder
    return pv.Program(model, guide, encoder=encoder, decoder=decoder)


MAKERS = [by_handler, by_shared_variables, by_closure, by_partial, by_default, by_method, by_object]


# A capture each is what costs: one of functions, one of objects quickly.
@pytest.mark.parametrize("make", some_quickly(MAKERS, by_closure, by_object))
def test_a_copy_calls_modules_of_its_own(make):
    program, x = make(), bits()
    kept = copy.deepcopy(program)
    twice = copy.deepcopy(kept)
    before = pv.elbo(kept, x)

    assert torch.equal(before, pv.elbo(program, x))
    pv.fit(program, x, steps=20, lr=0.1, progress=False)

    assert torch.equal(pv.elbo(kept, x), before)
    assert torch.equal(pv.elbo(twice, x), before)
    assert pv.elbo(program, x).mean() > before.mean() + 0.1
    ends = pv.elbo(program, x)
    pv.fit(kept, x, steps=20, lr=0.1, progress=False)
    assert torch.equal(pv.elbo(kept, x), ends)


def test_replicas_of_plain_functions_are_their_single_runs():
    torch.manual_seed(0)
    program, x = by_closure(), bits()
    alone = copy.deepcopy(program)
    rates = [0.01, 0.1]
    runs = pv.fit(program, x, steps=10, seed=[3, 4], lr=rates, progress=False)
    pv.fit(alone, x, steps=10, seed=4, lr=rates[1], progress=False)
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(runs[1].program.get_parameter(name), parameter)


ENCODER, DECODER = nn.Linear(6, 4), nn.Linear(2, 6)


def global_model(x):
    model_of(x, DECODER)


def global_guide(x):
    guide_of(x, ENCODER)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_a_copy_that_would_call_the_originals_modules_is_refused(how):
    program = pv.Program(global_model, global_guide, encoder=ENCODER, decoder=DECODER)
    pv.elbo(program, bits())
    twin = how(program)
    for verb in (pv.elbo, pv.encode, functools.partial(pv.fit, steps=1, progress=False)):
        with pytest.raises(ValueError, match=r"calls a module that is not its own.*global name"):
            verb(twin, bits())
    with pytest.raises(ValueError, match=r"\[build\(\) for"):
        pv.fit(program, bits(), steps=1, replicas=2, progress=False)
    assert pv.elbo(program, bits()).isfinite().all()


def test_a_program_may_be_pickled_after_use():
    program, x = Shared("a module in two parts"), bits()
    run = pv.fit(program, x, steps=2, progress=False)
    twin = pickle.loads(pickle.dumps(program))
    assert torch.equal(pv.elbo(twin, x), pv.elbo(program, x))
    assert twin.encoder.inner is twin.decoder.inner
    assert torch.equal(pv.elbo(pickle.loads(pickle.dumps(run)).program, x), pv.elbo(program, x))


def test_what_the_program_does_not_own_is_refused_before_training():
    decoder = nn.Linear(2, 6)

    def model(x):
        model_of(x, decoder)

    encoder = nn.Linear(6, 4)
    program = pv.Program(model, functools.partial(guide_of, encoder=encoder), encoder=encoder)
    with pytest.raises(ValueError, match=r'site "x" of the model: depends on a tensor \(6, 2\)'):
        pv.fit(program, bits(), steps=1, progress=False)
    decoder.requires_grad_(False)
    pv.fit(program, bits(), steps=1, progress=False)
