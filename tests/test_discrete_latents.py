"""A mixture VAE: its cluster is summed over by Pyro's TraceEnum_ELBO, or sampled by ours."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import nn
from torch.nn.functional import softplus

import pyro_vae as pv
from pyro_vae.noise import Noise, Stream, keyed
from pyro_vae.objectives import AEVB, ReweightedWakeSleep, ScoreFunction
from pyro_vae.program.base import Program
from pyro_vae.training.batches import Batches

from .oracles import assert_equal, fed, parameter_gradients
from .quickly import some_quickly

F64 = torch.float64
CLUSTERS, DIM, COLUMNS = 3, 2, 6


class MixtureVAE(Program):
    r"""c ~ Categorical(pi), z | c ~ N(centre_c, I), x | z ~ Bernoulli(logits W z + b).

    The guide is q(c | x) q(z | x, c), so that each cluster has a place of its own for z.
    """

    def __init__(self):
        super().__init__()
        self.log_share = nn.Parameter(torch.zeros(CLUSTERS, dtype=F64))
        self.centre = nn.Parameter(torch.randn(CLUSTERS, DIM, dtype=F64))
        self.decoder = nn.Linear(DIM, COLUMNS, dtype=F64)
        self.cluster = nn.Linear(COLUMNS, CLUSTERS, dtype=F64)
        self.encoder = nn.Linear(COLUMNS, DIM, dtype=F64)
        self.shift = nn.Parameter(0.3 * torch.randn(CLUSTERS, DIM, dtype=F64))
        self.log_scale = nn.Parameter(torch.full((CLUSTERS, DIM), -0.3, dtype=F64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.log_share))  # (B,) or (clusters, 1)
            z = pyro.sample("z", dist.Normal(self.centre[c], 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    @config_enumerate
    def guide(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.cluster(x)))
            mean = self.encoder(x) + self.shift[c]
            pyro.sample("z", dist.Normal(mean, self.log_scale[c].exp()).to_event(1))


def enumerated():
    return TraceEnum_ELBO(max_plate_nesting=1)


def bound_by_hand(program, x, eps, weights=None):
    r"""sum_c q(c | x) [log p(c, z_c, x) - log q(c, z_c | x)] of each row.

    eps: (clusters, B, DIM); weights: (B, clusters) in place of q(c | x).
    """
    value = dict(program.named_parameters())
    log_q = (x @ value["cluster.weight"].T + value["cluster.bias"]).log_softmax(-1)
    log_pi = value["log_share"].log_softmax(0)
    total = 0.0
    for c in range(CLUSTERS):
        scale = value["log_scale"][c].exp()
        mean = x @ value["encoder.weight"].T + value["encoder.bias"] + value["shift"][c]
        z = mean + scale * eps[c]
        logits = z @ value["decoder.weight"].T + value["decoder.bias"]
        # Both normals have the same constant: log p(z | c) - log q(z | x, c)
        ratio = (-0.5 * (z - value["centre"][c]) ** 2 + 0.5 * eps[c] ** 2 + scale.log()).sum(-1)
        fit = (x * logits - softplus(logits)).sum(-1)
        weight = log_q[:, c].exp() if weights is None else weights[:, c]
        total = total + weight * (log_pi[c] + ratio + fit - log_q[:, c])
    return total


@pytest.fixture
def patterns():
    """Sixty rows near one of three patterns that share no pixel."""
    base = torch.eye(CLUSTERS, dtype=F64).repeat_interleave(2, dim=1)  # (3, 6)
    rows = base.repeat(20, 1)
    return torch.where(torch.rand(rows.shape, dtype=F64) < 0.05, 1 - rows, rows)


def test_the_loss_is_the_sum_over_the_clusters_at_the_same_noise(patterns):
    """Of TraceEnum_ELBO, value and gradients, as pv.fit's engine calls it."""
    program, x = MixtureVAE(), patterns[:5]
    eps = torch.randn(CLUSTERS, 5, DIM, dtype=F64)
    expected = -bound_by_hand(program, x, eps).sum()
    wanted = parameter_gradients(expected, program)
    program.zero_grad()
    svi = SVI(program.model, program.guide, pyro.optim.SGD({"lr": 0.1}), loss=enumerated())

    with fed(eps):
        loss = svi.loss_and_grads(program.model, program.guide, x)

    got = {name: p.grad for name, p in program.named_parameters()}
    assert loss == pytest.approx(float(expected.detach()), abs=1e-8)
    assert_equal(got, wanted)
    held = program.cluster(x).softmax(-1).detach()  # a mutant: q(c | x) as if it were constant
    mutant = parameter_gradients(-bound_by_hand(program, x, eps, held).sum(), program)
    with pytest.raises(AssertionError):
        assert_equal(got, mutant, tolerance=1e-3)


def test_fit_takes_the_step_that_svi_takes(patterns):
    """Three updates of plain gradient descent, the last on a short batch, noise and all."""
    program = MixtureVAE()
    by_hand = copy.deepcopy(program)

    run = pv.fit(program, patterns[:8], enumerated(), steps=3, batch_size=3, seed=6, engine="pyro",
                 optimizer=torch.optim.SGD, lr=0.01)  # fmt: skip

    batches = Batches(patterns[:8], by_hand, 3, 6)
    for step in range(3):
        _, x, _, count = batches(step)
        noise = Noise("normal", (CLUSTERS, count, DIM), F64, x.device)
        eps = keyed(*Stream.TRAIN.key(6, step))(0, noise)
        loss = -bound_by_hand(by_hand, x[:count], eps).sum()
        with torch.no_grad():
            for name, gradient in parameter_gradients(loss, by_hand).items():
                by_hand.get_parameter(name).sub_(0.01 * gradient)
        assert run.history.loss.iloc[step] == pytest.approx(float(loss.detach()) / count)
    assert_equal(dict(program.named_parameters()), dict(by_hand.named_parameters()))


def test_pyros_name_for_the_sum_is_taken_and_captured(patterns):
    run = pv.fit(MixtureVAE(), patterns, enumerated(), steps=2)

    assert run.manifest["engine"] == "eager" and not run.manifest["engine_reason"]
    assert run.manifest["objective"].startswith("EnumeratedELBO(")


OBJECTIVES = {
    "enumerated": enumerated,
    "reweighted": lambda: ReweightedWakeSleep(num_particles=10),
    "score": lambda: ScoreFunction(num_particles=10),
}
# Each pixel is on in a third of the rows: without latents its entropy is lost, six times over.
WITHOUT_LATENTS = -COLUMNS * (math.log(3) - 2 / 3 * math.log(2))


@pytest.mark.parametrize("name", some_quickly(OBJECTIVES, "enumerated"))
def test_training_finds_the_clusters(patterns, name):
    """Summed over or sampled, the same program learns more than its pixels' shares."""
    torch.manual_seed(3)
    program = MixtureVAE()
    before = pv.elbo(program, patterns, num_particles=200).mean()

    run = pv.fit(program, patterns, OBJECTIVES[name](), steps=200, batch_size=60,
                 optimizer=torch.optim.Adam, lr=0.05, seed=1)  # fmt: skip

    after = pv.elbo(program, patterns, num_particles=200).mean()
    assert after > before + 1
    assert after > WITHOUT_LATENTS + 0.3
    assert run.manifest["engine"] == "eager"


def test_aevb_refuses_a_sampled_cluster_with_the_next_step_and_trace_elbo_weighs_it(patterns):
    """Its gradient would silently be zero; under Pyro's Trace_ELBO it is a score term."""
    with pytest.raises(ValueError, match=r"ScoreFunction\(\).*ReweightedWakeSleep"):
        pv.fit(MixtureVAE(), patterns, AEVB(), steps=2)
    run = pv.fit(MixtureVAE(), patterns, Trace_ELBO(), steps=2)
    assert run.manifest["objective"] == "MixedELBO()"


def test_check_passes_and_says_that_the_guide_is_not_reparameterized(patterns):
    report = pv.check(MixtureVAE(), patterns)

    assert [site.name for site in report.sites] == ["c", "z", "x"]
    assert not report.reparameterized


def test_the_elbo_of_a_sampled_cluster_is_that_of_the_sum(patterns):
    """Over 20,000 draws of (c, z), against draws of z alone and a sum over c; z < 4."""
    program, x = MixtureVAE(), patterns[:1]
    with torch.no_grad():
        program.cluster.bias.copy_(torch.tensor([2.0, 0.0, -2.0]))  # it prefers one cluster
    draws = 20_000
    sampled = pv.elbo(program, x.expand(draws, -1), batch_size=draws, seed=1).double()
    summed = bound_by_hand(
        program, x.expand(draws, -1), torch.randn(CLUSTERS, draws, DIM, dtype=F64)
    ).detach()
    error = ((sampled.var() + summed.var()) / draws) ** 0.5

    assert abs(float(sampled.mean() - summed.mean())) < 4 * float(error)
    held = torch.full((draws, CLUSTERS), 1 / CLUSTERS, dtype=F64)  # a mutant: all alike
    eps = torch.randn(CLUSTERS, draws, DIM, dtype=F64)
    mutant = bound_by_hand(program, x.expand(draws, -1), eps, held).detach()
    assert abs(float(sampled.mean() - mutant.mean())) > 10 * float(error)
