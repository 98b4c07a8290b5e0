"""Warm-up and free bits of AEVB: what is charged, when, and in every engine."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from pyro_vae import engine
from pyro_vae.densities.particles import densities
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.objectives import AEVB, Objective, ScoreFunction
from pyro_vae.objectives.base import EMPTY, State
from pyro_vae.program.base import Program
from pyro_vae.training.fitting import fit

from .oracles import (
    CORNERS,
    LogisticRows,
    assert_equal,
    bound_by_hand,
    fed,
    gradients,
    kl_by_hand,
    logistic_bound,
    parameter_gradients,
    z_scores,
)
from .programs import Placed
from .test_linear_gaussian import program_of

ROW = CORNERS[2]


def at_step(step):
    return State({}, {"step": torch.tensor(float(step))})


def check_charge(objective, step, share, estimator="B"):
    """The bound by hand, plus (1 - share) of each datum's KL term given back."""
    program = program_of("full", "full")
    x = torch.randn(9, 5, dtype=torch.float64)
    eps = torch.randn(2, 9, 2, dtype=torch.float64)
    expected = bound_by_hand(program, x, eps, estimator)
    if estimator == "B":
        kl, _ = kl_by_hand(program, x, np.ones(9))
        _, forgiven = kl_by_hand(program, x, 1 - share(kl))
    else:  # log q - log p(z), averaged over the draws, by automatic differentiation
        with fed(eps):
            kl = densities(program, x, 2).sampled_kl_terms["z"]
        total = (torch.tensor(1 - share(kl.detach().numpy())) * kl).sum()
        forgiven = parameter_gradients(total, program)
    for name, value in forgiven.items():
        expected[name] = torch.as_tensor(expected[name] - np.asarray(value))
    assert_equal(gradients(program, objective, x, eps, state=at_step(step)), expected)
    return kl


@pytest.mark.parametrize("estimator", ["A", "B"])
@pytest.mark.parametrize(
    ("step", "beta"), [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (4, 1.0), (900, 1.0)]
)
def test_warm_up_charges_the_kl_term_by_the_share_of_updates_done(step, beta, estimator):
    objective = AEVB(estimator, 2, kl_warmup=4)
    check_charge(objective, step, lambda kl: beta + 0 * kl, estimator)


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_free_bits_charge_a_kl_term_where_it_is_above_them_datum_by_datum(estimator):
    """max(free, KL) has the gradient of KL above and none below; no mean over rows is taken."""
    free = 4.0
    objective = AEVB(estimator, 2, free_bits=free)
    kl = torch.as_tensor(check_charge(objective, 0, lambda kl: 1.0 * (kl > free), estimator))
    assert 0 < int((kl > free).sum()) < 9  # both kinds of rows


def test_free_bits_under_a_warm_up_are_warmed_up_as_well():
    objective = AEVB("B", 2, kl_warmup=4, free_bits=4.0)
    check_charge(objective, 1, lambda kl: 0.5 * (kl > 4.0))


@pytest.mark.parametrize(
    ("objective", "step"),
    [(AEVB("B", 2, kl_warmup=4), 0), (AEVB("B", 2), 0), (AEVB("B", 2, kl_warmup=4), 2)],
)
def test_wrong_warm_up_fails(objective, step):
    """Off by one, none at all, and five per cent."""
    share = 0.75 * 1.05 if step else 0.5
    with pytest.raises(AssertionError, match="not close"):
        check_charge(objective, step, lambda kl: share + 0 * kl)


class FreeOnAverage(Objective):
    """A mutant: free bits of the mean over the minibatch, which mixes rows."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2)
        kl = d.kl["z"].mean().clamp_min(4.0)
        return kl - d.log_likelihood.mean(0)


def test_free_bits_of_a_mean_over_the_batch_fail():
    with pytest.raises(AssertionError, match="not close"):
        check_charge(FreeOnAverage(), 0, lambda kl: 1.0 * (kl > 4.0))


class TwoSites(Program):
    """Two latents, whose KL terms for a unit Gaussian are mean^2 / 2 each."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([1.0, 3.0], dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros_like(x), 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(self.gain[0] * x, 1.0))
            pyro.sample("b", dist.Normal(self.gain[1] * x, 1.0))


def test_free_bits_are_free_for_each_latent_and_the_columns_keep_the_full_elbo():
    """A rich latent pays though a poor one does not; ``bound`` and ``kl`` are uncharged numbers."""
    program, x = TwoSites(), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    eps = torch.randn(2, 3, dtype=torch.float64)
    kl = 0.5 * (x * torch.tensor([[1.0], [3.0]])) ** 2  # (sites, B)
    found = {}
    for name, objective, state in (
        ("plain", AEVB("B"), EMPTY),
        ("free", AEVB("B", free_bits=1.5), EMPTY),
        ("warm", AEVB("B", kl_warmup=10), at_step(2)),
    ):
        with fed(*eps):
            found[name] = objective.terms(program, x, state)
    loss, stats = found["plain"]
    torch.testing.assert_close(found["free"][0] - loss, (kl.clamp_min(1.5) - kl).sum(0))
    torch.testing.assert_close(found["warm"][0] - loss, -0.7 * kl.sum(0))
    assert found["warm"][1].pop("kl_weight").tolist() == pytest.approx([0.3] * 3)
    for name in ("free", "warm"):
        assert_equal(found[name][1], stats, tolerance=1e-12)
    torch.testing.assert_close(stats["bound"], -loss.detach())


def test_trap_31_warm_up_moves_in_a_captured_graph():
    """Beta is state, so that no capture freezes it."""
    program, x, objective, key = LogisticRows(), CORNERS, AEVB("B", kl_warmup=8), (3,)
    graph = engine.capture(program, objective, x)
    assert isinstance(graph, engine.Graph), graph
    parameters = {name: p.detach() for name, p in program.named_parameters()}
    weight = torch.ones(4, dtype=torch.float64)
    for step in (0, 3, 20):
        noise = graph.grads.draw(key)
        found, _ = graph.grads(parameters, x, weight, {}, at_step(step).shared, noise=noise)
        assert_equal(found, gradients(program, objective, x, *noise, state=at_step(step)))


@pytest.mark.parametrize("name", ["eager", "pyro"])
def test_warm_up_counts_updates_in_every_engine_and_reports_the_full_bound(name, oracle, x):
    """From the first step: the difference of loss and bound is what is not charged."""
    run = fit(
        oracle, x, AEVB("B", kl_warmup=4), steps=6, batch_size=9, lr=1e-9, engine=name,
        optimizer=torch.optim.SGD, dtype=torch.float64, progress=False,
    )  # fmt: skip
    forgiven = run.history.loss + run.history.bound
    charged = 1 + forgiven / run.history["kl.z"]
    np.testing.assert_allclose(charged.to_numpy(), [0.25, 0.5, 0.75, 1, 1, 1], atol=1e-6)


def test_svi_counts_the_updates_of_a_warm_up(oracle, x):
    objective = AEVB("B", kl_warmup=3)
    svi = SVI(oracle.model, oracle.guide, pyro.optim.SGD({"lr": 0.0}), loss=objective)
    found = []
    for _ in range(4):
        with NoiseMode(keyed(1)):
            found.append(svi.step(x))
    with NoiseMode(keyed(1)):
        loss, stats = AEVB("B").terms(oracle, x, EMPTY)
    full, kl = float(loss.sum().detach()), float(stats["kl.z"].sum())
    np.testing.assert_allclose(found, [full - s * kl for s in (2 / 3, 1 / 3, 0, 0)], rtol=1e-6)


def test_wrong_options_name_what_is_expected():
    for wrong in (0, 1.5, -2):
        with pytest.raises(ValueError, match="whole number from 1 on"):
            ScoreFunction(wrong)
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(
            ValueError, match=r"baseline_decay is .*, expected a number in \[0, 1\)"
        ):
            ScoreFunction(baseline_decay=wrong)
    for wrong in (-1, 2.5):
        with pytest.raises(ValueError, match="expected a whole number from 0 on: updates"):
            AEVB(kl_warmup=wrong)
    for wrong in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"expected a number in \[0, inf\): nats"):
            AEVB(free_bits=wrong)


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_warm_up_and_free_bits_are_unbiased_for_the_charged_bound(estimator):
    """At beta = 1 / 2: the reconstruction less half the KL term, by quadrature and formula."""
    one = LogisticRows()
    mean = (one.gain[0] * ROW).sum() + one.offset[0, 0]
    log_scale = one.log_scale[0, 0]
    kl = -0.5 * (1 + 2 * log_scale - mean**2 - (2 * log_scale).exp())
    expected = parameter_gradients(-(logistic_bound(one, ROW) + 0.5 * kl), one)
    assert z_scores(LogisticRows(20_000), AEVB(estimator, kl_warmup=2), ROW, expected).max() < 4.5


def test_evaluating_the_loss_in_svi_leaves_the_memory_alone():
    program, x = Placed(lambda p: dist.Normal(p, 1.0)), torch.ones(4, 1, dtype=torch.float64)
    objective = AEVB(kl_warmup=10)
    svi = SVI(program.model, program.guide, pyro.optim.SGD({"lr": 0.1}), loss=objective)
    svi.step(x)
    for _ in range(3):
        svi.evaluate_loss(x)
    assert objective._memory.shared["step"] == 1


def test_warm_up_and_free_bits_refuse_latents_that_all_data_share():
    class Shared(Placed):
        def model(self, x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(z.expand(len(x), 1), 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.sample("z", dist.Normal(self.place, 1.0).to_event(1))

    program, x = Shared(None), torch.ones(4, 1, dtype=torch.float64)
    for objective in (AEVB(kl_warmup=10), AEVB("A", free_bits=0.5)):
        with pytest.raises(ValueError, match="'z' is shared by all data"):
            objective.terms(program, x, objective.init(program, x))
