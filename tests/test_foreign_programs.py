"""Public Pyro programs, as their authors write them, live a whole day here without an edit."""

import copy

import pyro
import pytest
import torch

import pyro_vae as pv

from .foreign_data import PROGRAMS
from .quickly import some_quickly

ALL = pytest.mark.parametrize("name", PROGRAMS)
# One of each kind; `make slow` takes the others through the day as well.
SOME = (
    "conditional VAE",
    "semi-supervised, unlabelled",
    "deep Markov model",
    "amortized LDA",
    "causal effect VAE",
)
SOME_QUICKLY = pytest.mark.parametrize("name", some_quickly(PROGRAMS, *SOME))
# A run is saved and resumed by names and tensors, whatever the program.
SAVED_QUICKLY = pytest.mark.parametrize(
    "name", some_quickly(PROGRAMS, "semi-supervised, unlabelled")
)
QUIET = pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")  # of few draws
B = 20


def wrapped(name):
    """The one line that a user writes; the same parameters each time."""
    pyro.set_rng_seed(0)
    module = PROGRAMS[name].module()
    guide = PROGRAMS[name].guide
    return pv.Program(module) if guide is None else pv.Program(module, guide(module))


def data_of(name, rows=2 * B):
    return PROGRAMS[name].data(rows)


def doubled(data):
    if isinstance(data, dict):
        return {key: doubled(value) for key, value in data.items()}
    return data.double() if data.is_floating_point() else data


def elbo_of(name, *, pyros_own):
    """Pyro's objective, which we translate; or one of a class of its own, which runs in Pyro."""
    kind, options = PROGRAMS[name].elbo
    return type("Own", (kind,), {})(**options) if pyros_own else kind(**options)


def trained(name, data=None, objective=None, **options):
    program = wrapped(name)
    objective = elbo_of(name, pyros_own=False) if objective is None else objective
    batch_size = B if PROGRAMS[name].in_parts else 2 * B
    options = {"steps": 4, "batch_size": batch_size, "progress": False, **options}
    data = data_of(name) if data is None else data
    return pv.fit(program, data, objective, **options)


@ALL
def test_check_finds_no_mistake_or_the_right_one(name):
    program, said = wrapped(name), PROGRAMS[name].mistake
    if said:
        with pytest.raises(ValueError, match="has 1 mistake") as caught:
            pv.check(program, data_of(name))
        assert said in str(caught.value)
        return
    report = pv.check(program, data_of(name))
    assert any(site.kind == "observed" for site in report.sites)


@QUIET
@SOME_QUICKLY
def test_it_trains_as_in_pyro_at_the_same_noise(name):
    """Four steps of gradient descent in float64: captured, or by handlers, and by Pyro's SVI."""
    options = {
        "optimizer": torch.optim.SGD,
        "lr": 1e-3,
        "dtype": torch.float64,
        "data": doubled(data_of(name)),
    }
    ours = trained(name, engine="eager", **options)
    pyros = trained(name, engine="pyro", objective=elbo_of(name, pyros_own=True), **options)

    assert (ours.manifest["engine_reason"] == "") == PROGRAMS[name].captured
    losses = [torch.tensor(run.history["loss"].to_numpy()) for run in (ours, pyros)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)  # they are kept in single precision
    expected = dict(pyros.program.named_parameters())
    for parameter, value in ours.program.named_parameters():
        torch.testing.assert_close(value, expected[parameter], rtol=1e-7, atol=1e-9)


@QUIET
@SOME_QUICKLY
def test_it_is_scored_drawn_from_and_converted(name):
    facts, data = PROGRAMS[name], data_of(name)
    program = trained(name, steps=30, optimizer=torch.optim.Adam, lr=0.01).program

    bound = pv.elbo(program, data)
    assert bound.shape == (2 * B,) and bound.isfinite().all()
    if facts.per_datum:
        evidence = pv.log_evidence(program, data, num_particles=100).value
        assert (evidence.mean() > bound.mean() - 0.5) and evidence.isfinite().all()
    drawn = pv.sample(program, 6, like=data)
    for value in drawn.values() if isinstance(drawn, dict) else [drawn]:
        assert len(value) == 6 and value.isfinite().all()
    result = pv.to_inference_data(program, data, num_draws=20, chains=2, num_prior=5)
    observed, replicated = result["observed_data"], result["posterior_predictive"]
    for site in observed:
        assert replicated[site].shape == (2, 20, *observed[site].shape)


@QUIET
@SAVED_QUICKLY
def test_it_is_saved_loaded_and_resumed_to_the_last_bit(name, tmp_path):
    options = {"optimizer": torch.optim.Adam, "lr": 0.01, "engine": "eager"}
    whole = trained(name, **options)
    trained(name, steps=2, out=tmp_path, **options)
    again = trained(name, steps=4, out=tmp_path, resume=True, **options)

    expected = dict(whole.program.named_parameters())
    for parameter, value in again.program.named_parameters():
        assert torch.equal(value, expected[parameter]), parameter
    loaded = pv.load(tmp_path, wrapped(name)).program
    data = data_of(name)
    assert torch.equal(pv.elbo(loaded, data), pv.elbo(again.program, data))
    assert torch.equal(pv.elbo(copy.deepcopy(loaded), data), pv.elbo(loaded, data))


def test_there_are_at_least_sixteen():
    assert len(PROGRAMS) >= 16
