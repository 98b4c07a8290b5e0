"""What is no program is refused in words, with what to pass instead, by all that take one."""

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae

X = np.random.default_rng(0).normal(size=(40, 3))
TAKERS = {
    "check": pv.check,
    "elbo": pv.elbo,
    "encode": pv.encode,
    "decode": lambda program, x: pv.decode(program, torch.zeros(3, 1)),
    "sample": lambda program, x: pv.sample(program, 3),
    "reconstruct": pv.reconstruct,
    "export": pv.export,
}


@pytest.fixture(scope="module")
def run():
    vae = bernoulli_vae.build(4, latent_dim=1, hidden_dim=2)
    return pv.fit(vae, torch.eye(4), steps=1, engine="eager", progress=False)


@pytest.fixture(scope="module")
def estimator():
    return pv.sklearn.VAE(1, samples=40, hidden_dim=2, random_state=0).fit(X)


@pytest.mark.parametrize("name", TAKERS)
def test_a_run_and_an_estimator_lead_to_their_programs(name, run, estimator):
    with pytest.raises(TypeError, match=r"program is Run, .*pass the Run's program, run\.program"):
        TAKERS[name](run, torch.eye(4))
    with pytest.raises(TypeError, match=r"program is VAE, .*program_, and rows .*standardized"):
        TAKERS[name](estimator, X)
    with pytest.raises(TypeError, match=r"program is Tensor, expected a module with model\(x\)"):
        TAKERS[name](torch.eye(4), run.program)


def test_pictures_take_runs_and_lead_to_an_estimators_program(estimator):
    for picture in (pv.plotting.samples, pv.plotting.traversals, pv.explore):
        with pytest.raises(TypeError, match=r"program_, and rows .*standardized"):
            picture(estimator)
