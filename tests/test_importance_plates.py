"""IWAE and reweighted wake-sleep in a subsampled plate, beside Pyro's own, and refusals."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO
from pyro.infer import ReweightedWakeSleep as PyrosReweightedWakeSleep
from torch import nn

from pyro_vae.densities.particles import densities
from pyro_vae.objectives import (
    IWAE,
    Autoencoder,
    DReG,
    Objective,
    ReweightedWakeSleep,
    ScoreFunction,
)
from pyro_vae.objectives.base import EMPTY
from pyro_vae.objectives.weighting import weighted_bound
from pyro_vae.program.base import Program

from .oracles import (
    CORNERS,
    LogisticRows,
    SubsampledRows,
    assert_equal,
    fed,
    logistic_evidence,
    nodes_of,
)
from .test_linear_gaussian import program_of

ROW = CORNERS[2]


class ScaleInside(Objective):
    """A mutant: the plate's scale N / B inside the logarithm; 1 / scale outside, for loss()."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2)
        return -weighted_bound(d.scale * d.log_w) / d.scale


# --- the plate's scale, and Pyro's own ------------------------------------------------------------


def loss_at(elbo, program, x, *noise):
    """The loss in Pyro's own counting, and its gradients."""
    program.zero_grad()
    with fed(*noise) as mode:
        loss = elbo.loss_and_grads(program.model, program.guide, x)
    assert len(mode.asked) == len(noise)
    return loss, {name: p.grad.clone() for name, p in program.named_parameters()}


@pytest.mark.parametrize("objective", [IWAE(2), ReweightedWakeSleep(2), DReG(2)])
def test_scale_of_a_subsampled_plate_stands_outside_the_logarithm(objective):
    """N / B times what the rows alone give, gradients too; a mutant with it inside does not."""
    t = torch.randn(2, 4, 1, dtype=torch.float64)
    whole, part = SubsampledRows(4), SubsampledRows(10)
    for o, right in ((objective, True), (ScaleInside(), False)):
        once, plain = loss_at(o, whole, CORNERS, t)
        scaled, grads = loss_at(o, part, CORNERS, t)
        assert (scaled == pytest.approx(2.5 * once, rel=1e-10)) == right
        same = all(torch.allclose(grads[n], 2.5 * plain[n], rtol=1e-10) for n in plain)
        assert same == right


def test_trap_2_renyi_elbo_of_one_datum_at_scale_one_is_iwae(x):
    """Value and gradients at the same noise: RenyiELBO(alpha=0)."""
    program = program_of("full", "full")
    eps = torch.randn(4, 1, 2, dtype=torch.float64)
    theirs, their_grads = loss_at(RenyiELBO(alpha=0, num_particles=4), program, x[:1], *eps)
    ours, our_grads = loss_at(IWAE(4), program, x[:1], eps)
    assert ours == pytest.approx(theirs, rel=1e-10)
    assert_equal(our_grads, their_grads)


def test_trap_2_renyi_elbo_puts_the_scale_inside_and_passes_the_evidence():
    """With N = 20: Pyro's "bound" is above N log p(x) by quadrature, ours below."""
    program, x = SubsampledRows(20), ROW[None]
    t = torch.randn(2, 1, 1, dtype=torch.float64)
    theirs, _ = loss_at(RenyiELBO(alpha=0, num_particles=2), program, x, *t)
    inside, _ = loss_at(ScaleInside(), program, x, t)
    assert theirs == pytest.approx(inside, rel=1e-10)

    t, v = nodes_of(2, 60)
    with fed(t), torch.no_grad():
        log_w = densities(LogisticRows(), ROW.expand(len(v), -1), 2).log_w
    their_bound, our_bound = v @ weighted_bound(20 * log_w), 20 * (v @ weighted_bound(log_w))
    exact = 20 * logistic_evidence(program, ROW)
    assert our_bound < exact < their_bound


def test_trap_1_pyros_rws_is_ours_for_one_datum_and_pools_weights_for_more(x):
    """Ours on a batch is the sum of Pyro's single data; Pyro's own on the batch is not."""
    program = program_of("full", "full")
    pyros = PyrosReweightedWakeSleep(num_particles=4, vectorize_particles=False)
    eps = torch.randn(4, 9, 2, dtype=torch.float64)
    singles = [loss_at(pyros, program, x[b : b + 1], *eps[:, b : b + 1])[1] for b in range(9)]
    total = {name: sum(grads[name] for grads in singles) for name in singles[0]}

    assert_equal(loss_at(ReweightedWakeSleep(4), program, x, eps)[1], total)
    with pytest.raises(AssertionError, match="not close"):
        assert_equal(loss_at(pyros, program, x, *eps)[1], total)


# --- refusals -------------------------------------------------------------------------------------


class Shared(Program):
    """A global latent."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.2))

    def model(self, x):
        scale = pyro.sample("common", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + scale, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("common", dist.Normal(self.mean, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.mean * x, 1.0))


@pytest.mark.parametrize(
    "objective", [IWAE(2), ReweightedWakeSleep(2), ReweightedWakeSleep(2, 0.5)]
)
def test_global_latents_are_refused_by_name(objective):
    with pytest.raises(ValueError, match=r"'common' is outside pyro\.plate.*use AEVB\(\)"):
        objective.terms(Shared(), torch.zeros(3), EMPTY)


class Penalized(Program):
    """A term outside the plate, and a name for a number there."""

    def __init__(self, term):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.2))
        self.term = term

    def model(self, x):
        self.term("term", -0.5 * self.mean**2)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mean, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x, 1.0))


@pytest.mark.parametrize(
    "objective", [IWAE(2), DReG(2), ReweightedWakeSleep(2), ScoreFunction(2), Autoencoder()]
)
def test_a_factor_outside_the_plate_is_neither_dropped_nor_counted_for_each_datum(objective):
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=r"'term'|\"term\" is outside pyro\.plate"):
        objective.terms(Penalized(pyro.factor), x, objective.init(Penalized(pyro.factor), x))
    named = Penalized(pyro.deterministic)
    losses, _ = objective.terms(named, x, objective.init(named, x))
    assert losses.shape == (3,)


def test_wrong_options_name_what_is_expected():
    for wrong in (0, 1.5, -2):
        with pytest.raises(ValueError, match="whole number from 1 on"):
            IWAE(wrong)
    for wrong in (1, 0):
        with pytest.raises(ValueError, match=r"whole number from 2 on: the weight of a single"):
            ReweightedWakeSleep(wrong)
    with pytest.raises(ValueError, match="whole number from 2 on"):
        ReweightedWakeSleep(1, insomnia=0.1)
    with pytest.raises(ValueError, match="whole number from 1 on"):
        ReweightedWakeSleep(0, insomnia=0.0)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"expected a number in \[0, 1\]: a share"):
            ReweightedWakeSleep(2, insomnia=wrong)
