"""What every test starts from and must leave behind."""

import gc
import os
import random
import signal
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

from pyro_vae.engine.learner import Learner
from pyro_vae.models import linear_gaussian
from pyro_vae.training import setting_up
from pyro_vae.training.loop import Loop

torch.set_num_threads(1)


def pytest_collection_finish():
    """Look for garbage among what the tests make, not among modules and tests: a seventh of a fit's
    time was spent there."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True)
def clean_slate():
    """One seed before each test; afterwards one dtype, and nothing in Pyro's global store."""
    for seed in (torch.default_generator.manual_seed, random.seed, np.random.seed):
        seed(0)  # as pyro.set_rng_seed does, which has torch note the whole call stack
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    left = sorted(pyro.get_param_store())
    pyro.clear_param_store()
    assert not left, f"parameters were left in Pyro's global store: {left}"


@pytest.fixture
def double():
    """Double precision by default, for comparisons to many digits."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir():
    """The folder of the downloaded data sets; tests that need it are skipped without it."""
    folder = Path(os.environ.get("PYRO_VAE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no data sets here: name their folder in PYRO_VAE_DATA")
    return folder


@pytest.fixture
def oracle():
    """A linear-Gaussian program in float64 whose guide can hold the exact posterior, and does not.

    J = 2, D = 5, all parameters drawn at random.
    """
    program = linear_gaussian.build(5, prior_precision=1.5, noise="full", posterior="full").double()
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.normal_(0.0, 0.5)
    return program


@pytest.fixture
def x():
    """Nine real rows for ``oracle``, (9, 5)."""
    return torch.randn(9, 5, dtype=torch.float64)


@pytest.fixture
def real():
    """Eight real rows of three for the programs of checks.py."""
    return torch.randn(8, 3)


@pytest.fixture
def grey():
    """Three hundred rows of forty grey values."""
    return torch.rand(300, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def stop(monkeypatch):
    """Send a signal to this process within these steps; one record holds four steps."""
    look, at = Learner.require_finite, {}

    def looking(self, means, ask, grads=None):
        if ask.key[-1] + 1 in at:
            signal.raise_signal(at.pop(ask.key[-1] + 1))
        return look(self, means, ask, grads)

    monkeypatch.setattr(Learner, "require_finite", looking)
    monkeypatch.setattr(setting_up, "Loop", lambda **o: Loop(**{**o, "record_every": 4}))
    return at


# A shell that starts the tests in the background has SIGINT ignored, and nohup SIGHUP, which Python
# and its children inherit: then no test of them could say anything.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
