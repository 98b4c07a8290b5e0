"""Every prior with every posterior that fits it and every likelihood; found by listing.

A class in a new file is in this matrix by existing.  Quickly each prior, posterior and likelihood
stands in one row at least, in company that goes round; ``make slow`` has all combinations.
"""

import functools
import inspect
import itertools
import warnings

import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae import engine
from pyro_vae.engine.functions import gradient_function
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.noise import NoiseMode, keyed, seeded
from pyro_vae.objectives import AEVB
from pyro_vae.objectives.base import State
from pyro_vae.posteriors.suiting import kind_of
from pyro_vae.recording.listing import classes_in
from pyro_vae.runs.manifest import form_of, manifest_of

from .oracles import assert_equal

J, D, H, B = 2, 3, 4, 5
UNTRAINED = {  # what a manifest says of a training that has not begun
    "objective": "AEVB()", "objective_record": None, "engine": "pyro", "optimizer": "Adagrad",
    "optimizer_options": {}, "schedule": None, "schedule_record": None, "seed": 0, "clip": None,
    "weight_prior": 0.0, "validation_digest": None, "steps": 0, "samples": 0, "leapfrogs": 0,
    "seconds": 0.0, "keep": "last", "kept_step": None, "best_step": None,
    "best_validation_bound": None,
}  # fmt: skip
KEY = (5, 3, 1)
SIZES = {"latent_dim": J, "data_dim": D, "hidden_dim": H}


def parts_in(folder):
    """One class of each name of its own: an alias is the class that it names."""
    found = classes_in(folder).items()
    return {name: cls for name, cls in found if name == cls.__name__}


def made(cls, **sizes):
    torch.manual_seed(0)
    return cls.example(**sizes)


@functools.cache
def support_of(cls):
    part = made(cls, **{"latent_dim": J} | ({} if "priors" in cls.__module__ else SIZES))
    return part.support


def takes_covariates(cls):
    return len(inspect.signature(cls.forward).parameters) > 1


PRIORS, POSTERIORS = parts_in("priors"), parts_in("posteriors")
LIKELIHOODS = parts_in("likelihoods")
LATENTS = [
    (prior, posterior)
    for prior, posterior in itertools.product(PRIORS, POSTERIORS)
    if not takes_covariates(PRIORS[prior])  # (see test_parts.py)
    and kind_of(support_of(POSTERIORS[posterior])) == kind_of(support_of(PRIORS[prior]))
]


def spread(pairs):
    """Pairs in which each prior and each posterior has its turn, as few as that takes."""
    turns = {name: 0 for pair in pairs for name in pair}
    chosen = []
    for prior in dict.fromkeys(prior for prior, _ in pairs):
        posterior = min((q for p, q in pairs if p == prior), key=turns.__getitem__)
        chosen.append((prior, posterior))
        turns[posterior] += 1
    for posterior in dict.fromkeys(posterior for _, posterior in pairs):
        if not turns[posterior]:
            chosen.append(next(pair for pair in reversed(pairs) if pair[1] == posterior))
    return chosen


ROUND = itertools.cycle(LIKELIHOODS)
QUICK = [(prior, posterior, next(ROUND)) for prior, posterior in spread(LATENTS)]
ALL = [(*pair, likelihood) for pair in LATENTS for likelihood in LIKELIHOODS]
REST = [each for each in ALL if each not in QUICK]


def program_of(prior, posterior, likelihood):
    options = {}
    if likelihood == "ProdLDA" and kind_of(support_of(PRIORS[prior])) == "simplex":
        options["simplex"] = True
    likelihood = made(LIKELIHOODS[likelihood], **SIZES)
    if options:
        likelihood = type(likelihood)(J, D, **options)
    posterior = made(POSTERIORS[posterior], **SIZES)
    prior = made(PRIORS[prior], latent_dim=J)
    program = pv.VAE.build(
        D, latent_dim=J, hidden_dim=H, prior=prior, posterior=posterior, likelihood=likelihood
    )
    with torch.no_grad():  # away from where all networks are nearly zero
        for parameter in program.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return program


def quietly(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyroVaeWarning)
        return function(*args, **options)


def goes_through_everything(names, folder):
    program = program_of(*names)
    torch.manual_seed(1)
    x = torch.cat([program.made_up_row() for _ in range(B)])
    assert x.shape == (B, D)

    quietly(pv.check, program, x)

    program, x = program.double(), x.double()
    graph = engine.capture(program, AEVB("A", 2), x)
    assert isinstance(graph, engine.Graph), str(graph)
    params = {name: p.detach() for name, p in program.named_parameters()}
    args = params, x, torch.ones(B, dtype=torch.float64), {}, {}
    with seeded(*KEY):  # for draws that stay in the graph, such as a gamma variate
        got, sums = graph.grads(*args, noise=graph.grads.draw(KEY))
    with NoiseMode(keyed(*KEY)), seeded(*KEY):
        expected, expected_sums = gradient_function(program, AEVB("A", 2))(*args)
    assert_equal(got, expected)
    assert_equal(sums, expected_sums)

    manifest = manifest_of(program, x, batch_size=B, row=form_of(x), **UNTRAINED)
    pv.Run(program, pd.DataFrame(), manifest, State({}, {})).save(folder / "run")
    loaded = pv.load(folder / "run").program
    assert_equal(dict(loaded.named_parameters()), dict(program.named_parameters()))

    drawn = pv.sample(program, 3)
    assert all(v.shape[0] == 3 for v in (drawn.values() if isinstance(drawn, dict) else [drawn]))
    idata = quietly(pv.to_inference_data, program, x, num_draws=4)
    assert idata.posterior["z"].shape[2:] == (B, J)


@pytest.mark.parametrize("names", QUICK, ids="-".join)
def test_each_prior_with_each_posterior_that_fits(names, tmp_path):
    goes_through_everything(names, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("names", REST, ids="-".join)
def test_all_three_together(names, tmp_path):
    goes_through_everything(names, tmp_path)


def test_every_part_is_in_the_matrix():
    of_all_rows = {name for name, cls in PRIORS.items() if not takes_covariates(cls)}
    assert {prior for prior, _ in LATENTS} == of_all_rows
    assert {posterior for _, posterior in LATENTS} == set(POSTERIORS)
    for place, parts in enumerate((of_all_rows, set(POSTERIORS), set(LIKELIHOODS))):
        assert {names[place] for names in QUICK} == parts
