"""AEVB beside Pyro's own ELBOs and in Pyro's SVI, and what it refuses or says."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae.errors import PyroVaeWarning
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.objectives import AEVB
from pyro_vae.objectives.base import EMPTY
from pyro_vae.program.base import Program
from pyro_vae.training.fitting import fit

from .oracles import (
    CORNERS,
    LogisticRows,
    assert_equal,
    fed,
)
from .test_linear_gaussian import program_of

PYRO = {"A": Trace_ELBO, "B": TraceMeanField_ELBO}


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("estimator", ["A", "B"])
@pytest.mark.parametrize("posterior", ["diagonal", "full"])
def test_loss_and_gradients_are_those_of_pyros_own_elbo(estimator, posterior, particles, x):
    """Trace_ELBO is A, TraceMeanField_ELBO is B; both through SVI's own entrance."""
    program = program_of("full", posterior)
    eps = torch.randn(particles, 9, 2, dtype=torch.float64)
    found = []
    for loss, noise in (
        (PYRO[estimator](num_particles=particles), eps),  # Pyro draws one particle at a time
        (AEVB(estimator, particles), [eps]),
    ):
        program.zero_grad()
        svi = SVI(program.model, program.guide, pyro.optim.SGD({"lr": 0.1}), loss=loss)
        with fed(*noise):
            value = svi.loss_and_grads(program.model, program.guide, x)
        with fed(*noise), torch.no_grad():
            assert abs(svi.evaluate_loss(x) - value) < 1e-8 * abs(value)
        grads = {name: p.grad.clone() for name, p in program.named_parameters()}
        found.append((torch.tensor(value), grads))

    (pyro_loss, pyro_grads), (our_loss, our_grads) = found
    torch.testing.assert_close(our_loss, pyro_loss, rtol=1e-8, atol=1e-8)
    assert_equal(our_grads, pyro_grads)


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_scale_of_a_subsampled_plate_is_applied_once(estimator):
    """N / B times the sum over the batch, as in equation (8) and as in Pyro."""

    class Subsampled(LogisticRows):
        size = 4

        def model(self, x):
            with pyro.plate("data", self.size, subsample_size=len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(self.offset), 1.0).to_event(1))
                logits = z * self.weight + self.bias
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", self.size, subsample_size=len(x)):
                mean = (self.gain * x).sum(-1, keepdim=True) + self.offset
                pyro.sample("z", dist.Normal(mean, self.log_scale.exp()).to_event(1))

    program, objective = Subsampled(), AEVB(estimator)

    def loss(elbo):
        with NoiseMode(keyed(3)):
            return elbo.differentiable_loss(program.model, program.guide, CORNERS)

    with NoiseMode(keyed(3)):
        per_datum, _ = objective.terms(program, CORNERS, EMPTY)
    torch.testing.assert_close(loss(objective), per_datum.sum())
    program.size = 10
    torch.testing.assert_close(loss(objective), 2.5 * per_datum.sum())
    torch.testing.assert_close(loss(objective), loss(PYRO[estimator]()))


@pytest.mark.parametrize("objective", [AEVB("A"), AEVB("B", 2)])
def test_svi_trains_every_parameter_and_the_store_stays_empty(objective, oracle, x):
    before = {name: p.detach().clone() for name, p in oracle.named_parameters()}
    svi = SVI(oracle.model, oracle.guide, pyro.optim.Adam({"lr": 0.02}), loss=objective)

    losses = [svi.step(x) for _ in range(100)]

    assert sum(losses[-10:]) < sum(losses[:10])
    for name, parameter in oracle.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    assert len(pyro.get_param_store()) == 0


def test_svi_on_functions_that_announce_nothing_says_what_to_do(x):
    """Pyro alone would take its steps and change nothing, without a word."""
    decoder = nn.Linear(2, 5).double()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=AEVB())

    with pytest.raises(ValueError, match=r"nothing would be trained.*pv\.Program"):
        svi.step(x)


@pytest.mark.parametrize("where", ["a term", "a plate of the guide"])
def test_second_scale_is_refused(where, x):
    """The one scale that is applied is the plate's: any other would be lost without a word."""

    class Scaled(LogisticRows):
        def model(self, x):
            size, factor = (20, 1.0) if where == "a plate of the guide" else (9, 0.5)
            with pyro.plate("data", size, subsample_size=9):
                with pyro.poutine.scale(scale=factor):
                    z = pyro.sample("z", dist.Normal(0.0 * self.offset, 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[:, :1])

    with pytest.raises(ValueError, match=r"is scaled by .*, expected .* like"):
        AEVB().terms(Scaled(), x[:, :2], EMPTY)


class Coin(Program):
    """A guide without ``rsample``: z ~ Bernoulli(1/2), x | z ~ N(z, 1)."""

    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(0.3))

    def model(self, x):
        with pyro.plate("data", len(x)):
            coin = pyro.sample("coin", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(coin, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("coin", dist.Bernoulli(logits=self.logit))


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_guide_without_rsample_is_refused_by_the_name_of_its_site(estimator):
    """Its gradient would be zero without a word."""
    with pytest.raises(ValueError, match=r'site "coin" has the guide Bernoulli.*WakeSleep'):
        AEVB(estimator).terms(Coin(), torch.zeros(3), EMPTY)


class Laplacian(Program):
    """Two latents, one of them with a prior for which torch knows no KL from a Gaussian."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            heavy = pyro.sample("heavy", dist.StudentT(3.0, torch.zeros_like(x), 1.0))
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(heavy + z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("heavy", dist.Normal(self.mean[0].expand(len(x)), 0.5))
            pyro.sample("z", dist.Normal(self.mean[1].expand(len(x)), 0.5))


def test_site_without_a_closed_kl_is_sampled_and_named():
    """The value is then Pyro's, which says nothing; A samples by intention, so it says nothing."""
    program, x = Laplacian(), torch.randn(4, dtype=torch.float64)
    eps = torch.randn(2, 4, dtype=torch.float64)

    with fed(*eps), pytest.warns(PyroVaeWarning, match="no closed KL is known for site 'heavy':"):
        loss, _ = AEVB("B").terms(program, x, EMPTY)

    with fed(*eps):
        expected = TraceMeanField_ELBO().differentiable_loss(program.model, program.guide, x)
    torch.testing.assert_close(loss.sum(), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AEVB("A").terms(program, x, EMPTY)


def said(record):
    return [str(w.message) for w in record if "no closed KL" in str(w.message)]


@pytest.mark.parametrize("engine", ["auto", "eager", "pyro"])
def test_a_sampled_kl_is_said_once_a_fit(engine):
    """Where all warnings are shown, one came at each step, and some more from the capture."""
    x, objective = torch.randn(12, dtype=torch.float64), AEVB()
    for _ in range(2):  # the second fit with an objective says it as well
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            fit(Laplacian(), x, objective, steps=5, batch_size=4, engine=engine)
        assert len(said(record)) == 1


def test_a_sampled_kl_is_said_once_in_anyones_own_svi():
    program, x = Laplacian(), torch.randn(4, dtype=torch.float64)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), loss=AEVB())
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(3):
            svi.step(x)
    assert len(said(record)) == 1


def test_deterministic_site_in_model_and_guide_has_no_term_of_its_own():
    """It is no latent, so it neither asks for a KL nor changes the order of those that are."""

    class Named(Program):
        def __init__(self, names):
            super().__init__()
            self.names = names
            self.mean = nn.Parameter(torch.tensor(0.4))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                if self.names:
                    pyro.deterministic("square", z**2, event_dim=0)
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                if self.names:
                    pyro.deterministic("square", x**2, event_dim=0)
                pyro.sample("z", dist.Normal(self.mean, 1.0))

    found = []
    for names in (False, True):
        with NoiseMode(keyed(2)):
            found.append(AEVB("B").terms(Named(names), torch.zeros(3), EMPTY)[0])

    assert torch.equal(*found)


def test_wrong_options_name_what_is_expected():
    with pytest.raises(ValueError, match='expected "A" or "B"'):
        AEVB("C")
    for wrong in (0, 1.5, -2):
        with pytest.raises(ValueError, match="whole number from 1 on"):
            AEVB(num_particles=wrong)
    with pytest.raises(TypeError, match=r"none is a tensor \(B, \.\.\.\)"):
        AEVB().differentiable_loss(None, None, 1, 2)
