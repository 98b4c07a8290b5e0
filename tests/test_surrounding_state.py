"""What surrounds a call: right numbers or one clear refusal, and nothing is changed afterwards."""

import contextlib
import warnings

import numpy as np
import pyro
import pytest
import torch

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae
from pyro_vae.turns import in_turn
from pyro_vae.turns.state import ProcessState

from .test_threads import X, learnt, net, unchanged

CALLS = {
    "elbo": lambda vae: pv.elbo(vae, X, batch_size=10),
    "sample": lambda vae: pv.sample(vae, 30),
    "fit": lambda vae: learnt(vae, "eager", 3),
    "fit by Pyro": lambda vae: learnt(vae, "pyro", 3),
    "log_evidence": lambda vae: pv.log_evidence(vae, X[:5], num_particles=100).value,
    "encode": lambda vae: pv.encode(vae, X),
}
pytestmark = pytest.mark.filterwarnings("ignore")


@contextlib.contextmanager
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def errors_everywhere():
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "float64": float64,
    "device": lambda: torch.device("cpu"),
    "validation": lambda: pyro.validation_enabled(True),
    "errors": errors_everywhere,
}


@pytest.fixture(scope="module")
def alone():
    return {name: call(net(1)) for name, call in CALLS.items()}


@pytest.mark.parametrize("name", CALLS)
def test_numbers_are_those_of_plain_surroundings(name, alone):
    for surroundings, context in SURROUNDINGS.items():
        vae = net(1)
        before = ProcessState.now()
        with context():
            inside = ProcessState.now()
            got = CALLS[name](vae)
            assert unchanged(inside), surroundings
        assert unchanged(before), surroundings
        assert got.dtype == alone[name].dtype, surroundings
        assert torch.equal(got, alone[name]), surroundings


def test_data_made_under_inference_mode_are_as_good(alone):
    with torch.inference_mode():
        x = X.clone()
    assert torch.equal(pv.elbo(net(1), x, batch_size=10), alone["elbo"])
    pv.fit(net(1), x, steps=2, batch_size=20, engine="pyro", progress=False)


def test_what_can_learn_nothing_is_refused():
    with torch.inference_mode():
        vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=5)
    with pytest.raises(ValueError, match=r"inference_mode.*outside of it"):
        learnt(vae)


@pytest.mark.parametrize("name", CALLS)
def test_a_device_without_numbers_is_refused(name):
    vae = net(1)
    with torch.device("meta"), pytest.raises(ValueError, match='default device is "meta"'):
        CALLS[name](vae)


@pytest.mark.parametrize("name", CALLS)
def test_an_enclosing_handler_is_refused_by_name(name):
    vae = net(1)
    with pyro.poutine.scale(scale=2.0), pytest.raises(ValueError, match=r"a Pyro handler.*Scale"):
        CALLS[name](vae)
    assert not pyro.poutine.runtime._PYRO_STACK


class Stopped(BaseException):
    """Ctrl-C at a place that is known."""


def test_what_is_stopped_anywhere_leaves_no_mark(alone):
    """Even where a handler, a mode or a stand-in was put in place and nobody takes it out."""

    def half_done(vae):
        pyro.poutine.trace().__enter__()
        pyro.poutine.runtime._DIM_ALLOCATOR.allocate("data", -1)
        pyro.enable_validation(True)
        pyro.get_param_store()._params = {}
        torch.manual_seed(5)
        torch.set_grad_enabled(False)
        torch._C._set_mkldnn_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.device("meta").__enter__()
        vae.eval()
        for part in vae.modules():
            part._parameters.update({n: torch.zeros(1) for n in part._parameters})
        raise Stopped

    vae = net(1)
    own = dict(vae.named_parameters())
    before, grad = ProcessState.now(), torch.is_grad_enabled()
    with pytest.raises(Stopped):
        in_turn(half_done, vae)
    assert unchanged(before)
    assert torch.is_grad_enabled() == grad
    assert all(p is own[name] for name, p in vae.named_parameters())
    assert vae.training
    assert torch.equal(CALLS["elbo"](vae), alone["elbo"])
